"""The commands for a user's own documents and models: unlearn, evaluate, compare, methods.

In go documents, a model on disk or on the hub, and a method; out comes a folder with the new model
and with what was measured before and after, or a table of measurements. This folder may import
core, cache, profiles, data and engine; it imports nothing of study, findings or runner. What
defines arguments imports no library that takes time, so that `--help` is instant.
"""
