"""HAC's TRAIN-LEVEL as the paper has it: recursive, one environment at a time, plain Python. A reference for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION, HINDSIGHT_GOAL, SUBGOAL_TEST, TransitionsConfig

PENALTY = 3.0  # stands for a missed test of a top level that follows the reward


class ToyDynamics:
    """A point that moves by its action; obs = (x, y, row, clock), the clock never resets."""

    def __init__(self, row: int, horizon: int, limit: float) -> None:
        self.row, self.horizon, self.limit, self.clock = row, horizon, limit, 0
        self.reset()

    def reset(self) -> None:
        self.x, self.steps = torch.zeros(2), 0

    @property
    def observation(self) -> Tensor:
        return torch.cat([self.x, torch.tensor([float(self.row), float(self.clock)])])

    def step(self, action: Tensor) -> tuple[float, bool, bool]:
        self.x, self.clock, self.steps = self.x + action, self.clock + 1, self.steps + 1
        terminated = bool(self.x.abs().max() > self.limit)
        return float(self.x.sum()), terminated, self.steps >= self.horizon


class OutOfTime(Exception):
    """The recording is over; the running episode does not count."""


class ReferenceHAC:
    """Runs whole episodes of one row until ``clock`` reaches ``until``; ``rows[i]`` are level i's transitions.

    Args:
        hierarchy: levels and spaces.
        config: hindsight and rewards.
        env: the dynamics.
        proposals: [L, T, P], what each level proposes at each time.
        coins: bool [L, T], whether a proposal made at that time would be tested.
        draws: [T, K - 1], for hindsight goals.
        end_goal: [G] or None.
        until: T.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        config: TransitionsConfig,
        env: ToyDynamics,
        proposals: Tensor,
        coins: Tensor,
        draws: Tensor,
        end_goal: Tensor | None,
        until: int,
    ) -> None:
        self.hierarchy, self.config, self.env = hierarchy, config, env
        self.proposals, self.coins, self.draws, self.end_goal, self.until = proposals, coins, draws, end_goal, until
        self.rows: list[list[tuple]] = [[] for _ in range(hierarchy.depth)]
        try:
            while True:
                self.env.reset()
                self.out, self.terminated, self.episode = False, False, [[] for _ in range(hierarchy.depth)]
                goals: list = [None] * (hierarchy.depth - 1) + [end_goal]
                while not self.out:  # a known end goal may be achieved, and pursued again, before the episode ends
                    self.train_level(hierarchy.top, goals, tested=False)
                for level, rows in enumerate(self.episode):
                    self.rows[level].extend(rows)
        except OutOfTime:
            pass

    def achieved(self, level: int, goal: Tensor | None) -> bool:
        space = self.hierarchy.space_of(level)
        return space is not None and bool(space.achieved(self.env.observation, goal))

    def train_level(self, level: int, goals: list, tested: bool) -> tuple[bool, bool, float]:
        """Works on ``goals[level]``; returns (achieved, attempts used up, sum of rewards)."""
        attempt, attempts, total, began = [], 0, 0.0, self.env.clock
        while True:
            s, clock = self.env.observation, self.env.clock
            if clock >= self.until:
                raise OutOfTime
            p = self.proposals[level, clock]
            target = self.hierarchy.decode(level, s, p)
            if level == 0:
                reward, self.terminated, truncated = self.env.step(target)
                self.out = self.terminated or truncated
                a, failed_test = self.hierarchy.encode(0, s, target), False
            else:
                test = tested or bool(self.coins[level, clock])
                child_goals = [*goals[: level - 1], target, *goals[level:]]
                hit, used_up, reward = self.train_level(level - 1, child_goals, test)
                reached = self.hierarchy.subgoal_space.project(self.env.observation)
                a = self.hierarchy.encode(level, s, target if hit else reached)
                failed_test = test and used_up and not hit
            attempts, total, after = attempts + 1, total + reward, self.env.observation
            attempt.append((s, a, after, reward, self.terminated))
            self.add(level, s, a, goals[level], after, reward, self.terminated, HINDSIGHT_ACTION)
            if failed_test:
                p = self.hierarchy.encode(level, s, target)
                self.add(level, s, p, goals[level], after, reward, self.terminated, SUBGOAL_TEST)
            above = goals[level:] if self.hierarchy.config.clock == "higher_goal" else goals[level : level + 1]
            hits = [self.achieved(level + i, goal) for i, goal in enumerate(above)]
            over = any(hits) and self.hierarchy.config.clock != "time"
            used_up = attempts >= int(self.hierarchy.horizons[level])
            if over or used_up or self.out:
                break
        self.add_hindsight_goals(level, attempt, self.draws[began])
        return self.achieved(level, goals[level]), used_up, total

    def add_hindsight_goals(self, level: int, attempt: list, draws: Tensor) -> None:
        space = self.hierarchy.space_of(level)
        if space is None:
            return
        picks = [len(attempt) - 1] + [int(u * len(attempt)) for u in draws]
        for pick in picks[: min(self.config.hindsight_goals, len(attempt))]:
            goal = space.project(attempt[pick][2])
            for s, a, after, reward, terminated in attempt[: pick + 1]:
                self.add(level, s, a, goal, after, reward, terminated, HINDSIGHT_GOAL)

    def add(self, level, s, a, goal, after, reward, terminated, kind) -> None:
        space = self.hierarchy.space_of(level)
        if space is not None:
            terminated = bool(space.achieved(after, goal))
            reward = 0.0 if terminated else -1.0
        else:
            reward = self.config.reward_scale * reward
        if kind == SUBGOAL_TEST:
            below = self.hierarchy.horizons[:-1].tolist() or [1]  # decisions of an attempt
            most = below[level] if level < self.hierarchy.top else max(below)
            reward = -float(most) if space is not None else -PENALTY
            terminated = True
        row = [*s.tolist(), *a.tolist(), *after.tolist(), reward, float(terminated), float(kind)]
        self.episode[level].append(tuple(row + (goal.tolist() if space is not None else [])))
