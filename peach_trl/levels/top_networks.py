"""Actor and critics of a top level that reads what is known of the task: pi_h(s, b) and Q(s, b, a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor, ValueOperator

from peach_trl.context.tracker import context_key
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.modules.networks import FeatureNet, Features, NetworkConfig, stochastic_actor
from peach_trl.modules.views import View

if TYPE_CHECKING:
    from peach_trl.levels.top_level import ReadingConfig


def make_top_networks(
    action_dim: int,
    observation_spec: TensorSpec,
    context: ReadingConfig,
    goal: GoalSpace | None,
    config: NetworkConfig,
    seeds: int | None = None,
    view: View | None = None,
    normalise: bool = False,
) -> tuple[ProbabilisticActor, list[ValueOperator]]:
    """pi_h(s, b) and two critics Q(s, b, a).

    Args:
        action_dim: dimensions of the top's proposal, P.
        observation_spec: spec of s.
        context: what is read: ``belief`` [..., 2 Z], ``z`` [..., Z], or with ``latent_dim`` 0 nothing.
        goal: the space of a known goal that is read, else ``None``.
        config: hidden layers, and their precision.
        seeds: how many of each, if there are several.
        view: what they read of s; ``None`` for all of it.
        normalise: whether what has no bounds is normalised.
    """
    read = context.latent_dim * (2 if context.read == "belief" else 1)
    keys = ["observation"] + ["goal"] * (goal is not None) + [context_key(context.read)] * (read > 0)

    def net(extra: int, out: int, cells: Sequence[int], norm: bool) -> FeatureNet:
        features = Features(observation_spec, goal, view=view, normalise=normalise)
        return FeatureNet(features, read + extra, out, cells, norm, seeds=seeds, bf16=config.bf16)

    actor = stochastic_actor(net(0, 2 * action_dim, config.actor_cells, False), keys)
    nets = [net(action_dim, 1, config.critic_cells, config.critic_norm) for _ in range(2)]
    return actor, [ValueOperator(net, in_keys=[*keys, "action"]) for net in nets]
