"""Muon for the hidden matrices with AdamW for the rest, as one optimizer for the Trainer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unlearn_utils.profiles import Pretraining

# quintic of the Muon note (Jordan 2024): singular values go to 0.7 .. 1.2 in 5 iterations
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices.

    It is that of Jordan et al. 2024, kellerjordan.github.io/posts/muon. PyTorch's own
    `torch.optim.Muon` multiplies in bfloat16, one matrix at a time; on a CPU without native
    bfloat16 that takes ten times as long as the model. This one multiplies in float32, all
    matrices of a shape at once.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Update every matrix that has a gradient, once."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                momentum = group["momentum"]
                updates = orthogonal(torch.stack([self._nesterov(m, momentum) for m in matrices]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(matrices, list(updates), alpha=-group["lr"] * scale)

    def _nesterov(self, matrix: Tensor, momentum: float) -> Tensor:
        """Return the gradient, looked ahead along the running average of gradients."""
        average = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return about U V^T of each matrix U S V^T, by Newton-Schulz iteration in their own type.

    matrices: (n, rows, columns).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Together(torch.optim.Optimizer):
    """Several optimizers as one: a step is a step of each.

    Schedules and clipping see all parameter groups.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        groups = []
        for optimizer in optimizers:
            groups += optimizer.param_groups
        super().__init__(groups, {})
        self.optimizers = optimizers
        self._share()

    def _share(self) -> None:
        """Make our parameter groups the very dicts of the others, so that a schedule moves them."""
        self.param_groups = []
        for optimizer in self.optimizers:
            self.param_groups += optimizer.param_groups

    def state_dict(self) -> dict:
        """Return the states of all, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load each one's state.

        accelerate does so when it prepares an optimizer, so the groups are shared anew.
        """
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share()

    def step(self, closure: Callable | None = None) -> None:
        """Take one step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def of_pretraining(model: nn.Module, recipe: Pretraining) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe: Muon and AdamW, or AdamW alone."""
    if recipe.muon_learning_rate is None:
        return torch.optim.AdamW(
            model.parameters(), lr=recipe.adamw_learning_rate, weight_decay=0.0, fused=True
        )
    return muon_and_adamw(model, recipe.muon_learning_rate, recipe.adamw_learning_rate)


def muon_and_adamw(
    model: nn.Module, muon_learning_rate: float, adamw_learning_rate: float
) -> Together:
    """Return Muon on the matrices between embedding and head, AdamW on the rest.

    The rest are embeddings, head and vectors. There is no weight decay.
    """
    outside = set()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        outside |= {id(parameter) for parameter in layer.parameters()}
    hidden = []
    rest = []
    for parameter in model.parameters():
        if parameter.ndim == 2 and id(parameter) not in outside:
            hidden.append(parameter)
        else:
            rest.append(parameter)
    adamw = torch.optim.AdamW(rest, lr=adamw_learning_rate, weight_decay=0.0, fused=True)
    return Together(Muon(hidden, lr=muon_learning_rate), adamw)
