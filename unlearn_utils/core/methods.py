"""The table of methods: each is a forget term, a retain term and the retain text; and the objective that combines them.

minimise  sign * L_forget + retain_weight * L_retain,  sign = -1 for ascent on the true tokens and +1 for descent on replacement labels
(arXiv 2402.15159). Both terms are means over the predicted tokens of the whole optimizer batch. The released code does otherwise in
places; `variant` brings its conventions back, one numbered defect at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from unlearn_utils.core import fused, losses, replacement
from unlearn_utils.core.losses import Batch

REPRODUCIBLE = {
    1: "adversarial labels are one position off",
    2: "KL is averaged over padding and the last position, as a cross-entropy with 1e-12 inside the log",
    3: "each micro-batch is averaged by itself: ascent + descent over its sequences, ascent + KL as a sum of the two sides",
    7: "random labels may equal the true token or a special one; special positions keep their true label",
}


@dataclass(frozen=True)
class Method:
    """One choice of each: forget ("ascent", "random_label", "adversarial"), retain (None, "descent", "kl"), retain_text."""

    name: str
    title: str
    forget: str
    retain: str | None = None
    retain_text: str | None = None  # "general" or "in_distribution"


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("gradient_ascent", "Gradient ascent", "ascent"),
        Method("random_label", "Random labels", "random_label"),
        Method("adversarial", "Adversarial labels", "adversarial"),
        Method("ascent_descent_general", "Ascent + descent, general", "ascent", "descent", "general"),
        Method("ascent_descent_in_distribution", "Ascent + descent, in-distribution", "ascent", "descent", "in_distribution"),
        Method("ascent_kl_general", "Ascent + KL, general", "ascent", "kl", "general"),
        Method("ascent_kl_in_distribution", "Ascent + KL, in-distribution", "ascent", "kl", "in_distribution"),
    )
}


def get_method(method: str | Method) -> Method:
    """The method of that name. Raises ValueError, listing the names, if there is none."""
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    return METHODS[method]


def defects(variant: str | Iterable[int]) -> frozenset[int]:
    """Numbers of the released code's defects that a variant reproduces: none for "corrected", all of 1, 2, 3, 7 for "official".

    Raises ValueError for any other name or number.
    """
    if isinstance(variant, str):
        chosen = {"corrected": frozenset(), "official": frozenset(REPRODUCIBLE)}.get(variant)
    else:
        chosen = frozenset(variant)
    if chosen is None or not chosen <= set(REPRODUCIBLE):
        raise ValueError(f'unknown variant {variant!r}; choose "corrected", "official" or a set of numbers out of {sorted(REPRODUCIBLE)}')
    return chosen


def averages_micro_batches(variant: str | Iterable[int]) -> bool:
    """Whether a loss is a mean over its own micro-batch (defect 3), so that the caller averages micro-batches; else it sums them."""
    return 3 in defects(variant)


# ---------------------------------------------------------------------------------------------- replacement labels


@torch.no_grad()
def replacement_labels(
    method: str | Method,
    forget: Batch,
    model: nn.Module | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    special_ids: tuple[int, ...] = (),
    variant: str | Iterable[int] = "corrected",
) -> Tensor:
    """Labels (batch, time) that the forget term descends on; drawn once, before training, and then fixed.

    Random labels need `generator` and `vocab_size` (the tokenizer's: a head may have more rows); adversarial labels need
    `model`, the original one, in evaluation mode. For ascent the true labels come back.
    Raises ValueError if one of these is missing, the method or the variant is unknown.
    """
    method, chosen = get_method(method), defects(variant)
    if method.forget == "ascent":
        return forget["labels"]
    if method.forget == "random_label":
        if generator is None or vocab_size is None:
            raise ValueError("random labels need a generator and the vocabulary's size")
        draw = replacement.official_random_labels if 7 in chosen else replacement.random_labels
        return draw(forget["input_ids"], forget["labels"], vocab_size, generator, special_ids)
    if model is None:
        raise ValueError("adversarial labels need the original model")
    pick = replacement.official_adversarial_labels if 1 in chosen else replacement.adversarial_labels
    head, hidden = fused.head_of(model), fused.hidden_states(model, forget["input_ids"], forget["attention_mask"])
    rows = zip(hidden.split(1), forget["input_ids"].split(1), forget["labels"].split(1), strict=True)  # one sequence's logits at a time
    return torch.cat([pick(fused.head_logits(h, head), ids, labels, special_ids) for h, ids, labels in rows])


# ---------------------------------------------------------------------------------------------- the objective


def unlearning_loss(
    method: str | Method,
    model: nn.Module,
    forget: Batch,
    retain: Batch | None = None,
    reference: nn.Module | None = None,
    variant: str | Iterable[int] = "corrected",
    counts: tuple[int | Tensor, int | Tensor] | None = None,
    retain_weight: float = 1.0,
) -> Tensor:
    """The scalar that unlearning minimises, in nats.

    forget, retain: `input_ids`, `attention_mask`, `labels` (-100 = not counted, unshifted), shapes (batch, time). For random and
    adversarial labels `forget["labels"]` already holds the replacements. reference: the frozen original model, for KL.
    variant: "corrected", "official" or a set of defect numbers (`REPRODUCIBLE`). counts: predicted tokens (forget, retain) of the
    whole optimizer batch, so that the losses of its micro-batches add up to its loss; None = those of this batch. Under defect 3
    counts do not apply: every micro-batch is averaged by itself (`averages_micro_batches`).
    Raises ValueError if retain or reference is needed and missing, the method or the variant is unknown.
    """
    method, chosen = get_method(method), defects(variant)
    if method.retain and retain is None:
        raise ValueError(f"{method.name} needs retain text")
    if method.retain == "kl" and reference is None:
        raise ValueError(f"{method.name} needs the original model as reference")
    sign = -1.0 if method.forget == "ascent" else 1.0
    if method.retain and _alike(model, forget, retain):
        forget, retain = losses.share_forward(model, forget, retain)
    if 3 in chosen and method.retain == "descent":
        return _signed_sequence_means(model, forget, retain, sign, retain_weight)
    count_forget, count_retain = (None, None) if counts is None or 3 in chosen else counts
    loss = sign * losses.next_token_loss(model, forget, count_forget)
    if method.retain == "descent":
        loss = loss + retain_weight * losses.next_token_loss(model, retain, count_retain)
    elif method.retain == "kl":
        kl = _official_kl if 2 in chosen else losses.kl_loss
        loss = loss + retain_weight * kl(model, reference, retain, count_retain)
    return loss


def _alike(model: nn.Module, forget: Batch, retain: Batch) -> bool:
    """Whether one forward pass does for both sides: they have one length, else one would be padded for the other; and FSDP does not
    divide the model, because then every process must make the same passes, and each has sides of its own."""
    return forget["input_ids"].shape[1] == retain["input_ids"].shape[1] and not any(isinstance(m, FSDPModule) for m in model.modules())


def _official_kl(model: nn.Module, reference: nn.Module, retain: Batch, count: int | Tensor | None) -> Tensor:
    """The released code's mean over positions; in an optimizer batch of several, weighed by this micro-batch's share of tokens."""
    share = 1 if count is None else losses.predicted_mask(retain["labels"]).sum() / count
    return share * losses.official_kl_loss(model, reference, retain)


def _signed_sequence_means(model: nn.Module, forget: Batch, retain: Batch, sign: float, retain_weight: float) -> Tensor:
    """Defect 3: the mean, over the micro-batch's forget and retain sequences together, of +-1 times each sequence's mean."""
    sides = []
    for batch in (forget, retain):
        mask = losses.predicted_mask(batch["labels"])
        per_token = 1 / mask.sum(1, keepdim=True).clamp(min=1)
        sides.append(losses.next_token_sum(model, batch, per_token.expand_as(mask)))
    return (sign * sides[0] + retain_weight * sides[1]) / (len(forget["labels"]) + len(retain["labels"]))
