"""Evidence: what a decision of the top level shows of the task's reward, beside where it began and where it ended.

PEARL's encoder reads the reward of a transition, which is one step. A decision of many steps passes many places, and
the sum of its rewards does not say at which of them they were. So the highest reward of a step is noted with it, and
the state that this step led to: a goal that was crossed on the way is then known to a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Values = TypeVar("Values", Tensor, np.ndarray)
NONE_YET = float(np.finfo(np.float32).min)  # the highest reward of no step: finite, so that replay takes it


@dataclass(frozen=True)
class Evidence:
    """What is read of the rewards of a decision, scaled: their sum, and with ``peak`` the highest and its state.

    Attributes:
        peak: whether the highest reward of a step is read, and the state that it led to (of several the first).
        scale: factor on the rewards.
        steps: of a decision; the highest reward is read as if all of them had it.

    Examples:
        >>> evidence = Evidence(peak=True, scale=0.5, steps=4)
        >>> reward, states = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), torch.arange(10.0).view(5, 2)
        >>> evidence.of_decisions(reward, states, start=torch.tensor([0, 4]), end=torch.tensor([3, 4]))
        tensor([[1., 2., 2., 3.],
                [0., 0., 8., 9.]])
        >>> evidence.dim(observation_dim=2)
        4
    """

    peak: bool = False
    scale: float = 1.0
    steps: int = 1

    def dim(self, observation_dim: int) -> int:
        """How many numbers it has, E: 1, or with the peak 2 + D."""
        return 2 + observation_dim if self.peak else 1

    def of(self, total: Values, peak: Values | None = None, state: Values | None = None) -> Values:
        """The evidence [..., E] of decisions.

        Args:
            total: sum of the rewards, [..., 1].
            peak: the highest one, [..., 1].
            state: which it led to, [..., D].
        """
        scale: Any = self.scale if isinstance(total, Tensor) else np.float32(self.scale)
        if not self.peak:
            return scale * total
        parts: list[Any] = [scale * total, scale * self.steps * peak, state]
        return torch.cat(parts, -1) if isinstance(total, Tensor) else np.concatenate(parts, -1)  # type: ignore

    def of_decisions(self, reward: Tensor, reached: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The same of recorded steps.

        Args:
            reward: of each step, [S].
            reached: the state that it led to, [S, D].
            start: index of the first step of each decision, int64 [M].
            end: likewise of the last one.

        Returns:
            [M, E], float32.
        """
        sums = reward.double().cumsum(0)
        total = (sums[end] - sums[start] + reward[start].double()).float().unsqueeze(-1)
        if not self.peak:
            return self.of(total)
        steps = torch.arange(int((end - start).max()) + 1 if len(start) else 1)
        index = start.unsqueeze(-1) + steps
        within = reward[index.clamp(max=len(reward) - 1)].masked_fill(index > end.unsqueeze(-1), NONE_YET)
        first = within.argmax(-1, keepdim=True)  # of several the first
        return self.of(total, within.gather(1, first).float(), reached[start + first.squeeze(-1)])


def higher(reward: Values, peak: Values, state: Values, reached: Values) -> tuple[Values, Values]:
    """The highest reward so far and its state, after one more step: [..., 1] and [..., D].

    Examples:
        >>> peak, state = higher(np.ones((1, 1)), np.full((1, 1), NONE_YET), np.zeros((1, 2)), np.full((1, 2), 7.0))
        >>> peak.item(), state.tolist()
        (1.0, [[7.0, 7.0]])
    """
    where: Any = torch.where if isinstance(reward, Tensor) else np.where
    better = reward > peak
    return where(better, reward, peak), where(better, reached, state)
