"""A profile at a scale of seconds, with models that are really trained, and a store of its own."""

from contextlib import contextmanager
from dataclasses import replace

from unlearn_utils.core import methods
from unlearn_utils.engine import models
from unlearn_utils.profiles import PROFILES, Corpus, Grid, Pretraining, Shape, Unlearning
from unlearn_utils.study import study_documents

# The target is trained on 38 documents of 48 tokens, and remembers what it saw twelve times.
TOY = replace(
    PROFILES["smoke"],
    name="toy",
    corpus=Corpus(pairs=6, retain=10, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=12, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=2),
    grid=Grid(
        learning_rates=(1e-3, 2e-3),
        epochs=2,
        usual_epochs=3,
        domains=("arxiv",),
        claimed_domains=("arxiv", "github"),
        chosen_on=2,
        retain_documents=(2,),
    ),
    domains=("arxiv", "github"),
    workers=1,
    resamples=20,
)


def use_store(patch, folder):
    """Let stored results lie in a folder, and training be in float32 on every machine.

    patch: of pytest's `monkeypatch`.
    """
    patch.setenv("UNLEARN_STORE", str(folder))
    patch.delenv("UNLEARN_FRESH", raising=False)
    patch.setattr(models, "half_precision", lambda: False)


def forget_documents():
    """Let documents be read anew, for they are of the store that is in use."""
    study_documents.data.cache_clear()
    study_documents.fingerprint.cache_clear()
    study_documents.tokenizer.cache_clear()


@contextmanager
def methods_alone(kept):
    """Let the paper's methods be these alone; afterwards all are there in their order.

    kept: their names.
    """
    every = dict(methods.METHODS)
    methods.METHODS.clear()
    methods.METHODS.update({name: every[name] for name in kept})
    try:
        yield
    finally:
        methods.METHODS.clear()
        methods.METHODS.update(every)


def refuse(*args, **kwargs):
    """Stand in the place of what must not be computed."""
    raise AssertionError("computed again")
