"""Exploration where it is needed: on tasks that bring no more than chance.

A policy that searches half of the places where goals may be has a good return on half of the tasks, and no reason to
look elsewhere: what it meets of the others are episodes without rewards. Noise on all tasks blurs what it does well.
So the top level explores on those tasks that it fails on, and for whole meta-episodes; once it solves them it no longer
does. Which tasks it fails on is known while training, as each is played again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from peach_trl.config import option
from peach_trl.seeding import named_generator


@dataclass(frozen=True)
class ExplorationConfig:
    """Exploration of unsolved tasks; see ``configs/`` for values and comments."""

    share: float = option(low=0, high=1, help="share of uniform proposals of the top level where it explores")
    often: float = option(low=0, high=1, help="share of an unsolved task's meta-episodes that explore")
    margin: float = option(low=0, high=1, help="a task is unsolved where it brings no more than this share of the best")


class Exploration:
    """Says on which tasks the top level is to explore, from what they brought last time.

    A task is *unsolved* if its last meta-episode brought less than ``chance + margin (best - chance)``: ``best`` is the
    most that any task has brought, and ``chance`` the median over the tasks when proposals were last uniform, or at
    first if they never were. Some of the meta-episodes of unsolved tasks explore; the others show what was learnt.

    Args:
        tasks: ids of the training tasks, [T]; with several seeds those of each, one seed after the other.
        num_tasks: how many there are, those of other splits included; ``None``: no others.
        share: of the top level's proposals that are uniform in a meta-episode that explores; 0: there are none.
        often: share of an unsolved task's meta-episodes that explore.
        margin: how much more than chance a task must bring, as a share of what the best brings.
        seeds: how many agents; tasks are compared with those of the same one.
        seed: of the draws of what is explored.

    Examples:
        >>> exploration, tasks = Exploration(torch.arange(4), share=0.5, often=1.0, seed=0), torch.arange(4)
        >>> exploration.take(tasks, torch.tensor([0.0, 0.0, 0.0, 8.0]), at_random=True)  # returns of trajectories
        >>> _ = exploration.shares()
        >>> exploration.take(tasks, torch.tensor([0.0, 10.0, 90.0, 100.0]))
        >>> exploration.shares()  # by task id
        tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """

    def __init__(
        self,
        tasks: Tensor,
        num_tasks: int | None = None,
        share: float = 0.5,
        often: float = 0.5,
        margin: float = 0.2,
        *,
        seeds: int = 1,
        seed: int | None = None,
    ) -> None:
        self.tasks, self.share, self.often, self.margin, self.seeds = tasks, share, often, margin, seeds
        self.num_tasks = int(tasks.max()) + 1 if num_tasks is None else num_tasks
        self._generator = named_generator("unsolved tasks", seed)
        self._chance, self._best = torch.full((2, seeds, 1), -torch.inf)
        self._forget()

    def _forget(self) -> None:
        self._returns, self._rows = torch.zeros(self.num_tasks), torch.zeros(self.num_tasks)
        self._at_random = False

    def take(self, task_id: Tensor, returns: Tensor, at_random: bool = False) -> None:
        """Takes in what a trajectory of each row brought.

        Args:
            task_id: int64 [N].
            returns: [N].
            at_random: whether all proposals of the top level were uniform, so that this is what chance brings.
        """
        self._returns.index_add_(0, task_id, returns)
        self._rows.index_add_(0, task_id, torch.ones_like(returns))
        self._at_random = at_random

    def collected(self, batch: TensorDictBase, at_random: bool = False) -> None:
        """The same of a recorded batch [N, T], a trajectory of each row."""
        reward = cast(Tensor, batch["next", "reward"])
        self.take(batch["task_id"][:, 0].flatten(), reward.flatten(1).sum(1), at_random)

    def shares(self) -> Tensor:
        """The share of uniform proposals for each task id, [num_tasks], given what was taken in since the last call."""
        shares = torch.zeros_like(self._returns)
        if not self._rows.any():
            return shares
        found = (self._returns / self._rows.clamp(min=1))[self.tasks].view(self.seeds, -1)
        self._best = torch.maximum(self._best, found.amax(1, keepdim=True))
        if self._at_random or not self._chance.isfinite().all():
            self._chance = found.median(1, keepdim=True).values
        unsolved = found <= self._chance + self.margin * (self._best - self._chance)
        drawn = torch.rand(found.shape, generator=self._generator) < self.often
        shares[self.tasks] = (self.share * (unsolved & drawn)).flatten()
        self._forget()
        return shares
