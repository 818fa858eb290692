"""Layers of a Llama that train faster on a CPU than transformers' own, and compute the same. Nothing else of a model changes: a class
is switched, so that weights, names and what is saved stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from unlearn_utils.core import fused
from unlearn_utils.engine import models

SHORT = 512  # tokens
SCORES = 2**20  # attention scores at a time: 2 MB of bfloat16; memory for more goes back to the system and arrives anew in pages


def quicken(model: nn.Module, reference: bool = False) -> None:
    """Switches to the layers below: on a CPU the norm; in bfloat16 there, for sequences of up to `SHORT` tokens, the attention, if it is
    PyTorch's fused one without dropout. reference: of a model in training, so computed like it, also without gradients."""
    if torch.cuda.is_available():
        return
    quick: dict[type, type] = {LlamaRMSNorm: QuickNorm}
    config = model.config.get_text_config()
    short = getattr(config, "max_position_embeddings", SHORT + 1) <= SHORT and not getattr(config, "attention_dropout", 0)
    if short and models.half_precision() and model.config._attn_implementation == "sdpa":
        quick[LlamaAttention] = QuickAttention
    for layer in model.modules():
        layer.__class__ = quick.get(type(layer), type(layer))
        if isinstance(layer, QuickAttention):
            layer.always = reference


# ---------------------------------------------------------------------------------------------- norm


class QuickNorm(LlamaRMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight, differentiated as a whole; under autocast in the type that its readers want."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., d) in and out."""
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon, fused.matmul_dtype(hidden_states, hidden_states))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon, dtype):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        unit = wide * scale
        ctx.save_for_backward(unit, scale, weight)
        ctx.dtype = x.dtype
        return (unit * weight).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        unit, scale, weight = ctx.saved_tensors
        grad = grad_output.to(unit.dtype, copy=True)
        product = grad * unit
        grad_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        along = (product @ weight.to(unit.dtype)).div_(unit.shape[-1])[..., None]  # of the gradient, the part that the norm takes away
        return grad.mul_(weight).addcmul_(unit, along, value=-1).mul_(scale).to(ctx.dtype), grad_weight, None, None


# ---------------------------------------------------------------------------------------------- attention


class QuickAttention(LlamaAttention):
    """Attention in plain steps while there are gradients to take, or `always`; else transformers' own, with PyTorch's fused attention.

    The fused one takes 3 times as long in bfloat16 on a CPU (forward and backward, 256 tokens; as long at 1,024). This one keeps
    heads x time x time probabilities a layer, so it is for short sequences.
    """

    always = False

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, time, d) in and out; attention_mask as for PyTorch's fused attention: who sees whom, or None for causal."""
        cached = any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))  # the newer and the older name
        if cached or self.config._attn_implementation != "sdpa" or not (self.always or torch.is_grad_enabled()):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (layer(hidden_states).view(by_head).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = position_embeddings
        query, key = _Rotation.apply(query, self.scaling * cos, self.scaling * sin), _Rotation.apply(key, cos, sin)
        if self.num_key_value_groups > 1:
            key, value = (x.repeat_interleave(self.num_key_value_groups, 1) for x in (key, value))
        return self.o_proj(attended(query, key, value, attention_mask).transpose(1, 2).flatten(2)), None


def attended(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(query key^T) value, (batch, heads, time, d); seen: (batch, 1, time, time), or None for causal."""
    batch, heads, time, _ = query.shape
    if seen is None:
        seen = torch.ones(time, time, dtype=torch.bool, device=query.device).tril()
    unseen = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, torch.finfo(query.dtype).min)
    some = max(1, SCORES // (heads * time * time))
    parts = zip(*(x.split(some) for x in (query, key, value, unseen.expand(batch, 1, time, time))), strict=True)
    return torch.cat([(q @ k.mT).add_(bias).softmax(-1) @ v for q, k, v, bias in parts])


class _Rotation(torch.autograd.Function):
    """Rotary position embedding (RoFormer, arXiv 2104.09864) of (batch, heads, time, d); its gradient is turned back."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        cos, sin = (t[:, None, :, : x.shape[-1] // 2] for t in (cos, sin))  # (batch, time, d): both halves are alike
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        cos, sin = ctx.saved_tensors
        return _rotated(grad_output, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.to(cos.dtype).chunk(2, -1)
    turned = torch.empty(x.shape, dtype=cos.dtype, device=x.device)
    first, second = turned.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return turned.to(x.dtype)
