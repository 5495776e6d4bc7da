"""SAC (Haarnoja et al. 2018, arXiv 1812.05905) as all levels use it: twin critics, a fixed entropy coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.objectives import SACLoss

from peach_trl.objectives.adapter import PlainMixin
from peach_trl.objectives.plain import critic_loss, sac_actor_loss, sac_target

Loss = TypeVar("Loss", bound=SACLoss)


class PlainSACLoss(PlainMixin, SACLoss):
    """TorchRL's ``SACLoss``, computed on plain tensors where the networks allow it; see :class:`PlainMixin`.

    The losses are the same but for rounding. Networks of several seeds have a loss each, in vectors [S].
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """``loss_actor``, ``loss_qvalue``, ``alpha`` and ``entropy``."""
        if not self.is_plain(tensordict):
            return super().forward(tensordict)
        losses, (by_actor, by_critics) = self.compute(tensordict)
        if torch.is_grad_enabled():
            losses["loss_actor"] = self.with_gradients(losses["loss_actor"], *by_actor)
            losses["loss_qvalue"] = self.with_gradients(losses["loss_qvalue"], *by_critics)
        return TensorDict(losses)

    def compute(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], list[Any]]:
        """See :meth:`PlainMixin.compute`."""
        pi, Q, target_Q = (self.part(name) for name in ("actor_network", "qvalue_network", "target_qvalue_network"))
        s_after, held = self.inputs(tensordict, after=True), self.held_inputs(tensordict)
        a, r = tensordict.get(self.tensor_keys.action), tensordict.get(("next", self.tensor_keys.reward))
        noise_after, noise = torch.randn_like(a), torch.randn_like(a)
        x = torch.cat([Q.features(*self.inputs(tensordict)), a], -1)  # through x the gradient goes on to an encoder
        target = (pi.features(*s_after), Q.features(*s_after), r, self.discount(tensordict), noise_after)
        learns, wants_x, rows = torch.is_grad_enabled(), x.requires_grad, self.rows(tensordict)
        by_pi, by_Q, alpha, found = pi.learning(rows), Q.learning(rows), self._alpha, []
        columns = self.by_seed(len(by_Q.nets), x, pi.features(*held), Q.features(*held), noise, *target)
        with torch.inference_mode():
            for (policy,), critics, targets, (x_of, s, s_Q, noise, *of_target) in zip(
                by_pi.nets, by_Q.nets, target_Q.nets(rows), columns, strict=True
            ):
                y = self.bounded(sac_target(policy, targets, *of_target, alpha))
                loss_qvalue, d_x = critic_loss(critics, x_of, y, learns, wants_x)
                loss_actor, log_prob = sac_actor_loss(policy, critics, s, s_Q, noise, alpha, learns)
                found.append((loss_actor, loss_qvalue, -log_prob, d_x))
        *losses, d_x = zip(*found, strict=True)
        names = ("loss_actor", "loss_qvalue", "entropy")
        of_x = (x, d_x) if wants_x else ()
        joined = {name: self.joined(loss) for name, loss in zip(names, losses, strict=True)}
        return joined | {"alpha": alpha}, [(pi, by_pi), (Q, by_Q, *of_x)]

    def held_inputs(self, tensordict: TensorDictBase) -> list[Any]:
        """What L_actor reads, held fixed."""
        return self.inputs(tensordict)


def make_sac(
    loss: type[Loss], actor: TensorDictModule, critics: Sequence[TensorDictModule], alpha: float, **options: Any
) -> Loss:
    """A ``SACLoss`` or a subclass of it (Haarnoja et al. 2018, arXiv 1812.05905), without its value estimator.

    Args:
        loss: the class.
        actor: stochastic.
        critics: two; a list, as one module would be copied with other weights.
        alpha: the entropy coefficient.
        options: further arguments of the class.
    """
    made = loss(
        cast(ProbabilisticTensorDictSequential, actor),
        list(critics),
        alpha_init=alpha,
        fixed_alpha=True,
        target_entropy=0.0,
        loss_function="l2",
        **options,
    )
    _ = made.target_entropy  # SACLoss registers it when it is first read: now, so that state dicts fit
    return made
