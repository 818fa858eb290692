"""The terms of the unlearning objective: pure functions of tensors, and the labels they are computed on.

Position j of a sequence predicts token j + 1. `labels` are unshifted, as in Hugging Face, and -100 is not counted: the predicted
tokens of a batch are `labels[:, 1:] != -100`. Logits are never kept: a loss walks over chunks of rows and takes the gradients of
the hidden states and of the output head on the way (the idea of Liger Kernel, arXiv 2410.10989, in plain PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Mapping[str, Tensor]  # input_ids, attention_mask, labels: each (batch, time)
Term = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # log-probabilities (m, V) of these rows -> losses (m,), d loss / d logits (m, V)
IGNORED = -100
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
        bias = None if head.bias is None else head.bias.to(dtype)
        logits = F.linear(hidden.to(dtype), head.weight.to(dtype), bias)
        logits = logits.to(torch.promote_types(dtype, torch.float32)) * head.scale
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
            rows_in, head = hidden.to(dtype), Head(weight.to(dtype), bias, scale, softcap)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            grads = [torch.zeros_like(x, dtype=wide) if need else None for x, need in zip((hidden, weight, bias), needed, strict=True)]
            scratch = torch.empty_like(head.weight) if needed[1] else None
            for rows in chunks(len(hidden), chunk_rows(len(weight), hidden.device)):
                logits = head_logits(rows_in[rows], head)
                losses, slope = term(logits.log_softmax(-1), rows)
                total += (losses * weights[rows]).sum()
                if any(needed):
                    slope *= (scale * weights[rows])[:, None].to(wide)
                    if softcap is not None:
                        slope *= 1 - (logits / softcap) ** 2
                    _accumulate(grads, slope, rows_in[rows], head.weight, rows, scratch)
        ctx.save_for_backward(*(None if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        return *(None if g is None else g * grad_output.to(g.dtype) for g in ctx.saved_tensors), None, None, None, None, None


def _accumulate(
    grads: Sequence[Tensor | None], slope: Tensor, rows_in: Tensor, weight: Tensor, rows: slice, scratch: Tensor | None
) -> None:
    """Adds one chunk's gradients (of hidden states, weight, bias), given the slope (m, V) of the loss in the raw logits.

    scratch: room for one product of the weight's shape and type, so that not every chunk asks the system for it."""
    narrow = slope.to(weight.dtype)
    if grads[0] is not None:
        grads[0][rows] = (narrow @ weight).to(slope.dtype)
    if grads[1] is not None:
        grads[1] += torch.mm(narrow.T, rows_in, out=scratch)
    if grads[2] is not None:
        grads[2] += slope.sum(0)


def fused_loss(hidden: Tensor, head: Head, term: Term, weights: Tensor | None = None) -> Tensor:
    """Sum over rows of weight * term, a scalar in float32, without ever holding the logits of all rows.

    hidden (N, d); weights (N,), constants, 1 if None; term: `true_token`, `divergence` or `official_divergence`.
    Gradients flow to the hidden states and to the head's weight and bias. Under autocast the matrix products run in
    its type, the log-softmax in float32.
    """
    if weights is None:
        weights = hidden.new_ones(len(hidden), dtype=torch.float32)
    return _FusedLoss.apply(hidden, head.weight, head.bias, weights, head.scale, head.softcap, term, torch.is_grad_enabled())


def true_token(targets: Tensor) -> Term:
    """Cross-entropy, in nats, with the tokens `targets` (N,)."""

    def term(log_q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        index = targets[rows, None]
        losses = -log_q.gather(1, index)[:, 0]
        slope = log_q.softmax(-1)  # equals exp, and is faster
        return losses, slope.scatter_add_(1, index, -torch.ones_like(losses)[:, None])

    return term


def divergence(hidden: Tensor, head: Head) -> Term:
    """KL(P || Q), in nats, from the reference's distribution P, given by its hidden states (N, d) and head; no gradient to P."""

    def term(log_q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        log_p = _log_reference(hidden, head, rows)
        p = log_p.softmax(-1)  # equals exp, and is faster
        losses = log_p.sub_(log_q).mul_(p).sum(-1)
        return losses, torch.softmax(log_q, -1, out=log_p).sub_(p)  # log_p is not needed any more: its room is

    return term


def official_divergence(hidden: Tensor, head: Head, epsilon: float = 1e-12) -> Term:
    """Defect 2 of the released code: -sum p log(q + 1e-12), a cross-entropy whose gradient dies where q underflows."""

    def term(log_q: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        p, q = _log_reference(hidden, head, rows).exp(), log_q.exp()
        share = p * q / (q + epsilon)
        return -(p * (q + epsilon).log()).sum(-1), q * share.sum(-1, keepdim=True) - share

    return term


def _log_reference(hidden: Tensor, head: Head, rows: slice) -> Tensor:
    with torch.no_grad():
        return head_logits(hidden[rows], head).log_softmax(-1)


# ---------------------------------------------------------------------------------------------- losses of a batch


def predicted(labels: Tensor) -> Tensor:
    """Mask (batch, time - 1): the positions whose next token is counted."""
    return labels[:, 1:] != IGNORED


def next_token_sum(model: nn.Module, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, summed over predicted tokens; `weights` (batch, time - 1), 1 if None."""
    hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
    mask = predicted(batch["labels"])
    term = true_token(batch["labels"][:, 1:][mask])
    return fused_loss(hidden[:, :-1][mask], head_of(model), term, None if weights is None else weights[mask])


def next_token_loss(model: nn.Module, batch: Batch, count: int | Tensor | None = None) -> Tensor:
    """Next-token cross-entropy in nats: the sum over predicted tokens / `count` (None = this batch's; 0 where nothing is predicted)."""
    return next_token_sum(model, batch) / (predicted(batch["labels"]).sum().clamp(min=1) if count is None else count)


def kl_loss(model: nn.Module, reference: nn.Module, batch: Batch, count: int | Tensor | None = None) -> Tensor:
    """KL(P_reference || P_model) in nats per predicted token: the sum / `count` (None = this batch's). No gradient to the reference."""
    mask = predicted(batch["labels"])
    hidden, hidden_ref = (h[:, :-1][mask] for h in _both(model, reference, batch))
    total = fused_loss(hidden, head_of(model), divergence(hidden_ref, head_of(reference)))
    return total / (mask.sum().clamp(min=1) if count is None else count)


def official_kl_loss(model: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    """Defect 2 of the released code: `official_divergence`, averaged over every position, padding and the last one too."""
    hidden, hidden_ref = (h.flatten(0, 1) for h in _both(model, reference, batch))
    return fused_loss(hidden, head_of(model), official_divergence(hidden_ref, head_of(reference))) / len(hidden)


def _both(model: nn.Module, reference: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states of the model and of the reference; those of the reference may come with the batch, computed before."""
    fixed = batch.get("reference_hidden")
    if fixed is None:
        with torch.no_grad():
            fixed = hidden_states(reference, batch["input_ids"], batch["attention_mask"])
    return hidden_states(model, batch["input_ids"], batch["attention_mask"]), fixed


# ---------------------------------------------------------------------------------------------- replacement labels


def adversarial_labels(logits: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
    """The likeliest token other than the true next one, at each predicted position.

    logits (batch, time, V); input_ids, labels (batch, time), unshifted. Returns labels of that layout: entry j + 1 comes from
    logits j; -100 and entry 0, which nothing predicts, stay. Ties go to either token.
    """
    best, second = logits[:, :-1].topk(2).indices.unbind(-1)
    chosen = torch.where(best == input_ids[:, 1:], second, best)
    return _replaced(labels, torch.cat([labels[:, :1], chosen], 1), keep=labels == IGNORED)


def official_adversarial_labels(logits: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Defect 1 of the released code: entry j comes from logits j, with token j (not j + 1) and the last vocabulary id excluded.

    The framework shifts labels once more, so that each target is the prediction made one position later. Ties go to one
    of the likeliest tokens; the released code samples among them.
    """
    masked = logits.scatter(2, input_ids[..., None], -torch.inf)
    return _replaced(labels, masked[..., :-1].argmax(-1), keep=labels == IGNORED)


def random_labels(
    input_ids: Tensor, labels: Tensor, vocab_size: int, generator: torch.Generator, special_ids: Sequence[int] = ()
) -> Tensor:
    """Labels drawn uniformly from the non-special tokens other than the true one, for special true tokens too; -100 stays.

    Shapes (batch, time), unshifted. The released code draws from the whole vocabulary (`official_random_labels`).
    Raises ValueError if fewer than two tokens are left to draw from.
    """
    allowed = torch.tensor(sorted(set(range(vocab_size)) - set(special_ids)), device=input_ids.device)
    if len(allowed) < 2:
        raise ValueError(f"random labels need at least 2 non-special tokens, not {len(allowed)}")
    place = torch.searchsorted(allowed, input_ids).clamp(max=len(allowed) - 1)
    true_allowed = allowed[place] == input_ids
    draw = (_uniform(input_ids, generator) * (len(allowed) - true_allowed.long())).long()
    draw += true_allowed & (draw >= place)  # step over the true token
    return _replaced(labels, allowed[draw], keep=labels == IGNORED)


def official_random_labels(
    input_ids: Tensor, labels: Tensor, vocab_size: int, generator: torch.Generator, special_ids: Sequence[int] = ()
) -> Tensor:
    """Defect 7 of the released code: uniform over the whole vocabulary, the true token and special ones too; special positions stay."""
    special = torch.isin(input_ids, torch.tensor(list(special_ids), dtype=input_ids.dtype, device=input_ids.device))
    draw = (_uniform(input_ids, generator) * vocab_size).long()
    return _replaced(labels, draw, keep=(labels == IGNORED) | special)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Float64 numbers in [0, 1), drawn on the generator's device so that a seed gives the same labels everywhere."""
    return torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64).to(like.device)


def _replaced(labels: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, labels, new.to(labels.dtype))
