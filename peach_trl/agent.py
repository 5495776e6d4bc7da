"""The learner: levels, encoder, losses and optimisers, composed from a config and an environment's specs.

One class for PEACH and what it joins: depth 1 is PEARL, ``latent_dim`` 0 is HAC. Everything in it is a component that
works alone; recipes call :meth:`Agent.update_level` and :meth:`Agent.update_top` from Algorithm 1's loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule, SACLoss, SoftUpdate, TD3Loss, ValueEstimators

from peach_trl.config import ConfigError, option
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.policy import HierarchyActor, HierarchyClock, HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy, HierarchyConfig
from peach_trl.hierarchy.transitions import TransitionsConfig
from peach_trl.modules.encoder import ContextEncoder, EncoderConfig, sample_latent
from peach_trl.modules.networks import NetworkConfig, make_goal_level, make_top
from peach_trl.modules.posterior import DRAWS, PosteriorState
from peach_trl.objectives.context_sac import ContextSACLoss
from peach_trl.objectives.goal import GoalLossConfig, make_goal_loss
from peach_trl.objectives.kl import KLLoss
from peach_trl.seeding import named_generator


@dataclass(frozen=True)
class TopConfig(NetworkConfig):
    """The top level: networks, SAC and the learning rates of Algorithm 1; see ``configs/`` for values."""

    goal: str = option(choices=("hidden", "known"), help="whether the top level is told the task's goal (the oracle)")
    follows: str = option(
        choices=("reward", "goal"), help="the task's reward, or the known goal as HAC's top level does"
    )
    gamma: float = option(low=0, high=1, help="discount per environment step")
    alpha: float = option(above=0, help="SAC's entropy coefficient, fixed")
    tau: float = option(above=0, high=1, help="rate of the target networks")
    alpha_1: float = option(above=0, help="learning rate of the encoder")
    alpha_2: float = option(above=0, help="learning rate of the top actor")
    alpha_3: float = option(above=0, help="learning rate of the top critics")
    lr_end: float = option(above=0, high=1, help="share of the learning rates left at the end; they fall linearly")
    loss_actor: float = option(low=0, help="coefficient of loss_actor")
    loss_qvalue: float = option(low=0, help="coefficient of loss_qvalue")
    loss_kl: float = option(low=0, help="coefficient of loss_kl, beta")
    kl_annealing: int = option(low=0, help="gradient steps over which that coefficient grows from 0 to its value")


@dataclass(frozen=True)
class LowerConfig(GoalLossConfig, NetworkConfig):
    """The goal-reaching levels; see ``configs/`` for values."""

    tau: float = option(above=0, high=1, help="rate of the target networks")
    learning_rate: float = option(above=0, help="learning rate of actors and critics")


@dataclass(frozen=True)
class LatentConfig(EncoderConfig):
    """The context variable z; see ``configs/`` for values."""

    draw: str = option(choices=DRAWS, help="when z is drawn anew")


class GoalLevel(nn.Module):
    """A goal-reaching level: actor, critics, loss, targets and optimiser.

    Args:
        hierarchy: the hierarchy it belongs to.
        level: its index from the bottom.
        observation_spec: spec of s.
        config: networks, loss and rates.
    """

    def __init__(self, hierarchy: Hierarchy, level: int, observation_spec, config: LowerConfig) -> None:
        super().__init__()
        stochastic = config.algorithm == "sac"
        self.actor, critics = make_goal_level(hierarchy, level, observation_spec, stochastic, config)
        self.loss = make_goal_loss(self.actor, critics, hierarchy.k, config)
        self.targets = SoftUpdate(self.loss, tau=config.tau)
        self.optimiser = torch.optim.Adam(_parameters(self.loss), lr=config.learning_rate, fused=True)

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """One gradient step on a batch [B]; returns the losses."""
        losses = self.loss(batch)
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.targets.step()
        return {name: losses[name].item() for name in ("loss_actor", "loss_qvalue")}


class Agent(nn.Module):
    """All that learns, and the policy made of it.

    Args:
        env: an environment with ``observation`` and ``action`` specs, and the goal spaces that it declares.
        hierarchy: depth, clocks, exploration.
        transitions: for the scale of the top level's rewards.
        context: z and its encoder.
        top: the top level.
        lower: the goal-reaching levels.

    Examples:
        >>> from peach_trl.experiment import Config, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(Config, "peach", "configs", ["hierarchy.depth=3"])
        >>> agent = make_agent(config, make_library(config))
        >>> len(agent.levels), agent.hierarchy.k, agent.encoder.latent_dim
        (2, 5, 5)
    """

    updates: Tensor

    def __init__(
        self,
        env: EnvBase,
        hierarchy: HierarchyConfig,
        transitions: TransitionsConfig,
        context: LatentConfig,
        top: TopConfig,
        lower: LowerConfig,
    ) -> None:
        super().__init__()
        self.context, self.config, self.reward_scale = context, top, transitions.reward_scale
        if top.goal == "known" and env.goal_space is None:
            raise ConfigError(
                "top.goal = 'known': the tasks of this environment are no states to reach; set it to hidden"
            )
        end_goal = cast(GoalSpace, env.goal_space) if top.follows == "goal" else None
        self.hierarchy = Hierarchy(hierarchy, env.action_spec, cast(GoalSpace, env.subgoal_space), end_goal)
        self.observation_spec = env.observation_spec["observation"]
        goal_levels = self.hierarchy.depth if top.follows == "goal" else self.hierarchy.top
        self.levels = nn.ModuleList(
            [GoalLevel(self.hierarchy, level, self.observation_spec, lower) for level in range(goal_levels)]
        )
        self.encoder: ContextEncoder | None = None
        if top.follows == "reward":
            self._make_top(cast(GoalSpace, env.goal_space) if top.goal == "known" else None)

    def _make_top(self, goal: GoalSpace | None) -> None:
        """pi_h, Q_h and q_phi, with the learning rates alpha_2, alpha_3 and alpha_1."""
        config, latent_dim = self.config, self.context.latent_dim
        self.top_actor, critics = make_top(self.hierarchy, self.observation_spec, latent_dim, goal, config)
        self.top_loss: LossModule = ContextSACLoss(
            self.top_actor, critics, alpha_init=config.alpha, fixed_alpha=True, target_entropy=0.0, loss_function="l2"
        )
        self.top_loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        self.top_loss.target_entropy  # noqa: B018  SACLoss registers it when it is first read: now, so that state dicts fit
        self.kl_loss = KLLoss()
        self.targets = SoftUpdate(self.top_loss, tau=config.tau)
        groups = [
            {"params": _leaves(self.top_loss.actor_network_params), "lr": config.alpha_2},
            {"params": _leaves(self.top_loss.qvalue_network_params), "lr": config.alpha_3},
        ]
        if latent_dim > 0:
            self.encoder = ContextEncoder(self.observation_spec, self.hierarchy.proposal_dims[-1], self.context)
            groups.append({"params": list(self.encoder.parameters()), "lr": config.alpha_1})
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self._latent = named_generator("update latent")

    def make_policy(self, num_tasks: int, seed: int | None = None) -> HierarchyPolicy:
        """The hierarchy as a policy over ``num_tasks`` tasks, with the learner's own networks.

        Args:
            num_tasks: entries of the table of posteriors.
            seed: of the draws of z; ``None`` for the process's.
        """
        actors = [cast(GoalLevel, level).actor for level in self.levels]
        if self.config.follows == "reward":
            actors.append(self.top_actor)
        clock, actor = HierarchyClock(self.hierarchy), HierarchyActor(self.hierarchy, actors)
        if self.encoder is None:
            return HierarchyPolicy(clock, actor)
        dim, draw = self.observation_spec.shape[-1], self.context.draw
        posterior = PosteriorState(self.encoder, self.hierarchy, num_tasks, dim, draw, self.reward_scale, seed)
        return HierarchyPolicy(clock, actor, posterior)

    def anneal(self, progress: float) -> None:
        """Sets the learning rates alpha_1, alpha_2, alpha_3 for ``progress`` in [0, 1] through training."""
        share = 1 - (1 - self.config.lr_end) * progress
        rates = (self.config.alpha_2, self.config.alpha_3, self.config.alpha_1)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=False):
            group["lr"] = share * rate

    def update_level(self, level: int, batch: TensorDictBase) -> dict[str, float]:
        """One gradient step of goal-reaching level ``level`` on a batch [B] of its transitions."""
        return cast(GoalLevel, self.levels[level]).update(batch)

    def update_top(self, batch: TensorDictBase, context: TensorDictBase | None = None) -> dict[str, float]:
        """One gradient step of Algorithm 1 for encoder, top actor and top critics.

        Args:
            batch: b^i, top-level transitions [M, B] of M tasks.
            context: c^i, top-level transitions [M, C] with ``mask``; only with an encoder.
        """
        losses = TensorDict({}, [])
        if self.encoder is not None:
            q = self.encoder(TensorDict({"context": context}, batch.shape[:1]))  # q_phi(z | c^i)
            z = sample_latent(q["z_loc"], q["z_scale"], self._latent)  # one z a task
            batch = batch.copy().set("z", z.unsqueeze(1).expand(*batch.shape, -1))
            losses.update(self.kl_loss(q))
        losses.update(self.top_loss(batch))
        names = [name for name in ("loss_actor", "loss_qvalue", "loss_kl") if name in losses.keys()]
        coefficients = {name: getattr(self.config, name) for name in names}
        if "loss_kl" in coefficients:
            self.updates += 1
            coefficients["loss_kl"] *= min(1.0, self.updates.item() / max(self.config.kl_annealing, 1))
        total = sum(coefficients[name] * losses[name] for name in names)
        cast(Tensor, total).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.targets.step()
        return {name: losses[name].item() for name in (*names, "entropy")}


def _parameters(loss: SACLoss | TD3Loss) -> list[Tensor]:
    return _leaves(loss.actor_network_params) + _leaves(loss.qvalue_network_params)


def _leaves(params: TensorDictBase) -> list[Tensor]:
    return [p for p in params.values(True, True) if isinstance(p, nn.Parameter)]
