"""The top level's losses: SAC that reads the context variable z.

L_critic and L_actor of Algorithm 1. The encoder learns from the critic's loss only, never from the actor's (PEARL,
Rakelly et al. 2019, arXiv 1903.08254, algorithm 1).
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SACLoss


class ContextSACLoss(SACLoss):
    """TorchRL's ``SACLoss`` (Haarnoja et al. 2018, arXiv 1812.05905) with a context variable ``z``.

    The batch may have any shape, such as [meta-batch, batch]; ``z`` [..., Z] is drawn from the encoder *before* the
    loss is called (within a LossModule, TorchRL would turn the draw into the mean). The gradient of ``loss_qvalue``
    reaches z, that of ``loss_actor`` does not, and bootstrapped values read the same z. Without a ``z`` in the batch
    this is ``SACLoss`` itself, which is what HAC's and SAC's top levels use.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, TensorDictModule
        >>> from torch import nn
        >>> from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
        >>> from torchrl.objectives import ValueEstimators
        >>> class Concat(MLP):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, -1))
        >>> class Policy(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net, self.head = Concat(4 + 5, 2 * 2), NormalParamExtractor()
        ...     def forward(self, *inputs):
        ...         return self.head(self.net(*inputs))
        >>> keys = ["observation", "z"]
        >>> actor = ProbabilisticActor(TensorDictModule(Policy(), keys, ["loc", "scale"]), in_keys=["loc", "scale"],
        ...     out_keys=["action"], distribution_class=TanhNormal, return_log_prob=True)
        >>> critics = [ValueOperator(Concat(4 + 5 + 2, 1), in_keys=[*keys, "action"]) for _ in range(2)]
        >>> loss = ContextSACLoss(actor, critics, fixed_alpha=True, alpha_init=0.1, target_entropy=-2.0)
        >>> loss.make_value_estimator(ValueEstimators.TD0, gamma=0.85)
        >>> z = torch.randn(3, 1, 5, requires_grad=True)  # one z a task
        >>> batch = TensorDict({"observation": torch.randn(3, 8, 4), "action": torch.rand(3, 8, 2),
        ...     "z": z.expand(3, 8, 5), "next": {"observation": torch.randn(3, 8, 4), "reward": torch.randn(3, 8, 1),
        ...     "done": torch.zeros(3, 8, 1, dtype=torch.bool), "terminated": torch.zeros(3, 8, 1, dtype=torch.bool)}},
        ...     [3, 8])
        >>> losses = loss(batch)
        >>> torch.autograd.grad(losses["loss_actor"], z, allow_unused=True, retain_graph=True)
        (None,)
        >>> bool(torch.autograd.grad(losses["loss_qvalue"], z)[0].abs().sum() > 0)
        True
    """

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_actor, with z held fixed."""
        if "z" in tensordict.keys():
            tensordict = tensordict.copy().set("z", tensordict.get("z").detach())
        return super().actor_loss(tensordict)

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_critic: both critics read z with its gradient; their target reads the same z without."""
        if "z" in tensordict.keys():
            tensordict = tensordict.copy()
            tensordict.set("next", tensordict.get("next").copy().set("z", tensordict.get("z").detach()))
        return super().qvalue_v2_loss(tensordict)
