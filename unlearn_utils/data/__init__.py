"""Documents, and the token ids that models read.

In goes where text lies: installed packages, a repository of the hub, or a folder of the user's own.
Out come the domains of a corpus, each with its splits (`corpus`), published models and data of
pinned revisions (`hub`), and batches of token ids (`tokens`). `curation` says how the embedded
corpus was chosen.

May import `core`, `cache` and `profiles`.
"""
