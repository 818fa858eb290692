"""Losses of hidden states, without the logits of all rows at once: pure functions of tensors.

Logits are never kept: a loss walks over chunks of rows and takes the gradients of the hidden states
and of the output head on the way (the idea of Liger Kernel, arXiv 2410.10989, in plain PyTorch).
Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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


# --------------------------------------------------------------------------- a model's two halves


class Head(NamedTuple):
    """Output head of a model, from hidden states to logits.

    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), without the tanh if
    `softcap` is None.

    Attributes:
        weight: (V, d)
        bias: (V,), or None.
        scale: a number.
        softcap: a number, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, dtype: torch.dtype) -> Head:
        """Return the head with weight and bias in this type."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(weight=self.weight.to(dtype), bias=bias)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside a peft wrapper, or the model itself.

    LoRA layers stay in place.
    """
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def head_of(model: nn.Module) -> Head:
    """Return the output head of a Hugging Face causal language model.

    Raises:
        ValueError: the head is not a plain linear layer (for example it carries a LoRA adapter).
    """
    model = unwrapped(model)
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        name = type(layer).__name__
        raise ValueError(f"the output head must be a plain linear layer, not {name}")
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, _scale(config), softcap)


def _scale(config: object) -> float:
    """Return what a model's configuration multiplies logits with."""
    cohere = getattr(config, "logit_scale", None)
    falcon_h1 = getattr(config, "lm_head_multiplier", None)
    scale = cohere or falcon_h1 or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    if "hyperclovax" in config.model_type:
        return float(scale * scaling)
    return float(scale / scaling)  # Granite


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the last hidden states (batch, time, d), after the final norm.

    They are what the output head reads.
    """
    body = unwrapped(model).base_model
    output = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.last_hidden_state


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Return the float32 logits (..., V) of hidden states (..., d).

    This is plain and differentiable; the caller bounds the number of rows.
    """
    dtype = matmul_dtype(hidden, head.weight)
    wide = torch.promote_types(dtype, torch.float32)
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


# ----------------------------------------------------------------------------- a sum over rows


def fused_loss(hidden: Tensor, head: Head, term: RowTerm, weights: Tensor | None = None) -> Tensor:
    """Return the sum over rows of weight * term: a scalar in float32.

    The logits of all rows are never held together. Gradients flow to the hidden states and to the
    head's weight and bias. Under autocast the matrix products run in its type, the loss is in
    float32.

    Args:
        hidden: (N, d)
        head: of the model.
        term: `true_token`, `divergence` or `official_divergence`.
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
        dtype = matmul_dtype(hidden, weight)
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
    size = chunk_rows(len(head.weight), hidden.device)
    # asked for once: new memory comes slowly
    narrow = states.new_empty(min(size, len(hidden)), len(head.weight))
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
    weight: Tensor,
    rows: slice,
    scratch: Tensor | None,
) -> None:
    """Add one chunk's gradients of hidden states, weight and bias.

    Args:
        grads: so far; None where none is needed.
        slope: (m, V), of the loss in the logits as they are before scale and cap.
        narrow_slope: the same in the weight's type.
        states: hidden states (m, d) of these rows.
        weight: (V, d), of the head.
        rows: their numbers.
        scratch: room for one product of the weight's shape and type.
    """
    if grads[0] is not None:
        grads[0][rows] = (narrow_slope @ weight).to(slope.dtype)
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
    dtype = matmul_dtype(hidden, head.weight)
    with torch.no_grad():
        return hidden.to(dtype), head.to(dtype)
