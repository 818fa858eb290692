"""The losses of a batch: functions of a model and of tensors.

Position j of a sequence predicts token j + 1. `labels` are unshifted, as in Hugging Face, and -100
is not counted: the predicted tokens of a batch are `labels[:, 1:] != -100`. No loss holds the
logits of all rows at once (`core.fused`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from unlearn_utils.core import fused

# `input_ids`, `attention_mask` and `labels`, each (batch, time); and what was computed before:
# `shared` (`Shared`), `reference_hidden` (batch, time, d)
Batch = Mapping[str, Any]
IGNORED = -100  # the label of what is not counted


# ------------------------------------------------------------------------------------- counting


def predicted_mask(labels: Tensor) -> Tensor:
    """Return the mask (batch, time - 1) of the positions whose next token is counted."""
    return labels[:, 1:] != IGNORED


def predicted_tokens(batch: Batch) -> Tensor:
    """Return the number of predicted tokens of a batch: a scalar."""
    return predicted_mask(batch["labels"]).sum()


def predicted_sequences(batch: Batch) -> Tensor:
    """Return the number of sequences of a batch that predict any token: a scalar."""
    return predicted_mask(batch["labels"]).any(1).sum()


# ----------------------------------------------------------------------- terms of the objective
#
# Each takes the model, a batch, the frozen original model (None where no term needs it) and the
# number that the loss is a mean over, and returns a scalar in nats that is minimised. The model is
# read before the original one: under adapters that is the same model, which is examined with them.


def ascent(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return minus the mean next-token cross-entropy."""
    return -next_token_loss(model, batch, count)


def descent(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy."""
    return next_token_loss(model, batch, count)


def kl_to_reference(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return the mean of KL(P_reference || P_model) over predicted tokens."""
    return kl_loss(model, reference, batch, count)


def official_kl_to_reference(
    model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor
) -> Tensor:
    """Return the released code's mean over positions, times this batch's share of the tokens."""
    share = predicted_tokens(batch) / count
    return share * official_kl_loss(model, reference, batch)


def npo(
    model: nn.Module,
    batch: Batch,
    reference: nn.Module,
    count: Tensor,
    term: Callable[[Tensor], fused.RowTerm] = fused.true_token,
) -> Tensor:
    """Return NPO (arXiv 2404.05868, beta 0.1): `_preference` of how far each NLL has risen.

    It has risen over the reference's; both are sums over the tokens of a sequence.

    term: as in `sequence_nll`.
    """
    ours = sequence_nll(model, batch, term)
    with torch.no_grad():
        theirs = sequence_nll(reference, batch, term)
    return _preference(ours - theirs, beta=0.1) / count


def simnpo(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return SimNPO (arXiv 2410.07163, beta 4.5, delta 0): `_preference` of each NLL a token."""
    mask = predicted_mask(batch["labels"])
    tokens = mask.sum(1)[mask.any(1)]
    return _preference(sequence_nll(model, batch) / tokens, beta=4.5) / count


def _preference(raised: Tensor, beta: float) -> Tensor:
    """Return the sum of -(2 / beta) log sigmoid(beta * raised); raised: (sequences,)."""
    return -(2 / beta) * nn.functional.logsigmoid(beta * raised).sum()


def wga(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return WGA (arXiv 2502.19301, beta 1): ascent, each token weighted by its probability."""
    hidden, targets = _predicted(model, batch)
    term = fused.weighted_ascent(targets, lambda p: p)
    return fused.fused_loss(hidden, fused.head_of(model), term) / count


def satimp(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return SatImp (arXiv 2505.11953, beta 5 and 1): ascent, weighted by p^5 (1 - p)."""
    hidden, targets = _predicted(model, batch)
    term = fused.weighted_ascent(targets, lambda p: p**5 * (1 - p))
    return fused.fused_loss(hidden, fused.head_of(model), term) / count


def ce_u(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return CE-U (arXiv 2503.01224): the cross-entropy with itself without the true token."""
    hidden, targets = _predicted(model, batch)
    term = fused.without_targets(targets)
    return fused.fused_loss(hidden, fused.head_of(model), term) / count


def undial(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return UNDIAL (arXiv 2402.10052, beta 10): towards the reference, the true token lowered.

    The mean is over predicted tokens: what is not counted is neither looked up nor divided by.
    """
    hidden, targets = _predicted(model, batch)
    with torch.no_grad():
        fixed, _ = _predicted(reference, batch)
    term = fused.lowered_reference(targets, fixed, fused.head_of(reference), penalty=10.0)
    return fused.fused_loss(hidden, fused.head_of(model), term) / count


def pdu(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return PDU (arXiv 2506.05314): (largest logit - mean logit)^2, a mean over tokens."""
    hidden, _ = _predicted(model, batch)
    return fused.fused_loss(hidden, fused.head_of(model), fused.squared_peak()) / count


def rise(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return by how much the next-token cross-entropy is above the reference's."""
    mask = predicted_mask(batch["labels"])
    hidden, fixed = (states[:, :-1][mask] for states in _both(model, reference, batch))
    term = fused.true_token(batch["labels"][:, 1:][mask])
    ours = fused.fused_loss(hidden, fused.head_of(model), term)
    with torch.no_grad():
        theirs = fused.fused_loss(fixed, fused.head_of(reference), term)
    return (ours - theirs) / count


def rmu(model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor) -> Tensor:
    """Return RMU (arXiv 2403.03218, c 2): how far early hidden states are from c u.

    That is the squared distance, summed over channels and averaged over the tokens of the whole
    batch. u is a fixed unit vector, drawn evenly from [0, 1) in each channel.
    """
    states = _early(model, batch)
    drawn = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(0))
    direction = (drawn / drawn.norm()).to(states.device)
    return (states - 2 * direction).square().sum() / count


def early_distance(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return RMU's retain term: how far early hidden states are from the reference's."""
    states = _early(model, batch)
    with torch.no_grad():
        fixed = _early(reference, batch)
    return (states - fixed).square().sum() / count


def signed_sequence_means(
    model: nn.Module, forget: Batch, retain: Batch, sign: float, retain_weight: float
) -> Tensor:
    """Return defect 3 of the released code: a mean over the sequences of both sides together.

    Each sequence gives the mean loss of its own tokens, times `sign` on the forget side.
    """
    sides = []
    for batch in (forget, retain):
        mask = predicted_mask(batch["labels"])
        per_token = 1 / mask.sum(1, keepdim=True).clamp(min=1)
        sides.append(next_token_sum(model, batch, per_token.expand_as(mask)))
    sequences = len(forget["labels"]) + len(retain["labels"])
    return (sign * sides[0] + retain_weight * sides[1]) / sequences


# ------------------------------------------------------------------------------ losses of a batch


def next_token_sum(model: nn.Module, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy with the labels, in nats, summed over predicted tokens.

    weights: (batch, time - 1), of each position; None: 1.
    """
    mask = predicted_mask(batch["labels"])
    hidden = _hidden(model, batch)
    term = fused.true_token(batch["labels"][:, 1:][mask])
    if weights is not None:
        weights = weights[mask]
    return fused.fused_loss(hidden[:, :-1][mask], fused.head_of(model), term, weights)


def next_token_loss(model: nn.Module, batch: Batch, count: int | Tensor | None = None) -> Tensor:
    """Return the next-token cross-entropy in nats: the sum over predicted tokens / `count`.

    count: None is the number of this batch's predicted tokens; without any the loss is 0.
    """
    if count is None:
        count = predicted_tokens(batch).clamp(min=1)
    return next_token_sum(model, batch) / count


def sequence_nll(
    model: nn.Module,
    batch: Batch,
    term: Callable[[Tensor], fused.RowTerm] = fused.true_token,
) -> Tensor:
    """Return the summed negative log-likelihood of each sequence, in nats: (sequences,).

    Sequences without a predicted token are left out, as `predicted_sequences` counts them. Each
    sequence holds a gradient of the head of its own until the backward pass.

    term: of the true tokens; another one than their cross-entropy is a slip (`core.slips`).
    """
    hidden = _hidden(model, batch)
    head = fused.head_of(model)
    sums = []
    for states, labels in zip(hidden.split(1), batch["labels"].split(1), strict=True):
        mask = predicted_mask(labels)
        if mask.any():
            of_tokens = term(labels[:, 1:][mask])
            sums.append(fused.fused_loss(states[:, :-1][mask], head, of_tokens))
    if not sums:  # nothing, but of the graph: every process must have a gradient of every weight
        of_none = term(batch["labels"][:0].flatten())
        return fused.fused_loss(hidden[:0].flatten(0, 1), head, of_none).reshape(1)[:0]
    return torch.stack(sums)


def kl_loss(
    model: nn.Module,
    reference: nn.Module,
    batch: Batch,
    count: int | Tensor | None = None,
    divergence: Callable[[Tensor, fused.Head], fused.RowTerm] = fused.divergence,
) -> Tensor:
    """Return KL(P_reference || P_model) in nats: the sum over predicted tokens / `count`.

    Args:
        model, reference: no gradient flows to the reference.
        batch: what they read.
        count: None is the number of this batch's predicted tokens.
        divergence: of a position; another one than KL is a slip (`core.slips`).
    """
    mask = predicted_mask(batch["labels"])
    hidden, reference_hidden = (h[:, :-1][mask] for h in _both(model, reference, batch))
    term = divergence(reference_hidden, fused.head_of(reference))
    total = fused.fused_loss(hidden, fused.head_of(model), term)
    if count is None:
        count = mask.sum().clamp(min=1)
    return total / count


def official_kl_loss(model: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    """Return defect 2 of the released code: `fused.official_divergence`, over every position.

    The mean includes padding and the last position.
    """
    hidden, reference_hidden = (h.flatten(0, 1) for h in _both(model, reference, batch))
    term = fused.official_divergence(reference_hidden, fused.head_of(reference))
    return fused.fused_loss(hidden, fused.head_of(model), term) / len(hidden)


# -------------------------------------------------------------------------------- hidden states


class Shared(NamedTuple):
    """Hidden states (batch, time, d) that a forward pass of `model` gave before."""

    model: nn.Module
    hidden: Tensor


def fit_one_forward(model: nn.Module, *batches: Batch) -> bool:
    """Return whether one forward pass does for several batches.

    They must have one length, else one would be padded for the other. And FSDP must not divide the
    model: then every process has to make the same passes, and each has sides of its own.
    """
    if len({batch["input_ids"].shape[1] for batch in batches}) > 1:
        return False
    return not any(isinstance(module, FSDPModule) for module in model.modules())


def share_forward(model: nn.Module, *batches: Batch) -> list[Batch]:
    """Return the batches with their hidden states, all from one forward pass of the model."""
    names = ("input_ids", "attention_mask")
    joined = [torch.cat([batch[name] for batch in batches]) for name in names]
    parts = fused.hidden_states(model, *joined).split([len(b["input_ids"]) for b in batches])
    return [{**b, "shared": Shared(model, part)} for b, part in zip(batches, parts, strict=True)]


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's hidden states: those that came with the batch, or computed now."""
    shared = batch.get("shared")
    if shared is not None and shared.model is model:
        return shared.hidden
    return fused.hidden_states(model, batch["input_ids"], batch["attention_mask"])


def _predicted(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the hidden states (N, d) of the predicted tokens of a batch, and the tokens (N,)."""
    mask = predicted_mask(batch["labels"])
    return _hidden(model, batch)[:, :-1][mask], batch["labels"][:, 1:][mask]


def _early(model: nn.Module, batch: Batch) -> Tensor:
    """Return the early hidden states (N, d) of the predicted tokens of a batch, in float32."""
    states = fused.early_states(model, batch["input_ids"], batch["attention_mask"])
    return states[:, :-1][predicted_mask(batch["labels"])].float()


def _both(model: nn.Module, reference: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the hidden states of the model and of the reference.

    Those of the reference may have come with the batch.
    """
    fixed = batch.get("reference_hidden")
    if fixed is None:
        with torch.no_grad():
            fixed = fused.hidden_states(reference, batch["input_ids"], batch["attention_mask"])
    return _hidden(model, batch), fixed
