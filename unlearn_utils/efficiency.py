"""Compute cost: FLOPs counted on real steps, and the estimate that they are checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlearn_utils import models, objectives


def step_flops(model: nn.Module, loss: Callable, sides: Mapping[str, objectives.Batch]) -> dict[str, int]:
    """FLOPs of one forward and backward pass over one optimizer batch, counted by torch (matrix products and convolutions only).

    model: with eager attention, since the counter sees nothing of fused attention on a CPU. Returns flops_per_step; tokens_per_step,
    of all sides, padding left out; estimate_per_step: 6 N D, N parameters times D tokens (Kaplan et al. 2020, arXiv 2001.08361).
    The optimizer's own arithmetic is left out.
    """
    counts = {side: objectives.predicted(batch["labels"]).sum() for side, batch in sides.items()}
    with FlopCounterMode(display=False) as counter:
        loss(model, sides, counts).backward()
    tokens = int(sum(batch["attention_mask"].sum() for batch in sides.values()))
    return {
        "flops_per_step": counter.get_total_flops(),
        "tokens_per_step": tokens,
        "estimate_per_step": 6 * models.parameters(model) * tokens,
    }
