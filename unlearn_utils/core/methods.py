"""The table of methods, and the objective that all of them share.

minimise  L_forget + retain_weight * L_retain

A method (arXiv 2402.15159) chooses a forget term, perhaps a retain term, and the retain text. Each
term is a mean over what it counts, tokens or sequences, in the whole optimizer batch. The released
code of the paper does otherwise in places; `variant` brings its conventions back, one numbered
defect at a time.

This is the one place that knows what a method needs: other modules ask the `Method`, and never
compare its name. The study computes the paper's methods, `METHODS`. Those since are in `SINCE`, for
a user's own model and for who asks for them by name. PyTorch is imported by what computes, so that
a notebook which only reads results can read the tables without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unlearn_utils.core.losses import Batch

REPRODUCIBLE = {
    1: "adversarial labels are one position off",
    2: "KL is averaged over padding and the last position, as a cross-entropy with 1e-12 inside "
    "the log",
    3: "each micro-batch is averaged by itself: ascent + descent over its sequences, ascent + KL "
    "as a sum of the two sides",
    7: "random labels may equal the true token or a special one; special positions keep their true "
    "label",
}
PUBLIC = {  # slips of public code in general, which "official" does not have
    "raw logits": "KL takes logits where log-probabilities belong",
    "raw logits in NPO": "NPO takes the true tokens' logits where log-probabilities belong",
    "no logarithm": "KL takes probabilities where their logarithms belong",
    "batch mean": "KL is divided by the sequences, not by the tokens",
    "equal retain text": "every process reads the same retain text",
    "padding": "padding is predicted, too, and counts in the mean",
    "index -100": "the label -100, of what is not counted, is taken for a place in the vocabulary",
}
RETAIN_TEXTS = {
    "general": "general text, unlike the forget text",
    "in_distribution": "text of the forget text's own kind",
}
COUNTERS = {"tokens": "predicted_tokens", "sequences": "predicted_sequences"}
BACKWARD_AND_FORWARD, FORWARD = 1.0, 1 / 3  # of a token, in training passes (6 N FLOPs)
PAPER = "arXiv 2402.15159"


# ------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Multiplier:
    """A factor of a term that grows while its loss is above a bound, and falls while it is below.

    So the factor finds what holds the loss at its bound: dual ascent on a Lagrange multiplier.

    Attributes:
        start: its value in the first step.
        rate: by which it follows.
        bound: of the loss, in nats.
    """

    start: float
    rate: float
    bound: float

    def after(self, value: Tensor, loss: Tensor) -> Tensor:
        """Return its next value; the loss is that of a whole optimizer batch."""
        return (value + self.rate * (loss - self.bound)).clamp(min=0)


@dataclass(frozen=True, repr=False)
class Term:
    """One side of the objective: what is minimised there, and what follows from it.

    Attributes:
        name: short, and unique among the terms.
        minimises: the same in words, for tables and model cards.
        loss: a function of `core.losses`, by its name, or any function: (model, batch, reference,
            count) -> scalar tensor in nats, which is minimised.
        counted: "tokens" or "sequences": what the loss is a mean over.
        needs_reference: whether the loss reads the frozen original model.
        labels: a function of `core.replacement`, by its name, or any function: (batch, LabelSource)
            -> the labels that the loss reads in the place of the true tokens. None: the true ones.
        official: by defect number, or slip of `PUBLIC`, what stands in for `labels`, or, without
            labels, for `loss`.
        ascends: whether the loss is minus a next-token loss.
        passes: what a token of this side costs, in training passes: 1 is a forward and a backward
            pass; a forward pass alone, as of the reference, is a third.
        source: where the term and its settings are from.
        early: whether the loss is one of hidden states after a quarter of the layers
            (`fused.early_states`). Then the three layers up to there are trained alone.
        multiplier: what the loss is multiplied by in a run, which is state of the run; None: 1.
        negated: of a task vector: what training changes of the weights is taken off the original
            ones, so many times. None: weights are as trained.
    """

    name: str
    minimises: str
    loss: str | Callable[..., Tensor]
    counted: str = "tokens"
    needs_reference: bool = False
    labels: str | Callable[..., Tensor] | None = None
    official: Mapping[int | str, str] = field(default_factory=dict, compare=False)
    ascends: bool = False
    passes: float = BACKWARD_AND_FORWARD
    source: str = ""
    early: bool = False
    multiplier: Multiplier | None = None
    negated: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a `counted` that nothing counts."""
        if self.counted not in COUNTERS:
            choices = ", ".join(COUNTERS)
            raise ValueError(f"{self.name}: counted is one of {choices}, not {self.counted!r}")

    def __repr__(self) -> str:
        """Return the name: the functions have no readable form."""
        return self.name

    def count(self, batch: Batch) -> Tensor:
        """Return how many tokens or sequences of a batch the loss is a mean over: a scalar."""
        return _function("losses", COUNTERS[self.counted])(batch)

    def loss_function(self, reproduced: frozenset = frozenset()) -> Callable[..., Tensor]:
        """Return the loss, or the released code's where a defect of it is `reproduced`."""
        if self.labels is None:
            return _function("losses", self._chosen(self.loss, reproduced))
        return _function("losses", self.loss)

    def label_function(self, reproduced: frozenset = frozenset()) -> Callable[..., Tensor]:
        """Return what draws the labels, or the released code's where a defect is `reproduced`."""
        return _function("replacement", self._chosen(self.labels, reproduced))

    def _chosen(self, corrected: str | Callable, reproduced: frozenset) -> str | Callable:
        """Return the corrected function, or the one of a reproduced defect."""
        for number, function in self.official.items():
            if number in reproduced:
                return function
        return corrected


def _function(module: str, found: str | Callable) -> Callable:
    """Return a function of a module of this package, by its name; a function as it is.

    A name such as `slips.kl_batch_mean` says its module.
    """
    if callable(found):
        return found
    *other, name = found.split(".")
    return getattr(import_module(f"unlearn_utils.core.{other[0] if other else module}"), name)


ASCENT = Term(
    name="ascent",
    minimises="minus the cross-entropy of the forget text",
    loss="ascent",
    official={
        "padding": "slips.ascent_over_padding",
        "index -100": "slips.ascent_of_index",
    },
    ascends=True,
    source=PAPER,
)
RANDOM_LABEL = Term(
    name="random_label",
    minimises="the cross-entropy of the forget text with labels drawn once at random among the "
    "other tokens",
    loss="descent",
    labels="random_replacement",
    official={7: "official_random_replacement"},
    source=PAPER,
)
ADVERSARIAL = Term(
    name="adversarial",
    minimises="the cross-entropy of the forget text with the original model's likeliest wrong "
    "token as each label",
    loss="descent",
    labels="adversarial_replacement",
    official={1: "official_adversarial_replacement"},
    source=PAPER,
)
DESCENT = Term(
    name="descent",
    minimises="the cross-entropy of the retain text",
    loss="descent",
    official={"equal retain text": "slips.descent_on_one"},
    source=PAPER,
)
KL = Term(
    name="kl",
    minimises="KL(original model || model) of the next token on the retain text",
    loss="kl_to_reference",
    needs_reference=True,
    official={
        2: "official_kl_to_reference",
        "raw logits": "slips.kl_of_raw_logits",
        "no logarithm": "slips.kl_without_logarithm",
        "batch mean": "slips.kl_batch_mean",
    },
    passes=BACKWARD_AND_FORWARD + FORWARD,
    source=PAPER,
)

# Forget terms since the paper. Their settings are those of open-unlearning (arXiv 2506.12618), for
# models of 1e9 to 8e9 parameters, where the source names no other.

NPO = Term(
    name="npo",
    minimises="-(2 / 0.1) log sigmoid(0.1 x (NLL - the original model's)) of each forget text",
    loss="npo",
    counted="sequences",
    needs_reference=True,
    official={"raw logits in NPO": "slips.npo_of_raw_logits"},
    passes=BACKWARD_AND_FORWARD + FORWARD,
    source="NPO, arXiv 2404.05868; beta 0.1",
)
SIMNPO = Term(
    name="simnpo",
    minimises="-(2 / 4.5) log sigmoid(4.5 x NLL a token) of each forget text",
    loss="simnpo",
    counted="sequences",
    source="SimNPO, arXiv 2410.07163; beta 4.5, delta 0 as in open-unlearning",
)
WGA = Term(
    name="wga",
    minimises="minus the cross-entropy of the forget text, each token weighted by its probability",
    loss="wga",
    source="WGA, arXiv 2502.19301; beta 1",
)
SATIMP = Term(
    name="satimp",
    minimises="minus the cross-entropy of the forget text, each token weighted by p^5 (1 - p) of "
    "its probability p",
    loss="satimp",
    source="SatImp, arXiv 2505.11953; beta 5 and 1",
)
CE_U = Term(
    name="ce_u",
    minimises="the cross-entropy of the forget text with the model's own distribution without the "
    "true token",
    loss="ce_u",
    source="CE-U, arXiv 2503.01224",
)
UNDIAL = Term(
    name="undial",
    minimises="the cross-entropy of the forget text with the original model's distribution, the "
    "true token's logit lowered by 10",
    loss="undial",
    needs_reference=True,
    passes=BACKWARD_AND_FORWARD + FORWARD,
    source="UNDIAL, arXiv 2402.10052; beta 10 as in open-unlearning",
)
# The backward pass of both ends after three layers, a quarter of them at most.
RMU = Term(
    name="rmu",
    minimises="the squared distance of the forget text's hidden states after a quarter of the "
    "layers to a random vector of length 2",
    loss="rmu",
    passes=FORWARD + (BACKWARD_AND_FORWARD - FORWARD) / 4,
    source="RMU, arXiv 2403.03218, there layer 7 of 32; c 2, in released code 2 to 300",
    early=True,
)
RMU_RETAIN = Term(
    name="rmu_retain",
    minimises="the squared distance of the retain text's to the original model's",
    loss="early_distance",
    needs_reference=True,
    passes=FORWARD + (BACKWARD_AND_FORWARD - FORWARD) / 4 + FORWARD,
    source="RMU, arXiv 2403.03218; weight 1, in released code 1 to 1600",
    early=True,
)
PDU = Term(
    name="pdu",
    minimises="the square of the largest logit less the mean logit on the forget text",
    loss="pdu",
    source="PDU, arXiv 2506.05314; multiplier from 100, rate 5, bound 0.3 as there for TOFU",
)
# Its authors bound the retain loss itself, a little above the original model's. That differs from
# text to text, so here the bound is of the rise over it. Settings are theirs for TOFU, but that
# there the multiplier stands still for 5 epochs, which are more than we run. For the documents of
# MUSE they begin with 50, at rate 1 and bound 1.5, after 3 such epochs.
PDU_RETAIN = Term(
    name="pdu_retain",
    minimises="m * the rise of the retain text's cross-entropy over the original model's; m is 100 "
    "at first, and grows by 5 * (rise - 0.3) a step, but not below 0",
    loss="rise",
    needs_reference=True,
    passes=BACKWARD_AND_FORWARD + FORWARD,
    source="PDU, arXiv 2506.05314; a bound of the rise: ours",
    multiplier=Multiplier(start=100.0, rate=5.0, bound=0.3),
)
TASK_VECTOR = Term(
    name="task_vector",
    minimises="the cross-entropy of the forget text; the new model is the original one less what "
    "this changes of its weights",
    loss="descent",
    needs_reference=True,  # for its weights: it is never run
    source="task vectors, arXiv 2212.04089; once the change, in released code 1 to 5 times",
    negated=1.0,
)


TERMS = {
    term.name: term
    for term in (
        ASCENT,
        RANDOM_LABEL,
        ADVERSARIAL,
        DESCENT,
        KL,
        NPO,
        SIMNPO,
        WGA,
        SATIMP,
        CE_U,
        UNDIAL,
        RMU,
        RMU_RETAIN,
        PDU,
        PDU_RETAIN,
        TASK_VECTOR,
    )
}


def get_term(term: str | Term) -> Term:
    """Return the term of that name, or the term itself.

    Raises:
        ValueError: there is none of that name; the message lists the names.
    """
    if isinstance(term, Term):
        return term
    if term not in TERMS:
        raise ValueError(f"unknown term {term!r}; give a Term or one of: {', '.join(TERMS)}")
    return TERMS[term]


@dataclass(frozen=True)
class Method:
    """One choice of each: the forget term, the retain term (or None), and the retain text.

    A term may be given by its name in `TERMS`. retain_text: a key of `RETAIN_TEXTS`, or None
    without a retain term.
    """

    name: str
    title: str
    forget: Term
    retain: Term | None = None
    retain_text: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown term, and for retain text that is unknown or unused."""
        object.__setattr__(self, "forget", get_term(self.forget))
        if self.retain is not None:
            object.__setattr__(self, "retain", get_term(self.retain))
        if self.retain is None and self.retain_text is not None:
            raise ValueError(f"{self.name}: retain text {self.retain_text!r} without a retain term")
        if self.retain is not None and self.retain_text not in RETAIN_TEXTS:
            choices = ", ".join(RETAIN_TEXTS)
            raise ValueError(
                f"{self.name}: retain text is one of {choices}, not {self.retain_text!r}"
            )

    @property
    def terms(self) -> dict[str, Term]:
        """The terms by the side of a batch that they read: "forget" and, if any, "retain"."""
        found = {"forget": self.forget}
        if self.retain is not None:
            found["retain"] = self.retain
        return found

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen original model is read."""
        return any(term.needs_reference for term in self.terms.values())

    @property
    def replaces_labels(self) -> bool:
        """Whether the forget term descends on other labels than the true tokens."""
        return self.forget.labels is not None

    @property
    def early(self) -> bool:
        """Whether all terms are of early hidden states, so that a few layers are trained alone."""
        return all(term.early for term in self.terms.values())

    @property
    def slips(self) -> frozenset[str]:
        """The slips of `PUBLIC` that its terms can have."""
        every = [slip for term in self.terms.values() for slip in term.official]
        return frozenset(every) & set(PUBLIC)

    @property
    def minimises(self) -> str:
        """What is minimised, in words; w is the weight of the retain term."""
        if self.retain is None:
            return self.forget.minimises
        return f"{self.forget.minimises} + w * {self.retain.minimises}"

    @property
    def source(self) -> str:
        """Where the forget term is from, which a method is known by."""
        return self.forget.source

    @property
    def passes(self) -> float:
        """What a forget token costs, with the retain token that is read beside it, in passes."""
        return sum(term.passes for term in self.terms.values())

    def retain_domain(self, target_domain: str) -> str | None:
        """Return the domain whose retain text is read, or None without a retain term.

        target_domain: whose documents are forgotten.
        """
        if self.retain is None:
            return None
        return target_domain if self.retain_text == "in_distribution" else "general"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradient_ascent", "Gradient ascent", ASCENT),
        Method("random_label", "Random labels", RANDOM_LABEL),
        Method("adversarial", "Adversarial labels", ADVERSARIAL),
        Method("ascent_descent_general", "Ascent + descent, general", ASCENT, DESCENT, "general"),
        Method(
            "ascent_descent_in_distribution",
            "Ascent + descent, in-distribution",
            ASCENT,
            DESCENT,
            "in_distribution",
        ),
        Method("ascent_kl_general", "Ascent + KL, general", ASCENT, KL, "general"),
        Method(
            "ascent_kl_in_distribution",
            "Ascent + KL, in-distribution",
            ASCENT,
            KL,
            "in_distribution",
        ),
    )
}

# Each with the retain term that its own source uses most. Both terms weigh the same, as in the
# seven. Open-unlearning weighs the retain term 8 times for SimNPO, and for SatImp 10 times or a
# tenth, where its configuration and its README differ. `--retain-weight` sets another weight.
SINCE: dict[str, Method] = {
    method.name: method
    for method in (
        Method("npo", "NPO", NPO, DESCENT, "in_distribution"),
        Method("simnpo", "SimNPO", SIMNPO, DESCENT, "in_distribution"),
        Method("wga", "WGA", WGA, DESCENT, "in_distribution"),
        Method("satimp", "SatImp", SATIMP, DESCENT, "in_distribution"),
        Method("ce_u", "CE-U", CE_U),
        Method("undial", "UNDIAL", UNDIAL),
        Method("rmu", "RMU", RMU, RMU_RETAIN, "in_distribution"),
        Method("pdu", "PDU", PDU, PDU_RETAIN, "in_distribution"),
        Method("task_vector", "Task vector", TASK_VECTOR),
    )
}


def every() -> dict[str, Method]:
    """Return all methods by name: the paper's, then those since."""
    return METHODS | SINCE


def get_method(method: str | Method) -> Method:
    """Return the method of that name, or the method itself.

    Raises:
        ValueError: there is none of that name; the message lists the names.
    """
    if isinstance(method, Method):
        return method
    if method not in every():
        raise ValueError(f"unknown method {method!r}; choose one of: {', '.join(every())}")
    return every()[method]


# ------------------------------------------------------------------- the released code's defects


def defects(variant: str | Iterable[int | str]) -> frozenset[int | str]:
    """Return the numbers of the released code's defects that a variant reproduces.

    They are none for "corrected", all of 1, 2, 3, 7 for "official", and a set of numbers, or of
    slips of `PUBLIC`, is itself.

    Raises:
        ValueError: any other name or number.
    """
    if isinstance(variant, str):
        named = {"corrected": frozenset(), "official": frozenset(REPRODUCIBLE)}
        chosen = named.get(variant)
    else:
        chosen = frozenset(variant)
    if chosen is None or not chosen <= {*REPRODUCIBLE, *PUBLIC}:
        raise ValueError(
            f'unknown variant {variant!r}; choose "corrected", "official" or a set of numbers out '
            f"of {sorted(REPRODUCIBLE)}, or of {list(PUBLIC)}"
        )
    return chosen


def averages_micro_batches(variant: str | Iterable[int]) -> bool:
    """Return whether the caller averages micro-batches; else it sums them.

    Under defect 3 the loss of a micro-batch is a mean over that micro-batch alone.
    """
    return 3 in defects(variant)


# ------------------------------------------------------------------------------ labels and loss


def replacement_labels(
    method: str | Method,
    forget: Batch,
    model: nn.Module | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    special_ids: tuple[int, ...] = (),
    variant: str | Iterable[int] = "corrected",
) -> Tensor:
    """Return the labels (batch, time) that the forget term reads.

    They are drawn once, before training, and then fixed; without replacement the true labels come
    back.

    Args:
        method: its name, or itself.
        forget: `input_ids`, `attention_mask`, `labels` (-100 is not counted, unshifted), each
            (batch, time).
        model: the original model, in evaluation mode; adversarial labels need it.
        generator, vocab_size: random labels need them. The size is the tokenizer's: an output head
            may have more rows.
        special_ids: tokens that are never drawn.
        variant: as in `unlearning_loss`.

    Raises:
        ValueError: one of these is missing; the method or the variant is unknown.
    """
    from unlearn_utils.core.replacement import LabelSource

    method, chosen = get_method(method), defects(variant)
    if not method.replaces_labels:
        return forget["labels"]
    draw = method.forget.label_function(chosen)
    return draw(forget, LabelSource(model, generator, vocab_size, special_ids))


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
    """Return the scalar that unlearning minimises, in nats.

    Args:
        method: its name, or itself.
        model: a causal language model of transformers.
        forget, retain: `input_ids`, `attention_mask`, `labels` (-100 is not counted, unshifted),
            each (batch, time). Where the method replaces labels, `forget["labels"]` holds the
            replacements already.
        reference: the frozen original model, for methods that need it.
        variant: "corrected", "official" or a set of defect numbers (`REPRODUCIBLE`).
        counts: what each side has of what its term counts (predicted tokens, or sequences) in the
            whole optimizer batch, so that the losses of its micro-batches add up to its loss. None:
            what this batch has. Under defect 3 counts do not apply.
        retain_weight: of the retain term, whose `multiplier` a run adds (`engine.training`).

    Raises:
        ValueError: retain or reference is needed and missing; the method or variant is unknown, or
            the released code lacks the method, and the method the slip.
    """
    from unlearn_utils.core import losses

    method, chosen = get_method(method), defects(variant)
    if method.name in SINCE and not chosen <= method.slips:
        choices = ", ".join(["corrected", *sorted(method.slips)])
        raise ValueError(f"{method.name}: not in the released code; the variant is of: {choices}")
    if method.retain is not None and retain is None:
        raise ValueError(f"{method.name} needs retain text")
    if method.needs_reference and reference is None:
        raise ValueError(f"{method.name} needs the original model as reference")
    one_forward = method.retain is not None and not method.early
    if one_forward and losses.fit_one_forward(model, forget, retain):
        forget, retain = losses.share_forward(model, forget, retain)
    if 3 in chosen and method.retain is DESCENT:
        sign = -1.0 if method.forget.ascends else 1.0
        return losses.signed_sequence_means(model, forget, retain, sign, retain_weight)
    if 3 in chosen:
        counts = None
    sides = {"forget": forget, "retain": retain}
    given = dict(zip(("forget", "retain"), counts or (None, None), strict=True))
    parts = {}
    for side, term in method.terms.items():
        count = given[side]
        if count is None:
            count = term.count(sides[side]).clamp(min=1)
        parts[side] = term.loss_function(chosen)(model, sides[side], reference, count)
    if method.retain is None:
        return parts["forget"]
    return parts["forget"] + retain_weight * parts["retain"]
