"""Pre-training and unlearning on `transformers.Trainer`, with accelerate under it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    get_constant_schedule,
    get_cosine_schedule_with_warmup,
)

from unlearn_utils.core import fused, losses, methods
from unlearn_utils.core.methods import Method
from unlearn_utils.data import tokens
from unlearn_utils.engine import architecture, distributed, layers, models, optimizers, trainer
from unlearn_utils.engine.trainer import (
    Factor,
    Goal,
    Objective,
    ObjectiveTrainer,
    Sides,
    Watch,
    Watcher,
)
from unlearn_utils.profiles import Pretraining, Unlearning

Ids = Sequence[list[int]]  # documents as token ids
REFERENCE_BYTES = 2**30  # the reference's hidden states are kept up to this size
CHECKPOINTS = 10  # of a run
EARLY_TRAINED = 3  # layers, of methods of early hidden states: arXiv 2403.03218


# ---------------------------------------------------------------------- what is run, and how


@dataclass(frozen=True)
class Job:
    """What is unlearned: all that decides the result.

    Attributes:
        method: one of `methods.every()`, or your own.
        forget, retain: token ids of each document; each forget document is paired with a retain
            document where the method has a retain term.
        recipe: learning rate, epochs, batch and so on.
        pad_id: the token that pads; it never counts.
        seed: decides the order of the documents.
        reference: the original model, for methods that need it.
        labels: of each forget document, as `draw_labels` gives them; None: its own tokens.
        nested: documents are drawn pass by pass (`nested_pairs`), so that every longer run begins
            with the same steps; the study draws the forget documents of all passes first (`pairs`).
        retain_labels: of each retain document; None: its own tokens.
    """

    method: Method
    forget: Ids
    retain: Ids
    recipe: Unlearning
    pad_id: int
    seed: int
    reference: nn.Module | None = None
    labels: Ids | None = None
    nested: bool = False
    retain_labels: Ids | None = None

    def order(self) -> list[tuple[int, int]]:
        """Return the pairs of document numbers that are read, in their order."""
        forget, retain = len(self.forget), len(self.retain)
        generator = np.random.default_rng(self.seed)
        if self.nested:
            number = documents_of(forget, self.recipe.epochs)
            return nested_pairs(forget, retain, number, generator)
        return pairs(forget, retain, self.recipe.epochs, generator)


@dataclass(frozen=True)
class Execution:
    """How a job is executed: nothing here changes the result at a step.

    Attributes:
        watch, watched: `watch(step, model)` is called after these steps, and before the first if 0
            is among them; it ends the run by returning True.
        micro_batch: documents at a time in one process; None: its share of the recipe's batch.
        steps: end after so many; None: all.
        checkpoints: a folder, the same in all processes, for a checkpoint every tenth of the run.
            Called again after it was killed, the same run goes on from the last one. The caller
            removes the folder. None writes nothing.
        recompute_layers: layers are computed again in the backward pass, for less memory and more
            time (`models.checkpointed`).
    """

    watch: Watch | None = None
    watched: Sequence[int] = ()
    micro_batch: int | None = None
    steps: int | None = None
    checkpoints: Path | None = None
    recompute_layers: bool = False

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer calls on the way."""
        return [Watcher(self.watch, self.watched)] if self.watch else []


# ------------------------------------------------------------------------ data, in a seeded order


def orders(n: int, epochs: int, generator: np.random.Generator) -> list[int]:
    """Return document numbers of `epochs` passes over n documents, each in an order of its own."""
    return [int(number) for _ in range(epochs) for number in generator.permutation(n)]


def hashed_orders(names: Sequence[str], epochs: int, seed: int) -> list[int]:
    """Return document numbers of `epochs` passes, each in the order of a hash.

    The hash is of the seed, the pass and the document's name. So the order of documents among
    themselves does not change when others are left out.
    """
    found = []
    for epoch in range(epochs):
        hashes = {}
        for number, name in enumerate(names):
            hashes[number] = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
        found += sorted(hashes, key=hashes.get)
    return found


def pairs(
    forget: int, retain: int, epochs: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Return each forget document of each pass, paired with a retain document.

    forget, retain: how many there are. Retain documents come round only when all were used.
    """
    ours = orders(forget, epochs, generator)
    some = max(1, retain)
    theirs = orders(some, math.ceil(len(ours) / some), generator)
    return list(zip(ours, theirs[: len(ours)], strict=True))


def nested_pairs(
    forget: int, retain: int, number: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Return as many pairs as are asked for, of passes without end, of which more begin alike.

    Each pass draws its forget documents, then the retain documents that it lacks; so a first whole
    pass is that of `pairs`.
    """
    some = max(1, retain)
    ours: list[int] = []
    theirs: list[int] = []
    while len(ours) < number:
        ours += orders(forget, 1, generator)
        while len(theirs) < len(ours):
            theirs += orders(some, 1, generator)
    return list(zip(ours[:number], theirs[:number], strict=True))


def single(documents: Ids, pad_id: int) -> Callable[[Sequence[int]], Sides]:
    """Return what collates document numbers for pre-training."""
    return lambda chosen: {"text": tokens.collate([documents[i] for i in chosen], pad_id)}


def paired(
    job: Job, reference_hidden: Mapping[int, Tensor] | None = None
) -> Callable[[Sequence[tuple[int, int]]], Sides]:
    """Return what collates pairs of document numbers; a retain side only where it is read.

    reference_hidden: of each retain document, (tokens, d), as `losses.kl_loss` takes them.
    """

    def collate(chosen: Sequence[tuple[int, int]]) -> Sides:
        ours = [forget for forget, _ in chosen]
        labels = [job.labels[i] for i in ours] if job.labels else None
        sides = {"forget": tokens.collate([job.forget[i] for i in ours], job.pad_id, labels)}
        if job.method.retain is None:
            return sides
        theirs = [retain for _, retain in chosen]
        labels = [job.retain_labels[j] for j in theirs] if job.retain_labels else None
        sides["retain"] = tokens.collate([job.retain[j] for j in theirs], job.pad_id, labels)
        if reference_hidden:
            states = [reference_hidden[j] for j in theirs]
            padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
            sides["retain"]["reference_hidden"] = padded
        return sides

    return collate


@torch.no_grad()
def hidden_of(
    reference: nn.Module, retain: Ids, visits: Sequence[int], pad_id: int
) -> dict[int, Tensor]:
    """Return the reference's hidden states (tokens, d) of the retain documents that a run visits.

    Return none if no document is visited twice, or if they would take more than `REFERENCE_BYTES`:
    then they are computed with each batch, at the same cost or for less memory.
    """
    once = sorted(set(visits))
    size = sum(len(retain[j]) for j in once) * fused.reading_of(reference).width * 4
    if len(once) == len(visits) or size > REFERENCE_BYTES:
        return {}
    found = {}
    device = reference.device
    as_in_training = models.half_precision()
    with torch.autocast(device.type, torch.bfloat16, enabled=as_in_training):
        for start in range(0, len(once), 8):
            some = once[start : start + 8]
            batch = tokens.collate([retain[j] for j in some], pad_id, device=device)
            states = fused.hidden_states(reference, batch["input_ids"], batch["attention_mask"])
            for j, state in zip(some, states.cpu(), strict=True):
                found[j] = state[: len(retain[j])]
    return found


def check_sets(method: Method, forget: Ids, retain: Ids) -> None:
    """Check that the sets can be used.

    Raises:
        ValueError: the forget set is empty; so is a retain set that the method reads; or documents
            are in both sets.
    """
    if not forget:
        raise ValueError("the forget set is empty")
    if method.retain is not None and not retain:
        raise ValueError(f"the retain set is empty, and {method.name} reads it")
    kept = {tuple(ids): j for j, ids in enumerate(retain)}
    both = []
    for i, ids in enumerate(forget):
        if tuple(ids) in kept:
            both.append(f"forget {i} = retain {kept[tuple(ids)]}")
    if both:
        listed = ", ".join(both[:5])
        raise ValueError(
            f"documents in both sets, after truncation: {listed}; remove them from one"
        )


def draw_labels(
    method: Method,
    forget: Ids,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    variant: str | Iterable[int] = "corrected",
    labels: Ids | None = None,
) -> Ids | None:
    """Return the labels of each forget document, drawn once; without replacement, those given.

    They come from the original model or from a seeded generator. Only tokens that the tokenizer has
    are drawn: a head may have rows beyond them, which were never trained.

    labels: of each forget document, of which -100 stays; None: its own tokens.
    """
    if not method.replaces_labels:
        return labels
    generator = torch.Generator().manual_seed(seed)
    head_rows = fused.reading_of(model).logits
    ordinary = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    never = tuple(sorted(set(range(head_rows)) - ordinary))
    vocabulary = min(len(tokenizer), head_rows)  # Gemma 3's tokenizer has an id more than its head
    drawn = []
    for ids, own in zip(forget, labels or forget, strict=True):
        batch = tokens.collate([ids], tokenizer.pad_token_id, [own], model.device)
        new = methods.replacement_labels(
            method, batch, model, generator, vocabulary, never, variant
        )
        drawn.append(new[0].tolist())
    return drawn


def documents_of(documents: int, epochs: float) -> int:
    """Return how many documents a run reads, in all its epochs; of a part of one it is rounded."""
    return round(documents * epochs)


def steps_of(documents: int, batch: int, epochs: float) -> int:
    """Return the optimizer steps of a run. The last batch of the last epoch may be smaller."""
    return math.ceil(documents_of(documents, epochs) / batch)


# ------------------------------------------------------------------------------- goals of a run


def pretraining_goal() -> Goal:
    """Return the mean next-token loss over the optimizer batch."""

    def loss(model: nn.Module, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        return losses.next_token_loss(model, sides["text"], counts["text"])

    return Goal(loss, {"text": losses.predicted_tokens})


def distillation_goal(teacher: nn.Module) -> Goal:
    """Return the mean of KL(P_teacher || P_model) over the optimizer batch."""

    def loss(model: nn.Module, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        return losses.kl_to_reference(model, sides["text"], teacher, counts["text"])

    return Goal(loss, {"text": losses.predicted_tokens})


def unlearning_goal(method: Method, recipe: Unlearning, reference: nn.Module | None = None) -> Goal:
    """Return `methods.unlearning_loss` with everything but model and batch filled in."""

    def loss(model: nn.Module, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        return methods.unlearning_loss(
            method,
            model,
            sides["forget"],
            sides.get("retain"),
            reference,
            recipe.variant,
            (counts["forget"], counts.get("retain")),
            recipe.retain_weight,
        )

    return Goal(loss, {side: term.count for side, term in method.terms.items()})


# ----------------------------------------------------------------------------------------- runs


def pretrain(
    model: nn.Module,
    documents: Ids,
    recipe: Pretraining,
    pad_id: int,
    seed: int,
    execution: Execution | None = None,
    names: Sequence[str] | None = None,
    first: int = 0,
) -> list[dict]:
    """Train `model` in place on every document, in the order of `hashed_orders`.

    Args:
        model: that is trained.
        documents: their token ids.
        recipe: epochs, batch and rates.
        pad_id: the token that pads; it never counts.
        seed: decides the order of the documents.
        execution: how it is executed.
        names: of the documents, by which they are ordered; None: their numbers.
        first: how many of the first steps are left out. The rest are those of the whole training,
            with its rates; the optimizer begins anew.

    Returns:
        The history: step, loss (nats a token), learning_rate.
    """
    named = names if names is not None else [str(number) for number in range(len(documents))]
    order = hashed_orders(named, recipe.epochs, seed)
    execution = execution or Execution()
    goal = pretraining_goal()
    return _pass_through(model, goal, documents, order, recipe, pad_id, seed, execution, first)


def distil(
    model: nn.Module,
    teacher: nn.Module,
    documents: Ids,
    recipe: Pretraining,
    pad_id: int,
    seed: int,
    names: Sequence[str],
) -> list[dict]:
    """Train `model` in place to predict as its teacher does, with all else as in `pretrain`.

    teacher: stays as it is.

    Returns:
        The history, as `pretrain`; its loss is KL(P_teacher || P_model).
    """
    order = hashed_orders(names, recipe.epochs, seed)
    layers.quicken(teacher.to(distributed.process_state().device), reference=True)
    goal = distillation_goal(teacher)
    return _pass_through(model, goal, documents, order, recipe, pad_id, seed, Execution(), 0)


def _pass_through(
    model: nn.Module,
    goal: Goal,
    documents: Ids,
    order: Sequence[int],
    recipe: Pretraining,
    pad_id: int,
    seed: int,
    execution: Execution,
    first: int,
) -> list[dict]:
    """Train a model on the documents in an order, from a step of the recipe's schedule on."""
    steps = steps_of(len(order), recipe.batch, 1)
    optimizer = optimizers.of_pretraining(model, recipe)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # a schedule that begins on its way asks for it
    warmup = round(recipe.warmup * steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps, last_epoch=first - 1)
    layers.quicken(model)
    return _run(
        Objective(model, goal),
        order[first * recipe.batch :],
        single(documents, pad_id),
        (optimizer, schedule),
        recipe,
        seed,
        execution,
    )


def unlearn(model: nn.Module, job: Job, execution: Execution | None = None) -> list[dict]:
    """Unlearn in place.

    Under `accelerate launch` every process calls this alike, and a batch is that of all together.
    FSDP leaves the model sharded: `models.save` writes it.

    Returns:
        The history: step, loss, learning_rate.

    Raises:
        ValueError: the sets, as `check_sets` says; a reference is needed and missing; a batch does
            not divide among micro-batches and processes; or FSDP divides a model whose whole
            weights the method takes.
    """
    execution = execution or Execution()
    recipe, reference = job.recipe, job.reference
    check_sets(job.method, job.forget, job.retain)
    negated = job.method.forget.negated
    if negated is not None:
        check_whole(job)
        execution = replace(execution, watch=_seen_negated(execution.watch, job))
    if execution.steps == 0:
        return []
    if execution.watch and 0 in execution.watched and execution.watch(0, model):
        return []
    checkpoints = None
    if execution.checkpoints:
        checkpoints = execution.checkpoints / _name(model, job, execution.steps)
    layers.quicken(model)
    if reference is not None:
        device = distributed.process_state().device
        layers.quicken(reference.to(device), reference=True)
    order = job.order()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = _schedule(optimizer, recipe, steps_of(len(order), recipe.batch, 1))
    read = order
    if execution.steps:
        read = order[: execution.steps * recipe.batch]
    recomputed = nullcontext()
    if execution.recompute_layers:
        recomputed = models.checkpointed(model)
    method, factor = _with_factor(job.method, model.device)
    with recomputed, trained_alone(model, method):
        history = _run(
            Objective(model, unlearning_goal(method, recipe, reference), factor),
            read,
            paired(job, _kept_hidden(job, order)),
            (optimizer, schedule),
            recipe,
            job.seed,
            execution,
            averaged=methods.averages_micro_batches(recipe.variant),
            checkpoints=checkpoints,
        )
    if negated is not None:
        _negate(model, job)
    return history


def _with_factor(method: Method, device: torch.device) -> tuple[Method, Factor | None]:
    """Return the method with its retain term multiplied, and by what, where a multiplier does."""
    if method.retain is None or method.retain.multiplier is None:
        return method, None
    factor = Factor(method.retain.multiplier, device)
    return replace(method, retain=factor.on(method.retain)), factor


# -------------------------------------------------------------------------------- task vectors


def check_whole(job: Job) -> None:
    """Check that what a task vector needs is there: the original weights, and the model's whole.

    Raises:
        ValueError: they are not.
    """
    name = job.method.name
    if job.reference is None:
        raise ValueError(f"{name} needs the original model as reference")
    if distributed.sharded():
        raise ValueError(
            f"{name} needs whole weights in each process: use DDP in the place of FSDP"
        )


@torch.no_grad()
def _negate(model: nn.Module, job: Job) -> None:
    """Put the original weights less the changes of the model's own in their place."""
    pairs = zip(model.parameters(), job.reference.parameters(), strict=True)
    for weight, original in pairs:
        change = weight - original
        weight.copy_(original - job.method.forget.negated * change)


def _seen_negated(watch: Watch | None, job: Job) -> Watch | None:
    """Return a watch that sees the model as it would end after each step."""
    if watch is None:
        return None

    def seen(step: int, model: nn.Module) -> bool | None:
        trained = [weight.detach().clone() for weight in model.parameters()]
        _negate(model, job)
        stop = watch(step, model)
        with torch.no_grad():
            for weight, before in zip(model.parameters(), trained, strict=True):
                weight.copy_(before)
        return stop

    return seen


# ------------------------------------------------------------------------ what a method trains


@contextmanager
def trained_alone(model: nn.Module, method: Method) -> Iterator[None]:
    """Train what the method trains, and no more, inside.

    A method of early hidden states trains the last three layers that they come through: their
    adapters, where there are some.
    """
    frozen = []
    if method.early:
        kept = set()
        for layer in layers_trained_early(model):
            kept.update(layer.parameters())
        for name, weight in model.named_parameters():
            if weight.requires_grad and weight not in kept:
                frozen.append(name)
    _set_trained(model, frozen, False)
    yield
    _set_trained(model, frozen, True)


def layers_trained_early(model: nn.Module) -> list[nn.Module]:
    """Return the layers that a method of early hidden states trains."""
    every = architecture.decoder_layers(model)
    last = fused.early_layers(len(every))
    return every[max(0, last - EARLY_TRAINED) : last]


def _set_trained(model: nn.Module, names: Sequence[str], trained: bool) -> None:
    """Set whether the weights of these names are trained. FSDP puts others in their places."""
    weights = dict(model.named_parameters())
    for name in names:
        weights[name].requires_grad_(trained)


def _kept_hidden(job: Job, order: Sequence[tuple[int, int]]) -> dict[int, Tensor] | None:
    """Return the reference's hidden states of retain text, where the retain term reads them.

    They are the last ones, not early ones. Defect 2 reads the reference where texts are padded, so
    nothing can be kept for it.
    """
    retain = job.method.retain
    if job.reference is None or retain is None or not retain.needs_reference or retain.early:
        return None
    if 2 in methods.defects(job.recipe.variant):
        return None
    return hidden_of(job.reference, job.retain, [j for _, j in order], job.pad_id)


def _name(model: nn.Module, job: Job, steps: int | None) -> str:
    """Return a name of the run for its checkpoints, so that no other run's are taken for its own.

    Of each weight the first number counts.
    """
    settings = (job.method.name, job.recipe, job.seed, steps, job.nested)
    digest = hashlib.sha256(repr(settings).encode())
    for ids in (*job.forget, *job.retain, *(job.labels or ()), *(job.retain_labels or ())):
        digest.update(np.array([len(ids), *ids]).tobytes())
    for weight in model.parameters():
        digest.update(repr(weight.detach().flatten()[:1].tolist()).encode())
    return digest.hexdigest()[:16]


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: Unlearning, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the recipe's schedule.

    The released code warms up over 3% of the steps, rounded up, and starts at rate 0 (defect 5).
    """
    if recipe.schedule == "constant":
        return get_constant_schedule(optimizer)
    warmup = math.ceil(0.03 * steps) if "warm-up" in recipe.schedule else 0
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def _run(
    objective: Objective,
    order: Sequence,
    collate: Callable[[Sequence], Sides],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler],
    recipe: Pretraining | Unlearning,
    seed: int,
    execution: Execution,
    averaged: bool = False,
    checkpoints: Path | None = None,
) -> list[dict]:
    """Drive the Trainer once through `order`, in that order, in all processes together.

    Args:
        objective: model and goal.
        order: what `collate` takes, one entry a document.
        optimizers: the optimizer and its schedule.
        averaged: micro-batches are averaged, not summed.
        checkpoints: the folder of this run's checkpoints; None writes none.
    """
    processes = distributed.process_state().num_processes
    size = execution.micro_batch or max(1, recipe.batch // processes)
    parts = trainer.micro_batches(order, recipe.batch, size, processes)
    accumulated = recipe.batch // size // processes
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoints:
            steps_apart = math.ceil(len(order) / recipe.batch / CHECKPOINTS)
            arguments = _arguments(
                checkpoints / trainer.UNFINISHED,
                recipe,
                seed,
                accumulated,
                save_strategy="steps",
                save_steps=steps_apart,
            )
        else:
            arguments = _arguments(Path(scratch), recipe, seed, accumulated, save_strategy="no")
        loop = ObjectiveTrainer(
            objective,
            averaged,
            args=arguments,
            train_dataset=parts,
            data_collator=trainer.collated(collate, order[:1]),
            optimizers=optimizers,
            callbacks=execution.callbacks,
        )
        loop.train(loop.last() if checkpoints else None)
    trainer.unwrap_layers(objective.model)
    objective.model.eval()
    kept = ("step", "loss", "learning_rate")
    logged = [row for row in loop.state.log_history if "loss" in row]
    return [{name: row[name] for name in kept} for row in logged]


def _arguments(
    folder: Path, recipe: Pretraining | Unlearning, seed: int, accumulated: int, **saving: object
) -> TrainingArguments:
    """Return the Trainer's settings.

    Args:
        folder: where the Trainer writes, if at all.
        accumulated: micro-batches of one process in an optimizer batch.
        saving: settings of checkpoints.
    """
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1,  # an entry of the data set is a micro-batch already
        gradient_accumulation_steps=accumulated,
        num_train_epochs=1,  # the order already holds every epoch
        train_sampling_strategy="sequential",
        max_grad_norm=recipe.max_grad_norm,
        bf16=models.half_precision(),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must look like one
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **saving,
    )
    # whatever a launcher's file says
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    arguments._n_gpu = min(1, arguments.n_gpu)  # a process drives one GPU
    return arguments
