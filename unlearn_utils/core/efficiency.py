"""Compute cost: FLOPs counted on real steps, and the estimate that they are checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from unlearn_utils.core.intervals import Interval
from unlearn_utils.core.methods import BACKWARD_AND_FORWARD, FORWARD, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unlearn_utils.core import losses

YI_6B = {"parameters": 6.06e9, "tokens": 3.1e12}  # tokens of its pre-training; model card
FORGET_BYTES = {  # the paper's forget sets, card of llmunlearn/unlearn_dataset
    "arxiv": 22.1e6,
    "github": 14.1e6,
}
# Lowest, assumed, highest. It is not stated; English text with a large vocabulary is near 4.
BYTES_PER_TOKEN = (2.5, 4.0, 5.0)


def step_flops(
    model: nn.Module,
    loss: Callable[..., Tensor],
    sides: Mapping[str, losses.Batch],
    count: Mapping[str, Callable[[losses.Batch], Tensor]],
) -> dict[str, int]:
    """Return the FLOPs of one forward and backward pass over one optimizer batch.

    PyTorch counts matrix products and convolutions; the optimizer's own arithmetic is left out.

    Args:
        model: with eager attention on a CPU, for the counter sees nothing of fused attention there.
        loss: (model, sides, counts) -> scalar.
        sides: a batch for each side.
        count: for each side, what counts the tokens or sequences that its loss is a mean over.

    Returns:
        flops_per_step; tokens_per_step, of all sides, without padding; estimate_per_step, which is
        6 N D for N parameters and D tokens (Kaplan et al. 2020, arXiv 2001.08361).
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    moved = {}
    for side, batch in sides.items():
        moved[side] = {name: tensor.to(device) for name, tensor in batch.items()}
    counts = {side: count[side](batch) for side, batch in moved.items()}
    with torch.no_grad():
        loss(model, moved, counts)  # what is found out but once is no part of a step
    with FlopCounterMode(display=False) as counter:
        loss(model, moved, counts).backward()
    tokens = int(sum(batch["attention_mask"].sum() for batch in moved.values()))
    return {
        "flops_per_step": counter.get_total_flops(),
        "tokens_per_step": tokens,
        "estimate_per_step": 6 * parameter_count(model) * tokens,
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Return the power with which y grows in x.

    It is the slope of log y in log x by least squares, with its 95% t interval; n is the number of
    points.
    """
    fit = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return Interval(fit.slope, fit.slope - half, fit.slope + half, len(x))


def computed_ratio(
    passes: float, forget_bytes: float, bytes_per_token: float, tokens: float = YI_6B["tokens"]
) -> float:
    """Return FLOPs of pre-training over those of one epoch of unlearning, computed.

    That is 6 N tokens / (6 N passes forget tokens), so the model's size N cancels.

    Args:
        passes: what a forget token costs, `Method.passes`.
        forget_bytes: size of the forget set's text.
        bytes_per_token: of that text.
        tokens: of the pre-training.
    """
    return tokens / (passes * forget_bytes / bytes_per_token)


def tuning_passes(passes: float, rates: int, epochs: float, marks: int, read: float) -> float:
    """Return what tuning costs, in training passes over the forget set.

    Every learning rate is run for all epochs, and at each mark the text by which a rule chooses is
    read, which takes a forward pass.

    Args:
        passes: what a forget token costs in an epoch, `Method.passes`.
        rates: that are tried.
        epochs: of each run.
        marks: at which each run is measured.
        read: tokens that are read at a mark, as a share of the forget set's.
    """
    return rates * (epochs * passes + marks * read * FORWARD)


def cost_classes(methods: Iterable[Method]) -> dict[str, float]:
    """Return the distinct costs of methods, in training passes (`Method.passes`), in their order.

    A cost is named by the terms that it follows from: by the retain term, and by the forget term if
    that costs more than a training pass; else it is "none".
    """
    classes = {}
    for method in methods:
        names = []
        if method.forget.passes > BACKWARD_AND_FORWARD:
            names.append(method.forget.name)
        if method.retain is not None:
            names.append(method.retain.name)
        if method.passes not in classes.values():
            classes[" + ".join(names) or "none"] = method.passes
    return classes


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
