"""The Trainer that runs an objective: one or many processes, with checkpoints and one saved model at the end.

Started by `accelerate launch`, every process takes its part of each optimizer batch; losses and gradients are those of one process.
Only the first process writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from unlearn_utils.core import fused, losses

Sides = Mapping[str, losses.Batch]  # "forget" and "retain", or "text": one batch each
Watch = Callable[[int, nn.Module], bool | None]  # step, model -> whether to stop


class Goal(NamedTuple):
    """What a run minimises, and over what.

    loss: (model, sides, counts) -> scalar; counts are those of the whole optimizer batch.
    count: for each side, what counts the tokens or sequences that its loss is a mean over.
    """

    loss: Callable[[nn.Module, Sides, Mapping[str, Tensor]], Tensor]
    count: Mapping[str, Callable[[losses.Batch], Tensor]]


UNFINISHED = "unfinished"  # where a checkpoint is written before it gets its name
WEIGHTS = "trained.safetensors"


# ---------------------------------------------------------------------------------------------- parts of a batch


class Idle(dict):
    """The sides of a micro-batch for a process that no document is left for: it takes part in the step and adds nothing."""

    @classmethod
    def like(cls, sides: Sides) -> Idle:
        """The same sides with nothing to predict."""
        return cls({name: {**side, "labels": torch.full_like(side["labels"], losses.IGNORED)} for name, side in sides.items()})


def micro_batches(order: Sequence, batch: int, size: int, processes: int) -> list[Sequence]:
    """`order` cut into optimizer batches, these into micro-batches of `size`: one for each process in turn.

    Where the last optimizer batch does not go round, empty ones follow, so that every process has equally many.
    Raises ValueError unless every process gets equally many micro-batches of a full optimizer batch.
    """
    if size < 1 or batch % (size * processes):
        among = f" on each of {processes} processes" if processes > 1 else ""
        raise ValueError(f"micro_batch {size}{among} does not divide the batch of {batch} documents")
    parts = [
        whole[i : i + size] for whole in (order[j : j + batch] for j in range(0, len(order), batch)) for i in range(0, len(whole), size)
    ]
    return parts + [[]] * (-len(parts) % processes)


def collated(collate: Callable[[Sequence], Sides], example: Sequence) -> Callable[[Sequence[Sequence]], Sides]:
    """Collates the one micro-batch of a list, an empty one to `Idle` sides like the example's."""

    def one(parts: Sequence[Sequence]) -> Sides:
        (chosen,) = parts
        return collate(chosen) if chosen else Idle.like(collate(example))

    return one


# ---------------------------------------------------------------------------------------------- the loop


class Objective(nn.Module):
    """A model whose forward is the loss: autocast, DDP and FSDP wrap exactly what is differentiated.

    FSDP shards each decoder layer by itself, and embeddings, last norm and head with this module: they are whole during its forward,
    which reads the head's weight without calling the head.
    """

    def __init__(self, model: nn.Module, goal: Goal) -> None:
        super().__init__()
        self.model = model
        self.goal = goal
        self._no_split_modules = getattr(fused.unwrapped(model), "_no_split_modules", None)  # names of the layers, for accelerate

    def forward(self, sides: Sides, counts: Mapping[str, Tensor]) -> Tensor:
        """The scalar loss of one micro-batch; those of an optimizer batch add up."""
        return self.goal.loss(self.model, sides, counts)


class ObjectiveTrainer(Trainer):
    """A Trainer whose losses are normalised by the predicted tokens of the whole optimizer batch, side by side.

    The Trainer's own count reads one `labels`; ours counts each side over all micro-batches and all processes.
    `averaged`: the loss is a mean over its own micro-batch instead (the released code), and micro-batches are averaged.
    Checkpoints hold what is trained (safetensors), optimizer, schedule and random generators (torch.save, read with weights_only=True)
    and the history (JSON); under FSDP accelerate writes the first two. A folder `checkpoint-N` is complete: it gets its name last.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, objective: Objective, averaged: bool = False, optimizers: tuple = (None, None), **kwargs) -> None:
        super().__init__(model=objective, **kwargs)
        self.averaged, self.parts = averaged, 1
        self.count = objective.goal.count
        self.optimizer, self.lr_scheduler = optimizers  # not passed on: under FSDP the Trainer refuses those that exist
        self.remove_callback(PrinterCallback)
        if self.is_fsdp_enabled and self.accelerator.mixed_precision == "bf16":  # accelerate's own rounds gradient sums and loss, too
            plugin = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device) -> tuple[list[Sides], dict[str, Tensor]]:
        """The micro-batches of one optimizer batch that are ours, and the predicted tokens of each side in all of it."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = {}
        for side in batches[0] if batches else ():
            ours = sum(self.count[side](batch[side]) for batch in batches).to(device)
            counts[side] = self.accelerator.reduce(ours, "sum")
        if self.averaged:
            ours = torch.tensor(sum(not isinstance(b, Idle) for b in batches), device=device)
            self.parts = self.accelerator.reduce(ours, "sum")
        return batches, counts

    def compute_loss(self, model: nn.Module, inputs: Sides, return_outputs: bool = False, num_items_in_batch=None) -> Tensor:
        """The objective's loss; times the number of processes, because gradients are averaged over processes."""
        share = 0 if isinstance(inputs, Idle) else self.accelerator.num_processes
        return model(inputs, num_items_in_batch) * share / self.parts

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """accelerate puts autocast around the model, but not around one that FSDP2 shards; the reference needs it too."""
        return self.accelerator.autocast() if self.is_fsdp_enabled else super().autocast_smart_context_manager(cache_enabled)

    # ------------------------------------------------------------------------------------------ checkpoints

    def last(self) -> str | None:
        """The last complete checkpoint beside our output folder, as the first process sees it."""
        folder = Path(self.args.output_dir).parent
        found = get_last_checkpoint(str(folder)) if self.args.should_save and folder.is_dir() else None
        return broadcast_object_list([found])[0]

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        """Writes the Trainer's checkpoint aside, then names it, then removes those before it."""
        aside = Path(self.args.output_dir)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            before = list(aside.parent.glob("checkpoint-*"))
            name = f"checkpoint-{self.state.global_step}"
            os.replace(aside / name, aside.parent / name)
            for folder in before:
                shutil.rmtree(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """What is trained, tied weights once; under FSDP accelerate writes it."""
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            if not self.is_fsdp_enabled:
                trained = {name: p.detach().contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
                save_file(trained, Path(output_dir) / WEIGHTS)

    def _save_rng_state(self, output_dir: str) -> None:
        """The random generators of every process, written by the first."""
        with tempfile.TemporaryDirectory() as scratch:
            super()._save_rng_state(scratch)
            (own,) = Path(scratch).iterdir()
            every = gather_object([(own.name, own.read_bytes())])
        if self.args.should_save:
            for name, content in every:
                (Path(output_dir) / name).write_bytes(content)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """What `_save` or accelerate wrote."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)  # with weights_only=True
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS), strict=False)  # what is frozen is not in it


class Watcher(TrainerCallback):
    """Calls `watch(step, model)` after the chosen optimizer steps, in every process; ends the run if the first says so."""

    def __init__(self, watch: Watch, steps: Sequence[int]) -> None:
        self.watch, self.steps = watch, set(steps)

    def on_step_end(self, args, state, control, model: Objective, **_) -> None:
        """After an optimizer step."""
        if state.global_step in self.steps:
            with gathered_for_forward(model):
                stop = self.watch(state.global_step, model.model)
            if broadcast_object_list([bool(stop)])[0]:
                control.should_training_stop = True


def unwrap_layers(model: nn.Module) -> None:
    """Takes off what FSDP's activation checkpointing put around layers: its name would be part of the weights' names."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CheckpointWrapper):
            model.set_submodule(name, layer._checkpoint_wrapped_module)


@contextmanager
def gathered_for_forward(objective: Objective) -> Iterator[None]:
    """The model can be called inside: what FSDP shards together with the objective is gathered. Its parameters' values stay sharded."""
    sharded = isinstance(objective, FSDPModule)
    if sharded:
        objective.unshard()
    yield
    if sharded:
        objective.reshard()
