"""The methods since the paper in two processes (gloo, CPU) against one, with DDP and with FSDP.

Of each there is one launch, which does everything: starting processes is most of the time.
"""

import pytest
import torch
from test_distributed import (
    WEIGHTS,
    compare_all,
    compared,
    distance,
    folder,
    losses,
    one_run,
    sharded,
    together,
)

from unlearn_utils.engine import distributed, models

CASES = [("npo", 1), ("undial", None), ("rmu", 1), ("pdu", 1)]
LONG = {"batch": 2}  # 5 steps, a checkpoint after every second
ENDING = 3  # the step after which every process ends
__all__ = ["folder"]  # the fixture with the stored models


def everything(rank, folder, out):
    """Compare every case, then make a run of PDU with checkpoints, whole and in two parts."""
    compare_all(rank, folder, CASES, out)
    long_run(rank, folder, out / "whole")
    with pytest.raises(SystemExit):
        long_run(rank, folder, out / "parts", ENDING)
    long_run(rank, folder, out / "parts")


def long_run(rank, folder, out, ending=None):
    """Make a run of PDU from what is stored, which every process leaves after so many steps."""

    def watch(step, model):
        assert ending is None or step <= ending
        if step == ending:
            raise SystemExit

    model, history = one_run(folder, "pdu", 1, checkpoints=out / "checkpoints", watch=watch, **LONG)
    state = distributed.gathered_state(model)
    if rank == 0:
        torch.save({"weights": state, "history": history}, out / "end.pt")


@pytest.fixture(scope="module")
def one_process(folder):
    """The cases in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "half_precision", lambda: False)
        return [compared(folder, *case) for case in CASES]


@pytest.fixture(scope="module", params=["DDP", "FSDP"])
def two_processes(request, folder, tmp_path_factory):
    """The folder of what two processes found."""
    out = tmp_path_factory.mktemp(request.param)
    for name in ("whole", "parts"):
        (out / name).mkdir()
    given = {} if request.param == "DDP" else sharded()
    assert together(everything, folder, out, environment=given) == [0, 0]
    return out


def test_two_processes_give_the_losses_and_weights_of_one(folder, one_process, two_processes):
    """The last optimizer batch has 1 document of 4: the second process has none of it."""
    first, second = (torch.load(two_processes / f"{rank}.pt") for rank in (0, 1))
    for case, one, ours, theirs in zip(CASES, one_process, first, second, strict=True):
        assert losses(ours) == losses(theirs), case
        assert losses(ours) == pytest.approx(losses(one), rel=1e-5), case
        assert distance(folder, one["weights"], ours["weights"]) < 10 * WEIGHTS, case
        assert ours["seen"] == pytest.approx(one["seen"], abs=1e-4), case
        assert len(set(one["seen"])) == 4, case


def test_a_multiplier_goes_on_in_several_processes(two_processes):
    one, two = (torch.load(two_processes / name / "end.pt") for name in ("whole", "parts"))
    assert len(one["history"]) == 5 and one["history"] == two["history"]
    assert all(torch.equal(two["weights"][name], one["weights"][name]) for name in one["weights"])
