"""What the notebooks read: models, runs and measurements, each an artifact of the store.

In go a profile and choices. Out come artifacts, which are not computed again once they are stored,
and tables of what they hold, one row a document. PyTorch is imported by the functions that compute
and not by those that read, so that a notebook which finds its results in the store starts at once.

May import `core`, `cache`, `profiles`, `data` and `engine`.
"""
