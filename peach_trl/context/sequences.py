"""The context sampler S_c: sequences of decisions from which belief and top level learn together.

A belief that is part of the state wants the decisions of several episodes in a row: what was known before each of them
follows from those before it. Half of the sequences, say, are what happened, the trajectories of one row's meta-episode;
the others are mixed, so that the belief meets evidence in other orders.

Mixed sequences are made of *beginnings* of meta-episodes. Who acts in a beginning knows no more than the sequence
shows. A later trajectory without those before it is different: it goes straight to a goal that the belief has not
heard of. As each task shows this for its own goal only, critics would learn that whatever way one goes, the goal is
there. Such actions are evidence about the task themselves, and learning from them is biased (Ortega et al. 2021, arXiv
2110.10819, call it delusion).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import pad

from peach_trl.config import ConfigError, option
from peach_trl.data.task_replay import TaskReplayBuffer, integers_below, one_by_one
from peach_trl.seeding import named_generator


@dataclass(frozen=True)
class SequenceConfig:
    """What a batch of sequences is made of; see ``configs/`` for values and comments."""

    per_task: int = option(low=1, high=10**4, help="sequences of each task of the meta-batch")
    episodes: int = option(low=1, high=10**4, help="episodes of a sequence")
    consecutive: float = option(low=0, high=1, help="share of the sequences that are a row's successive trajectories")
    recent: int | None = option(
        low=1, high=10**6, help="those are among the last so many sequences of the task; null: all"
    )
    best_of: int = option(low=1, high=10**5, help="or, for a rare task, the best of so many by return")

    def check(self) -> None:
        """Refuses a share of a sequence."""
        if self.consecutive * self.per_task % 1:
            raise ConfigError(
                f"consecutive = {self.consecutive}: of per_task = {self.per_task} sequences that is no whole number; "
                "change one of them"
            )


class SequenceSampler:
    """Draws sequences of whole episodes, with all their decisions.

    The first ``consecutive * per_task`` sequences of a task are the trajectories of one meta-episode each, in order, at
    most ``episodes`` of them: that of an episode drawn uniformly from the last ``recent * episodes`` ones. They show
    what the policy does now, and soon correct what it does wrong. The others are mixed: of random meta-episodes, each
    time the first one or more of its trajectories, until there are ``episodes``, from two meta-episodes at least. An
    episode that belongs to none is taken alone.

    Where rewards are rare, what was met by chance has to be seen again and again: of tasks that are said to be
    ``rare``, the meta-episodes are those of the best of ``best_of`` episodes by return, drawn from all.

    Args:
        buffer: a buffer that tracks episodes.
        per_task: sequences of each task, S.
        episodes: episodes of a sequence.
        consecutive: share of the consecutive ones.
        recent: among how many of the latest sequences of a task those are; ``None`` for all.
        best_of: for a rare task, how many episodes compete.
        generator: source of all draws; ``None`` takes ``named_generator("sequences")``.

    Examples:
        >>> from tensordict import TensorDict
        >>> buffer = TaskReplayBuffer(num_tasks=2, capacity=20, episodes=9, seed=0)
        >>> for number, x in enumerate([1.0, 2.0, 3.0, 4.0]):  # trajectories of 2 decisions, 2 a meta-episode
        ...     zeros = torch.zeros(4, 1, dtype=torch.int64)
        ...     task = torch.tensor([[0], [0], [1], [1]])
        ...     rows = {"task_id": task, "episode": task, "transition_type": zeros, "meta_episode": zeros + number // 2}
        ...     reward = TensorDict({"reward": torch.ones(4, 1)}, [4])
        ...     _ = buffer.extend(TensorDict({**rows, "x": x + torch.tensor([0, 0.5, 0, 0.5]), "next": reward}, [4]))
        >>> sampler = SequenceSampler(buffer, per_task=2, episodes=2, generator=torch.Generator().manual_seed(4))
        >>> sequences = sampler(torch.tensor([1]))
        >>> sequences["x"]  # what happened, and the beginnings of both meta-episodes
        tensor([[1.0000, 1.5000, 2.0000, 2.5000],
                [3.0000, 3.5000, 1.0000, 1.5000]])
        >>> sequences["part"][0], sequences["mask"].all()
        (tensor([0, 0, 1, 1]), tensor(True))
    """

    def __init__(
        self,
        buffer: TaskReplayBuffer,
        per_task: int = 2,
        episodes: int = 3,
        consecutive: float = 0.5,
        recent: int | None = None,
        best_of: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        if generator is torch.default_generator:
            raise ValueError("the global generator would tie sequences to all other draws: use named_generator(name)")
        if per_task < 1 or episodes < 1 or not 0 <= consecutive <= 1 or consecutive * per_task % 1:
            raise ValueError(
                f"per_task = {per_task}, episodes = {episodes}, consecutive = {consecutive}: need per_task >= 1, "
                "episodes >= 1, 0 <= consecutive <= 1 and consecutive * per_task a whole number"
            )
        self.buffer, self.per_task, self.episodes = buffer, per_task, episodes
        self.recent, self.best_of = recent, best_of
        self.consecutive = round(consecutive * per_task)
        self.generator = named_generator("sequences") if generator is None else generator
        buffer.writer.available(torch.zeros(0, dtype=torch.int64))  # raises where it cannot serve

    def __call__(self, tasks: Tensor, rare: Tensor | None = None) -> TensorDictBase:
        """Draws sequences for task ids [M], which may be ``rare``, bool by task id; see the class.

        Returns:
            The stored keys, [M * S, L]: the first S rows are the first task's. ``mask`` bool [M * S, L] is True for
            decisions, which come first; ``part`` int64 [M * S, L] numbers the episodes of a sequence. Behind the mask
            one row of the task is repeated.

        Raises:
            ValueError: if a task has no whole episode.
            IndexError: for an unknown task id.
        """
        return self._sequences(torch.as_tensor(tasks), rare)

    def batches(
        self, tasks: Tensor, meta_batch: int, number: int, rare: Tensor | None = None, at_once: int = 25
    ) -> Iterator[TensorDictBase]:
        """The sequences of so many gradient steps, each of a meta-batch of its own of the given tasks.

        Args:
            tasks: ids of the tasks to draw meta-batches of, see :meth:`TaskReplayBuffer.draw_tasks`.
            meta_batch: tasks of a gradient step, M.
            number: of gradient steps.
            rare: which tasks are, bool by task id; see the class.
            at_once: how many of them are drawn and read in one go, which costs little more than one.

        Returns:
            An iterator over what :meth:`__call__` returns.
        """
        for start in range(0, number, at_once):
            count = min(at_once, number - start)
            drawn = self.buffer.draw_tasks(tasks, meta_batch, count)
            sequences = self._sequences(drawn.flatten(), rare)
            yield from one_by_one(sequences.view(count, len(sequences) // count, -1))

    def _sequences(self, ids: Tensor, rare: Tensor | None = None) -> TensorDictBase:
        writer = self.buffer.writer
        tasks = writer.partition(ids)
        if not len(ids):
            raise ValueError("tasks of shape [0]: sequences are drawn for one task at least")
        if rare is not None and (rare.ndim != 1 or rare.dtype != torch.bool or len(rare) <= int(ids.max())):
            least = int(ids.max()) + 1
            raise ValueError(
                f"rare of shape {list(rare.shape)} {rare.dtype}: must be bool by task id, [{least}] at least"
            )
        available = writer.available(tasks)
        if 0 in (counts := available.tolist()):
            raise ValueError(
                f"task {ids[counts.index(0)]} holds no whole episode: collect before sampling, or raise the buffer's "
                "capacity above the decisions of an episode"
            )
        back, drawn = self._draw(tasks, available, None if rare is None else rare[ids])  # [M, S, E] each
        start, length = writer.look_up(tasks, back)
        return self._read(tasks, start.flatten(0, 1), (length * drawn).flatten(0, 1))

    def _read(self, tasks: Tensor, start: Tensor, length: Tensor) -> TensorDictBase:
        """The rows of episodes [B, E] that begin at absolute positions ``start``, packed to the left: [B, L]."""
        end = length.cumsum(1)
        steps = torch.arange(int(end[:, -1].max())).expand(len(end), -1).contiguous()
        part = torch.searchsorted(end, steps, right=True).clamp(max=self.episodes - 1)
        mask = steps < end[:, -1:]
        position = torch.where(mask, (start - end + length).gather(1, part) + steps, start[:, :1])
        owner = tasks.repeat_interleave(self.per_task).unsqueeze(1)
        sequences = self.buffer.read(self.buffer.writer.locate(owner, position))
        return sequences.set("mask", mask).set("part", part)

    def _draw(self, tasks: Tensor, available: Tensor, rare: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Episodes [M, S, E], counted backwards from the latest, and which of them are there."""
        everyone = torch.arange(int(available.max())).expand(len(tasks), -1)
        number = self.buffer.writer.meta_episodes(tasks, everyone)  # [M, most], newest first
        number = torch.where(everyone < available[:, None], number, _GONE)
        happened = self.consecutive if bool((number >= 0).any()) else 0
        mixed = self._beginnings(number, available, self.per_task - happened)
        there = torch.ones_like(mixed, dtype=torch.bool)
        if not happened:
            return mixed, there
        whole, size = _meta_episodes(number, self._anchors(tasks, available, rare), self.episodes)
        known = torch.arange(self.episodes) < size.unsqueeze(-1)
        return torch.cat([whole, mixed], 1), torch.cat([known, there], 1)

    def _anchors(self, tasks: Tensor, available: Tensor, rare: Tensor | None) -> Tensor:
        """Episodes [M, C], counted backwards, whose meta-episodes are the consecutive sequences."""
        shape = (len(tasks), self.consecutive)
        latest = available if self.recent is None else available.clamp(max=self.recent * self.episodes)
        anchor = integers_below(latest, shape, self.generator)
        if rare is None or self.best_of == 1 or not rare.any():
            return anchor
        rivals = integers_below(available, (*shape, self.best_of), self.generator)
        return torch.where(rare.unsqueeze(-1), self.buffer.writer.best(tasks, rivals), anchor)

    def _beginnings(self, number: Tensor, available: Tensor, count: int) -> Tensor:
        """Episodes [M, count, E]: the first ones of a random meta-episode, those of another, and so on."""
        M, E = len(number), self.episodes
        anchor = integers_below(available, (M, count * E), self.generator)
        whole, size = _meta_episodes(number, anchor, E)  # of as many as could be needed
        size, draw = size.view(M, count, E), torch.rand(M, count, E, generator=self.generator)
        ends = [torch.zeros(M, count, dtype=torch.int64)]
        for k in range(E):
            left = E - ends[-1]
            most = torch.minimum(size[..., k], left - int(k == 0 and E > 1))  # so that there are two at least
            ends.append(ends[-1] + torch.where(left > 0, 1 + (draw[..., k] * most).long(), 0))
        end = torch.stack(ends, -1)
        place = torch.arange(E).expand(M, count, E).contiguous()
        which = torch.searchsorted(end[..., 1:].contiguous(), place, right=True)
        return whole.view(M, count, E * E).gather(-1, which * E + place - end.gather(-1, which))

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.generator.set_state(state_dict["generator"])


_GONE = -2  # the number of an episode that is not there; -1 is one without a meta-episode


def _meta_episodes(number: Tensor, anchor: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The episodes of the meta-episodes of some of them; an episode without one is alone.

    Args:
        number: of the meta-episode of each episode, newest first, int64 [M, R].
        anchor: index of an episode, int64 [M, C].
        most: how many of a meta-episode, E.

    Returns:
        Their indices, the oldest first, int64 [M, C, E], and how many there are [M, C].

    Examples:
        >>> _meta_episodes(torch.tensor([[7, 7, 5, 5, -1]]), torch.tensor([[0, 3, 4]]), most=2)
        (tensor([[[1, 0],
                 [3, 2],
                 [4, 0]]]), tensor([[2, 2, 1]]))
    """
    of_anchor = number.gather(1, anchor)
    same = number.unsqueeze(1) == of_anchor.unsqueeze(-1)
    found = torch.where(same, torch.arange(number.shape[1]), -1).topk(min(most, number.shape[1])).values
    alone = of_anchor < 0
    found[..., 0] = torch.where(alone, anchor, found[..., 0])
    found[..., 1:] = found[..., 1:].masked_fill(alone.unsqueeze(-1), -1)
    size = (found >= 0).sum(-1)
    return pad(found.clamp(min=0), (0, most - found.shape[-1])), size
