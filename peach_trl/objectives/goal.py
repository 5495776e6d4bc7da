"""The losses of goal-reaching levels: TD3 or SAC with values bounded to [-H, 0].

Source: HAC (Levy et al. 2019, arXiv 1712.00948): with r = -1 a decision until the goal is reached, at most H decisions
an attempt, no value lies outside of [-H, 0]. The prediction is bounded by the critic
(:class:`~peach_trl.modules.networks.BoundedValue`), the target here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import TD3Loss
from torchrl.objectives.value import TD0Estimator

from peach_trl.config import option
from peach_trl.objectives.adapter import PlainMixin
from peach_trl.objectives.plain import Net, critic_loss, td3_actor_loss, td3_target
from peach_trl.objectives.sac import PlainSACLoss, make_sac


@dataclass(frozen=True)
class GoalLossConfig:
    """Loss of the goal-reaching levels; see ``configs/`` for values and comments."""

    algorithm: str = option(choices=("td3", "sac"), help="actor-critic of the goal-reaching levels")
    gamma: float = option(low=0, high=1, help="discount per decision")
    policy_noise: float = option(low=0, help="TD3: noise on the target's proposal, in half-ranges")
    noise_clip: float = option(low=0, help="TD3: clip of that noise, in half-ranges")
    alpha: float = option(low=0, help="SAC: entropy coefficient, fixed, above 0")


class BoundedTD0Estimator(TD0Estimator):
    """TD(0) targets clamped to [low, high].

    Args:
        low: lowest value that can be attained.
        high: highest.
        kwargs: as TorchRL's ``TD0Estimator``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> estimator = BoundedTD0Estimator(low=-20.0, high=0.0, gamma=1.0, value_network=None)
        >>> no = torch.zeros(1, 1, dtype=torch.bool)
        >>> step = {"reward": -torch.ones(1, 1), "state_value": -20 * torch.ones(1, 1), "done": no, "terminated": no}
        >>> estimator.value_estimate(TensorDict({"next": step}, [1])).item()
        -20.0
    """

    def __init__(self, *, low: float, high: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def value_estimate(self, *args, **kwargs) -> Tensor:
        """The clamped target, [..., 1]."""
        return super().value_estimate(*args, **kwargs).clamp(self.low, self.high)


class GoalTD3Loss(PlainMixin, TD3Loss):
    """TorchRL's ``TD3Loss`` (Fujimoto et al. 2018, arXiv 1802.09477), on plain tensors where its networks allow it.

    The losses are the same but for rounding, ``loss_actor`` and ``loss_qvalue``; the actor's evaluates one critic only.
    See :class:`~peach_trl.objectives.adapter.PlainMixin`.
    """

    def compute(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], list[Any]]:
        """See :meth:`PlainMixin.compute`."""
        names = ("actor_network", "qvalue_network", "target_actor_network", "target_qvalue_network")
        pi, Q, target_pi, target_Q = (self.part(name) for name in names)
        learns, rows = torch.is_grad_enabled(), self.rows(tensordict)
        noise = torch.randn_like(tensordict.get(self.tensor_keys.action)).mul_(self.policy_noise)
        columns = self.columns(tensordict, noise.clamp_(-self.noise_clip, self.noise_clip))

        def step(nets: list[list[Net]], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
            (policy,), critics, (first,), (target_policy,), targets = nets
            s, s_after, a, r, gamma, noise = self.parts_of(rows[0], rows[1:], draws=1)
            s_pi, s_Q = policy.read(*s), critics[0].read(*s)
            loss_actor = td3_actor_loss(policy, first, s_pi, s_Q, learns)
            after = target_policy.read(*s_after), targets[0].read(*s_after)
            y = self.bounded(td3_target(target_policy, targets, *after, r, gamma, noise))
            return loss_actor, critic_loss(critics, torch.cat([s_Q, a], -1), y, learns, wants_x=False)[0]

        by_pi, by_Q = pi.learning(rows), Q.learning(rows)
        every = by_pi.nets, by_Q.nets, Q.nets(rows, first=True), target_pi.nets(rows), target_Q.nets(rows)
        nets, gamma = list(zip(*every, strict=True)), cast(Tensor, self.value_estimator.gamma)
        kind = rows, learns, len(columns)
        found = self.steps(kind, step, nets, [gamma], self.by_seed(len(nets), *columns))
        loss_actor, loss_qvalue = (self.joined(column) for column in zip(*found, strict=True))
        return {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}, [(pi, by_pi), (Q, by_Q)]


def make_goal_loss(
    actor: TensorDictModule, critics: Sequence[TensorDictModule], horizon: float, config: GoalLossConfig
) -> GoalTD3Loss | PlainSACLoss:
    """TorchRL's ``TD3Loss`` or ``SACLoss`` for one goal-reaching level, with bounded targets.

    Reads a batch with ``observation``, ``goal``, ``action`` in [-1, 1] and the same under ``next``; returns
    ``loss_actor`` and ``loss_qvalue``.

    Args:
        actor: deterministic for TD3, stochastic for SAC.
        critics: two critics of ``state_action_value`` in [-H, 0].
        horizon: H, minus the least value.
        config: which algorithm, discount, noise.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["lower.algorithm=sac"])
        >>> loss = make_agent(config, make_library(config)).levels[0].loss  # made by this function
        >>> type(loss).__name__, loss.value_estimator.low, loss.value_estimator.high
        ('PlainSACLoss', -20.0, 0.0)
    """
    if config.algorithm == "td3":
        loss = GoalTD3Loss(
            actor,
            list(critics),
            bounds=(-1.0, 1.0),  # type: ignore[arg-type]
            loss_function="l2",
            policy_noise=config.policy_noise,
            noise_clip=config.noise_clip,
            deactivate_vmap=True,
        )
    else:
        loss = make_sac(PlainSACLoss, actor, critics, config.alpha)
    loss.make_value_estimator(
        BoundedTD0Estimator,  # type: ignore[arg-type]
        gamma=config.gamma,
        low=-horizon,
        high=0.0,
        value_network=None,
    )
    loss.set_keys()  # hands the loss's keys to the estimator, which TorchRL leaves out for estimators given as a class
    return loss
