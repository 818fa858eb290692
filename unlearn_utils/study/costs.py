"""What a method costs: FLOPs counted over whole runs, seconds and memory of a few steps in a process of their own. Each is a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.profiles import Hub, Profile, Shape
from unlearn_utils.study.pool import target
from unlearn_utils.study.single_run import token_ids_of_sides
from unlearn_utils.study.study_documents import fingerprint, tokenized, tokenizer, training_parts
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn

RETRAINING = "retraining"  # stands where a method's name does
STEPS = 8  # of which the first, which is slower, is not counted


def flops(profile: Profile, domain: str, method: str, documents: int | None = None, shape: Shape | None = None) -> Artifact:
    """FLOPs of one epoch over the first so many forget documents (None: all), every step counted; or, `RETRAINING`, of training without
    the forget set: its first step, times the steps. rows.parquet, one row: method, run, parameters, tokens (forget tokens; those of
    training), flops, estimate (6 N D), steps.

    shape: of a Llama with random weights in the place of the profile's model. Of a published model the first micro-batch is counted and
    stands for all by its tokens, and its training is not counted but computed: flops = estimate, steps missing.
    """
    profile = replace(profile, shape=shape) if shape else profile
    recipe = asdict(profile.pretraining if method == RETRAINING else profile.unlearning)
    settings = {"data": fingerprint(profile), "shape": asdict(profile.shape), "recipe": recipe}
    settings |= {"domain": domain, "method": method, "documents": documents} | _published(profile, shape)
    return Artifact("counted", VERSIONS["counted"], settings, partial(_make_flops, profile, domain, method, documents, shape))


def _hub(profile: Profile, shape: Shape | None) -> Hub | None:
    """The published model whose cost is asked; None where it is that of a model with random weights."""
    return None if shape else profile.hub


def _published(profile: Profile, shape: Shape | None) -> dict:
    """What a published model adds to the settings of a step."""
    hub = _hub(profile, shape)
    return {"hub": asdict(hub)} if hub else {}


def _model(profile: Profile, shape: Shape | None):
    """The published model, or, for a profile without one or a shape of its own, random weights: arithmetic does not depend on them."""
    from unlearn_utils.engine import models

    if _hub(profile, shape):
        return models.load(target(profile).folder())
    return models.build(profile.shape, tokenizer(profile), 0).to(models.device())


def _make_flops(profile: Profile, domain: str, method: str, limit: int | None, shape: Shape | None, folder: Path) -> None:
    from unlearn_utils.core import efficiency
    from unlearn_utils.engine import models

    model, hub = _model(profile, shape), _hub(profile, shape)
    row = {"method": method, "target_domain": domain, "parameters": efficiency.parameter_count(model)}
    if hub and method == RETRAINING:
        computed = 6 * row["parameters"] * hub.tokens
        row |= {"tokens": hub.tokens, "flops": computed, "estimate": computed, "steps": np.nan}
    else:
        if model.device.type == "cpu":
            model.set_attn_implementation("eager")  # torch's counter sees nothing of fused attention on a CPU
        loss, batches, tokens, times, steps = _work(profile, domain, method, limit, model, hub)
        with on_threads(1), models.checkpointed(model.train()) if hub and hub.checkpointing else nullcontext():
            found = [efficiency.step_flops(model, loss, sides) for sides in batches]
        flops, estimate = (sum(one[k] for one in found) * times for k in ("flops_per_step", "estimate_per_step"))
        row |= {"tokens": tokens, "flops": flops, "estimate": estimate, "steps": steps}
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")


def _work(profile: Profile, domain: str, method: str, limit: int | None, model, hub: Hub | None) -> tuple[Callable, list, int, float, int]:
    """The loss, the batches to count, the tokens that they stand for, how many times they do so, and the optimizer steps."""
    from unlearn_utils.engine import training

    pad, recipe = tokenizer(profile).pad_token_id, profile.unlearning
    if method == RETRAINING:
        ids = list(tokenized(profile, training_parts(profile, domain)).ids)
        size, epochs = profile.pretraining.batch, profile.pretraining.epochs
        batch = training.single(ids, pad)(training.orders(len(ids), 1, np.random.default_rng(0))[:size])
        steps = training.steps_of(len(ids), size, epochs)
        return training.pretraining_objective, [batch], sum(map(len, ids)) * epochs, steps, steps
    forget, retain = token_ids_of_sides(profile, domain, method)
    forget = forget[:limit]
    order, collate = training.pairs(len(forget), len(retain), 1, np.random.default_rng(0)), training.paired(method, forget, retain, pad)
    loss, tokens = training.unlearning_objective(method, recipe, model), sum(map(len, forget))
    steps = training.steps_of(len(order), recipe.batch, 1)
    if hub:  # as many at a time as fit, for all by their tokens
        read = np.array([len(forget[i]) + (len(retain[j]) if retain else 0) for i, j in order])
        return loss, [collate(order[: hub.micro_batch])], tokens, read.sum() / read[: hub.micro_batch].sum(), steps
    return loss, [collate(order[i : i + recipe.batch]) for i in range(0, len(order), recipe.batch)], tokens, 1, steps


# ---------------------------------------------------------------------------------------------- seconds and memory


def step_costs(profile: Profile, domain: str, method: str, shape: Shape | None = None) -> Artifact:
    """Seconds of an optimizer step on one core, or on the GPU if there is one, and by how much a few steps raise the peak memory of a
    process that has loaded the models (on a GPU: its memory). Of a published model a step is a micro-batch.

    rows.parquet, one row: method, parameters, seconds (median over steps), low, high (quickest, slowest step), n (steps), growth_mb, tokens
    (of the batch, all sides). Never the same twice.
    """
    profile = replace(profile, shape=shape) if shape else profile
    recipe = asdict(profile.pretraining if method == RETRAINING else profile.unlearning)
    settings = {"data": fingerprint(profile), "shape": asdict(profile.shape), "recipe": recipe, "domain": domain, "method": method}
    settings |= _published(profile, shape)
    return Artifact("timed", VERSIONS["timed"], settings, partial(_make_step_costs, profile, domain, method, shape))


def _make_step_costs(profile: Profile, domain: str, method: str, shape: Shape | None, folder: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from unlearn_utils.engine import models

    tokenizer(profile)  # stored before, so that no child trains it
    models.release()  # of the GPU, for the child
    context = get_context("forkserver")  # which has imported already; a child's peak begins with what it was forked with
    context.set_forkserver_preload(["unlearn_utils.engine.training"])
    with ProcessPoolExecutor(1, context) as fresh:
        row = fresh.submit(measured_step_costs, profile, domain, method, shape).result()
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")


def measured_step_costs(profile: Profile, domain: str, method: str, shape: Shape | None = None) -> dict:
    """One row of `timed`, measured in this process, which should be a fresh one: a peak is never taken back."""
    from unlearn_utils.core import efficiency

    times = []
    with on_threads(1):
        run, model, size = _runner(profile, domain, method, shape)
        before = _peak()
        run(watch=lambda step, _: times.append(time.perf_counter()), watched=range(1, STEPS + 1))
    seconds = np.diff(times)
    found = {"seconds": float(np.median(seconds)), "low": seconds.min(), "high": seconds.max(), "n": len(seconds)}
    return {"method": method, "parameters": efficiency.parameter_count(model), **found, "growth_mb": _peak() - before, "tokens": size}


def _peak() -> float:
    """Peak memory of this process so far, in MB: of the GPU if there is one."""
    import torch

    from unlearn_utils.cache import memory

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else memory.own_peak()


def _runner(profile: Profile, domain: str, method: str, shape: Shape | None) -> tuple[Callable, nn.Module, int]:
    """What runs `STEPS` steps, once given a watch; the model; the tokens of a step."""
    from unlearn_utils.core import methods
    from unlearn_utils.engine import training

    tok = tokenizer(profile)
    model = _model(profile, shape)
    if method == RETRAINING:
        size = profile.pretraining.batch
        ids = _longest(list(tokenized(profile, training_parts(profile, domain)).ids), STEPS * size)
        recipe = replace(profile.pretraining, epochs=1)
        return partial(training.pretrain, model, ids, recipe, tok.pad_token_id, 0), model, size * len(ids[0])
    hub = _hub(profile, shape)
    size = hub.micro_batch if hub else profile.unlearning.batch
    forget, retain = (_longest(side, STEPS * size) for side in token_ids_of_sides(profile, domain, method))
    reference = _model(profile, shape).eval() if methods.get_method(method).retain == "kl" else None
    labels = training.draw_labels(method, forget, model.eval(), tok, 0)
    recipe = replace(profile.unlearning, epochs=1, batch=size)
    given = (model, method, forget, retain, recipe, tok.pad_token_id, 0, reference, labels)
    run = partial(training.unlearn, *given, checkpointing=bool(hub and hub.checkpointing))
    return run, model, size * (len(forget[0]) + (len(retain[0]) if retain else 0))


def _longest(ids: Sequence[list[int]], n: int) -> list[list[int]]:
    """n documents of one length, the longest first, repeated if there are fewer."""
    found = sorted(ids, key=len, reverse=True)[:n]
    if not found:
        return []
    length = min(map(len, found))
    return [found[i % len(found)][:length] for i in range(n)]
