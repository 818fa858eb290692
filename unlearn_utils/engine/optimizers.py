"""Muon for the hidden matrices with AdamW for the rest, as one optimizer that the Trainer can drive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of the Muon note (Jordan 2024): singular values go to 0.7 .. 1.2 in 5 steps


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    PyTorch's own `torch.optim.Muon` multiplies in bfloat16, one matrix at a time; on a CPU without native bfloat16 that takes ten times
    as long as the model. This one multiplies in float32, all matrices of a shape at once.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, same in alike.items():
                updates = orthogonal(torch.stack([self._nesterov(p, group["momentum"]) for p in same]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(same, list(updates), alpha=-group["lr"] * scale)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient looked ahead along the running average of gradients."""
        average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T, (n, rows, columns), by Newton-Schulz iteration in the matrices' own type."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Together(torch.optim.Optimizer):
    """Several optimizers as one: schedules and clipping see all parameter groups, a step is a step of each."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        super().__init__([g for o in optimizers for g in o.param_groups], {})
        self.optimizers = optimizers
        self._share()

    def _share(self) -> None:
        """Makes our parameter groups the very dicts of the others, so that a schedule moves them."""
        self.param_groups = [g for o in self.optimizers for g in o.param_groups]

    def state_dict(self) -> dict:
        """The states of all, in order."""
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads each one's state. accelerate does so when it prepares an optimizer, so the groups are shared anew."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share()

    def step(self, closure: Callable | None = None) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def muon_and_adamw(model: nn.Module, muon_learning_rate: float, adamw_learning_rate: float) -> Together:
    """Muon on the matrices between embedding and head, AdamW on embeddings, head and vectors; no weight decay."""
    outside = {id(p) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) for p in layer.parameters()}
    hidden = [p for p in model.parameters() if p.ndim == 2 and id(p) not in outside]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in outside]
    adamw = torch.optim.AdamW(rest, lr=adamw_learning_rate, weight_decay=0.0, fused=True)
    return Together(Muon(hidden, lr=muon_learning_rate), adamw)
