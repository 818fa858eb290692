"""Layers of a Llama that train faster on a CPU than transformers' own, and compute the same.

Nothing else of a model changes: a class is switched, so that weights, names and what is saved stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from unlearn_utils.core import fused
from unlearn_utils.engine import models

SHORT = 512  # tokens

# attention scores at a time: 2 MB of bfloat16; memory for more goes back to the system and arrives
# anew in pages
SCORES = 2**20


def quicken(model: nn.Module, reference: bool = False) -> None:
    """Switch a model's layers to those below, where they are quicker: on a CPU.

    There the norm is switched; and in bfloat16 the attention, if it is PyTorch's fused one without
    dropout.

    reference: whether the model is the reference of one in training, and so computed like it, also
    without gradients.
    """
    if torch.cuda.is_available():
        return
    for layer in model.modules():
        if type(layer) is LlamaRMSNorm:
            layer.__class__ = QuickNorm
        elif type(layer) is LlamaAttention and models.half_precision() and _suits(layer.config):
            layer.__class__ = QuickAttention
        if isinstance(layer, QuickAttention):
            layer.always = reference


def _suits(config: PreTrainedConfig) -> bool:
    """Return whether a Llama has fused attention without dropout."""
    return config._attn_implementation == "sdpa" and not config.attention_dropout


# ----------------------------------------------------------------------------------------- norm


class QuickNorm(LlamaRMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight, differentiated as a whole.

    Under autocast it comes out in the type that its readers want.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised states, (..., d) in and out."""
        dtype = fused.matmul_dtype(hidden_states, hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon, dtype)


class _Norm(torch.autograd.Function):
    """The norm and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, epsilon, dtype):
        """Return x / sqrt(mean(x^2) + epsilon) * weight in `dtype`; x is (..., d)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        unit = wide * scale
        ctx.save_for_backward(unit, scale, weight)
        ctx.dtype = x.dtype
        return (unit * weight).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        """Return the gradients of x and of the weight."""
        unit, scale, weight = ctx.saved_tensors
        grad = grad_output.to(unit.dtype, copy=True)
        product = grad * unit
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.flatten(0, -2).sum(0)
        # of the gradient, the part along x, which the norm takes away
        along = (product @ weight.to(unit.dtype)).div_(unit.shape[-1])[..., None]
        grad_x = grad.mul_(weight).addcmul_(unit, along, value=-1).mul_(scale)
        return grad_x.to(ctx.dtype), grad_weight, None, None


# ------------------------------------------------------------------------------------ attention


class QuickAttention(LlamaAttention):
    """Attention in plain steps for short texts with gradients to take; else transformers' own.

    PyTorch's fused attention, which transformers takes, needs 3 times as long in bfloat16 on a CPU
    (forward and backward, 256 tokens; as long at 1,024). This one keeps heads x time x time
    probabilities a layer, so it is for up to `SHORT` tokens.

    Attributes:
        always: plain steps also without gradients.
    """

    always = False

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended states and no weights, (batch, time, d) in and out.

        attention_mask: as for PyTorch's fused attention, who sees whom; None: causal.
        """
        if hidden_states.shape[1] > SHORT or self._leaves_it(kwargs):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(by_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(by_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)
        cos, sin = position_embeddings
        query = _Rotation.apply(query, self.scaling * cos, self.scaling * sin)
        key = _Rotation.apply(key, cos, sin)
        if self.num_key_value_groups > 1:
            key = key.repeat_interleave(self.num_key_value_groups, 1)
            value = value.repeat_interleave(self.num_key_value_groups, 1)
        merged = attended(query, key, value, attention_mask).transpose(1, 2).flatten(2)
        return self.o_proj(merged), None

    def _leaves_it(self, given: dict) -> bool:
        """Return whether transformers' own attention runs: with a cache, or without gradients.

        given: the other arguments; a cache has had two names.
        """
        cached = given.get("cache") is not None or given.get("past_key_values") is not None
        wanted = self.always or torch.is_grad_enabled()
        return cached or not wanted or self.config._attn_implementation != "sdpa"


def attended(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """Return softmax(query key^T) value, a few sequences at a time.

    Args:
        query, key, value: (batch, heads, time, d); so is what comes back.
        seen: (batch, 1, time, time), who sees whom; None: causal.
    """
    batch, heads, time, _ = query.shape
    if seen is None:
        seen = torch.ones(time, time, dtype=torch.bool, device=query.device).tril()
    unseen = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    unseen.masked_fill_(~seen, torch.finfo(query.dtype).min)
    unseen = unseen.expand(batch, 1, time, time)
    some = max(1, SCORES // (heads * time * time))
    found = []
    for rows in fused.chunks(batch, some):
        found.append(_attended(query[rows], key[rows], value[rows], unseen[rows]))
    return torch.cat(found)


def _attended(query: Tensor, key: Tensor, value: Tensor, unseen: Tensor) -> Tensor:
    """Return softmax(query key^T + unseen) value; `unseen` is 0, or lowest where not to look."""
    scores = (query @ key.mT).add_(unseen)
    return scores.softmax(-1) @ value


class _Rotation(torch.autograd.Function):
    """Rotary position embedding (RoFormer, arXiv 2104.09864); its gradient is turned back."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        """Return x, (batch, heads, time, d), turned; cos and sin are (batch, time, d)."""
        half = x.shape[-1] // 2  # both halves of cos and sin are alike
        cos = cos[:, None, :, :half]
        sin = sin[:, None, :, :half]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        """Return the gradient of x."""
        cos, sin = ctx.saved_tensors
        return _rotated(grad_output, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x with its two halves turned against each other.

    cos, sin: (batch, 1, time, d / 2), of the angles.
    """
    first, second = x.to(cos.dtype).chunk(2, -1)
    turned = torch.empty(x.shape, dtype=cos.dtype, device=x.device)
    turned_first, turned_second = turned.chunk(2, -1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin)
    return turned.to(x.dtype)
