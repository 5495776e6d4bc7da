"""Each seed's agent as it was when it did best."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from peach_trl.agent import Agent
from peach_trl.evaluation import MetaTest


class BestAgents:
    """Each seed's agent as it was when it did best in a meta-test, by the sum of the returns over all trajectories.

    To be used with validation tasks; a test on the same tasks would flatter it.

    Args:
        agent: the learner of all seeds, which :meth:`restore` changes.
        single: of several seeds, any agent of the same kind, alone.

    Attributes:
        iterations: after which pass each was best, from 0; -1 for the end.
        states: the agents of the seeds when they were.
    """

    def __init__(self, agent: Agent, single: Agent | None = None) -> None:
        self.agent, self._single, seeds = agent, single or agent, agent.seeds or 1
        self._scores = [-math.inf] * seeds
        self.states: list[dict[str, Tensor]] = [{} for _ in range(seeds)]
        self.iterations = [-1] * seeds

    def take(self, results: list[MetaTest], iteration: int) -> list[int]:
        """Keeps the agents of the seeds that did better than before, and says which these are."""
        better = []
        for seed, result in enumerate(results):
            score = float(result.returns.mean(0).sum())
            if math.isfinite(score) and score > self._scores[seed] and (len(results) == 1 or self.agent.settled):
                state = self.agent.state_of(seed, self._single)
                self.states[seed] = {name: value.clone() for name, value in state.items()}
                self._scores[seed], self.iterations[seed] = score, iteration
                better.append(seed)
        return better

    @property
    def score(self) -> float:
        """The returns of the best agents by trajectory, summed, a mean over tasks and seeds."""
        return sum(self._scores) / len(self._scores)

    def state_dict(self) -> dict[str, Any]:
        """The best agents so far."""
        return {"scores": self._scores, "states": self.states, "iterations": self.iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._scores, self.states = list(state_dict["scores"]), list(state_dict["states"])
        self.iterations = list(state_dict["iterations"])

    def restore(self) -> None:
        """Makes the agents what they were when they did best."""
        self.agent.load_seeds(self.states)
