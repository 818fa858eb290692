"""The terms of the unlearning objective: pure functions of tensors.

Position j of a sequence predicts token j + 1. `labels` are unshifted, as in Hugging Face, and -100 is not counted: the predicted
tokens of a batch are `labels[:, 1:] != -100`. Logits are never kept: a loss walks over chunks of rows and takes the gradients of
the hidden states and of the output head on the way (the idea of Liger Kernel, arXiv 2410.10989, in plain PyTorch).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unlearn_utils.core import fused

Batch = Mapping[str, Tensor]  # input_ids, attention_mask, labels: each (batch, time); what was computed before: hidden, reference_hidden
IGNORED = -100


# ---------------------------------------------------------------------------------------------- losses of a batch


def predicted_mask(labels: Tensor) -> Tensor:
    """Mask (batch, time - 1): the positions whose next token is counted."""
    return labels[:, 1:] != IGNORED


def next_token_sum(model: nn.Module, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, summed over predicted tokens; `weights` (batch, time - 1), 1 if None."""
    mask, hidden = predicted_mask(batch["labels"]), _hidden(model, batch)
    term = fused.true_token(batch["labels"][:, 1:][mask])
    return fused.fused_loss(hidden[:, :-1][mask], fused.head_of(model), term, None if weights is None else weights[mask])


def next_token_loss(model: nn.Module, batch: Batch, count: int | Tensor | None = None) -> Tensor:
    """Next-token cross-entropy in nats: the sum over predicted tokens / `count` (None = this batch's; 0 where nothing is predicted)."""
    return next_token_sum(model, batch) / (predicted_mask(batch["labels"]).sum().clamp(min=1) if count is None else count)


def kl_loss(model: nn.Module, reference: nn.Module, batch: Batch, count: int | Tensor | None = None) -> Tensor:
    """KL(P_reference || P_model) in nats per predicted token: the sum / `count` (None = this batch's). No gradient to the reference."""
    mask = predicted_mask(batch["labels"])
    hidden, hidden_ref = (h[:, :-1][mask] for h in _both(model, reference, batch))
    total = fused.fused_loss(hidden, fused.head_of(model), fused.divergence(hidden_ref, fused.head_of(reference)))
    return total / (mask.sum().clamp(min=1) if count is None else count)


def official_kl_loss(model: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    """Defect 2 of the released code: `official_divergence`, averaged over every position, padding and the last one too."""
    hidden, hidden_ref = (h.flatten(0, 1) for h in _both(model, reference, batch))
    return fused.fused_loss(hidden, fused.head_of(model), fused.official_divergence(hidden_ref, fused.head_of(reference))) / len(hidden)


def _both(model: nn.Module, reference: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states of the model and of the reference; those of the reference may come with the batch, computed before."""
    fixed = batch.get("reference_hidden")
    if fixed is None:
        with torch.no_grad():
            fixed = fused.hidden_states(reference, batch["input_ids"], batch["attention_mask"])
    return _hidden(model, batch), fixed


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Hidden states of the model; those that came with the batch (`together`), or computed now."""
    found = batch.get("hidden")
    return fused.hidden_states(model, batch["input_ids"], batch["attention_mask"]) if found is None else found


def share_forward(model: nn.Module, *batches: Batch) -> list[Batch]:
    """The batches with their "hidden" states, all from one forward pass."""
    joined = [torch.cat([b[key] for b in batches]) for key in ("input_ids", "attention_mask")]
    parts = fused.hidden_states(model, *joined).split([len(b["input_ids"]) for b in batches])
    return [{**b, "hidden": part} for b, part in zip(batches, parts, strict=True)]
