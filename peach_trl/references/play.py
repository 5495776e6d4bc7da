"""Reference policies on the rows of an environment: what a policy is, and how it is played.

A policy says where to go; :class:`Point` goes there, in the same simple way for all policies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.point import PointConfig
from peach_trl.references.candidates import REMEDY


class Control(NamedTuple):
    """What a point is taken to do at full action."""

    step: float  # length of a step along an axis, metres
    coast: float  # for how many of its steps a point goes on by itself
    straight: bool = False  # whether it goes in a straight line, or along each axis at full action


class Stay:
    """Goes to a place and stays, whatever it sees: the oracle, the policy without context, and what the others alter.

    One object plays one meta-test of each of R rows, which go to ``places`` [R, 2], in metres; see :func:`play`.

    Attributes:
        control: what the point is taken to do; ``None``: measured in the environment.
    """

    control: Control | None = None

    def __init__(self, places: Tensor) -> None:
        self._places = places

    def start(self) -> None:
        """A trajectory starts."""

    def subgoal(self, position: Tensor) -> Tensor:
        """Where to go now, [R, 2], from ``position`` [R, 2]; asked once before each step."""
        return self._places

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Remembers the ``reward`` [R] of the step that led to ``position`` [R, 2], and ``observation`` [R, D]."""


class Deciding(Stay):
    """Chooses a place every ``decision_steps``, as near as the reach of a subgoal, and keeps to it in between.

    Args:
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.
    """

    def __init__(self, decision_steps: int, reach: float) -> None:
        if decision_steps < 1 or not reach > 0:
            raise ValueError(f"decision_steps = {decision_steps}, reach = {reach}: raise them to >= 1 and above 0")
        self._decision_steps, self._reach = decision_steps, reach

    def start(self) -> None:
        """The first decision starts."""
        self._step = 0

    def subgoal(self, position: Tensor) -> Tensor:
        """The subgoal in force, [R, 2]."""
        if self._step % self._decision_steps == 0:
            offset = self.target(position) - position
            furthest = offset.abs().amax(-1, keepdim=True).clamp(min=1e-9)
            self._places = position + offset * (self._reach / furthest).clamp(max=1.0)
        self._step += 1
        return self._places

    def target(self, position: Tensor) -> Tensor:
        """Where it would go, [R, 2], however far that is; asked once a decision."""
        raise NotImplementedError


class Played(NamedTuple):
    """What R rows did in K trajectories of T steps."""

    rewards: Tensor  # [R, K, T]
    positions: Tensor  # [R, K, T, 2], after each step, metres
    subgoals: Tensor  # [R, K, T, 2], in force during each step

    @property
    def returns(self) -> Tensor:
        """Sums of rewards divided by the horizon, [R, K]."""
        return self.rewards.mean(-1)


@torch.no_grad()
def play(env: BatchedMujocoEnv, policy: Stay, trajectories: int, *, blind: bool = False) -> Played:
    """Plays the task that each row of ``env`` has, for ``trajectories`` episodes; ``env`` is left at their end.

    Args:
        env: the environment, R rows.
        policy: new; what it learns in one trajectory it has in the next.
        trajectories: K.
        blind: whether ``policy`` sees rewards of 0 only.

    Raises:
        ValueError: for ``trajectories`` below 1, and where positions do not grow with the actions.
        NotFiniteError: when the simulation breaks.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> env = FAMILIES["SparsePointRobot"](num_envs=2)
        >>> played = play(env, Stay(env.library.parameters[env.task_id]), trajectories=3)
        >>> played.positions.shape, played.returns.shape, bool((played.returns > 0.6).all())
        (torch.Size([2, 3, 20, 2]), torch.Size([2, 3]), True)
    """
    if trajectories < 1:
        raise ValueError(f"trajectories = {trajectories}: must be >= 1")
    point, steps = Point(env, policy.control), []
    for _ in range(trajectories):
        policy.start()
        point.restart()
        for _ in range(env.horizon):
            subgoal = policy.subgoal(point.position)
            reward = point.go(subgoal)
            policy.see(point.position, torch.zeros_like(reward) if blind else reward, point.observation)
            steps.append((reward, point.position, subgoal))
    columns = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return Played(*(column.unflatten(1, (trajectories, env.horizon)) for column in columns))


STEP, COAST = 0.987, 1.98  # of the point where there is room: a step in top speeds, and how far it coasts, in steps


class Point:
    """The rows of an environment as points that are told where to go; ``position`` [R, 2] in metres.

    Each axis heads for the place at full action, less what momentum does by itself; or the shorter one at less, so that
    the way is a straight line.

    Args:
        env: the environment, R rows, whose positions are the entries of its goals, or else of its subgoals.
        control: what it is taken to do; ``None``: measured beforehand, and not in straight lines.
    """

    def __init__(self, env: BatchedMujocoEnv, control: Control | None = None) -> None:
        self._env, self._task_id = env, env.task_id
        self._space = env.subgoal_space if env.goal_space is None else env.goal_space
        self.restart()
        self._step, self._coast, self._straight = self._measure() if control is None else control

    def restart(self) -> None:
        """The next trajectory of the same tasks."""
        self.observation = self._env.restart(task_id=self._task_id)["observation"]
        self.position = self._before = self._space.project(self.observation)

    def go(self, place: Tensor) -> Tensor:
        """One step towards ``place`` [R, 2]; the reward, [R]."""
        momentum = self._coast * (self.position - self._before)
        action = (place - self.position - momentum) / self._step
        if self._straight:
            return self._act(action / action.abs().amax(-1, keepdim=True).clamp(min=1))
        return self._act(action.clamp(-1, 1))

    def _measure(self) -> Control:
        config = getattr(self._env, "config", None)
        if isinstance(config, PointConfig) and config.arena < 12 * config.speed:  # it would run into the walls
            return Control(STEP * config.speed, COAST)
        path = []
        for action in [1.0] * 10 + [0.0] * 10:
            self._act(torch.full(self._env.action_spec.shape, action))
            path.append(self.position)
        step = (path[9] - path[8]).amin().item()
        if step <= 0:
            raise ValueError(f"{type(self._env).__name__} moves {step:.3g} m at full action: {REMEDY}")
        return Control(step, (path[19] - path[9]).mean().item() / step)

    def _act(self, action: Tensor) -> Tensor:
        values, error = self._env.advance(action)
        if error is not None:
            raise error
        self.observation = values["observation"]
        self._before, self.position = self.position, self._space.project(self.observation)
        return values["reward"][:, 0]
