"""Training, unlearning and measuring a model: everything that runs one.

In go a model and documents as token ids. Out come a trained or unlearned model, the history of its
training (`training`), and a row of measurements for each document (`evaluation`) or for each
question of a task (`downstream`). Nothing here knows the store of results.

May import `core`, `cache`, `profiles` and `data`.
"""
