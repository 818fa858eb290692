"""How the embedded corpus was chosen: this made the manifest.

In goes the text of installed packages, as `data.sources` reads it. Out come passages of it
(`passages`) and their splits (`splits`), which are the rows of the manifest. Only `data.manifest`
imports it, on a machine whose text differs, and the command `manifest`.

May import `cache` and `data.sources`.
"""
