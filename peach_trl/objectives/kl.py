"""L_KL of Algorithm 1: what the context may tell the top level, as a cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import LossModule


class _KL(torch.autograd.Function):
    """KL(N(loc, scale^2) || N(0, I)) over the last dimension, as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale)
        kl = 0.5 * (loc.square() + scale.square() - 1) - scale.log()
        return kl.sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        return grad * loc, grad * (scale - 1 / scale)


class KLLoss(LossModule):
    """KL(q(z | c) || N(0, I)), summed over z, the mean over tasks: ``loss_kl``, to be weighed by beta.

    Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254, equation 1).

    Args:
        seeds: with a number S, the mean over each of S equal parts of the tasks, [S].

    Examples:
        >>> import torch
        >>> loss = KLLoss()
        >>> td = TensorDict({"z_loc": torch.zeros(4, 2), "z_scale": torch.ones(4, 2)}, [4])
        >>> loss(td)["loss_kl"].item()
        0.0
    """

    @dataclass
    class _AcceptedKeys:
        """``loc`` and ``scale``: where the posterior's mean and standard deviation are, [M, Z] each."""

        loc: NestedKey = "z_loc"
        scale: NestedKey = "z_scale"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    in_keys: list[NestedKey]
    out_keys: list[NestedKey] = ["loss_kl"]

    def __init__(self, seeds: int | None = None) -> None:
        super().__init__()
        self.seeds = seeds
        self.in_keys = [self.tensor_keys.loc, self.tensor_keys.scale]

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        self.in_keys = [self.tensor_keys.loc, self.tensor_keys.scale]

    @dispatch  # type: ignore[arg-type]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Returns a TensorDict with ``loss_kl``, a scalar; zero-dimensional z costs nothing."""
        loc, scale = tensordict.get(self.tensor_keys.loc), tensordict.get(self.tensor_keys.scale)
        kl: Tensor = _KL.apply(loc, scale)  # type: ignore[assignment]
        return TensorDict({"loss_kl": kl.mean() if self.seeds is None else kl.reshape(self.seeds, -1).mean(-1)}, [])
