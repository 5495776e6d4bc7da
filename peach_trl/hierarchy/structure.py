"""What the clock, the actor and the conversion of a hierarchy must agree on: levels, spaces and attempt rules.

Levels are counted from the bottom: level 0 acts in the environment, level ``h = depth - 1`` is the top. A level's
*proposal* is what its network puts out, always in [-1, 1]: level 0's proposal is an action, level i's (i > 0) is a
subgoal ``g_{i-1}`` for the level below. Source: HAC (Levy et al. 2019, arXiv 1712.00948), with the top level of PEACH.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorSpec

from peach_trl.config import ConfigError, option
from peach_trl.defaults import default
from peach_trl.envs.goal_space import GoalSpace

CLOCKS = ("higher_goal", "own_goal", "time")
TOP_ACTIONS = ("hindsight", "proposal")
NO_LIMIT = 2**31 - 1
Values = TypeVar("Values", Tensor, np.ndarray)


@dataclass(frozen=True)
class HierarchyConfig:
    """Depth, clocks, subgoals and exploration of a hierarchy; see ``configs/`` for values and comments."""

    depth: int = option(low=1, high=16, help="number of levels, h + 1; 1 is a flat policy")
    decision_steps: int = option(
        low=1, high=10**6, auto=True, help="environment steps of one decision of the top level, k^h"
    )
    steps: tuple[int, ...] | None = option(
        low=1,
        high=10**6,
        help="decisions of each goal-reaching level for one goal, bottom up; null: k, the same for all",
    )
    clock: str = option(choices=CLOCKS, help="what ends an attempt at a goal")
    subgoal: str = option(
        choices=("relative", "absolute"), help="subgoals relative to the state, or in the whole space"
    )
    subgoal_reach: float = option(above=0, help="how far a relative subgoal may lie, per environment step, env units")
    failure: float = option(
        low=1, help="what it costs a goal-reaching level that its body fails, in attempts of k decisions"
    )
    test_probability: float = option(low=0, high=1, help="lambda, the share of proposals that are tested")
    random_share: float = option(low=0, high=1, help="share of uniform proposals of goal-reaching levels")
    warmup_random_share: float = option(low=0, high=1, help="the same in their warm-up")
    noise: float = option(low=0, help="Gaussian noise of goal-reaching levels, in half-ranges of the proposal space")
    warmup_noise: float = option(low=0, help="the same in their warm-up")
    top_action: str = option(choices=TOP_ACTIONS, help="what a top level that follows the reward is said to have done")
    top_random_share: float = option(low=0, high=1, help="share of uniform proposals of the top level")
    top_random_hold: int = option(
        low=1, high=10**6, help="decisions that a uniform proposal of the top level is held for"
    )

    @property
    def k(self) -> int:
        """Decisions that a goal-reaching level may spend on one goal: the smallest k with k^h >= decision_steps."""
        h = self.depth - 1
        return 1 if h == 0 else next(k for k in range(1, self.decision_steps + 1) if k**h >= self.decision_steps)

    @property
    def horizons(self) -> tuple[int, ...]:
        """Decisions that each goal-reaching level may spend on one goal, bottom up: ``steps``, or k of each."""
        return (self.k,) * (self.depth - 1) if self.steps is None else self.steps

    @property
    def top_steps(self) -> int:
        """The environment steps of one decision of the top level, at most: the product of ``horizons``, k^h."""
        return math.prod(self.horizons)

    def check(self) -> None:
        """Checks that every goal-reaching level has its number of decisions."""
        if self.steps is not None and len(self.steps) != self.depth - 1:
            raise ConfigError(
                f"steps = {list(self.steps)}: depth = {self.depth} has {self.depth - 1} goal-reaching levels; give a "
                "number of decisions for each, bottom up"
            )

    def most_decisions(self, horizon: int) -> int:
        """Decisions of the top level in an episode of ``horizon`` steps; where goals end them, one a step at most."""
        return -(-horizon // self.top_steps) if self.clock == "time" else horizon


class Hierarchy:
    """The shape of a hierarchy over one environment: horizons, proposal spaces, goals and the rule that ends attempts.

    Args:
        config: depth, clock and subgoals; ``None`` for :func:`~peach_trl.defaults.default`.
        action_spec: the environment's bounded action spec, shape ``[..., A]``; it is needed.
        subgoal_space: the space of subgoals that the environment declares, of dimension G; likewise.
        goal_space: the end goal's space where the top level reaches for a known goal (HAC); ``None`` where the top
            level follows the task's reward (PEACH, PEARL).
        fails: whether the body may fail, see :class:`~peach_trl.envs.BatchedMujocoEnv`.

    Raises:
        ValueError: for actions without bounds, and so for discrete ones.

    Attributes:
        horizons: the most decisions of an attempt of each level, int64 [L]; of the top there is no limit.

    Examples:
        >>> from torchrl.data import Bounded
        >>> config = HierarchyConfig(depth=3, decision_steps=20, steps=None, clock="own_goal", subgoal="relative",
        ...     subgoal_reach=0.15, failure=1.0, test_probability=0.3, random_share=0.2, warmup_random_share=0.2,
        ...     noise=0.1, warmup_noise=0.1, top_action="hindsight", top_random_share=0.0, top_random_hold=1)
        >>> space = GoalSpace([0, 1], low=[-10.0, -10.0], high=[10.0, 10.0], tolerance=0.5, metric="euclidean")
        >>> hierarchy = Hierarchy(config, Bounded(-1, 1, shape=(2,)), space)
        >>> hierarchy.k, hierarchy.horizons.tolist()[:2], hierarchy.proposal_dims
        (5, [5, 5], [2, 2, 2])
        >>> Hierarchy(action_spec=Bounded(-1, 1, shape=(2,)), subgoal_space=space).depth  # as it ships
        2
    """

    def __init__(
        self,
        config: HierarchyConfig | None = None,
        action_spec: TensorSpec | None = None,
        subgoal_space: GoalSpace | None = None,
        goal_space: GoalSpace | None = None,
        fails: bool = False,
    ) -> None:
        if action_spec is None or subgoal_space is None:
            raise ValueError("action_spec, subgoal_space: both are needed; give env.action_spec and a GoalSpace")
        config = default(HierarchyConfig) if config is None else config
        self.config, self.depth, self.k = config, config.depth, config.k
        self.subgoal_space, self.goal_space = subgoal_space, goal_space
        self._worst = config.failure if fails else 1.0
        low, high = (bound.reshape(-1, action_spec.shape[-1])[0] for bound in _bounds(action_spec))
        self.action_mid, self.action_half = (low + high) / 2, (high - low) / 2
        self._unit_actions = bool((low == -1).all() and (high == 1).all())
        # The top has no limit of its own: the end of the episode ends its attempt.
        self.horizons = torch.tensor([*config.horizons, NO_LIMIT])
        self._last = self.horizons - 1  # decisions used before the last one of an attempt
        self._last_array = self._last.numpy().copy()  # a view would dangle once tensors are sent to workers
        reach = torch.tensor([config.subgoal_reach * math.prod(config.horizons[:i]) for i in range(self.depth)])
        self.reach = torch.minimum(reach.unsqueeze(-1), 2 * subgoal_space.half_range)  # [L, G]; row 0 is not used
        self._spaces = [self._narrowed(level) for level in range(self.top)]
        self._dims = self.proposal_dims

    def lowest(self, level: int) -> float:
        """Minus the least value of a goal-reaching level: H, as no attempt has more decisions.

        Where bodies fail, ``config.failure`` times that. It is what failing costs: at least as much as never to reach
        a goal.
        """
        return self.penalty(level) * self._worst

    def penalty(self, level: int) -> float:
        """H, what a missed subgoal test costs a level: the decisions of its attempts; the top's are the most of any."""
        horizons = self.config.horizons or (1,)
        return float(horizons[level] if level < self.top else max(horizons))

    @property
    def proposal_dims(self) -> list[int]:
        """Dimension of each level's proposal, bottom up."""
        return [self.action_half.shape[-1]] + [self.subgoal_space.dim] * (self.depth - 1)

    @property
    def top(self) -> int:
        """Index h of the top level."""
        return self.depth - 1

    def space_of(self, level: int) -> GoalSpace | None:
        """The space of the goals that ``level`` reaches for; ``None`` for a top level that follows the reward.

        Relative subgoals count as reached within their space's tolerance, but at most within half of how far away they
        may lie: in a deeper hierarchy, whose lower levels have less time, they would else be reached by standing still.
        """
        return self._spaces[level] if level < self.top else self.goal_space

    def _narrowed(self, level: int) -> GoalSpace:
        space, most = self.subgoal_space, self.reach[level + 1] / 2
        most = most.min() if space.metric == "euclidean" else most
        narrow = self.config.subgoal == "relative" and bool((space.tolerance > most).any())
        return space.within(torch.minimum(space.tolerance, most)) if narrow else space

    def left(self, level: int, observation: Tensor, goal: Tensor) -> Tensor:
        """How much of the way to its goal a goal-reaching level has left, [...], from 0 to 1.

        It is the largest of the entries' distances, each as a share of how far away the level above may set it; of
        absolute subgoals and the tasks' own goals, of their range. Further away is 1.

        Args:
            level: that reaches for a goal.
            observation: [..., D].
            goal: [..., G].
        """
        space = self.space_of(level)
        assert space is not None  # as it reaches for a goal
        relative = level < self.top and self.config.subgoal == "relative"
        furthest = self.reach[level + 1] if relative else 2 * space.half_range
        return ((space.project(observation) - goal) / furthest).abs().amax(-1).clamp(max=1)

    def decode(self, level: int, observation: Values, proposal: Values) -> Values:
        """A proposal in [-1, 1] as what it stands for: an action [..., A], or an absolute subgoal [..., G].

        Raises:
            ValueError: for a proposal of another size.
        """
        self._check_size("proposal", level, proposal)
        if level == 0 and self._unit_actions:
            return proposal
        if isinstance(proposal, Tensor):
            return self._decode(level, cast(Tensor, observation), proposal)
        return self._decode(level, torch.from_numpy(observation), torch.from_numpy(proposal)).numpy()

    def _decode(self, level: int, observation: Tensor, proposal: Tensor) -> Tensor:
        if level == 0:
            return self.action_mid + self.action_half * proposal
        space = self.subgoal_space
        if self.config.subgoal == "relative":
            return space.clip(space.project(observation) + self.reach[level] * proposal)
        return space.low + (proposal + 1) * space.half_range

    def _check_size(self, name: str, level: int, value: Values) -> None:
        """One number would go for all: a proposal of the wrong size is no error of torch's."""
        size = self._dims[level]
        if value.shape[-1] != size:
            raise ValueError(f"{name} of shape {list(value.shape)}: level {level} proposes {size} numbers")

    def encode(self, level: int, observation: Tensor, target: Tensor) -> Tensor:
        """The inverse of :meth:`decode`, clipped to [-1, 1]: which proposal stands for ``target``?"""
        self._check_size("target", level, target)
        if level == 0:
            return ((target - self.action_mid) / self.action_half).clamp(-1, 1)
        space = self.subgoal_space
        if self.config.subgoal == "relative":
            return ((target - space.project(observation)) / self.reach[level]).clamp(-1, 1)
        return ((target - space.low) / space.half_range - 1).clamp(-1, 1)

    def hindsight_action(self, level: int, observation: Tensor, goal: Tensor, reached: Tensor) -> Tensor:
        """What ``level`` would have proposed with hindsight, in [-1, 1] (HAC, section 4.1).

        Where a subgoal was missed, that is the state that was reached instead. With ``top_action="proposal"`` a top
        level that follows the reward keeps what it proposed: it is to learn what comes of that in this task.

        Args:
            level: a level above 0.
            observation: s at the start of the decision, [..., D].
            goal: the subgoal g_{level-1} that was proposed, [..., G].
            reached: s' at the end of the decision, [..., D].
        """
        if level == self.top and self.goal_space is None and self.config.top_action == "proposal":
            return self.encode(level, observation, goal)
        achieved = self._spaces[level - 1].achieved(reached, goal).unsqueeze(-1)
        return self.encode(level, observation, torch.where(achieved, goal, self.subgoal_space.project(reached)))

    def achieved(self, observation: Tensor, goals: Tensor | None, end_goal: Tensor | None = None) -> Tensor:
        """Whether each level's goal is achieved, bool [..., L].

        Args:
            observation: [..., D].
            goals: the subgoals in force, [..., h, G]; ``None`` at depth 1.
            end_goal: the environment's goal [..., G], used only if the hierarchy has a ``goal_space``.
        """
        if goals is None:
            columns = []
        elif all(space is self.subgoal_space for space in self._spaces):
            columns = list(self.subgoal_space.achieved(observation.unsqueeze(-2), goals).unbind(-1))
        else:
            columns = [space.achieved(observation, goals[..., i, :]) for i, space in enumerate(self._spaces)]
        if self.goal_space is None:
            columns.append(observation.new_zeros(observation.shape[:-1], dtype=torch.bool))
        else:
            assert end_goal is not None  # the environment shows it
            columns.append(self.goal_space.achieved(observation, end_goal))
        return torch.stack(columns, -1)

    def attempt_ends(self, achieved: Values | None, attempts: Values, done: Values) -> tuple[Values, Values, Values]:
        """Which attempts end with a step, which levels decide after it, and how many decisions each attempt has used.

        A level's decision ends where its child's attempt ends; its own attempt may then end too. Clocks, named by what
        ends an attempt: ``higher_goal``: a goal of this level or of any above it is achieved, as in HAC's official
        code; ``own_goal``: its own goal is; ``time``: only its k decisions, the literal k^i of the source. Every clock
        also ends an attempt whose decisions are used up, or with the episode.

        Args:
            achieved: after the step, bool [..., L]; ``None`` will do for the clock ``time``.
            attempts: decisions used before the step, int [..., L].
            done: the episode ends with the step, bool [..., 1].

        Returns:
            ``(end, acts, used)``, each [..., L]; the bottom level always decides. Arrays where arrays are given.
        """
        last = self._last if isinstance(attempts, Tensor) else self._last_array
        over = (attempts >= last) | done
        if self.config.clock != "time":
            assert achieved is not None
            over |= _here_or_above(achieved) if self.config.clock == "higher_goal" else achieved
        end: Any = over.cumprod(-1) > 0  # no attempt ends before its child's
        acts: Any = over | True
        acts[..., 1:] = end[..., :-1]
        return cast(tuple[Values, Values, Values], (end, acts, attempts + acts))

    def recorded_ends(self, batch: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """What each step of a recorded batch [N, T] achieved, and which attempts ended with it.

        Returns:
            ``(achieved, end, used)``, [N, T, L] each, as :meth:`achieved` and :meth:`attempt_ends` give them.
        """
        goals, end_goal = batch.get(("hierarchy", "goal"), None), batch.get("goal", None)
        achieved = self.achieved(batch["next", "observation"], goals, end_goal)
        end, _, used = self.attempt_ends(achieved, batch["hierarchy", "attempts"], batch["next", "done"])
        return achieved, end, used


def _here_or_above(achieved: Values) -> Values:
    """Whether a goal of this level or of any above it is achieved, bool [..., L]."""
    return cast(Values, (achieved.cumsum(-1) - achieved * 1) < achieved.sum(-1)[..., None])


def _bounds(spec: TensorSpec) -> tuple[Tensor, Tensor]:
    low, high = getattr(spec.space, "low", None), getattr(spec.space, "high", None)
    name = f"action spec {type(spec).__name__} of shape {list(spec.shape)}"
    if low is None or high is None or not (high - low).isfinite().all():  # of a spec without bounds it overflows
        raise ValueError(
            f"{name} has no finite bounds, and levels propose numbers within bounds: use a Bounded spec, or append an "
            "action transform; discrete actions are for flat policies, see FlatBeliefTracker"
        )
    if not spec.shape:
        raise ValueError(f"{name} has no numbers: it must be [..., A]; append a transform that makes it [1]")
    return low, high
