"""Slips that are easily made in code for unlearning, each as a term: to measure what they do.

`core.methods` names them, by the slip, in the place of the right term. Each is our own, after what
is known of public code; none of it is copied. Where a slip takes the mean of a micro-batch by
itself, the means are weighted by predicted tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn_utils.core import fused, losses
from unlearn_utils.core.fused import Head, RowTerm
from unlearn_utils.core.losses import IGNORED, Batch, Shared

PADDED = 1 / 4  # padding after each text, as a share of the longest: as of a fixed length


# ------------------------------------------------------------------------------ KL to the reference


def kl_of_raw_logits(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return the mean of sum p (log p - z): logits z stand where log-probabilities belong."""
    return losses.kl_loss(model, reference, batch, count, raw_logits)


def kl_without_logarithm(
    model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor
) -> Tensor:
    """Return the mean of sum p (log p - q): probabilities q stand where their logarithms belong."""
    return losses.kl_loss(model, reference, batch, count, probabilities)


def kl_batch_mean(model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor) -> Tensor:
    """Return KL summed over tokens and divided by the sequences, as torch's "batchmean" does."""
    share = losses.predicted_tokens(batch) / count
    sequences = losses.predicted_sequences(batch).clamp(min=1)
    return share * losses.kl_loss(model, reference, batch, sequences)


def raw_logits(hidden: Tensor, head: Head) -> RowTerm:
    """Return the term sum p (log p - z), whose slope -p never comes to rest.

    hidden and head are the reference's, as in `fused.divergence`.
    """

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        log_p = fused.head_logits(hidden[rows], head).log_softmax(-1)
        p = log_p.exp()
        return (p * (log_p - logits)).sum(-1), -p

    return term


def probabilities(hidden: Tensor, head: Head) -> RowTerm:
    """Return the term sum p (log p - q). hidden and head are those of `fused.divergence`."""

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        log_p = fused.head_logits(hidden[rows], head).log_softmax(-1)
        p, q = log_p.exp(), logits.softmax(-1)
        agreed = (p * q).sum(-1, keepdim=True)
        return (p * log_p).sum(-1) - agreed[:, 0], q * (agreed - p)

    return term


# ------------------------------------------------------------------------------------------- NPO


def npo_of_raw_logits(
    model: nn.Module, batch: Batch, reference: nn.Module, count: Tensor
) -> Tensor:
    """Return NPO of the true tokens' logits, where their log-probabilities belong."""
    return losses.npo(model, batch, reference, count, minus_logit)


def minus_logit(targets: Tensor) -> RowTerm:
    """Return the term -z of the tokens `targets` (N,): as `fused.true_token`, not normalised."""

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        index = targets[rows, None]
        chosen = logits.gather(1, index)
        return -chosen[:, 0], torch.zeros_like(logits).scatter_(1, index, -1.0)

    return term


# ---------------------------------------------------------------------------------------- retain


def descent_on_one(
    model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor
) -> Tensor:
    """Return the mean next-token loss of the first sequence alone.

    So it is where every process draws its retain text with the same seed, and has one text a batch.
    """
    first = {name: batch[name][:1] for name in ("input_ids", "attention_mask", "labels")}
    shared = batch.get("shared")
    if shared is not None:
        first["shared"] = Shared(shared.model, shared.hidden[:1])
    share = losses.predicted_tokens(batch) / count
    return share * losses.next_token_loss(model, first)


# --------------------------------------------------------------------------------------- padding


def ascent_over_padding(
    model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor
) -> Tensor:
    """Return minus the mean cross-entropy over all positions: padding has its own id as label."""
    pad_id = fused.unwrapped(model).config.pad_token_id
    return -_mean_over_all(model, batch, count, label=pad_id)


def ascent_of_index(
    model: nn.Module, batch: Batch, reference: nn.Module | None, count: Tensor
) -> Tensor:
    """Return minus the mean log-probability taken at each label, where -100 counts from the end."""
    logits = fused.reading_of(model).logits
    return -_mean_over_all(model, batch, count, label=logits + IGNORED)


def _mean_over_all(model: nn.Module, batch: Batch, count: Tensor, label: int) -> Tensor:
    """Return the mean loss over all positions of texts that are padded to a fixed length.

    label: of padding.
    """
    ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    more = (0, max(1, round(PADDED * ids.shape[1])))
    pad_id = fused.unwrapped(model).config.pad_token_id
    labels = F.pad(labels, more, value=IGNORED)
    whole = {
        "input_ids": F.pad(ids, more, value=pad_id),
        "attention_mask": F.pad(mask, more),
        "labels": torch.where(labels == IGNORED, label, labels),
    }
    share = losses.predicted_tokens(batch) / count
    return share * losses.next_token_loss(model, whole)
