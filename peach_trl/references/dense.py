"""Reference policies where the reward is minus the distance from a hidden goal in a square: a few steps tell it all."""

from __future__ import annotations

import torch
from torch import Tensor

from peach_trl.envs.families.point_robot import PointRobot
from peach_trl.references.play import Deciding, Stay
from peach_trl.seeding import named_generator

_PRIOR = 1e-9  # weight of the middle against what distances tell, square metres


def dense_policies(env: PointRobot, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Stay]:
    """The policies for PEARL's point robot; arguments and errors: see :func:`~peach_trl.references.policies`.

    - ``"oracle"``: goes to the goal.
    - ``"search"``: sets a subgoal every decision, as the agent does, within the agent's reach: towards the place that
      agrees with all distances seen; at first to the middle of the goals. There is nothing to look for.
    - ``"thompson"``: goes to a draw from the prior in the first trajectory, whose distances tell the goal.
    - ``"no context"``: goes to the middle of the goals.
    """
    goals = env.library.parameters[env.task_id]
    return {
        "oracle": Stay(goals),
        "search": Locate(len(goals), decision_steps, reach),
        "thompson": LocateAfterwards(len(goals), seed),
        "no context": Stay(torch.zeros_like(goals)),
    }


class Locate(Deciding):
    """Goes to the goal that distances tell (trilateration, by least squares), and to the middle until they do.

    Args:
        rows: R.
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.

    Examples:
        >>> locate = Locate(rows=1, decision_steps=1, reach=1.0)
        >>> for place, distance in (((0.0, 0.0), 0.5), ((0.3, 0.0), 0.4), ((0.0, 0.4), 0.3)):
        ...     locate.see(torch.tensor([place]), torch.tensor([-distance]), torch.zeros(1, 2))
        >>> locate.target(torch.zeros(1, 2))
        tensor([[0.3000, 0.4000]])
    """

    def __init__(self, rows: int, decision_steps: int, reach: float) -> None:
        super().__init__(decision_steps, reach)
        self._first: tuple[Tensor, Tensor] | None = None
        self._matrix = _PRIOR * torch.eye(2, dtype=torch.float64).expand(rows, 2, 2)
        self._vector = torch.zeros(rows, 2, dtype=torch.float64)

    def target(self, position: Tensor) -> Tensor:
        """The place, [R, 2], that agrees with all distances; the one nearest to the middle if several do."""
        return torch.linalg.solve(self._matrix, self._vector).float()

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Adds the equation of this distance less that of the first one, which is linear in the goal."""
        place, distance = position.double(), -reward.double()
        if self._first is None:
            self._first = place, distance
        origin, from_origin = self._first
        way = place - origin
        value = (place.square().sum(-1) - origin.square().sum(-1) + from_origin.square() - distance.square()) / 2
        self._matrix = self._matrix + way.unsqueeze(-1) * way.unsqueeze(-2)
        self._vector = self._vector + way * value.unsqueeze(-1)


class LocateAfterwards(Locate):
    """Goes to a draw from the prior, uniform in [-1, 1] x [-1, 1], in the first trajectory; then as :class:`Locate`."""

    def __init__(self, rows: int, seed: int) -> None:
        super().__init__(rows, decision_steps=1, reach=torch.inf)
        self._drawn = 2 * torch.rand(rows, 2, generator=named_generator("thompson", seed)) - 1
        self._trajectory = 0

    def start(self) -> None:
        """The next trajectory."""
        super().start()
        self._trajectory += 1

    def target(self, position: Tensor) -> Tensor:
        """The draw in the first trajectory, then what distances tell, [R, 2]."""
        return self._drawn if self._trajectory == 1 else super().target(position)
