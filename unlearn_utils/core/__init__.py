"""The mathematics: tensors, arrays and tables go in; losses, labels, scores and intervals come out.

`methods` is the table of methods and of what each needs, `membership` the table of scores. Nothing
here reads a file, a setting or the environment. It imports nothing else of the package.
"""
