"""Exploration where it is needed: on tasks whose rewards are not met.

A policy that searches half of the places where goals may be has a good return on half of the tasks, and no reason to
look elsewhere: what it meets of the others are episodes without rewards. Noise on all tasks blurs what it does well.
So the top level explores on those tasks that it fails on, and once it solves them it no longer does. Which tasks it
fails on is known while training, as each is played again and again.

It may go where the meta-episode has not been (:mod:`~peach_trl.hierarchy.elsewhere`). It explores from some trajectory
of a meta-episode on. In those before it does as it learnt: so it comes to where it
does not know what to do, when its search has failed. Exploring from the start would teach it wrong once few tasks are
unsolved: what it met there would be of those alone, while at the start a task may be any. So it explores from the start
with the probability that a task is unsolved, and else from a later trajectory on. Where a meta-episode is a single
trajectory, it explores from one of the decisions in its first half on.

Where rewards are rare and something costs, a task that is solved may be solved at too high a price: a policy that takes
four decisions to where two would lead is at a plateau, as three are not reached by small steps. There, early in
training, some meta-episodes of solved tasks explore as well.

All of this is for sparse rewards. Where rewards are dense, a policy meets them wherever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from peach_trl.config import option
from peach_trl.seeding import named_generator

SAME = 0.1  # share of the steps by chance that have the most frequent reward, at least, where rewards are sparse
NEVER = 2**62  # the number of a trajectory that no meta-episode has
_KEPT = (
    *("unsolved", "since", "_from", "_highest", "_at_random", "_explored", "_chance", "_best", "_least", "_lowest"),
    *("_usual", "_sparse", "_usual_return", "_highest_return"),
)


@dataclass(frozen=True)
class ExplorationConfig:
    """Exploration of unsolved tasks; see ``configs/`` for values and comments."""

    share: float = option(
        low=0, high=1, help="probability of a uniform proposal, which is then held, where it explores"
    )
    often: float = option(low=0, high=0.99, help="share of an unsolved task's meta-episodes that explore")
    margin: float = option(low=0, high=1, help="how much more than chance a task must show, as a share of the best")
    costly: float = option(
        low=0, high=0.99, help="as often, of solved tasks where something costs; none after a third of training"
    )
    rare_below: float = option(
        low=0, high=1, help="rewards are rare if chance meets them in less than this share of the meta-episodes"
    )
    elsewhere: float = option(
        low=0, high=1, help="share of the uniform proposals that lead elsewhere, unless rewards are rare"
    )


class Exploration:
    """Says on which tasks the top level is to explore, from what they showed last time.

    A task is *unsolved* if no step of its last meta-episode had a reward of ``chance + margin (best - chance)``:
    ``best`` is the highest reward that any task has shown, and ``chance`` the median over the tasks of the highest ones
    when proposals were last uniform, or at first if they never were. Rewards of steps tell tasks apart that sums do
    not: avoiding costs is better than chance, too. As long as no step's reward was higher than the most frequent
    one, all tasks are unsolved; where rewards are dense, so that no reward is usual, none is.

    Some of the meta-episodes of unsolved tasks explore; the others show what was learnt, and only they can solve a
    task. They explore from the first trajectory on with the probability that a task is unsolved, and else from one of
    the others; a meta-episode of one trajectory from a decision in its first half on.

    Args:
        tasks: ids of the training tasks, [T]; with several seeds those of each, one seed after the other.
        num_tasks: how many there are, those of other splits included; ``None``: no others.
        share: probability of a uniform proposal at a decision of a meta-episode that explores, unless one is held from
            before; 0: there are none.
        often: share of an unsolved task's meta-episodes that explore, below 1.
        margin: how much more than chance a task must show, as a share of what the best shows.
        rare_below: share of the meta-episodes with uniform proposals, see :attr:`rare`.
        costly: share of the meta-episodes of a solved task that explore where something costs (:attr:`behind_costs`),
            at the start of training; it falls linearly, to 0 after a third of it.
        elsewhere: share of the uniform proposals that lead where the row has not been in this meta-episode, see
            :class:`~peach_trl.hierarchy.elsewhere.Elsewhere`; none of :attr:`rare` tasks.
        trajectories: of a meta-episode, L.
        decisions: of the top level in a trajectory.
        seeds: how many agents; tasks are compared with those of the same one.
        seed: of the draws of what is explored.

    Attributes:
        unsolved: which tasks were unsolved when the last meta-episode began, bool [num_tasks].
        since: the decision of a trajectory from which on tasks explore that do so in it, int64 [num_tasks].

    Examples:
        >>> exploration, tasks = Exploration(torch.arange(4), often=0.0, seed=0), torch.arange(4)
        >>> exploration.take(tasks, torch.tensor([0.0, 0.0, 0.0, 1.0]), at_random=True)  # highest rewards of a step
        >>> exploration.shares()  # of uniform proposals, by task id: with often=0.0 no task explores
        tensor([0., 0., 0., 0.])
        >>> exploration.take(tasks, torch.tensor([0.0, 0.1, 0.9, 1.0]))
        >>> _ = exploration.shares()
        >>> exploration.unsolved
        tensor([ True,  True, False, False])
    """

    def __init__(
        self,
        tasks: Tensor,
        num_tasks: int | None = None,
        share: float = 0.5,
        often: float = 0.5,
        margin: float = 0.5,
        costly: float = 0.1,
        rare_below: float = 0.4,
        elsewhere: float = 0.0,
        trajectories: int = 1,
        decisions: int = 1,
        *,
        seeds: int = 1,
        seed: int | None = None,
    ) -> None:
        if not 0 <= often < 1 or not 0 <= share <= 1 or len(tasks) % seeds:
            raise ValueError(
                f"often = {often}, share = {share}, {len(tasks)} tasks of {seeds} seeds: need 0 <= often < 1, as only "
                "meta-episodes that do not explore can solve a task, 0 <= share <= 1, and as many tasks of each seed"
            )
        self.tasks, self.share, self.often, self.margin, self.seeds = tasks, share, often, margin, seeds
        self.costly, self.rare_below, self.elsewhere = costly, rare_below, elsewhere
        self.num_tasks = int(tasks.max()) + 1 if num_tasks is None else num_tasks
        self.trajectories, self._from = trajectories, torch.full((self.num_tasks,), NEVER)
        self.decisions, self.since = decisions, torch.zeros(self.num_tasks, dtype=torch.int64)
        self.unsolved = torch.zeros(self.num_tasks, dtype=torch.bool)
        self._generator = named_generator("unsolved tasks", seed)
        self._chance, self._best = torch.full((2, seeds, 1), -torch.inf)
        self._explored = torch.zeros(seeds, len(tasks) // seeds, dtype=torch.bool)
        self._usual_return, self._highest_return = torch.full((2, seeds), -torch.inf)
        self._usual, self._sparse = torch.full((seeds, 1), torch.nan), torch.ones(seeds, 1, dtype=torch.bool)
        # The lowest reward of a step, and the least that the highest one of a task's meta-episode was.
        self._lowest, self._least = torch.full((2, seeds, 1), torch.inf)
        self._by_chance: list[Tensor] = []  # the highest rewards [S, T / S] of meta-episodes with uniform proposals
        self._forget()

    def _forget(self) -> None:
        self._highest, self._at_random = torch.full((self.num_tasks,), -torch.inf), False

    def take(self, task_id: Tensor, highest: Tensor, at_random: bool = False) -> None:
        """Takes in what a trajectory of each row showed.

        Args:
            task_id: int64 [N].
            highest: the highest reward of a step, [N].
            at_random: whether all proposals of the top level were uniform, so that this is what chance shows.
        """
        self._highest.scatter_reduce_(0, task_id, highest, "amax")
        self._at_random = at_random

    def collected(self, batch: TensorDictBase, at_random: bool = False) -> None:
        """The same of a recorded batch [N, T], a trajectory of each row, or [T], of one."""
        batch = batch.unsqueeze(0) if batch.ndim == 1 else batch
        reward = cast(Tensor, batch["next", "reward"]).flatten(1)
        self.take(batch["task_id"][:, 0].flatten(), reward.amax(1), at_random)
        steps, total = reward.view(self.seeds, -1), reward.sum(1).view(self.seeds, -1)
        self._lowest = torch.minimum(self._lowest, steps.amin(1, keepdim=True))
        if at_random or not self._usual_return.isfinite().all():
            self._usual_return = total.median(1).values
            usual = steps.mode(1, keepdim=True).values
            self._usual = usual.fmin(self._usual)  # the less that chance met, the more it says
            self._sparse = (steps == usual).float().mean(1, keepdim=True) >= SAME
        self._highest_return = torch.maximum(self._highest_return, total.amax(1))

    def _look(self) -> Tensor:
        """Which tasks are unsolved, given what was taken in since the last call: bool [S, T / S]."""
        found = self._highest[self.tasks].view(self.seeds, -1)
        self._best = torch.maximum(self._best, found.amax(1, keepdim=True))
        self._least = torch.minimum(self._least, found.amin(1, keepdim=True))
        if self._at_random or not self._chance.isfinite().all():
            self._chance = found.median(1, keepdim=True).values
        if self._at_random:
            self._by_chance.append(found)
        unmet = found < self._chance + self.margin * (self._best - self._chance)
        unmet |= ~self._anything(self._best, self._chance)
        before = self.unsolved[self.tasks].view(self.seeds, -1)  # of those that explored it is not known
        return self._sparse & (unmet if self._at_random else torch.where(self._explored, before, unmet))

    def _anything(self, best: Tensor, chance: Tensor) -> Tensor:
        """Whether a higher reward than the usual one was ever met, [S, 1]."""
        return (best > chance) | (best > torch.where(self._usual.isnan(), self._least, self._usual))

    @property
    def worth(self) -> Tensor:
        """What the best episode so far returned beyond what chance mostly does, of each seed [S]; 0 at first."""
        return (self._highest_return - self._usual_return).nan_to_num(0.0)

    @property
    def met(self) -> float:
        """How often a task's rewards were met by chance, in meta-episodes with uniform proposals, on average.

        Rewards are met that are higher than what chance mostly shows, see the class; dense ones always are. Of several
        seeds the median.
        """
        by_chance = self._met()
        return 0.0 if by_chance is None else by_chance.sum(0).mean(1).median().item()

    @property
    def rare(self) -> Tensor:
        """Which tasks are of a kind whose rewards chance rarely meets, bool by task id; all before it is known.

        Where chance meets them often, exploration shows enough of them, and whatever else is preferred in replay
        misleads: of the best of many meta-episodes critics learn that a goal is found whatever one does.
        """
        by_chance = self._met()
        if by_chance is None:
            return torch.ones_like(self.unsolved)
        return self._by_task(by_chance.mean((0, 2)) < self.rare_below, otherwise=True)

    @property
    def behind_costs(self) -> Tensor:
        """Which tasks are :attr:`rare`, and of a kind where something costs, bool by task id; none before it is known.

        Something costs: a step's reward was lower than the usual one. Where nothing does, nothing keeps a policy from
        looking everywhere.
        """
        if self._met() is None:
            return torch.zeros_like(self.unsolved)
        return self._by_task((self._lowest < self._usual).squeeze(1), otherwise=False) & self.rare

    def _by_task(self, of_seeds: Tensor, otherwise: bool) -> Tensor:
        """What is so of each seed [S], by the ids of its tasks; other tasks have ``otherwise``."""
        found = torch.full_like(self.unsolved, otherwise)
        found[self.tasks] = of_seeds.repeat_interleave(len(self.tasks) // self.seeds)
        return found

    def _met(self) -> Tensor | None:
        """In which meta-episodes with uniform proposals rewards were met, [n, S, T / S]; ``None`` before the first."""
        shown = self._by_chance + [self._highest[self.tasks].view(self.seeds, -1)] * self._at_random
        if not shown:
            return None
        highest = torch.stack(shown)
        best, chance = highest.amax((0, 2)).unsqueeze(-1), highest[-1].median(1, keepdim=True).values
        found = (highest >= chance + self.margin * (best - chance)) & self._anything(best, chance)
        return (found | ~self._sparse).float()

    def shares(self, trajectory: int = 0, progress: float = 0.0) -> Tensor:
        """The share of uniform proposals for each task id, [num_tasks], in a trajectory of all tasks' meta-episodes.

        Args:
            trajectory: from 0, with which meta-episodes begin: what was taken in since the last began says which
                tasks are unsolved, and draws say which of those explore, and from which trajectory on.
            progress: through training, 0 to 1; see ``costly``.
        """
        if trajectory == 0:
            self._begin(self.costly * max(0.0, 1 - 3 * progress))
        return self.share * (self._from <= trajectory)

    def settings(self, trajectory: int = 0, progress: float = 0.0) -> dict[str, Any]:
        """What :meth:`~peach_trl.hierarchy.policy.HierarchyPolicy.explore` is to know of it before a trajectory.

        Args:
            trajectory: as of :meth:`shares`.
            progress: likewise.
        """
        shares = self.shares(trajectory, progress)
        elsewhere = self.elsewhere * (~self.rare).float()
        return {"tasks": shares, "since": self.since, "elsewhere": elsewhere, "afresh": trajectory == 0}

    def state_dict(self) -> dict[str, Any]:
        """What is known of the tasks so far, and the state of the generator."""
        kept = {name: getattr(self, name) for name in _KEPT}
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kept.items()}
        return {**copies, "by_chance": list(self._by_chance), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        for name in _KEPT:
            value = state_dict[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        self._by_chance = list(state_dict["by_chance"])
        self._generator.set_state(state_dict["generator"])

    def _begin(self, costly: float) -> None:
        self._from.fill_(NEVER)
        if not self._highest.isfinite().any():
            self._explored.zero_()
            return
        unsolved = self._look()
        self.unsolved[self.tasks] = unsolved.flatten()
        draws = torch.rand(3, *unsolved.shape, generator=self._generator)
        of_solved = costly * self.behind_costs[self.tasks].view(self.seeds, -1)
        self._explored = draws[0] < torch.where(unsolved, self.often, of_solved)
        at_once = draws[1] < unsolved.float().mean(1, keepdim=True)
        later = 1 + (draws[2] * (self.trajectories - 1)).long()
        first = torch.where(at_once, 0, later).clamp(max=self.trajectories - 1)
        if self.trajectories == 1:
            self.since[self.tasks] = (draws[2] * ((self.decisions + 1) // 2)).long().flatten()
        self._from[self.tasks] = torch.where(self._explored, first, NEVER).flatten()
        self._forget()
