"""Reference policies for the treasure hunt: a detour for information against a search without it."""

from __future__ import annotations

import torch
from torch import Tensor

from peach_trl.envs.families.treasure_hunt import TreasureHunt
from peach_trl.references.arc import Arc
from peach_trl.references.candidates import Candidates
from peach_trl.references.places import Search, Thompson, best_walk
from peach_trl.references.play import Control, Deciding, Stay

CONTROL = Control(step=0.1, coast=0.0, straight=True)
"""How all policies move: a treasure is as small as a step, and would be missed beside a straight line."""
_START = 0.75  # where on the circle the point starts, as a share from (radius, 0)
_MARGINS = torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8])  # small: steps are as long as the tolerance


def treasure_policies(
    env: TreasureHunt, trajectories: int, decision_steps: int, reach: float, seed: int
) -> dict[str, Stay]:
    """The policies for the treasure hunt; arguments and errors: see :func:`~peach_trl.references.policies`.

    - ``"oracle"``: goes straight to the treasure, over the mountain if that lies between: around it a step costs at
      most half a point less, of several hundred.
    - ``"search"``: goes to the top, reads the hint there, and fetches the treasure.
    - ``"no hint"``: walks along the circle until a decision's steps were at the treasure, and goes back to it.
    - ``"thompson"``: goes straight to one possible treasure a trajectory, and stays. A z that is held throughout a
      trajectory can do this, but not go up the mountain first.
    - ``"no context"``: stays at the start. No place is better, whatever the treasure, and the way there costs nothing.

    Those that search set a subgoal every decision, within the agent's reach.
    """
    goals, arc = env.library.parameters[env.task_id], Arc.of(env)
    rows = len(goals)
    leads = torch.linspace(0, 8 * arc.tolerance / arc.radius / arc.length, 32)  # up to what a chord can pass by

    def walking(walk: Tensor) -> Search:
        way = arc.walk(walk)._replace(leads=leads)
        search = Search(way, Treasures(arc, env.treasure, rows), decision_steps, reach)
        search.control = CONTROL
        return search

    radii = arc.radius - arc.tolerance * torch.tensor([0.0, 0.2, 0.4])
    starts = _START + arc.tolerance / arc.radius / arc.length * torch.tensor([0.0, 0.3, 0.6])  # behind it: in the end
    walks = torch.cartesian_prod(radii, starts, arc.tolerance * _MARGINS)
    walk = best_walk(env, arc, walks, walking, trajectories)
    policies = {
        "oracle": Stay(goals),
        "search": Climb(rows, decision_steps, reach),
        "no hint": walking(walk.expand(rows, -1)),
        "thompson": Thompson(Treasures(arc, env.treasure, rows), seed),
        "no context": Stay(torch.tensor([[0.0, -env.radius]]).expand(rows, -1)),
    }
    for policy in policies.values():
        policy.control = CONTROL
    return policies


class Treasures(Candidates):
    """The treasures that agree with all rewards so far; that there was none is all that a negative reward says.

    Args:
        arc: where treasures may lie.
        treasure: the reward of a step at one.
        rows: R.
    """

    def __init__(self, arc: Arc, treasure: float, rows: int) -> None:
        super().__init__(arc, torch.tensor([[0.0, treasure], [arc.tolerance, treasure]]), rows)

    def see(self, position: Tensor, reward: Tensor) -> None:
        """Excludes what does not agree with the ``reward`` [R] of coming to ``position`` [R, 2]."""
        super().see(position, reward.clamp(min=0))


class Climb(Deciding):
    """Goes to the origin until it was shown a treasure, and then to that, in later trajectories at once.

    Args:
        rows: R.
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.
    """

    def __init__(self, rows: int, decision_steps: int, reach: float) -> None:
        super().__init__(decision_steps, reach)
        self._target = torch.zeros(rows, 2)

    def target(self, position: Tensor) -> Tensor:
        """The treasure if it is known, else the top, [R, 2]."""
        return self._target

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Reads the hint, the last two entries of the observation."""
        hint = observation[:, 2:]
        self._target = torch.where((hint != 0).any(-1, keepdim=True), hint, self._target)
