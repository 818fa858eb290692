"""Replacement labels of the forget set: what descent on it predicts instead of the true tokens.

`labels` are unshifted, as in Hugging Face: entry j + 1 is what position j predicts, and -100 is not
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn_utils.core import fused
from unlearn_utils.core.losses import IGNORED, Batch

# ------------------------------------------------------------------------------ of a whole batch
#
# Each takes a batch and where labels come from, and returns labels (batch, time). `core.methods`
# names these functions.


@dataclass(frozen=True)
class LabelSource:
    """Where replacement labels come from.

    Attributes:
        model: the original model, in evaluation mode; adversarial labels need it.
        generator, vocab_size: random labels need them. The size is the tokenizer's.
        special_ids: tokens that are never drawn.
    """

    model: nn.Module | None = None
    generator: torch.Generator | None = None
    vocab_size: int | None = None
    special_ids: Sequence[int] = ()


def random_replacement(batch: Batch, source: LabelSource) -> Tensor:
    """Return `random_labels`. Raise ValueError without a generator or a vocabulary's size."""
    return _by_generator(random_labels, batch, source)


def official_random_replacement(batch: Batch, source: LabelSource) -> Tensor:
    """Return `official_random_labels` (defect 7). Raise ValueError as `random_replacement`."""
    return _by_generator(official_random_labels, batch, source)


def adversarial_replacement(batch: Batch, source: LabelSource) -> Tensor:
    """Return `adversarial_labels` under the model. Raise ValueError without one."""
    return _by_model(adversarial_labels, batch, source)


def official_adversarial_replacement(batch: Batch, source: LabelSource) -> Tensor:
    """Return `official_adversarial_labels` (defect 1). Raise ValueError without a model."""
    return _by_model(official_adversarial_labels, batch, source)


def _by_generator(rule: Callable[..., Tensor], batch: Batch, source: LabelSource) -> Tensor:
    """Return the labels that a rule draws from the generator."""
    if source.generator is None or source.vocab_size is None:
        raise ValueError("random labels need a generator and the vocabulary's size")
    return rule(
        batch["input_ids"],
        batch["labels"],
        source.vocab_size,
        source.generator,
        source.special_ids,
    )


@torch.no_grad()
def _by_model(rule: Callable[..., Tensor], batch: Batch, source: LabelSource) -> Tensor:
    """Return the labels that a rule picks, with the logits of one sequence at a time."""
    if source.model is None:
        raise ValueError("adversarial labels need the original model")
    head = fused.head_of(source.model)
    hidden = fused.hidden_states(source.model, batch["input_ids"], batch["attention_mask"])
    picked = []
    for i in range(len(hidden)):
        one = slice(i, i + 1)
        ids, labels = batch["input_ids"][one], batch["labels"][one]
        picked.append(rule(fused.head_logits(hidden[one], head), ids, labels, source.special_ids))
    return torch.cat(picked)


# -------------------------------------------------------------------------------------- the rules
#
# input_ids and labels are (batch, time), unshifted; so are the labels that come back. What is -100
# stays.


def adversarial_labels(
    logits: Tensor, input_ids: Tensor, labels: Tensor, special_ids: Sequence[int] = ()
) -> Tensor:
    """Return the likeliest non-special token other than the true next one, at each position.

    Entry j + 1 comes from logits j; entry 0, which nothing predicts, stays. Ties go to either
    token.

    Args:
        logits: (batch, time, V), of the original model.
        input_ids, labels: (batch, time).
        special_ids: tokens that are never chosen.
    """
    special = torch.tensor(special_ids, dtype=torch.long, device=logits.device)
    ordinary = logits[:, :-1].index_fill(-1, special, -torch.inf)
    best, second = ordinary.topk(2).indices.unbind(-1)
    chosen = torch.where(best == input_ids[:, 1:], second, best)
    return _replaced(labels, torch.cat([labels[:, :1], chosen], 1), keep=labels == IGNORED)


def official_adversarial_labels(
    logits: Tensor, input_ids: Tensor, labels: Tensor, special_ids: Sequence[int] = ()
) -> Tensor:
    """Return defect 1 of the released code: entry j comes from logits j.

    Token j (not j + 1) and the last vocabulary id are excluded. The framework shifts labels once
    more, so that each target is the prediction made one position later. Special tokens may be
    chosen. Ties go to one of the likeliest tokens; the released code samples among them.

    Args:
        logits, input_ids, labels: as in `adversarial_labels`.
        special_ids: not used.
    """
    others = logits.scatter(2, input_ids[..., None], -torch.inf)
    return _replaced(labels, others[..., :-1].argmax(-1), keep=labels == IGNORED)


def random_labels(
    input_ids: Tensor,
    labels: Tensor,
    vocab_size: int,
    generator: torch.Generator,
    special_ids: Sequence[int] = (),
) -> Tensor:
    """Return labels drawn uniformly from the non-special tokens other than the true one.

    So it is for special true tokens too. The released code draws from the whole vocabulary
    (`official_random_labels`).

    Args:
        input_ids, labels: (batch, time).
        vocab_size: tokens are 0 to this, exclusive.
        generator: draws the labels.
        special_ids: tokens that are never drawn.

    Raises:
        ValueError: fewer than two tokens are left to draw from.
    """
    ordinary = sorted(set(range(vocab_size)) - set(special_ids))
    allowed = torch.tensor(ordinary, device=input_ids.device)
    if len(allowed) < 2:
        raise ValueError(f"random labels need at least 2 non-special tokens, not {len(allowed)}")
    place = torch.searchsorted(allowed, input_ids).clamp(max=len(allowed) - 1)
    true_allowed = allowed[place] == input_ids
    choices = len(allowed) - true_allowed.long()
    draw = (_uniform(input_ids, generator) * choices).long()
    draw += true_allowed & (draw >= place)  # step over the true token
    return _replaced(labels, allowed[draw], keep=labels == IGNORED)


def official_random_labels(
    input_ids: Tensor,
    labels: Tensor,
    vocab_size: int,
    generator: torch.Generator,
    special_ids: Sequence[int] = (),
) -> Tensor:
    """Return defect 7 of the released code: labels drawn uniformly from the whole vocabulary.

    The true token and special ones may be drawn; positions of special tokens stay. Arguments are
    those of `random_labels`.
    """
    special = torch.tensor(list(special_ids), dtype=input_ids.dtype, device=input_ids.device)
    draw = (_uniform(input_ids, generator) * vocab_size).long()
    stays = (labels == IGNORED) | torch.isin(input_ids, special)
    return _replaced(labels, draw, keep=stays)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return float64 numbers in [0, 1), in the shape and on the device of `like`.

    They are drawn on the generator's device, so that a seed gives the same labels everywhere.
    """
    device = generator.device
    drawn = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float64)
    return drawn.to(like.device)


def _replaced(labels: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    """Return the new labels, but the old ones where they are kept."""
    return torch.where(keep, labels, new.to(labels.dtype))
