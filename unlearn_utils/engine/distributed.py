"""The Trainer that runs an objective: one or many processes, with checkpoints and one saved model at the end.

Started by `accelerate launch`, every process takes its part of each optimizer batch; losses and gradients are those of one process.
Only the first process writes.
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
MISTAKES = (ValueError, OSError, FloatingPointError, MemoryError)  # what a command answers with one line


def process_state() -> PartialState:
    """This process among all: device, num_processes, is_main_process. The first call joins those that the launcher started."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def sharded() -> bool:
    """Whether FSDP divides the model among the processes: the launcher says so, and accelerate does not do it on a CPU."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and process_state().device.type != "cpu"


def launcher_checkpoints() -> bool:
    """Whether FSDP computes layers again in the backward pass, as the launcher says."""
    return sharded() and parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING")


@contextmanager
def raise_together() -> Iterator[None]:
    """All processes leave it together: with the mistake of one, as a mistake of all that `everywhere` marks, if any made one.

    Inside, every process does the same for itself, and waits for no other. Errors beyond `MISTAKES` are nobody else's.
    """
    own = None
    try:
        yield
    except MISTAKES as error:
        own = error
    kinds = [kind for kind in MISTAKES if isinstance(own, kind)]
    made = gather_object([(kinds[0], str(own))] if kinds else [])
    if made:
        kind, text = made[0]
        error = own or kind(text)
        error.everywhere = True
        raise error


def on_main_process(work: Callable[[], Result]) -> Result:
    """What `work()` gives in the first process, which alone does it; in every process. As `agreed` for a mistake."""
    found = [None]
    with raise_together():
        if process_state().is_main_process:
            found = [work()]
    return broadcast_object_list(found)[0]


def leave() -> None:
    """The end of what the processes do together: the first to end would end the others, wherever they are."""
    process_state().wait_for_everyone()
    process_state().destroy_process_group()


# ---------------------------------------------------------------------------------------------- one saved model


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of a model, sharded or not, tied weights once, on the CPU of the first process; nothing elsewhere.

    Every process must call it.
    """
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names, once = ({name for name, _ in model.named_parameters(remove_duplicate=x)} for x in (False, True))
    return {name: value for name, value in state.items() if name not in names - once}
