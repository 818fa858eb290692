"""Results kept on disk: a computation and its settings go in, a folder of checked files comes out.

`paths` owns the folders and the variables, `store` the artifacts, `workers` the processes that fill
them side by side, `progress` what these say, `endings` how they end, `memory` what they take. It
imports nothing else of the package, and torch only where something is computed.
"""
