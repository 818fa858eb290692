"""One unlearning run: from a stored model, over a domain's forget set, looked at on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unlearn_utils.profiles import Profile, Unlearning
from unlearn_utils.study import selection
from unlearn_utils.study.study_documents import tokenized, tokenizer

if TYPE_CHECKING:
    from torch import Tensor

DIVERGED = 10  # a run whose forget perplexity passes this many times a uniform guess (the vocabulary) has diverged, and ends


def watched_steps(total: int) -> list[int]:
    """Every step up to the eighth, where most methods pass the retrained model's level; then three more, the last among them."""
    later = np.geomspace(8, total, 4).round().astype(int).tolist() if total > 8 else []
    return sorted({*range(1, min(8, total) + 1), *later})


def steps_of_run(profile: Profile, domain: str, recipe: Unlearning) -> int:
    """Optimizer steps of a run."""
    from unlearn_utils.engine import training

    return training.steps_of(len(tokenized(profile, [(domain, "forget")])), recipe.batch, recipe.epochs)


def has_diverged(profile: Profile, rows: pd.DataFrame) -> bool:
    """Whether forget perplexity is past `DIVERGED` times a uniform guess; NaN is past any bound."""
    return not selection.log_perplexity(rows, "forget") < np.log(DIVERGED * profile.shape.vocabulary)


def token_ids_of_sides(profile: Profile, domain: str, method: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the forget set, and of the retain text that the method reads (none, the domain's, or general)."""
    from unlearn_utils.core import methods

    source = {None: None, "general": "general", "in_distribution": domain}[methods.get_method(method).retain_text]
    forget = list(tokenized(profile, [(domain, "forget")]).ids)
    if not source:
        return forget, []
    both = set(map(tuple, forget))  # a chunk of a published document may stand in another, too: a licence
    return forget, [ids for ids in tokenized(profile, [(source, "retain")]).ids if tuple(ids) not in both]


def run(
    profile: Profile,
    start: Path,
    domain: str,
    method: str,
    recipe: Unlearning,
    seed: int,
    watch: Callable | None = None,
    watched: Sequence[int] = (),
    steps: int | None = None,
    retain_documents: int | None = None,
) -> tuple:
    """One run from the model of the folder `start`: (weights, history, seconds of training alone); at `steps` 0 no weights, for `at`.

    watch: called as watch(step, model) at the `watched` steps; ends the run by returning True. retain_documents: only so many to draw from.
    In several processes all call it alike, and the first has the weights.
    """
    from unlearn_utils.core import methods
    from unlearn_utils.engine import distributed, models, training

    if steps == 0:
        return {}, [], 0.0
    model, tok = models.load(start), tokenizer(profile)
    forget, retain = token_ids_of_sides(profile, domain, method)
    reference = models.load(start) if methods.get_method(method).retain == "kl" else None
    paused = 0.0

    def timed(step: int, model) -> bool:
        nonlocal paused
        paused_at = time.perf_counter()
        stop = watch(step, model)
        paused += time.perf_counter() - paused_at
        return stop

    began = time.perf_counter()
    labels = training.draw_labels(method, forget, model, tok, seed, recipe.variant)
    history = training.unlearn(
        *(model, method, forget, retain[:retain_documents], recipe, tok.pad_token_id, seed, reference, labels),
        *(timed if watch else None, watched),
        micro_batch=profile.hub and math.gcd(recipe.batch // distributed.process_state().num_processes, profile.hub.micro_batch),
        steps=steps,
        checkpointing=bool(profile.hub and profile.hub.checkpointing and not distributed.launcher_checkpoints()),
    )
    return distributed.gathered_state(model), history, time.perf_counter() - began - paused


def at(start: Path, weights: Mapping[str, Tensor]):
    """The model of the folder `start` with the weights that it had at some step of a run (tied ones once); its own if there are none."""
    from unlearn_utils.engine import models

    model = models.load(start)
    if weights and (unknown := model.load_state_dict(weights, strict=False).unexpected_keys):
        raise ValueError(f"{start}: weights of another model, {unknown[0]} among them")
    return model
