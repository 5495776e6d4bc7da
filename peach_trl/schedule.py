"""The passes of a training: which levels learn in each, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peach_trl.agent import Agent
from peach_trl.hierarchy.exploration import Exploration
from peach_trl.schemas import Config


@dataclass(frozen=True)
class Phase:
    """One pass through the outer loop of Algorithm 1.

    Attributes:
        number: from 0.
        warmup: whether only goal-reaching levels learn, which explore so much only then.
        at_random: whether the top level proposes at random, and does not learn yet.
        forgets: whether what the top level met before is dropped, as nothing below it worked.
        progress: through the passes in which the top level learns, 0 to 1.
        lower_updates: gradient steps of each goal-reaching level after each trajectory.
        top_updates: gradient steps of the top level.
    """

    number: int
    warmup: bool
    at_random: bool
    forgets: bool
    progress: float
    lower_updates: int
    top_updates: int

    @property
    def by_chance(self) -> bool:
        """Whether what is met says what chance meets: proposals are uniform, and the levels below work."""
        return self.at_random and not self.warmup


class Schedule:
    """Warm-up of the lower levels (if there are any), prefill of the top level's replay, and training.

    Iterated over, it gives the passes that are left, each a :class:`Phase`; ``len(schedule)`` counts all.

    Args:
        config: says how many of each.
        agent: whose levels they are.
        exploration: knows how often rewards were met by chance. Where they are rare, the prefill goes on, and there are
            as many passes of training less.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["train.iterations=2", "train.warmup=1"])
        >>> schedule = Schedule(config, make_agent(config, make_library(config)))
        >>> len(schedule), [(phase.warmup, phase.at_random, phase.top_updates) for phase in schedule]
        (4, [(True, True, 0), (False, True, 0), (False, False, 150), (False, False, 150)])
    """

    def __init__(self, config: Config, agent: Agent, exploration: Exploration | None = None) -> None:
        self.train, self.exploration = config.train, exploration
        self._follows = agent.top is not None
        self._warmup = config.train.warmup if len(agent.levels) else 0
        self._total = self._warmup + config.train.prefill + config.train.iterations
        self._next, self._start = 0, self._warmup + config.train.prefill  # the next pass, the first of training
        most = self._warmup + int(config.train.prefill_most * self._total)
        self._latest = min(max(self._start, most), self._total - 1)
        after = config.lower.freeze_after
        self._frozen = self._total if after is None else self._warmup + after

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Phase]:
        while self._next < self._total:
            if self._next == self._start < self._latest and self.exploration is not None and self._follows:
                self._start += self.exploration.met < self.train.prefill_met  # one pass of prefill more
            self._next += 1
            yield self._phase(self._next - 1)

    def _phase(self, number: int) -> Phase:
        train, start = self.train, self._start
        updates = train.warmup_updates if number < self._warmup else train.lower_updates
        return Phase(
            number=number,
            warmup=number < self._warmup or not self._follows,
            at_random=number < start,
            forgets=number == self._warmup,
            progress=max(0, number - start) / max(1, self._total - start),
            lower_updates=0 if number >= self._frozen else -(-updates // train.trajectories),
            top_updates=0 if number < start else train.top_updates,
        )

    def state_dict(self) -> dict[str, int]:
        """The next pass, and the first of training."""
        return {"next": self._next, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._next, self._start = state_dict["next"], state_dict["start"]
