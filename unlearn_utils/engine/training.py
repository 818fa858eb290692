"""Pre-training and unlearning on `transformers.Trainer` (accelerate under it)."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, get_constant_schedule, get_cosine_schedule_with_warmup

from unlearn_utils.core import fused, losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import distributed, layers, models, optimizers, trainer
from unlearn_utils.engine.trainer import LossOfSides, Objective, ObjectiveTrainer, Sides, Watch, Watcher
from unlearn_utils.profiles import Pretraining, Unlearning

Ids = Sequence[list[int]]  # documents as token ids
REFERENCE_BYTES = 2**30  # the reference's hidden states are kept up to this size


# ---------------------------------------------------------------------------------------------- data, in a seeded order


def orders(n: int, epochs: int, generator: np.random.Generator) -> list[int]:
    """Document numbers of `epochs` passes over n documents, each pass in an order of its own."""
    return [int(i) for _ in range(epochs) for i in generator.permutation(n)]


def pairs(forget: int, retain: int, epochs: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Each forget document of each pass, paired with a retain document; retain documents come round only when all were used."""
    ours = orders(forget, epochs, generator)
    theirs = orders(max(1, retain), math.ceil(len(ours) / max(1, retain)), generator)
    return list(zip(ours, theirs[: len(ours)], strict=True))


def single(documents: Ids, pad_id: int) -> Callable[[Sequence[int]], Sides]:
    """Collates document numbers for pre-training."""
    return lambda chosen: {"text": tokens.collate([documents[i] for i in chosen], pad_id)}


def paired(
    method: str,
    forget: Ids,
    retain: Ids,
    pad_id: int,
    labels: Ids | None = None,
    reference_hidden: Mapping[int, Tensor] | None = None,
) -> Callable[[Sequence[tuple[int, int]]], Sides]:
    """Collates pairs of document numbers; the retain side only if the method reads it.

    labels: of each forget document. reference_hidden: of each retain document, (tokens, d), as `objectives.kl_loss` takes them.
    """

    def collate(chosen: Sequence[tuple[int, int]]) -> Sides:
        ours = [i for i, _ in chosen]
        sides = {"forget": tokens.collate([forget[i] for i in ours], pad_id, labels and [labels[i] for i in ours])}
        if methods.get_method(method).retain:
            sides["retain"] = tokens.collate([retain[j] for _, j in chosen], pad_id)
            if reference_hidden:
                states = [reference_hidden[j] for _, j in chosen]
                sides["retain"]["reference_hidden"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
        return sides

    return collate


@torch.no_grad()
def hidden_of(reference: nn.Module, retain: Ids, visits: Sequence[int], pad_id: int) -> dict[int, Tensor]:
    """The reference's hidden states (tokens, d) of the retain documents that a run visits; none if no document is visited twice, or if
    they would take more than `REFERENCE_BYTES`: then they are computed with each batch, at the same cost or for less memory."""
    once = sorted(set(visits))
    size = sum(len(retain[j]) for j in once) * reference.config.get_text_config().hidden_size * 4
    if len(once) == len(visits) or size > REFERENCE_BYTES:
        return {}
    found = {}
    with torch.autocast(reference.device.type, torch.bfloat16, enabled=models.half_precision()):  # as they would be in training
        for some in (once[i : i + 8] for i in range(0, len(once), 8)):
            batch = {k: v.to(reference.device) for k, v in tokens.collate([retain[j] for j in some], pad_id).items()}
            states = fused.hidden_states(reference, batch["input_ids"], batch["attention_mask"]).cpu()
            found |= {j: state[: len(retain[j])] for j, state in zip(some, states, strict=True)}
    return found


def check_sets(method: str, forget: Ids, retain: Ids) -> None:
    """Raises ValueError for an empty forget set, for an empty retain set that the method reads, and for documents in both sets."""
    if not forget:
        raise ValueError("the forget set is empty")
    if methods.get_method(method).retain and not retain:
        raise ValueError(f"the retain set is empty, and {method} reads it")
    kept = {tuple(ids): j for j, ids in enumerate(retain)}
    both = [f"{i} = retain {kept[tuple(ids)]}" for i, ids in enumerate(forget) if tuple(ids) in kept]
    if both:
        raise ValueError(f"documents in both sets, after truncation: forget {', forget '.join(both[:5])}; remove them from one")


def draw_labels(
    method: str, forget: Ids, model: nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int, variant="corrected"
) -> Ids | None:
    """Replacement labels of each forget document, drawn once from the original model or a seeded generator; None for ascent."""
    if methods.get_method(method).forget == "ascent":
        return None
    generator, special = torch.Generator().manual_seed(seed), tuple(tokenizer.all_special_ids)
    rows = min(len(tokenizer), len(fused.head_of(model).weight))  # Gemma 3's tokenizer has an id more than its head
    batches = ({k: v.to(model.device) for k, v in tokens.collate([ids], tokenizer.pad_token_id).items()} for ids in forget)
    drawn = [methods.replacement_labels(method, b, model, generator, rows, special, variant) for b in batches]
    return [labels[0].tolist() for labels in drawn]


def steps_of(documents: int, batch: int, epochs: int) -> int:
    """Optimizer steps of a run. The last batch of the last epoch may be smaller."""
    return math.ceil(documents * epochs / batch)


# ---------------------------------------------------------------------------------------------- objectives of a run


def pretraining_objective(model: nn.Module, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
    """Mean next-token loss over the optimizer batch."""
    return losses.next_token_loss(model, sides["text"], counts["text"])


def unlearning_objective(method: str, recipe: Unlearning, reference: nn.Module | None = None) -> LossOfSides:
    """`methods.unlearning_loss` with everything but model and batch filled in."""

    def loss(model: nn.Module, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        both = (counts["forget"], counts.get("retain"))
        return methods.unlearning_loss(
            method, model, sides["forget"], sides.get("retain"), reference, recipe.variant, both, recipe.retain_weight
        )

    return loss


# ---------------------------------------------------------------------------------------------- runs


def pretrain(
    model: nn.Module, documents: Ids, recipe: Pretraining, pad_id: int, seed: int, watch: Watch | None = None, watched: Sequence[int] = ()
) -> list[dict]:
    """Trains `model` in place on every document; returns its history: step, loss (nats a token), learning_rate. watch: as `unlearn`."""
    order = orders(len(documents), recipe.epochs, np.random.default_rng(seed))
    steps = steps_of(len(order), recipe.batch, 1)
    optimizer = optimizers.muon_and_adamw(model, recipe.muon_learning_rate, recipe.adamw_learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
    objective = Objective(model, pretraining_objective)
    layers.quicken(model)
    callbacks = [Watcher(watch, watched)] if watch else []
    return _run(objective, order, single(documents, pad_id), (optimizer, schedule), recipe.batch, recipe.max_grad_norm, seed, callbacks)


def unlearn(
    model: nn.Module,
    method: str,
    forget: Ids,
    retain: Ids,
    recipe: Unlearning,
    pad_id: int,
    seed: int,
    reference: nn.Module | None = None,
    labels: Ids | None = None,
    watch: Watch | None = None,
    watched: Sequence[int] = (),
    micro_batch: int | None = None,
    steps: int | None = None,
    checkpoints: Path | None = None,
    checkpointing: bool = False,
) -> list[dict]:
    """Unlearns `forget` in place; each forget document is paired with a retain document where the method has a retain term.

    reference: the original model, for KL. labels: replacement labels of each forget document (`draw_labels`). watch, watched: called
    with the model at these steps, 0 among them; it ends the run by returning True. micro_batch: documents at a time in one process, its
    share of the recipe's batch if None. steps: end after so many, which gives the same model as the longer run has at that step.
    checkpoints: a folder, of all processes, for one checkpoint every tenth of the run; called again after it was killed, the same run
    goes on from the last. It is the caller's to remove; None writes nothing.
    checkpointing: of layers, as `models.checkpointed`, for less memory and more time.
    Under `accelerate launch` every process calls this alike, and a batch is that of all together. FSDP leaves the model sharded:
    `loop.save` writes it. Returns the history: step, loss, learning_rate.
    Raises ValueError for sets as `check_sets` says, for an unknown method, for KL without a reference, for a batch that does not divide.
    """
    check_sets(method, forget, retain)
    if steps == 0 or (watch and 0 in watched and watch(0, model)):
        return []
    folder = checkpoints and checkpoints / _name(model, (*forget, *retain, *(labels or ())), method, recipe, seed, steps)
    layers.quicken(model)
    if reference is not None:
        layers.quicken(reference.to(distributed.process_state().device), reference=True)
    order = pairs(len(forget), len(retain), recipe.epochs, np.random.default_rng(seed))
    kept = reference is not None and 2 not in methods.defects(recipe.variant)  # defect 2 reads the reference where texts are padded
    hidden = hidden_of(reference, retain, [j for _, j in order], pad_id) if kept else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    with models.checkpointed(model) if checkpointing else nullcontext():
        return _run(
            Objective(model, unlearning_objective(method, recipe, reference)),
            order[: steps and steps * recipe.batch],
            paired(method, forget, retain, pad_id, labels, hidden),
            (optimizer, _schedule(optimizer, recipe, steps_of(len(order), recipe.batch, 1))),
            recipe.batch,
            recipe.max_grad_norm,
            seed,
            [Watcher(watch, watched)] if watch else [],
            micro_batch,
            methods.averages_micro_batches(recipe.variant),
            folder,
        )


def _name(model: nn.Module, documents: Ids, *settings) -> str:
    """Of a run, for its checkpoints: no other run's are taken for its own. Of each weight the first number counts."""
    digest = hashlib.sha256(repr(settings).encode())
    for ids in documents:
        digest.update(np.array([len(ids), *ids]).tobytes())
    for weight in model.parameters():
        digest.update(repr(weight.detach().flatten()[:1].tolist()).encode())
    return digest.hexdigest()[:16]


def _schedule(optimizer: torch.optim.Optimizer, recipe: Unlearning, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule. The released code warms up over 3% of the steps, rounded up, and starts at rate 0 (defect 5)."""
    if recipe.schedule == "constant":
        return get_constant_schedule(optimizer)
    return get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * steps) if "warm-up" in recipe.schedule else 0, steps)


def _run(
    objective, order, collate, optimizers, batch, max_grad_norm, seed, callbacks=(), micro_batch=None, averaged=False, checkpoints=None
) -> list[dict]:
    """Drives the Trainer once through `order`, in that order, in this process and those beside it; writes into `checkpoints`, if at all."""
    processes = distributed.process_state().num_processes
    size = micro_batch or max(1, batch // processes)
    parts = trainer.micro_batches(order, batch, size, processes)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=checkpoints / trainer.UNFINISHED if checkpoints else scratch,
            per_device_train_batch_size=1,  # of `parts`
            gradient_accumulation_steps=batch // size // processes,
            num_train_epochs=1,  # `order` already holds every epoch
            train_sampling_strategy="sequential",
            max_grad_norm=max_grad_norm,
            bf16=models.half_precision(),
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # a diverged run must look like one
            save_strategy="steps" if checkpoints else "no",
            save_steps=math.ceil(len(order) / batch / 10),
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # a launcher's configuration does not overrule it
        arguments._n_gpu = min(1, arguments.n_gpu)  # a process drives one GPU: several take `accelerate launch`
        loop = ObjectiveTrainer(
            objective,
            averaged,
            args=arguments,
            train_dataset=parts,
            data_collator=trainer.collated(collate, order[:1]),
            optimizers=optimizers,
            callbacks=list(callbacks),
        )
        loop.train(loop.last() if checkpoints else None)
    trainer.unwrap_layers(objective.model)
    objective.model.eval()
    kept = ("step", "loss", "learning_rate")
    return [{k: row[k] for k in kept} for row in loop.state.log_history if "loss" in row]
