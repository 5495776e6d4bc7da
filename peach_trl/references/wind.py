"""Reference policies for the wind: the place to get to is known, what blows the point off is not."""

from __future__ import annotations

import torch
from torch import Tensor

from peach_trl.envs.families.wind import Wind
from peach_trl.references.play import Control, Deciding, Stay
from peach_trl.seeding import named_generator

CONTROL = Control(step=0.1, coast=0.0)
"""What the point is taken to do, by all policies: as if there were no wind. They aim beside the place instead."""


def wind_policies(env: Wind, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Stay]:
    """The policies for the wind; arguments and errors: see :func:`~peach_trl.references.policies`.

    - ``"oracle"``: knows the wind, and aims upwind of the place by what a step is blown off, at every step. The wind
      shows after one step, so that this is what a Bayes-optimal policy gets, too, but for that step.
    - ``"search"``: sets a subgoal every decision, as the agent does, within the agent's reach. It takes the wind for
      none in the first decision, then knows it from its own steps; there is nothing to look for.
    - ``"thompson"``: takes a wind of the prior for the true one throughout the first trajectory, and knows it after
      that; at every step.
    - ``"no context"``: takes the wind for none, always.

    All of them hold their subgoal by the same simple control, which does not know the wind.
    """
    place = torch.tensor(env.place).expand(len(env.task_id), 2)
    policies = {
        "oracle": Stay(place - env.library.parameters[env.task_id]),
        "search": Feel(place, decision_steps, reach),
        "thompson": Guess(place, env.strongest, seed),
        "no context": Stay(place),
    }
    for policy in policies.values():
        policy.control = CONTROL
    return policies


class Feel(Deciding):
    """Aims upwind of a place by the wind that it felt: what moved it besides its own action. At first, at the place.

    Args:
        place: [R, 2], where to get to, in metres.
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.
    """

    def __init__(self, place: Tensor, decision_steps: int, reach: float) -> None:
        super().__init__(decision_steps, reach)
        self._place, self._wind = place, torch.zeros_like(place)

    def subgoal(self, position: Tensor) -> Tensor:
        """The subgoal in force, [R, 2]."""
        self._from = position
        return super().subgoal(position)

    def target(self, position: Tensor) -> Tensor:
        """Where a step that aims there ends at the place, [R, 2]."""
        return self._place - self._wind

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Feels the wind."""
        own = (self._places - self._from).clamp(-CONTROL.step, CONTROL.step)
        self._wind = position - self._from - own


class Guess(Feel):
    """Aims upwind of a place by a wind that it draws, uniformly; after the first trajectory, by the wind it felt.

    Args:
        place: [R, 2], where to get to, in metres.
        strongest: bound of the wind along an axis, in metres a step.
        seed: of the draws.
    """

    def __init__(self, place: Tensor, strongest: float, seed: int) -> None:
        super().__init__(place, decision_steps=1, reach=torch.inf)
        self._wind = strongest * (2 * torch.rand(place.shape, generator=named_generator("thompson", seed)) - 1)

    def start(self) -> None:
        """The wind that agrees with all that was seen."""
        super().start()
        self._assumed = self._wind

    def target(self, position: Tensor) -> Tensor:
        """Where a step that aims there would end at the place, were the assumed wind the true one, [R, 2]."""
        return self._place - self._assumed
