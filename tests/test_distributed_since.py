"""The methods since the paper in two processes (gloo, CPU) against one, with DDP and with FSDP."""

import pytest
import torch
from test_distributed import (
    WEIGHTS,
    compare_all,
    distance,
    folder,
    losses,
    one_run,
    sharded,
    together,
)

from unlearn_utils.engine import distributed

CASES = [("npo", 1), ("undial", None), ("rmu", 1), ("pdu", 1)]
LONG = {"batch": 2, "epochs": 3}  # 14 steps, a checkpoint after every second
__all__ = ["folder"]  # the fixture with the stored models


def resume(rank, folder, out, ending=None):
    """Make a run of PDU with checkpoints, which ends in every process after so many steps."""

    def watch(step, model):
        if step == ending:
            raise SystemExit(3)

    model, history = one_run(folder, "pdu", 1, checkpoints=out / "checkpoints", watch=watch, **LONG)
    state = distributed.gathered_state(model)
    if rank == 0:
        torch.save({"weights": state, "history": history}, out / "end.pt")


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory):
    """The cases in one process."""
    out = tmp_path_factory.mktemp("one")
    assert together(compare_all, folder, CASES, out, processes=1) == [0]
    return torch.load(out / "0.pt")


@pytest.mark.parametrize("environment", [{}, "FSDP"], ids=["DDP", "FSDP"])
def test_two_processes_give_the_losses_and_weights_of_one(
    folder, one_process, tmp_path, environment
):
    """The last optimizer batch has 1 document of 4: the second process has none of it."""
    given = sharded() if environment else {}
    assert together(compare_all, folder, CASES, tmp_path, environment=given) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case, one, ours, theirs in zip(CASES, one_process, first, second, strict=True):
        assert losses(ours) == losses(theirs), case
        assert losses(ours) == pytest.approx(losses(one), rel=1e-5), case
        assert distance(folder, one["weights"], ours["weights"]) < 10 * WEIGHTS, case
        assert ours["seen"] == pytest.approx(one["seen"], abs=1e-4), case
        assert len(set(one["seen"])) == 4, case


@pytest.mark.parametrize("environment", [{}, "FSDP"], ids=["DDP", "FSDP"])
def test_a_multiplier_goes_on_in_several_processes(folder, tmp_path, environment):
    given = sharded() if environment else {}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, ending, codes in ((whole, None, [0, 0]), (parts, 5, [3, 3]), (parts, None, [0, 0])):
        out.mkdir(exist_ok=True)
        assert together(resume, folder, out, ending, environment=given) == codes
    one, two = (torch.load(out / "end.pt") for out in (whole, parts))
    assert one["history"] == two["history"]
    assert all(torch.equal(two["weights"][name], one["weights"][name]) for name in one["weights"])
