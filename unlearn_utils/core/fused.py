"""The terms of the unlearning objective: pure functions of tensors.

Position j of a sequence predicts token j + 1. `labels` are unshifted, as in Hugging Face, and -100 is not counted: the predicted
tokens of a batch are `labels[:, 1:] != -100`. Logits are never kept: a loss walks over chunks of rows and takes the gradients of
the hidden states and of the output head on the way (the idea of Liger Kernel, arXiv 2410.10989, in plain PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RowTerm = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # logits (m, V) of these rows, its to overwrite -> losses (m,), slopes (m, V)
CPU_LOGIT_BYTES = 4 * 2**20  # fastest of 2 to 16 MB on one core; above 32 MB every tensor is returned to the system and page-faults back
CPU_ROWS, CPU_MOST_BYTES = 96, 16 * 2**20  # but a matrix product wants this many rows, up to this size
ACCELERATOR_LOGIT_BYTES = 64 * CPU_LOGIT_BYTES  # enough rows to fill a GPU's matrix units


# ---------------------------------------------------------------------------------------------- the model's two halves


class Head(NamedTuple):
    """Output head: logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), without the tanh if `softcap` is None."""

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    def to(self, dtype: torch.dtype) -> Head:
        """Weight and bias in this type."""
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft wrapper (LoRA layers stay in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: nn.Module) -> Head:
    """Reads the output head of a Hugging Face causal language model: weights, bias, scaling and soft-capping.

    Raises ValueError if the head is not a plain linear layer (for example one that carries a LoRA adapter).
    """
    model = unwrapped(model)
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the output head must be a plain linear layer, not {type(layer).__name__}")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0  # Cohere; Falcon-H1
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite divides by it, HyperCLOVA X multiplies
    scale = scale * divisor if "hyperclovax" in config.model_type else scale / divisor
    return Head(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Last hidden states (batch, time, d), after the final norm: what the output head reads."""
    body = unwrapped(model).base_model
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Float32 logits (..., V) of hidden states (..., d). Plain and differentiable; the caller bounds the number of rows."""
    dtype = matmul_dtype(hidden, head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        head = head.to(dtype)
        logits = F.linear(hidden.to(dtype), head.weight, head.bias).to(torch.promote_types(dtype, torch.float32))
        logits = logits if head.scale == 1 else logits * head.scale
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's type where autocast is on, else the weight's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# ---------------------------------------------------------------------------------------------- fused linear + loss


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of float32 logits at a time: 256 MiB on an accelerator; on a CPU 4 MiB, or 96 rows if they fit 16 MiB; at least one."""
    row = 4 * vocabulary
    if device.type != "cpu":
        return max(1, ACCELERATOR_LOGIT_BYTES // row)
    return max(1, CPU_LOGIT_BYTES // row, min(CPU_ROWS, CPU_MOST_BYTES // row))


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class _FusedLoss(torch.autograd.Function):
    """Weighted sum of a term over rows; gradients are taken in the forward pass, one chunk of logits at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, weights, scale, softcap, term, with_grad):
        dtype = matmul_dtype(hidden, weight)
        wide = torch.promote_types(dtype, torch.float32)
        needed = [with_grad and need for need in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):  # cast once, here: autocast would cast the weight in every chunk
            rows_in, head = hidden.to(dtype), Head(weight, bias, scale, softcap).to(dtype)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            grads = [torch.zeros_like(x, dtype=wide) if need else None for x, need in zip((hidden, weight, bias), needed, strict=True)]
            scratch = torch.empty_like(head.weight) if needed[1] else None
            size = chunk_rows(len(weight), hidden.device)
            narrow = rows_in.new_empty(min(size, len(hidden)), len(weight))  # asked for once: new memory comes slowly
            room = narrow.to(wide)
            for rows in chunks(len(hidden), size):
                logits, damping = _logits(rows_in[rows], head, narrow, room)
                losses, slope = term(logits, rows)
                total += (losses * weights[rows]).sum()
                if any(needed):
                    slope *= (scale * weights[rows])[:, None].to(wide)
                    if damping is not None:
                        slope *= damping
                    _accumulate(grads, slope, narrow[: len(slope)].copy_(slope), rows_in[rows], head.weight, rows, scratch)
        ctx.save_for_backward(*(None if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        wide = (None if g is None else g.to(grad_output.dtype) * grad_output for g in ctx.saved_tensors)  # 1 / count keeps its digits
        return *(w if w is None else w.to(g.dtype) for w, g in zip(wide, ctx.saved_tensors, strict=True)), None, None, None, None, None


def _logits(rows_in: Tensor, head: Head, narrow: Tensor, room: Tensor) -> tuple[Tensor, Tensor | None]:
    """`head_logits`, written into `room`, and d capped / d uncapped logits where the head caps them."""
    narrow, transposed = narrow[: len(rows_in)], head.weight.T
    if head.bias is None:
        torch.mm(rows_in, transposed, out=narrow)
    else:
        torch.addmm(head.bias, rows_in, transposed, out=narrow)
    logits = room[: len(rows_in)].copy_(narrow)
    if head.scale != 1:
        logits *= head.scale
    if head.softcap is None:
        return logits, None
    logits.div_(head.softcap).tanh_()
    damping = 1 - logits**2
    return logits.mul_(head.softcap), damping


def _accumulate(
    grads: Sequence[Tensor | None], slope: Tensor, narrow: Tensor, rows_in: Tensor, weight: Tensor, rows: slice, scratch: Tensor | None
) -> None:
    """Adds one chunk's gradients (of hidden states, weight, bias), given the slope (m, V) of the loss in the raw logits.

    narrow: the slope in the weight's type. scratch: room for one product of the weight's shape and type."""
    if grads[0] is not None:
        grads[0][rows] = (narrow @ weight).to(slope.dtype)
    if grads[1] is not None:
        grads[1] += torch.mm(narrow.T, rows_in, out=scratch)
    if grads[2] is not None:
        grads[2] += slope.sum(0)


def fused_loss(hidden: Tensor, head: Head, term: RowTerm, weights: Tensor | None = None) -> Tensor:
    """Sum over rows of weight * term, a scalar in float32, without ever holding the logits of all rows.

    hidden (N, d); weights (N,), constants, 1 if None; term: `true_token`, `divergence` or `official_divergence`.
    Gradients flow to the hidden states and to the head's weight and bias. Under autocast the matrix products run in
    its type, the loss is in float32.
    """
    if weights is None:
        weights = hidden.new_ones(len(hidden), dtype=torch.float32)
    return _FusedLoss.apply(hidden, head.weight, head.bias, weights, head.scale, head.softcap, term, torch.is_grad_enabled())


def _softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, in the place of the logits (m, V), and the logarithm (m,) of what normalises exp(logits)."""
    top = logits.amax(-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    return logits.div_(total), top.add_(total.log_())[:, 0]


def true_token(targets: Tensor) -> RowTerm:
    """Cross-entropy, in nats, with the tokens `targets` (N,)."""

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        index = targets[rows, None]
        chosen = logits.gather(1, index)
        q, normaliser = _softmax_(logits)
        return normaliser - chosen[:, 0], q.scatter_add_(1, index, -torch.ones_like(chosen))

    return term


def divergence(hidden: Tensor, head: Head) -> RowTerm:
    """KL(P || Q), in nats, from the reference's distribution P, given by its hidden states (N, d) and head; no gradient to P."""

    hidden, head = _fixed(hidden, head)

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        reference = head_logits(hidden[rows], head)
        difference = reference - logits
        (p, normaliser_p), (q, normaliser_q) = _softmax_(reference), _softmax_(logits)
        return difference.mul_(p).sum(-1) - normaliser_p + normaliser_q, q.sub_(p)

    return term


def official_divergence(hidden: Tensor, head: Head, epsilon: float = 1e-12) -> RowTerm:
    """Defect 2 of the released code: -sum p log(q + 1e-12), a cross-entropy whose gradient dies where q underflows."""

    hidden, head = _fixed(hidden, head)

    def term(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        (p, _), (q, _) = _softmax_(head_logits(hidden[rows], head)), _softmax_(logits)
        share = p * q / (q + epsilon)
        return -(p * (q + epsilon).log()).sum(-1), q * share.sum(-1, keepdim=True) - share

    return term


def _fixed(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Both without gradient, in the type in which the model's own logits are multiplied: autocast is off where a term runs."""
    dtype = matmul_dtype(hidden, head.weight)
    with torch.no_grad():
        return hidden.to(dtype), head.to(dtype)
