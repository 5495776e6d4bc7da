"""A goal-reaching level of the hierarchy: actor, critics, loss, targets and optimiser behind one ``update``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import TensorSpec
from torchrl.modules import ValueOperator

from peach_trl.config import MANY, option
from peach_trl.defaults import default
from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.levels.adam import FusedAdam
from peach_trl.levels.targets import Level, Targets, leaves, normalisers, on_device
from peach_trl.modules.networks import (
    BoundedValue,
    FeatureNet,
    Features,
    NetworkConfig,
    deterministic_actor,
    stochastic_actor,
)
from peach_trl.modules.views import View
from peach_trl.objectives.goal import GoalLossConfig, make_goal_loss


@dataclass(frozen=True)
class LowerConfig(GoalLossConfig, NetworkConfig):
    """The goal-reaching levels; see ``configs/`` for values."""

    tau: float = option(above=0, high=1, help="rate of the target networks")
    learning_rate: float = option(above=0, high=10, help="learning rate of actors and critics")
    lr_end: float = option(above=0, high=1, help="share of the learning rate left at the end; it falls linearly")
    freeze_after: int | None = option(
        low=0, high=MANY, help="iterations after the warm-up that they go on learning; null: always"
    )
    checkpoint: str | None = option(help="final.pt or levels.pt of a run, whose levels they start as; null: untrained")


class GoalLevel(Level):
    """A goal-reaching level pi_i(s, g_i) with two critics Q_i(s, g_i, a) in [-H, 0].

    Args:
        hierarchy: the hierarchy it belongs to.
        level: its index from the bottom.
        observation_spec: spec of s, [..., D].
        config: networks, loss and rates.
        view: what it reads of the observation, and how it reads its goal; ``None`` for all of it.
        normalise: environment steps of each agent that means and deviations of what has no bounds are of; 0: none.
        seeds: with a number S, the levels of S agents at once; each has one of S equal parts of a batch.

    Attributes:
        actor: pi_i, a TensorDictModule from ``observation`` and ``goal`` to ``action`` in [-1, 1].
        loss: TorchRL's ``TD3Loss`` or ``SACLoss`` with bounded targets.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach")
        >>> level = make_agent(config, make_library(config)).levels[0]
        >>> import torch
        >>> from tensordict import TensorDict
        >>> s, g, done = torch.zeros(8, 4), torch.ones(8, 2), torch.zeros(8, 1, dtype=torch.bool)
        >>> after = {"observation": s, "goal": g, "reward": -torch.ones(8, 1), "done": done, "terminated": done}
        >>> batch = TensorDict({"observation": s, "goal": g, "action": torch.zeros(8, 2), "next": after}, [8])
        >>> sorted(level.update(batch).keys())
        ['loss_actor', 'loss_qvalue']
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        level: int,
        observation_spec: TensorSpec,
        config: LowerConfig | None = None,
        view: View | None = None,
        *,
        normalise: int = 0,
        seeds: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config = default(LowerConfig) if config is None else config
        self.name = f"level_{level}"
        stochastic = config.algorithm == "sac"
        self.actor, critics = make_goal_networks(
            hierarchy, level, observation_spec, stochastic, config, seeds, view, normalise > 0
        )
        self.normalisers = normalisers(self.actor, normalise, seeds)
        self.loss = make_goal_loss(self.actor, critics, hierarchy.lowest(level), config)
        self.targets = Targets(self.loss, config.tau)
        learnt = leaves(self.loss.actor_network_params) + leaves(self.loss.qvalue_network_params)
        self.optimiser = FusedAdam(learnt, lr=config.learning_rate)

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One gradient step on a batch [B] of the level's transitions; returns the losses, detached.

        Raises:
            NotFiniteLossError: if a gradient is not finite; weights are as they were then.
        """
        moved = on_device(batch, self.device)
        losses = self.loss.learn(moved)
        key = self.loss.tensor_keys.priority
        if moved is not batch and (priority := moved.get(key, None)) is not None:
            batch.set(key, priority.to(batch.get("action").device))  # where replay looks for it
        self._doing = batch, losses
        self._descend()
        self.targets.step()
        return losses.select("loss_actor", "loss_qvalue")

    def anneal(self, progress: float) -> None:
        """Sets the learning rate for ``progress`` in [0, 1] through the training of the level above.

        What that one has learnt to ask for changes with the way that its subgoals are met.
        """
        self._lower_rates([self.config.learning_rate], self.config.lr_end, progress)


def make_goal_networks(
    hierarchy: Hierarchy,
    level: int,
    observation_spec: TensorSpec,
    stochastic: bool,
    config: NetworkConfig,
    seeds: int | None = None,
    view: View | None = None,
    normalise: bool = False,
) -> tuple[TensorDictModule, list[TensorDictModule]]:
    """Actor and two critics of a goal-reaching level.

    Args:
        hierarchy: for the goal's space and range, and H.
        level: index from the bottom.
        observation_spec: spec of s.
        stochastic: a squashed Gaussian (SAC) rather than a deterministic actor (TD3).
        config: hidden layers, and their precision.
        seeds: how many of each, if there are several.
        view: what they read of s, and how they read the goal; ``None`` for all of it.
        normalise: whether what has no bounds is normalised.
    """
    space, dim, keys = hierarchy.space_of(level), hierarchy.proposal_dims[level], ["observation", "goal"]
    if space is None:
        raise ValueError(f"level {level} follows the task's reward: build it as a TopLevel")
    near = level < hierarchy.top and hierarchy.config.subgoal == "relative"

    def net(extra: int, out: int, cells: Sequence[int], norm: bool = False) -> FeatureNet:
        features = Features(observation_spec, space, hierarchy.reach[level + 1] if near else None, view, normalise)
        return FeatureNet(features, extra, out, cells, norm, seeds=seeds, bf16=config.bf16)

    if stochastic:
        actor = stochastic_actor(net(0, 2 * dim, config.actor_cells), keys)
    else:
        actor = deterministic_actor(net(0, dim, config.actor_cells), keys)
    nets = [
        BoundedValue(net(dim, 1, config.critic_cells, config.critic_norm), hierarchy.lowest(level)) for _ in range(2)
    ]
    return actor, [ValueOperator(net, in_keys=[*keys, "action"]) for net in nets]
