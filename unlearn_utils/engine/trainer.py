"""The Trainer that runs an objective: one or many processes, with checkpoints on the way.

Started by `accelerate launch`, every process takes its part of each optimizer batch; losses and
gradients are those of one process. Only the first process writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object, reduce
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from unlearn_utils.core import fused, losses
from unlearn_utils.core.methods import Multiplier, Term

Sides = Mapping[str, losses.Batch]  # "forget" and "retain", or "text": one batch each
Watch = Callable[[int, nn.Module], bool | None]  # step, model -> whether to stop

UNFINISHED = "unfinished"  # where a checkpoint is written before it gets its name
WEIGHTS = "trained.safetensors"


class Goal(NamedTuple):
    """What a run minimises, and over what.

    Attributes:
        loss: (model, sides, counts) -> scalar; counts are those of the whole optimizer batch.
        count: for each side, what counts the tokens or sequences that its loss is a mean over.
    """

    loss: Callable[[nn.Module, Sides, Mapping[str, Tensor]], Tensor]
    count: Mapping[str, Callable[[losses.Batch], Tensor]]


# ------------------------------------------------------------------------------ parts of a batch


class Idle(dict):
    """The sides of a micro-batch for a process that no document is left for.

    It takes part in the step and adds nothing.
    """

    @classmethod
    def like(cls, sides: Sides) -> Idle:
        """Return the same sides with nothing to predict."""
        idle = cls()
        for name, side in sides.items():
            nothing = torch.full_like(side["labels"], losses.IGNORED)
            idle[name] = {**side, "labels": nothing}
        return idle


def micro_batches(order: Sequence, batch: int, size: int, processes: int) -> list[Sequence]:
    """Return `order` cut into optimizer batches, and these into micro-batches of `size`.

    There is one for each process in turn. Where the last optimizer batch does not go round, empty
    ones follow, so that every process has equally many.

    Raises:
        ValueError: processes would not get equally many micro-batches of a full optimizer batch.
    """
    if size < 1 or batch % (size * processes):
        among = f" on each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"micro_batch {size}{among} does not divide the batch of {batch} documents"
        )
    parts = []
    for start in range(0, len(order), batch):
        whole = order[start : start + batch]
        for i in range(0, len(whole), size):
            parts.append(whole[i : i + size])
    while len(parts) % processes:
        parts.append([])
    return parts


def collated(
    collate: Callable[[Sequence], Sides], example: Sequence
) -> Callable[[Sequence[Sequence]], Sides]:
    """Return what collates the one micro-batch of a list.

    An empty micro-batch becomes `Idle` sides like the example's.
    """

    def one(parts: Sequence[Sequence]) -> Sides:
        (chosen,) = parts
        if not chosen:
            return Idle.like(collate(example))
        return collate(chosen)

    return one


# -------------------------------------------------------------------------------------- the loop


class Factor(nn.Module):
    """The multiplier of a term on its way through a run.

    Attributes:
        rule: how it follows the loss.
        value: its value now, a buffer, which checkpoints keep.
        seen: the loss so far in this optimizer batch, of this process. It is no buffer: DDP makes
            those of all processes alike.
    """

    def __init__(self, rule: Multiplier, device: torch.device) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("value", torch.tensor(float(rule.start), device=device))
        self.seen = torch.zeros((), device=device)

    def on(self, term: Term) -> Term:
        """Return the term with its loss multiplied, and seen."""
        loss = term.loss_function()

        def multiplied(*given: object) -> Tensor:
            found = loss(*given)
            self.seen = self.seen + found.detach()
            return self.value * found

        return replace(term, loss=multiplied)

    def follow(self) -> None:
        """Go on to the next optimizer step, with the loss that all processes have seen in this."""
        self.value.copy_(self.rule.after(self.value, reduce(self.seen, "sum")))
        self.seen = torch.zeros_like(self.seen)


class Following(TrainerCallback):
    """Lets the objective's factor follow, after each optimizer step."""

    def on_step_end(self, args, state, control, model: Objective, **_) -> None:
        """Let it follow, before a checkpoint is written."""
        if model.factor is not None:
            model.factor.follow()


class Objective(nn.Module):
    """A model whose forward is the loss.

    So autocast, DDP and FSDP wrap exactly what is differentiated. FSDP shards each decoder layer by
    itself, and embeddings, last norm and head with this module: they are whole during its forward,
    which reads the head's weight without calling the head.
    """

    def __init__(self, model: nn.Module, goal: Goal, factor: Factor | None = None) -> None:
        super().__init__()
        self.model = model
        self.goal = goal
        self.factor = factor  # that the goal uses
        # names of the layers, for accelerate
        self._no_split_modules = getattr(fused.unwrapped(model), "_no_split_modules", None)

    def forward(self, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss of one micro-batch; those of an optimizer batch add up."""
        return self.goal.loss(self.model, sides, counts)


class ObjectiveTrainer(Trainer):
    """A Trainer whose losses are normalised by the whole optimizer batch, side by side.

    The Trainer's own count reads one `labels`; ours counts what each side's loss is a mean over,
    in all micro-batches and all processes.

    Checkpoints hold what is trained and the factor (safetensors), optimizer, schedule and random
    generators (torch.save, read with weights_only=True) and the history (JSON); under FSDP
    accelerate writes the first two. A folder `checkpoint-N` is complete: it gets its name last.

    Attributes:
        averaged: the loss is a mean over its own micro-batch instead (the released code), and
            micro-batches are averaged.
        parts: what a loss is divided by: then the micro-batches of an optimizer batch, else 1.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        objective: Objective,
        averaged: bool = False,
        optimizers: tuple = (None, None),
        **options,
    ) -> None:
        super().__init__(model=objective, **options)
        self.averaged = averaged
        self.parts = 1
        self.count = objective.goal.count
        # not passed on: under FSDP the Trainer refuses those that exist
        self.optimizer, self.lr_scheduler = optimizers
        self.remove_callback(PrinterCallback)
        self.add_callback(Following())
        if self.is_fsdp_enabled and self.accelerator.mixed_precision == "bf16":
            self._sum_in_float32()

    def _sum_in_float32(self) -> None:
        """Let FSDP sum gradients in float32: accelerate's own policy rounds sums and loss, too."""
        self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Sides], num_batches: int, device: torch.device
    ) -> tuple[list[Sides], dict[str, Tensor]]:
        """Return this process's micro-batches of one optimizer batch, and the counts of all of it.

        The counts are those that `Goal.count` says, one for each side.
        """
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return [], {}
        counts = {}
        for side in batches[0]:
            ours = sum(self.count[side](batch[side]) for batch in batches).to(device)
            counts[side] = self.accelerator.reduce(ours, "sum")
        if self.averaged:
            busy = sum(not isinstance(batch, Idle) for batch in batches)
            self.parts = self.accelerator.reduce(torch.tensor(busy, device=device), "sum")
        return batches, counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Sides,
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the objective's loss, times the number of processes, which average gradients.

        num_items_in_batch: the counts.
        """
        share = 0 if isinstance(inputs, Idle) else self.accelerator.num_processes
        return model(inputs, num_items_in_batch) * share / self.parts

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Return what puts autocast around the loss.

        accelerate puts it around the model, but not around one that FSDP2 shards; the reference
        needs it too.
        """
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    # ------------------------------------------------------------------------------- checkpoints

    def last(self) -> str | None:
        """Return the last complete checkpoint beside our output folder, or None.

        It is as the first process sees it.
        """
        folder = Path(self.args.output_dir).parent
        found = None
        if self.args.should_save and folder.is_dir():
            found = get_last_checkpoint(str(folder))
        return broadcast_object_list([found])[0]

    def _save_checkpoint(self, model: nn.Module, trial: object = None) -> None:
        """Write the Trainer's checkpoint aside, then name it, then remove those before it."""
        aside = Path(self.args.output_dir)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            earlier = list(aside.parent.glob("checkpoint-*"))
            name = f"checkpoint-{self.state.global_step}"
            os.replace(aside / name, aside.parent / name)
            for folder in earlier:
                shutil.rmtree(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write what is trained, tied weights once; under FSDP accelerate writes it."""
        if not self.args.should_save:
            return
        os.makedirs(output_dir, exist_ok=True)
        if self.is_fsdp_enabled:
            return
        trained = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                trained[name] = parameter.detach().contiguous()
        if self.model.factor is not None:
            trained["factor.value"] = self.model.factor.value
        save_file(trained, Path(output_dir) / WEIGHTS)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the random generators of every process, in the first."""
        with tempfile.TemporaryDirectory() as scratch:
            super()._save_rng_state(scratch)
            (own,) = Path(scratch).iterdir()
            every = gather_object([(own.name, own.read_bytes())])
        if self.args.should_save:
            for name, content in every:
                (Path(output_dir) / name).write_bytes(content)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load what `_save` or accelerate wrote. What is frozen is not in it."""
        if self.is_fsdp_enabled:  # accelerate reads with weights_only=True
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        trained = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        self.model.load_state_dict(trained, strict=False)


# ------------------------------------------------------------------------------- looking at a run


class Watcher(TrainerCallback):
    """Calls `watch(step, model)` after the chosen optimizer steps, in every process.

    It ends the run if the first process says so.
    """

    def __init__(self, watch: Watch, steps: Sequence[int]) -> None:
        self.watch = watch
        self.steps = set(steps)

    def on_step_end(self, args, state, control, model: Objective, **_) -> None:
        """Call it, after an optimizer step."""
        if state.global_step not in self.steps:
            return
        with gathered_for_forward(model):
            stop = self.watch(state.global_step, model.model)
        if broadcast_object_list([bool(stop)])[0]:
            control.should_training_stop = True


@contextmanager
def gathered_for_forward(objective: Objective) -> Iterator[None]:
    """Gather what FSDP shards together with the objective, so that the model can be called inside.

    Its parameters' values stay sharded.
    """
    sharded = isinstance(objective, FSDPModule)
    if sharded:
        objective.unshard()
    yield
    if sharded:
        objective.reshard()


def unwrap_layers(model: nn.Module) -> None:
    """Take off what FSDP's activation checkpointing put around layers.

    Its name would be part of the weights' names.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CheckpointWrapper):
            model.set_submodule(name, layer._checkpoint_wrapped_module)
