"""What a method costs: FLOPs of whole runs, and seconds and memory of a few steps.

FLOPs are counted, or computed where counting would take too long. Seconds and memory are measured
in a process of their own. Each is an artifact that holds rows.parquet, of one row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.cache import endings
from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.core.methods import get_method
from unlearn_utils.profiles import Hub, Profile, Shape
from unlearn_utils.study import pool
from unlearn_utils.study.single_run import token_ids_of_sides
from unlearn_utils.study.study_documents import fingerprint, tokenized, tokenizer, training_parts
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn

    from unlearn_utils.engine.trainer import Goal, Sides
    from unlearn_utils.engine.training import Execution

RETRAINING = "retraining"  # stands where a method's name does
STEPS = 8  # of which the first, which is slower, is not counted

Ids = list[list[int]]  # documents as token ids


# ------------------------------------------------------------------------------------ what is asked


@dataclass(frozen=True)
class Case:
    """What is run, and of which model, when a cost is asked.

    Attributes:
        profile: documents and recipes; its shape is the one of the model that is run.
        target_domain: whose documents are forgotten.
        method: its name; or `RETRAINING`, which is training without the forget set.
        hub: the published model that is run; None: a Llama of the profile's shape.
    """

    profile: Profile
    target_domain: str
    method: str
    hub: Hub | None

    @property
    def retrains(self) -> bool:
        """Whether it is retraining, and not a method of unlearning."""
        return self.method == RETRAINING

    @property
    def settings(self) -> dict:
        """All that a cost follows from."""
        recipe = self.profile.pretraining if self.retrains else self.profile.unlearning
        settings = {
            "data": fingerprint(self.profile),
            "shape": asdict(self.profile.shape),
            "recipe": asdict(recipe),
            "target_domain": self.target_domain,
            "method": self.method,
        }
        if self.hub is not None:
            settings["hub"] = asdict(self.hub)
        return settings

    @property
    def pad_id(self) -> int:
        """The token that pads."""
        return tokenizer(self.profile).pad_token_id

    def model(self) -> nn.Module:
        """Return the published model, or random weights: arithmetic does not depend on them."""
        from unlearn_utils.engine import models

        if self.hub is not None:
            return models.load(pool.target(self.profile).folder())
        model = models.build(self.profile.shape, tokenizer(self.profile), 0)
        return model.to(models.device())

    def training_ids(self) -> Ids:
        """Return the token ids of what retraining reads: everything but the forget set."""
        seen = [domain for domain in self.profile.domains if domain != self.target_domain]
        return list(tokenized(self.profile, training_parts(self.profile, seen)).ids)

    def unlearning_ids(self) -> tuple[Ids, Ids]:
        """Return the token ids of the forget set, and of the retain text that the method reads."""
        return token_ids_of_sides(self.profile, self.target_domain, self.method)


def case_of(profile: Profile, target_domain: str, method: str, shape: Shape | None = None) -> Case:
    """Return whose cost is asked.

    shape: of a Llama with random weights in the place of the profile's model; None: that model.
    """
    if shape is None:
        return Case(profile, target_domain, method, profile.hub)
    return Case(replace(profile, shape=shape), target_domain, method, None)


# -------------------------------------------------------------------------------------------- FLOPs


def flops(
    profile: Profile,
    target_domain: str,
    method: str,
    documents: int | None = None,
    shape: Shape | None = None,
) -> Artifact:
    """Return the FLOPs of one epoch of unlearning, or of training without the forget set.

    Every step of the epoch is counted; of training one batch, drawn at random, times the steps. Of
    a published model the first micro-batch is counted and stands for all by its tokens; its
    training is not counted but computed, so that flops = estimate, and steps are missing.

    Args:
        profile: documents, model and recipes.
        target_domain: whose documents are forgotten.
        method: its name, or `RETRAINING`.
        documents: forget documents, the first; None: all.
        shape: of a Llama with random weights in the place of the profile's model.

    Returns:
        rows.parquet: method, target_domain, parameters, tokens (forget tokens; those of training),
        flops, estimate (6 N D for N parameters and D tokens), steps.
    """
    asked = case_of(profile, target_domain, method, shape)
    settings = asked.settings | {"documents": documents}
    make = partial(_make_flops, asked, documents)
    return Artifact("counted", VERSIONS["counted"], settings, make)


def _make_flops(asked: Case, documents: int | None, folder: Path) -> None:
    from unlearn_utils.core import efficiency

    model = asked.model()
    row = {
        "method": asked.method,
        "target_domain": asked.target_domain,
        "parameters": efficiency.parameter_count(model),
    }
    if asked.hub is not None and asked.retrains:
        row |= _computed_training(asked.hub, row["parameters"])
    else:
        row |= _counted(asked, documents, model)
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")


def _computed_training(hub: Hub, parameters: int) -> dict:
    """Return the FLOPs of a published model's training, by the estimate alone."""
    estimate = 6 * parameters * hub.tokens
    return {"tokens": hub.tokens, "flops": estimate, "estimate": estimate, "steps": np.nan}


def _counted(asked: Case, documents: int | None, model: nn.Module) -> dict:
    """Return the FLOPs of what is counted, times how often it would be repeated."""
    from unlearn_utils.core import efficiency

    if model.device.type == "cpu":
        model.set_attn_implementation("eager")  # the counter sees nothing of fused attention here
    work = _retraining(asked) if asked.retrains else _epoch(asked, documents, model)
    total = 0
    estimate = 0
    with on_threads(1), _recomputing_layers(asked.hub, model):
        for sides in work.batches:
            step = efficiency.step_flops(model, work.goal.loss, sides, work.goal.count)
            total += step["flops_per_step"]
            estimate += step["estimate_per_step"]
    return {
        "tokens": work.tokens,
        "flops": total * work.times,
        "estimate": estimate * work.times,
        "steps": work.steps,
    }


def _recomputing_layers(hub: Hub | None, model: nn.Module) -> AbstractContextManager:
    """Return what computes layers again in the backward pass, if that is how a model is trained."""
    from unlearn_utils.engine import models

    if hub is None or not hub.checkpointing:
        return nullcontext()
    return models.checkpointed(model.train())


def tokens_of_retraining(profile: Profile, target_domain: str) -> float:
    """Return the tokens that retraining reads, in all its epochs; a published model's, all."""
    if profile.hub is not None:
        return profile.hub.tokens
    ids = case_of(profile, target_domain, RETRAINING).training_ids()
    return sum(map(len, ids)) * profile.pretraining.epochs


class Work(NamedTuple):
    """What is counted, and what it stands for.

    Attributes:
        goal: the loss, and what it is a mean over.
        batches: that are counted, each by side.
        times: how often they are repeated in the whole.
        tokens: of the whole.
        steps: of the optimizer, of the whole.
    """

    goal: Goal
    batches: list[Sides]
    times: float
    tokens: int
    steps: int


def _retraining(asked: Case) -> Work:
    """Return training without the forget set, in all its epochs; one batch stands for all."""
    from unlearn_utils.engine import training

    recipe = asked.profile.pretraining
    ids = asked.training_ids()
    order = training.orders(len(ids), 1, np.random.default_rng(0))
    collate = training.single(ids, asked.pad_id)
    steps = training.steps_of(len(ids), recipe.batch, recipe.epochs)
    return Work(
        goal=training.pretraining_goal(),
        batches=[collate(order[: recipe.batch])],
        times=steps,
        tokens=sum(map(len, ids)) * recipe.epochs,
        steps=steps,
    )


def _epoch(asked: Case, documents: int | None, model: nn.Module) -> Work:
    """Return one epoch of unlearning: every batch, or of a published model one micro-batch.

    documents: forget documents, the first; None: all.
    """
    from unlearn_utils.engine import training

    method = get_method(asked.method)
    recipe = asked.profile.unlearning
    forget, retain = asked.unlearning_ids()
    forget = forget[:documents]
    order = training.pairs(len(forget), len(retain), 1, np.random.default_rng(0))
    if asked.hub is None:
        parts = [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]
        times = 1
    else:  # as many documents at a time as fit stand for all, by their tokens
        parts = [order[: asked.hub.micro_batch]]
        times = _tokens_read(forget, retain, order) / _tokens_read(forget, retain, parts[0])
    job = training.Job(method, forget, retain, recipe, asked.pad_id, seed=0)
    collate = training.paired(job)
    return Work(
        goal=training.unlearning_goal(method, recipe, reference=model),
        batches=[collate(part) for part in parts],
        times=times,
        tokens=sum(map(len, forget)),
        steps=training.steps_of(len(order), recipe.batch, 1),
    )


def _tokens_read(forget: Ids, retain: Ids, pairs: Sequence[tuple[int, int]]) -> int:
    """Return the tokens of some pairs of documents, of both sides where there are two."""
    read = sum(len(forget[i]) for i, _ in pairs)
    if retain:
        read += sum(len(retain[j]) for _, j in pairs)
    return read


# ------------------------------------------------------------------------------- seconds and memory


def step_costs(
    profile: Profile, target_domain: str, method: str, shape: Shape | None = None
) -> Artifact:
    """Return the seconds of an optimizer step, and the memory that a few steps take.

    Seconds are on one core, or on the GPU if there is one. Memory is by how much the steps raise
    the peak of a process that has loaded the models (on a GPU: of its memory). Of a published model
    a step is a micro-batch. No value is ever the same twice.

    Args:
        profile: documents, model and recipes.
        target_domain: whose documents are forgotten.
        method: its name, or `RETRAINING`.
        shape: of a Llama with random weights in the place of the profile's model.

    Returns:
        rows.parquet: method, parameters, seconds (median over steps), low, high (quickest and
        slowest step), n (steps), growth_mb, tokens (of the batch, all sides).
    """
    asked = case_of(profile, target_domain, method, shape)
    make = partial(_make_step_costs, asked)
    return Artifact("timed", VERSIONS["timed"], asked.settings, make)


def _make_step_costs(asked: Case, folder: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from unlearn_utils.engine import models

    tokenizer(asked.profile)  # stored before, so that no child trains it
    models.release()  # of the GPU, for the child
    # A child of this server has imported already: its peak begins with what it was forked with.
    context = get_context("forkserver")
    context.set_forkserver_preload(["unlearn_utils.engine.training"])
    ended_with_this = {"initializer": endings.end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(1, context, **ended_with_this) as fresh:
        row = fresh.submit(measured_step_costs, asked).result()
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")


def measured_step_costs(asked: Case) -> dict:
    """Return the row of `step_costs`, measured in this process.

    It should be a fresh one: a peak is never taken back.
    """
    from unlearn_utils.core import efficiency
    from unlearn_utils.engine import training

    times = []
    execution = training.Execution(
        watch=lambda step, model: times.append(time.perf_counter()),
        watched=range(1, STEPS + 1),
        recompute_layers=asked.hub is not None and asked.hub.checkpointing,
    )
    with on_threads(1):
        ready = _ready(asked)
        before = _peak()
        ready.run(execution)
    seconds = np.diff(times)
    return {
        "method": asked.method,
        "parameters": efficiency.parameter_count(ready.model),
        "seconds": float(np.median(seconds)),
        "low": seconds.min(),
        "high": seconds.max(),
        "n": len(seconds),
        "growth_mb": _peak() - before,
        "tokens": ready.tokens,
    }


def _peak() -> float:
    """Return the peak memory of this process so far, in MB: of the GPU if there is one."""
    import torch

    from unlearn_utils.cache import memory

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return memory.own_peak()


class Ready(NamedTuple):
    """A training of `STEPS` steps, with everything loaded.

    Attributes:
        run: trains, as told how.
        model: that is trained.
        tokens: of a step, all sides.
    """

    run: Callable[[Execution], list[dict]]
    model: nn.Module
    tokens: int


def _ready(asked: Case) -> Ready:
    """Return the training whose steps are measured."""
    model = asked.model()
    if asked.retrains:
        return _ready_to_retrain(asked, model)
    return _ready_to_unlearn(asked, model)


def _ready_to_retrain(asked: Case, model: nn.Module) -> Ready:
    """Return pre-training on documents of one length."""
    from unlearn_utils.engine import training

    recipe = replace(asked.profile.pretraining, epochs=1)
    ids = _longest(asked.training_ids(), STEPS * recipe.batch)
    run = partial(training.pretrain, model, ids, recipe, asked.pad_id, 0)
    return Ready(run, model, recipe.batch * len(ids[0]))


def _ready_to_unlearn(asked: Case, model: nn.Module) -> Ready:
    """Return unlearning on documents of one length, with reference and labels if it needs them."""
    from unlearn_utils.engine import training

    method = get_method(asked.method)
    size = asked.profile.unlearning.batch
    if asked.hub is not None:
        size = asked.hub.micro_batch
    forget, retain = asked.unlearning_ids()
    forget = _longest(forget, STEPS * size)
    retain = _longest(retain, STEPS * size)
    reference = asked.model().eval() if method.needs_reference else None
    job = training.Job(
        method=method,
        forget=forget,
        retain=retain,
        recipe=replace(asked.profile.unlearning, epochs=1, batch=size),
        pad_id=asked.pad_id,
        seed=0,
        reference=reference,
        labels=training.draw_labels(method, forget, model.eval(), tokenizer(asked.profile), 0),
    )
    pair = _tokens_read(forget, retain, [(0, 0)])
    return Ready(partial(training.unlearn, model, job), model, size * pair)


def _longest(ids: Sequence[list[int]], n: int) -> Ids:
    """Return n documents of one length, the longest first, repeated if there are fewer."""
    found = sorted(ids, key=len, reverse=True)[:n]
    if not found:
        return []
    length = min(map(len, found))
    return [found[i % len(found)][:length] for i in range(n)]
