"""What the notebooks read: models, paths and measurements, each an artifact of the store.

In go a profile and choices. Out come artifacts, which are not computed again once they are stored,
and tables of what they hold, one row a document: `pool` has targets and retrained models by
replicate, `method_paths` what a method makes of a target on its way. PyTorch is imported by the
functions that compute and not by those that read, so that a notebook which finds its results in the
store starts at once.

May import `core`, `cache`, `profiles`, `data` and `engine`.
"""
