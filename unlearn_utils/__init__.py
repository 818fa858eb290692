"""Unlearning of pre-trained language models: methods, measurements, and the study in the notebooks.

Imports go downwards only: `core` (losses, methods, scores) and `cache` (stored results), `profiles`
(settings), `data` (documents), `engine` (models, training, evaluation), `study` (what the notebooks
compute), `findings` (what they show). `app` is for a user's own model and documents; `runner`
executes the notebooks.
"""

__version__ = "0.1.0"
