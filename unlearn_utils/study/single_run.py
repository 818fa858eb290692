"""One unlearning run: from a stored model, over a domain's forget set, looked at on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearn_utils.core.methods import get_method
from unlearn_utils.profiles import Profile, Unlearning
from unlearn_utils.study.study_documents import tokenized, tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unlearn_utils.engine.trainer import Watch
    from unlearn_utils.engine.training import Execution


@dataclass(frozen=True)
class Run:
    """All that decides the result of one unlearning run, but for the model that it starts from.

    Attributes:
        profile: says which documents are read, and the published model, if there is one.
        target_domain: whose documents are forgotten.
        method: its name.
        recipe: learning rate, epochs, batch and so on.
        replicate: whose target is unlearned; also the seed of the order of documents, and of labels
            that are drawn.
        retain_documents: how many there are to draw from, the first; None: all.
        lora_rank: of the LoRA adapters that are trained alone, with twice that as alpha; they are
            merged with the weights that are kept. None: every weight is trained.
    """

    profile: Profile
    target_domain: str
    method: str
    recipe: Unlearning
    replicate: int = 0
    retain_documents: int | None = None
    lora_rank: int | None = None


class Outcome(NamedTuple):
    """What a run gives.

    Attributes:
        weights: by name, in the first process; none after no step.
        history: step, loss, learning_rate, of each optimizer step.
        seconds: of training alone.
    """

    weights: dict[str, Tensor]
    history: list[dict]
    seconds: float


# --------------------------------------------------------------------------------- what a run reads


def token_ids_of_sides(
    profile: Profile, target_domain: str, method: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the forget set, and of the retain text that the method reads.

    Retain text is none, the domain's own, or general text. The retain documents that are measured
    are withheld: else a method with retain text of the domain would be judged by what it has just
    been trained on.
    """
    forget = list(tokenized(profile, [(target_domain, "forget")]).ids)
    source = get_method(method).retain_domain(target_domain)
    if source is None:
        return forget, []
    retain = tokenized(profile, [(source, "retain")])
    if source == target_domain:
        retain = retain[retain["rank"] >= profile.corpus.measured]
    # A chunk of a published document may stand in another one too: a licence, for example.
    forgotten = {tuple(ids) for ids in forget}
    return forget, [ids for ids in retain.ids if tuple(ids) not in forgotten]


def steps_of_run(run: Run) -> int:
    """Return the optimizer steps of a run."""
    from unlearn_utils.engine import training

    documents = len(tokenized(run.profile, [(run.target_domain, "forget")]))
    return training.steps_of(documents, run.recipe.batch, run.recipe.epochs)


# ------------------------------------------------------------------------- looking at it on its way


def marks(total: int) -> list[int]:
    """Return the steps at which a run of `total` steps is measured whatever it has done.

    They double from the first step on; the last step is among them.
    """
    found = [2**power for power in range(total.bit_length())]
    return sorted({*found, total})


class _TimedWatch:
    """A watch that counts its own seconds, which are no part of training.

    Attributes:
        watch: what is called.
        seconds: that its calls took so far.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seconds = 0.0

    def __call__(self, step: int, model: nn.Module) -> bool | None:
        """Return what the watch says: whether to stop."""
        began = time.perf_counter()
        stop = self.watch(step, model)
        self.seconds += time.perf_counter() - began
        return stop


# ----------------------------------------------------------------------------------- the run itself


def execute(
    run: Run,
    start: Path,
    watch: Watch | None = None,
    watched: Sequence[int] = (),
    steps: int | None = None,
) -> Outcome:
    """Unlearn from the model of a folder.

    In several processes all call it alike, and the first has the weights.

    Args:
        run: what is unlearned.
        start: the folder of the model.
        watch: called as watch(step, model) at the `watched` steps; ends the run by returning True.
        watched: those steps.
        steps: end after so many; None: all. After 0 there are no weights, as `load_with_weights`
            takes them.
    """
    from unlearn_utils.engine import adapters, distributed, models, training

    if steps == 0:
        return Outcome(weights={}, history=[], seconds=0.0)
    method = get_method(run.method)
    model = models.load(start)
    model_tokenizer = tokenizer(run.profile)
    forget, retain = token_ids_of_sides(run.profile, run.target_domain, run.method)
    reference = models.load(start) if method.needs_reference else None
    timed = _TimedWatch(watch) if watch else None
    execution = _execution(run, timed, watched, steps)

    began = time.perf_counter()
    labels = training.draw_labels(
        method, forget, model, model_tokenizer, run.replicate, run.recipe.variant
    )
    if run.lora_rank is not None:
        model = adapters.add(model, run.lora_rank, 2 * run.lora_rank, run.replicate)
    job = training.Job(
        method=method,
        forget=forget,
        retain=retain[: run.retain_documents],
        recipe=run.recipe,
        pad_id=model_tokenizer.pad_token_id,
        seed=run.replicate,
        reference=reference,
        labels=labels,
    )
    history = training.unlearn(model, job, execution)
    weights = distributed.gathered_state(adapters.merged(model))
    seconds = time.perf_counter() - began
    if timed is not None:
        seconds -= timed.seconds
    return Outcome(weights, history, seconds)


def _execution(
    run: Run, watch: Watch | None, watched: Sequence[int], steps: int | None
) -> Execution:
    """Return how a run is executed: a published model reads a few chunks at a time."""
    from unlearn_utils.engine import distributed, training

    hub = run.profile.hub
    if hub is None:
        return training.Execution(watch=watch, watched=watched, steps=steps)
    share = run.recipe.batch // distributed.process_state().num_processes
    return training.Execution(
        watch=watch,
        watched=watched,
        micro_batch=math.gcd(share, hub.micro_batch),
        steps=steps,
        recompute_layers=hub.checkpointing and not distributed.launcher_checkpoints(),
    )


def load_with_weights(start: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the model of a folder with the weights that it had at some step of a run.

    weights: tied ones once; with none, the model keeps its own.

    Raises:
        ValueError: the weights are of another model.
    """
    from unlearn_utils.engine import models

    model = models.load(start)
    if weights:
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"{start}: weights of another model, {unknown[0]} among them")
    return model
