"""Compute cost: FLOPs counted on real steps, and the estimate that they are checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from unlearn_utils.core.intervals import Interval

if TYPE_CHECKING:
    from torch import nn

    from unlearn_utils.core import losses

YI_6B = {"parameters": 6.06e9, "tokens": 3.1e12}  # of its pre-training; model card
FORGET_BYTES = {"arxiv": 22.1e6, "github": 14.1e6}  # the paper's forget sets, card of llmunlearn/unlearn_dataset
BYTES_PER_TOKEN = (2.5, 4.0, 5.0)  # lowest, assumed, highest: not stated; English text with a large vocabulary is near 4
PASSES = {None: 1.0, "descent": 2.0, "kl": 7 / 3}  # by retain term: cost of a forget token in training passes (6 N); a forward is a third


def step_flops(model: nn.Module, loss: Callable, sides: Mapping[str, losses.Batch]) -> dict[str, int]:
    """FLOPs of one forward and backward pass over one optimizer batch, counted by torch (matrix products and convolutions only).

    model: with eager attention, since the counter sees nothing of fused attention on a CPU. Returns flops_per_step; tokens_per_step,
    of all sides, padding left out; estimate_per_step: 6 N D, N parameters times D tokens (Kaplan et al. 2020, arXiv 2001.08361).
    The optimizer's own arithmetic is left out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from unlearn_utils.core import efficiency, losses

    sides = {side: {k: v.to(next(model.parameters()).device) for k, v in batch.items()} for side, batch in sides.items()}
    counts = {side: losses.predicted_mask(batch["labels"]).sum() for side, batch in sides.items()}
    with FlopCounterMode(display=False) as counter:
        loss(model, sides, counts).backward()
    tokens = int(sum(batch["attention_mask"].sum() for batch in sides.values()))
    return {
        "flops_per_step": counter.get_total_flops(),
        "tokens_per_step": tokens,
        "estimate_per_step": 6 * efficiency.parameter_count(model) * tokens,
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> Interval:
    """The power with which y grows in x: slope of log y in log x by least squares, its 95% t interval, and the number of points."""
    fit = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return Interval(fit.slope, fit.slope - half, fit.slope + half, len(x))


def computed_ratio(retain: str | None, forget_bytes: float, bytes_per_token: float, tokens: float = YI_6B["tokens"]) -> float:
    """FLOPs of pre-training over those of one epoch of unlearning, computed: 6 N tokens / (6 N passes forget tokens).

    The model's size cancels. retain: the method's retain term, a key of `PASSES`; one retain token is read for each forget token.
    """
    return tokens / (PASSES[retain] * forget_bytes / bytes_per_token)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
