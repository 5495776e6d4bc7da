"""SAC (Haarnoja et al. 2018, arXiv 1812.05905) as all levels use it: twin critics, a fixed entropy coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor
from torchrl.objectives import SACLoss

from peach_trl.objectives.adapter import PlainMixin
from peach_trl.objectives.plain import Net, critic_loss, sac_actor_loss, sac_target

Loss = TypeVar("Loss", bound=SACLoss)


class PlainSACLoss(PlainMixin, SACLoss):
    """TorchRL's ``SACLoss``, computed on plain tensors where the networks allow it; see :class:`PlainMixin`.

    The losses are the same but for rounding: ``loss_actor``, ``loss_qvalue``, ``alpha`` and ``entropy``. Networks of
    several seeds have a loss each, in vectors [S]. A coefficient alpha that is learnt (``fixed_alpha=False``, TorchRL's
    default), a mask, weights of rows, and other losses than ``loss_function="l2"`` are computed TorchRL's way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("deactivate_vmap", True)  # our networks are one node of autograd, which vmap cannot look into
        super().__init__(*args, **kwargs)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """As TorchRL's: ``loss_actor``, ``loss_qvalue``, ``loss_alpha``, ``alpha`` and ``entropy``."""
        losses = super().forward(tensordict)
        if "loss_alpha" not in losses.keys():  # it is fixed
            losses.set("loss_alpha", torch.zeros_like(losses.get("loss_actor")))
        return losses

    def compute(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], list[Any]]:
        """See :meth:`PlainMixin.compute`."""
        pi, Q, target_Q = (self.part(name) for name in ("actor_network", "qvalue_network", "target_qvalue_network"))
        learns, rows, inputs = torch.is_grad_enabled(), self.rows(tensordict), self.held_inputs(tensordict)
        wanted = [i for i, column in enumerate(inputs) if column.requires_grad]  # a context, whose encoder learns
        read = [Q.network.features.scale.shape[-1], *(column.shape[-1] for column in inputs[1:])]
        width = [0, *accumulate(read)]  # where the features of each input are
        a = tensordict.get(self.tensor_keys.action)
        columns = self.columns(tensordict, torch.randn_like(a), torch.randn_like(a))

        def step(nets: list[list[Net]], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
            (policy,), critics, targets = nets
            gamma, alpha, *rows = rows
            s, s_after, a, r, gamma, noise_after, noise = self.parts_of(gamma, rows, draws=2)
            s_pi, s_Q = policy.read(*s), critics[0].read(*s)
            after = policy.read(*s_after), targets[0].read(*s_after)
            y = self.bounded(sac_target(policy, targets, *after, r, gamma, noise_after, alpha))
            loss_qvalue, d_x = critic_loss(critics, torch.cat([s_Q, a], -1), y, learns, wants_x=bool(wanted))
            loss_actor, log_prob = sac_actor_loss(policy, critics, s_pi, s_Q, noise, alpha, learns)
            found = [] if d_x is None else [d_x[..., width[i] : width[i + 1]] for i in wanted]
            return loss_actor, loss_qvalue, -log_prob, *found

        by_pi, by_Q = pi.learning(rows), Q.learning(rows)
        nets = list(zip(by_pi.nets, by_Q.nets, target_Q.nets(rows), strict=True))
        alpha, kind = self._alpha, (rows, learns, *wanted, *width, len(columns))
        seeds, gamma = self.seeds or 1, cast(Tensor, self.value_estimator.gamma)
        of_rows = alpha.reshape(-1, 1, 1).expand(seeds, a[..., 0].numel() // seeds, 1)  # each seed may have its own
        found = self.steps(kind, step, nets, [gamma], self.by_seed(len(nets), of_rows, *columns))
        loss_actor, loss_qvalue, entropy, *d_inputs = zip(*found, strict=True)
        names, losses = ("loss_actor", "loss_qvalue", "entropy"), (loss_actor, loss_qvalue, entropy)
        joined = {name: self.joined(loss) for name, loss in zip(names, losses, strict=True)}
        d_inputs = [(inputs[i], part) for i, part in zip(wanted, d_inputs, strict=True)]
        return joined | {"alpha": alpha}, [(pi, by_pi), (Q, by_Q, d_inputs)]

    def held_inputs(self, tensordict: TensorDictBase) -> list[Tensor]:
        """What actor and critics read; a subclass may refuse what L_actor should not reach."""
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
