"""Several processes as one: who is first, mistakes that all hear of, and the whole of a model.

`accelerate launch` starts them; alone, a process is the first of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

Result = TypeVar("Result")

WAIT = timedelta(hours=2)  # for the others: the first reads documents and writes weights alone

# what a command answers with one line
MISTAKES = (ValueError, OSError, FloatingPointError, MemoryError)


# ------------------------------------------------------------------------------------ processes


def process_state() -> PartialState:
    """Return this process among all: device, num_processes, is_main_process.

    The first call joins those that the launcher started.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def sharded() -> bool:
    """Return whether FSDP divides the model among the processes.

    The launcher says so, and accelerate does not do it on a CPU.
    """
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and process_state().device.type != "cpu"


def launcher_checkpoints() -> bool:
    """Return whether FSDP computes layers again in the backward pass, as the launcher says."""
    return sharded() and parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING")


@contextmanager
def raise_together() -> Iterator[None]:
    """Let all processes leave together: if one made a mistake, all raise it.

    The error is marked `everywhere`. Inside, every process does the same for itself, and waits for
    no other. Errors beyond `MISTAKES` are nobody else's.
    """
    own = None
    try:
        yield
    except MISTAKES as error:
        own = error
    sent = []
    if own is not None:
        kind = next(kind for kind in MISTAKES if isinstance(own, kind))
        sent = [(kind, str(own))]
    mistakes = gather_object(sent)
    if mistakes:
        kind, text = mistakes[0]
        error = own or kind(text)
        error.everywhere = True
        raise error


def on_main_process(work: Callable[[], Result]) -> Result:
    """Return, in every process, what `work()` gives in the first, which alone does it.

    A mistake is raised as `raise_together` says.
    """
    found = [None]
    with raise_together():
        if process_state().is_main_process:
            found = [work()]
    return broadcast_object_list(found)[0]


def leave() -> None:
    """End what the processes do together.

    The first to end would end the others, wherever they are, so all wait here.
    """
    process_state().wait_for_everyone()
    process_state().destroy_process_group()


# ---------------------------------------------------------------------------------- whole models


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state of a model, sharded or not, tied weights once.

    It is on the CPU of the first process; elsewhere there is nothing. Every process must call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in model.named_parameters()}
    repeated = every - once
    return {name: value for name, value in state.items() if name not in repeated}
