"""Arithmetic on whole models: weights mixed with noise, and sums of changes of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def mix_with_noise(model: nn.Module, share: float, scale: float, seed: int) -> None:
    """Put (1 - share) theta + share * scale * noise in the place of every matrix theta.

    Noise is Xavier's, uniform. Vectors, which scale what a norm gives, have no such noise and stay.

    Args:
        model: is changed in place.
        share, scale: alpha and beta of UNDO (arXiv 2506.06278).
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            noise = nn.init.xavier_uniform_(torch.empty(weight.shape), generator=generator)
            weight.mul_(1 - share).add_(noise.to(weight), alpha=share * scale)


@torch.no_grad()
def changes(model: nn.Module, base: nn.Module) -> list[Tensor]:
    """Return what has been added to each weight of a base: a task vector."""
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    return [weight - original for weight, original in pairs]


@torch.no_grad()
def add_changes(model: nn.Module, vectors: Sequence[tuple[float, Sequence[Tensor]]]) -> None:
    """Add task vectors to a model, in place.

    vectors: each with its factor. MSA (arXiv 2506.20941) takes away alpha times that of the forget
        set and adds beta times that of retain text.
    """
    for factor, vector in vectors:
        for weight, change in zip(model.parameters(), vector, strict=True):
            weight.add_(change, alpha=factor)
