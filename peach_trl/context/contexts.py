"""Contexts c^i ~ S_c(B^i), as the source has them: transitions of the task's replay, whoever collected them.

Only the literal variant of Algorithm 1 needs these; a belief that is part of the state learns from
:mod:`peach_trl.context.sequences`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from peach_trl.config import MANY, ConfigError, option
from peach_trl.data.task_replay import TaskReplayBuffer, integers_below
from peach_trl.seeding import named_generator


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """What a context is made of.

    Raises:
        ConfigError: if contexts of several episodes have fewer transitions than episodes.
    """

    transitions: int = option(low=1, high=10**6, help="most transitions in a context, C")
    episodes: int = option(low=1, high=10**6, help="episodes that a context is made of; source=episodes only")
    recent: int = option(low=1, high=MANY, help="contexts come from this many of the last episodes of a task")
    best_probability: float = option(
        low=0, high=1, help="probability that one of the episodes is a good one; source=episodes only"
    )
    best_of: int = option(
        low=1, high=10**5, help="the good one is the best by return of this many; source=episodes only"
    )
    empty_probability: float = option(low=0, below=1, help="probability of an empty context")
    source: str = option(
        choices=("episodes", "uniform"), help="whole beginnings of episodes, or single transitions drawn uniformly"
    )

    def __post_init__(self) -> None:
        if self.source == "episodes" and self.transitions < self.episodes:
            raise ConfigError(
                f"transitions = {self.transitions} with episodes = {self.episodes}: a context gives each episode "
                "transitions // episodes rows, at least 1; raise transitions or lower episodes"
            )


class ContextSampler:
    """Draws the context of each task, S_c of PEACH's Algorithm 1.

    With ``source="episodes"`` up to ``episodes`` different ones of the last ``recent`` usable episodes are drawn, in
    random order; with ``best_probability`` a random one of them is the best by return of ``best_of`` draws. Each gives
    its first C // ``episodes`` real rows, in order of time.

    With ``source="uniform"`` rows are drawn uniformly, with replacement, from the real rows of the last ``recent``
    usable episodes, as many as there are but at most C. That is PEARL's sampler with its buffer of recent data
    (Rakelly et al. 2019, arXiv 1903.08254, section 5 and appendix).

    Of these a prefix of random length, uniform on 1 .. all, is kept, or nothing with ``empty_probability``, so that the
    encoder meets every amount of evidence, from the prior on. Hindsight and penalty rows never enter a context.

    Args:
        buffer: a buffer that tracks at least ``config.recent`` episodes per task.
        config: what a context is made of; ``None``: up to 64 transitions drawn uniformly from all remembered episodes,
            and nothing in one of ten.
        generator: source of all draws; None takes ``named_generator("context")``.

    Raises:
        ValueError: if the buffer remembers fewer episodes than ``config.recent``, or none.

    Examples:
        >>> from tensordict import TensorDict
        >>> buffer = TaskReplayBuffer(num_tasks=2, capacity=10, episodes=4, seed=0)
        >>> zeros = torch.zeros(3, 1, dtype=torch.int64)
        >>> reward = TensorDict({"reward": torch.ones(3, 1)}, [3])
        >>> rows = {"task_id": zeros, "episode": zeros, "transition_type": zeros, "x": torch.tensor([1.0, 2.0, 3.0])}
        >>> _ = buffer.extend(TensorDict({**rows, "next": reward}, [3]))
        >>> config = ContextConfig(
        ...     transitions=4, episodes=1, recent=4, best_probability=0.0, best_of=1, empty_probability=0.0,
        ...     source="episodes",
        ... )
        >>> context = ContextSampler(buffer, config, generator=torch.Generator().manual_seed(3))(torch.tensor([0, 1]))
        >>> context["mask"].shape, context["x"][context["mask"]][0]
        (torch.Size([2, 4]), tensor(1.))
        >>> context["mask"][1].any()  # nothing is known of task 1
        tensor(False)
    """

    def __init__(
        self, buffer: TaskReplayBuffer, config: ContextConfig | None = None, generator: torch.Generator | None = None
    ) -> None:
        if generator is torch.default_generator:
            raise ValueError("the global generator would tie contexts to all other draws: use named_generator(name)")
        if config is None:
            config = ContextConfig(64, 1, max(buffer.writer.episodes, 1), 0.0, 1, 0.1, "uniform")
        self.buffer, self.config = buffer, config
        self.generator = named_generator("context") if generator is None else generator
        self._steps, self._recent = torch.arange(config.transitions), torch.arange(config.recent)
        buffer.writer.available(torch.zeros(0, dtype=torch.int64), config.recent)  # raises where it cannot serve

    def __call__(self, tasks: Tensor) -> TensorDictBase:
        """Draws contexts.

        Args:
            tasks: int64 [M], ids of tasks.

        Returns:
            The stored keys, shape [M, C], and "mask" bool [M, C]: True for the transitions of the context, which come
            first. The others repeat one row of the task's partition, finite but without meaning. A task without usable
            episodes has an empty context.

        Raises:
            RuntimeError: if nothing was ever written to the buffer.
            IndexError: for an unknown task id.
        """
        tasks = torch.as_tensor(tasks)
        writer = self.buffer.writer
        tasks = writer.partition(tasks)
        draw = self._from_episodes if self.config.source == "episodes" else self._uniform
        position, total = draw(tasks, writer.available(tasks, self.config.recent))
        count = integers_below(total, (len(tasks),), self.generator) + 1
        kept = torch.rand(len(tasks), generator=self.generator) >= self.config.empty_probability
        mask = self._steps < torch.where(kept, torch.minimum(count, total), 0)[:, None]
        owner = tasks[:, None]
        context = self.buffer.read(writer.locate(owner, torch.where(mask, position, 0)))
        return context.set("mask", mask)

    def _from_episodes(self, tasks: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Absolute positions [M, C], packed, and how many of them are filled [M]."""
        config = self.config
        back = self._draw_episodes(tasks, available)
        start, length = self.buffer.writer.look_up(tasks, back)
        drawn = self._recent[: back.shape[1]] < available[:, None]
        length = length.clamp(max=config.transitions // config.episodes) * drawn
        end = length.cumsum(1)
        which = torch.searchsorted(end, self._steps.expand(len(tasks), -1).contiguous(), right=True)
        which = which.clamp(max=back.shape[1] - 1)
        return (start - end + length).gather(1, which) + self._steps, end[:, -1]

    def _draw_episodes(self, tasks: Tensor, available: Tensor) -> Tensor:
        """Different episodes [M, K], counted backwards from the latest; the first ``available`` of them exist."""
        config, count = self.config, len(tasks)
        noise = torch.rand(count, config.recent, generator=self.generator)
        noise.masked_fill_(self._recent >= available[:, None], 2.0)
        back = noise.topk(min(config.episodes, config.recent), largest=False).indices
        if config.best_probability == 0:
            return back
        rivals = integers_below(available, (count, config.best_of), self.generator)
        best = self.buffer.writer.best(tasks, rivals)[:, None]
        place = integers_below(available.clamp(max=back.shape[1]), (count,), self.generator)[:, None]
        swapped = torch.where(back == best, back.gather(1, place), back).scatter(1, place, best)
        wanted = torch.rand(count, 1, generator=self.generator) < config.best_probability
        return torch.where(wanted, swapped, back)

    def _uniform(self, tasks: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Absolute positions [M, C] of rows drawn one by one, and how many of them to use at most [M]."""
        config = self.config
        start, length = self.buffer.writer.look_up(tasks, self._recent.expand(len(tasks), -1))
        length = length * (self._recent < available[:, None])
        end = length.cumsum(1)
        number = integers_below(end[:, -1], (len(tasks), config.transitions), self.generator)
        which = torch.searchsorted(end, number, right=True).clamp(max=config.recent - 1)
        return (start - end + length).gather(1, which) + number, end[:, -1].clamp(max=config.transitions)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.generator.set_state(state_dict["generator"])
