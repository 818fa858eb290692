"""Losses of hidden states, without the logits of all rows at once: pure functions of tensors.

Logits are never kept: a loss walks over chunks of rows and takes the gradients of the hidden states
and of the output head on the way (the idea of Liger Kernel, arXiv 2410.10989, in plain PyTorch).
Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Takes logits (m, V), which it may overwrite, and the numbers of their rows; returns the loss of
# each row (m,) and its slopes in the logits (m, V).
RowTerm = Callable[[Tensor, slice], tuple[Tensor, Tensor]]

# On a CPU: 4 MiB of logits is the fastest of 2 to 16 on one core, and above 32 every tensor is
# returned to the system and page-faults back. But a matrix product wants 96 rows, up to 16 MiB.
CPU_LOGIT_BYTES = 4 * 2**20
CPU_ROWS = 96
CPU_MOST_BYTES = 16 * 2**20
ACCELERATOR_LOGIT_BYTES = 64 * CPU_LOGIT_BYTES  # enough rows to fill a GPU's matrix units

EXAMINED = 8  # tokens, where no text is given
# What is planted in the place of the head's output: so little that no cap bends it, so much that
# every cap is reached, and some between.
PLANTED = (-(2.0**30), -32.0, -1.0, -(2.0**-20), 0.0, 2.0**-20, 1.0, 32.0, 2.0**30)
ROUNDING = 1e-5  # of the norm of logits: what float32 leaves
FORESIGHT = 1e-3  # the same, of what later tokens change: more is no rounding


# --------------------------------------------------------------------------- a model's two halves


class Head(NamedTuple):
    """Output head of a model, from hidden states to logits.

    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), without the tanh if
    `softcap` is None.

    Attributes:
        weight: (V, d); None: what is called hidden states are the model's own logits.
        bias: (V,), or None.
        scale: a number.
        softcap: a number, or None.
    """

    weight: Tensor | None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, dtype: torch.dtype) -> Head:
        """Return the head with weight and bias in this type."""
        weight = None if self.weight is None else self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(weight=weight, bias=bias)


class Reading(NamedTuple):
    """How the logits of a model are computed here, as `examine` found it.

    Attributes:
        by_head: from its hidden states, by a `Head`; else its own logits are taken.
        scale, softcap: of that head.
        width: of its hidden states, or of its own logits.
        logits: how many a token has.
        embeddings: how many tokens it can read.
    """

    by_head: bool
    scale: float
    softcap: float | None
    width: int
    logits: int
    embeddings: int


# of each head, or of each model that has none
_readings: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside a peft wrapper, or the model itself.

    LoRA layers stay in place.
    """
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def head_of(model: nn.Module) -> Head:
    """Return the output head of a Hugging Face causal language model.

    Its weight is None where none reproduces the model's own logits, which are taken instead.
    """
    reading = reading_of(model)
    if not reading.by_head:
        return Head(None)
    layer = unwrapped(model).get_output_embeddings()
    return Head(layer.weight, layer.bias, reading.scale, reading.softcap)


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the last hidden states (batch, time, d), after the final norm.

    They are what the output head reads; where it has no weight, they are the model's own logits.
    What is masked may be any id, also one that the model has no embedding of.
    """
    given = _given(model, input_ids, attention_mask)
    if reading_of(model).by_head:
        return body_of(unwrapped(model))(**given).last_hidden_state
    return unwrapped(model)(**given).logits


def early_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the hidden states (batch, time, d) after `early_layers`. Ids are as above.

    Raises:
        ValueError: this kind of model does not give them.
    """
    given = _given(model, input_ids, attention_mask)
    body = body_of(unwrapped(model))
    states = getattr(body(**given, output_hidden_states=True), "hidden_states", None)
    if not states:
        kind = type(unwrapped(model)).__name__
        raise ValueError(f"this {kind} does not give the hidden states of its layers")
    return states[early_layers(len(states) - 1)]


def early_layers(layers: int) -> int:
    """Return how many layers are a quarter of a model's, at least one: 8 of 32."""
    return max(1, layers // 4)


def _given(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> dict:
    """Return the arguments of a model, with an id that it can embed where it is masked."""
    if attention_mask is not None:
        strange = (attention_mask == 0) & (input_ids >= reading_of(model).embeddings)
        input_ids = input_ids.masked_fill(strange, 0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}


def body_of(model: nn.Module) -> Callable:
    """Return what gives a model's hidden states."""
    if model.base_model is not model:
        return model.base_model
    for part in model.children():  # Llama 4 names it otherwise
        if hasattr(part, "get_input_embeddings"):
            return part
    return model


# --------------------------------------------------------------- what lies between the two halves


def reading_of(model: nn.Module) -> Reading:
    """Return what `examine` found of a model, which it does now if it did not before."""
    if _key(model) not in _readings:
        embeddings = len(unwrapped(model).get_input_embeddings().weight)
        examine(model, torch.arange(EXAMINED) % embeddings)
    return _readings[_key(model)]


def _key(model: nn.Module) -> nn.Module:
    """Return what a reading is kept under: a new head is another one."""
    head = unwrapped(model).get_output_embeddings()
    return model if head is None else head


@torch.no_grad()
def examine(model: nn.Module, ids: Tensor) -> None:
    """Find out, on a text, how a model comes to its logits, and keep it for `reading_of`.

    Whatever a config calls it, what happens between head and logits shows in what becomes of
    numbers that are planted in the place of the head's output. If that is a scale and a cap, and if
    the head of the hidden states then gives the model's own logits near rounding, it is taken.
    Logits that are no numbers pass: such a model is measured, and found out.

    Args:
        ids: token ids (time,).

    Raises:
        ValueError: logits depend on tokens that come later.
    """
    plain = unwrapped(model)
    embeddings = len(plain.get_input_embeddings().weight)
    ids = ids.to(plain.device)
    half = len(ids) // 2
    # the same text, and it with another second half
    both = torch.stack([ids, torch.cat([ids[:half], (ids[half:] + 1) % embeddings])])
    given = {"input_ids": both, "attention_mask": None, "use_cache": False}
    with _evaluated(plain), torch.autocast(plain.device.type, enabled=False):
        own = plain(**given).logits
        if _differ(*own[:, :half], FORESIGHT):
            raise ValueError(
                f"this {type(plain).__name__} sees the tokens that it shall predict, or decides by "
                "chance: it is no causal language model"
            )
        reading = _by_head(plain, given, own, embeddings)
    if reading is None:
        width = own.shape[-1]
        reading = Reading(False, 1.0, None, width, width, embeddings)
    _readings[_key(model)] = reading


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, inside."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _by_head(model: nn.Module, given: Mapping, own: Tensor, embeddings: int) -> Reading | None:
    """Return how a `Head` gives a model's logits, or None if none does.

    Args:
        given: arguments of the model.
        own: the logits that it gives.
        embeddings: as in `Reading`.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        return None
    states = getattr(body_of(model)(**given), "last_hidden_state", None)
    if states is None or states.shape[-1] != layer.in_features:
        return None
    one_token = given | {"input_ids": given["input_ids"][:1, :1]}
    between = _between(model, layer, one_token)
    if between is None:
        return None
    scale, softcap = between
    ours = head_logits(states, Head(layer.weight, layer.bias, scale, softcap))
    if ours.shape != own.shape or _differ(ours, own, ROUNDING):
        return None
    return Reading(True, scale, softcap, layer.in_features, own.shape[-1], embeddings)


def _between(
    model: nn.Module, layer: nn.Module, given: Mapping
) -> tuple[float, float | None] | None:
    """Return the scale and the cap of what a model does with the output of its head.

    None if it does anything else.
    """

    def planted(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        numbers = torch.arange(output.numel(), device=output.device) % len(PLANTED)
        values = torch.tensor(PLANTED, dtype=torch.float64, device=output.device)
        return values[numbers].view(output.shape)

    hook = layer.register_forward_hook(planted)
    try:
        found = model(**given).logits.double().flatten()
    finally:
        hook.remove()
    if len(found) < len(PLANTED):
        return None
    values = torch.tensor(PLANTED, dtype=torch.float64, device=found.device)
    scale = float(found[PLANTED.index(2.0**-20)] / 2.0**-20)
    most = float(found[PLANTED.index(2.0**30)])
    softcap = most if most < 0.9 * scale * 2.0**30 else None
    expected = scale * values
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    numbers = torch.arange(len(found), device=found.device) % len(PLANTED)
    if not torch.allclose(found, expected[numbers], rtol=ROUNDING, atol=0):
        return None
    return scale, softcap


def _differ(ours: Tensor, own: Tensor, share: float) -> bool:
    """Return whether logits differ by more than a share of their norm and the own ones' rounding.

    What is no number does not differ.
    """
    rounding = 2 * torch.finfo(own.dtype).eps
    return bool((ours.float() - own.float()).norm() > (share + rounding) * own.float().norm())


# -------------------------------------------------------------------------------- logits of a head


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Return the float32 logits (..., V) of hidden states (..., d).

    This is plain and differentiable; the caller bounds the number of rows.
    """
    dtype = product_dtype(hidden, head)
    wide = torch.promote_types(dtype, torch.float32)
    if head.weight is None:
        return hidden.to(wide)
    with torch.autocast(hidden.device.type, enabled=False):
        head = head.to(dtype)
        logits = F.linear(hidden.to(dtype), head.weight, head.bias).to(wide)
        if head.scale != 1:
            logits = logits * head.scale
        if head.softcap is None:
            return logits
        return head.softcap * torch.tanh(logits / head.softcap)


def matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return autocast's type where autocast is on, else the weight's."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def product_dtype(hidden: Tensor, head: Head) -> torch.dtype:
    """Return `matmul_dtype` of a head; own logits keep their type."""
    if head.weight is None:
        return hidden.dtype
    return matmul_dtype(hidden, head.weight)


def logit_count(hidden: Tensor, head: Head) -> int:
    """Return how many logits a row has."""
    return hidden.shape[-1] if head.weight is None else len(head.weight)


# ----------------------------------------------------------------------------- a sum over rows


def fused_loss(hidden: Tensor, head: Head, term: RowTerm, weights: Tensor | None = None) -> Tensor:
    """Return the sum over rows of weight * term: a scalar in float32.

    The logits of all rows are never held together. Gradients flow to the hidden states and to the
    head's weight and bias. Under autocast the matrix products run in its type, the loss is in
    float32.

    Args:
        hidden: (N, d)
        head: of the model.
        term: one of the terms of a row below.
        weights: (N,), constants; None: 1.
    """
    if weights is None:
        weights = hidden.new_ones(len(hidden), dtype=torch.float32)
    with_grad = torch.is_grad_enabled()
    return _FusedLoss.apply(
        hidden, head.weight, head.bias, weights, head.scale, head.softcap, term, with_grad
    )


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Return how many rows of float32 logits are made at a time; at least one.

    They take 256 MiB on an accelerator; on a CPU 4 MiB, or are 96 if these fit 16 MiB.
    """
    row = 4 * vocabulary
    if device.type != "cpu":
        return max(1, ACCELERATOR_LOGIT_BYTES // row)
    return max(1, CPU_LOGIT_BYTES // row, min(CPU_ROWS, CPU_MOST_BYTES // row))


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class _FusedLoss(torch.autograd.Function):
    """Weighted sum of a term over rows, whose gradients are taken in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, weights, scale, softcap, term, with_grad):
        needed = [with_grad and need for need in ctx.needs_input_grad[:3]]
        head = Head(weight, bias, scale, softcap)
        dtype = product_dtype(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):  # it would cast in every chunk
            total, grads = _walk(hidden, head, dtype, weights, term, needed)
        kept = []
        for grad, tensor in zip(grads, (hidden, weight, bias), strict=True):
            kept.append(None if grad is None else grad.to(tensor.dtype))
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        grads = []
        for kept in ctx.saved_tensors:
            if kept is None:
                grads.append(None)
                continue
            wide = kept.to(grad_output.dtype) * grad_output  # 1 / count keeps its digits
            grads.append(wide.to(kept.dtype))
        return *grads, None, None, None, None, None


def _walk(
    hidden: Tensor,
    head: Head,
    dtype: torch.dtype,
    weights: Tensor,
    term: RowTerm,
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the weighted sum of a term, and its gradients in float32 (float64 of float64).

    Args:
        hidden, head, weights, term: as in `fused_loss`.
        dtype: of the matrix products; hidden states and head are cast once, here.
        needed: of hidden states, weight and bias: whether the gradient is needed; else it is None.
    """
    wide = torch.promote_types(dtype, torch.float32)
    states = hidden.to(dtype)
    cast = head.to(dtype)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    grads = []
    for tensor, need in zip((hidden, head.weight, head.bias), needed, strict=True):
        grads.append(torch.zeros_like(tensor, dtype=wide) if need else None)
    scratch = torch.empty_like(cast.weight) if needed[1] else None
    vocabulary = logit_count(hidden, head)
    size = chunk_rows(vocabulary, hidden.device)
    # asked for once: new memory comes slowly
    narrow = states.new_empty(min(size, len(hidden)), vocabulary)
    room = narrow.to(wide)
    for rows in chunks(len(hidden), size):
        logits, damping = _logits(states[rows], cast, narrow, room)
        losses, slope = term(logits, rows)
        total += (losses * weights[rows]).sum()
        if any(needed):
            slope *= (head.scale * weights[rows])[:, None].to(wide)
            if damping is not None:
                slope *= damping
            narrow_slope = narrow[: len(slope)].copy_(slope)
            _accumulate(grads, slope, narrow_slope, states[rows], cast.weight, rows, scratch)
    return total, grads


def _logits(
    states: Tensor, head: Head, narrow: Tensor, room: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return `head_logits`, and d capped / d uncapped logits where the head caps them.

    Args:
        states: hidden states (m, d) of these rows.
        head: of the type of the states.
        narrow: room for m or more rows of logits of that type.
        room: the same for float32, which the logits are written into.
    """
    if head.weight is None:
        return room[: len(states)].copy_(states), None
    narrow = narrow[: len(states)]
    transposed = head.weight.T
    if head.bias is None:
        torch.mm(states, transposed, out=narrow)
    else:
        torch.addmm(head.bias, states, transposed, out=narrow)
    logits = room[: len(states)].copy_(narrow)
    if head.scale != 1:
        logits *= head.scale
    if head.softcap is None:
        return logits, None
    logits.div_(head.softcap).tanh_()
    damping = 1 - logits**2
    return logits.mul_(head.softcap), damping


def _accumulate(
    grads: Sequence[Tensor | None],
    slope: Tensor,
    narrow_slope: Tensor,
    states: Tensor,
    weight: Tensor | None,
    rows: slice,
    scratch: Tensor | None,
) -> None:
    """Add one chunk's gradients of hidden states, weight and bias.

    Args:
        grads: so far; None where none is needed.
        slope: (m, V), of the loss in the logits as they are before scale and cap.
        narrow_slope: the same in the weight's type.
        states: hidden states (m, d) of these rows.
        weight: (V, d), of the head; None: the states are logits.
        rows: their numbers.
        scratch: room for one product of the weight's shape and type.
    """
    if grads[0] is not None:
        of_states = slope if weight is None else narrow_slope @ weight
        grads[0][rows] = of_states.to(slope.dtype)
    if grads[1] is not None:
        grads[1] += torch.mm(narrow_slope.T, states, out=scratch)
    if grads[2] is not None:
        grads[2] += slope.sum(0)


# ------------------------------------------------------------------------------- terms of a row


def true_token(targets: Tensor) -> RowTerm:
    """Return the term that is the cross-entropy with the tokens `targets` (N,)."""

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        index = targets[rows, None]
        chosen = logits.gather(1, index)
        q, normaliser = _softmax_(logits)
        losses = normaliser - chosen[:, 0]
        return losses, q.scatter_add_(1, index, -torch.ones_like(chosen))

    return term


def divergence(hidden: Tensor, head: Head) -> RowTerm:
    """Return the term that is KL(P || Q), from the reference's distribution P.

    P has no gradient.

    Args:
        hidden: the reference's hidden states (N, d).
        head: the reference's.
    """
    hidden, head = _fixed(hidden, head)

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        reference = head_logits(hidden[rows], head)
        difference = reference - logits
        p, normaliser_p = _softmax_(reference)
        q, normaliser_q = _softmax_(logits)
        losses = difference.mul_(p).sum(-1) - normaliser_p + normaliser_q
        return losses, q.sub_(p)

    return term


def official_divergence(hidden: Tensor, head: Head, epsilon: float = 1e-12) -> RowTerm:
    """Return defect 2 of the released code: the term that is -sum p log(q + 1e-12).

    It is a cross-entropy whose gradient dies where q underflows. hidden and head are those of
    `divergence`.
    """
    hidden, head = _fixed(hidden, head)

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        p, _ = _softmax_(head_logits(hidden[rows], head))
        q, _ = _softmax_(logits)
        share = p * q / (q + epsilon)
        losses = -(p * (q + epsilon).log()).sum(-1)
        return losses, q * share.sum(-1, keepdim=True) - share

    return term


def by_autograd(formula: Callable[[Tensor, slice], Tensor]) -> RowTerm:
    """Return the term of a formula in plain PyTorch, whose slopes autograd finds.

    formula: logits (m, V), which it leaves as they are, and the numbers of their rows -> losses
        (m,).
    """

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = formula(leaf, rows)
            total = losses.sum()
        (slopes,) = torch.autograd.grad(total, leaf)
        return losses.detach(), slopes

    return term


def weighted_ascent(targets: Tensor, weigh: Callable[[Tensor], Tensor]) -> RowTerm:
    """Return the term that is minus the cross-entropy with `targets` (N,), times a weight.

    weigh: probabilities of the targets (m,) -> weights (m,), which have no gradient.
    """

    def formula(logits: Tensor, rows: slice) -> Tensor:
        losses = F.cross_entropy(logits, targets[rows], reduction="none")
        return -weigh((-losses.detach()).exp()) * losses

    return by_autograd(formula)


def without_targets(targets: Tensor) -> RowTerm:
    """Return the term that is the cross-entropy with the row's own distribution, less its target.

    That distribution has no gradient.

    targets: (N,), the tokens whose probability is taken from it; the others' grow by one factor.
    """

    def formula(logits: Tensor, rows: slice) -> Tensor:
        others = logits.detach().scatter(1, targets[rows, None], -torch.inf)
        return F.cross_entropy(logits, others.softmax(-1), reduction="none")

    return by_autograd(formula)


def lowered_reference(targets: Tensor, hidden: Tensor, head: Head, penalty: float) -> RowTerm:
    """Return the term that is the cross-entropy with the reference's distribution, lowered.

    Args:
        targets: (N,), the tokens whose logit is lowered.
        hidden, head: of the reference, as for `divergence`.
        penalty: what is taken off it.
    """
    hidden, head = _fixed(hidden, head)

    def formula(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            index = targets[rows, None]
            lowered = head_logits(hidden[rows], head)
            lowered = lowered.scatter(1, index, lowered.gather(1, index) - penalty)
        return F.cross_entropy(logits, lowered.softmax(-1), reduction="none")

    return by_autograd(formula)


def squared_peak() -> RowTerm:
    """Return the term that is (largest logit - mean logit)^2: 0 of an even distribution."""

    def formula(logits: Tensor, rows: slice) -> Tensor:
        return (logits.amax(-1) - logits.mean(-1)).square()

    return by_autograd(formula)


def _softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities, in the place of the logits (m, V), and the log of their normaliser.

    The latter (m,) is the logarithm of what normalises exp(logits).
    """
    top = logits.amax(-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    return logits.div_(total), top.add_(total.log_())[:, 0]


def _fixed(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Return both without gradient, in the type in which the model's own logits are multiplied.

    They are cast here, for autocast is off where a term runs.
    """
    dtype = product_dtype(hidden, head)
    with torch.no_grad():
        return hidden.to(dtype), head.to(dtype)
