"""Uniform proposals that lead where a row has not been in this meta-episode.

A policy that searches half of the places where goals may be learns of the other half only from what chance meets there.
Uniform proposals make a random walk, which mostly comes back to where it was: on a half circle of 6 m, one meta-episode
in five or so shows what was left out. Of a few uniform proposals, the one that ends farthest from all that was seen is
as blind, and shows it much more often.
"""

from __future__ import annotations

import numpy as np
import torch

from peach_trl.hierarchy.structure import Hierarchy

CANDIDATES = 8  # uniform proposals, besides the one that is there, of which one is taken
FIRST = 16  # places that there is room for at first


class Elsewhere:
    """Remembers where each row was when its top level decided, and picks uniform proposals that lead elsewhere.

    How far a place is from one that was seen counts in what a decision of the top level reaches, along each dimension
    of the subgoal space that says where something is (``GoalSpace.places``), and farther than that is as good as that
    far: else all would go to the farthest corner.

    Args:
        hierarchy: of two levels or more.
        hold: decisions that a proposal is held for.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach")
        >>> elsewhere = Elsewhere(make_agent(config, make_library(config)).hierarchy)
        >>> rows, right, left = np.array([True]), np.float32([[3.0, 0, 0, 0]]), np.float32([[0.0, 0, 0, 0]])
        >>> elsewhere.see(right, rows, fresh=rows)  # x, y and their velocities
        >>> proposals = np.float32([[[1.0, 0.0]], [[-1.0, 0.0]]])  # to where it was, or away from it
        >>> elsewhere.pick(left, rows, proposals)
        array([[-1.,  0.]], dtype=float32)
    """

    def __init__(self, hierarchy: Hierarchy, hold: int = 1) -> None:
        if hierarchy.depth < 2:
            raise ValueError("depth = 1: what an action leads to is not known; proposals are subgoals from depth 2 on")
        self.hierarchy, self.hold = hierarchy, hold
        self._scale = hierarchy.reach[hierarchy.top].numpy().copy()  # a view would dangle, see Hierarchy
        self._seen = np.zeros((0, 0, 0), dtype=np.float32)  # [N, V, G]; infinite where there is nothing yet
        self._count = np.zeros(0, dtype=np.int64)

    def see(self, observation: np.ndarray, rows: np.ndarray, fresh: np.ndarray) -> None:
        """Takes in where rows are.

        Args:
            observation: [N, D].
            rows: whose top level decides now, bool [N].
            fresh: whose meta-episode begins, so that what was seen before is forgotten, bool [N].
        """
        place = np.asarray(self.hierarchy.subgoal_space.project(observation), dtype=np.float32)
        if self._seen.shape[::2] != place.shape:
            self._seen = np.full((len(place), FIRST, place.shape[-1]), np.inf, dtype=np.float32)
            self._count = np.zeros(len(place), dtype=np.int64)
        self._seen[fresh], self._count[fresh] = np.inf, 0
        (which,) = rows.nonzero()
        if len(which) and self._count[which].max() == self._seen.shape[1]:
            self._seen = np.concatenate([self._seen, np.full_like(self._seen, np.inf)], 1)
        self._seen[which, self._count[which]] = place[which]
        self._count[which] += 1

    def pick(self, observation: np.ndarray, rows: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        """Of M proposals [M, N, P] in [-1, 1] for each row the one that leads farthest from what it saw, [N, P].

        Rows that are not among ``rows``, bool [N], and those that saw nothing get the first.
        """
        (which,) = rows.nonzero()
        chosen = proposals[0].copy()
        candidates = proposals[:, which]
        ends = self._ends(observation[which], candidates) / self._scale
        gaps = ends[:, :, None] - self._seen[which] / self._scale  # [M, n, V, G]
        gaps = gaps[..., : self.hierarchy.subgoal_space.places]
        nearest = np.sqrt(np.square(gaps).sum(-1)).min(-1)
        best = np.minimum(nearest, 1).argmax(0)
        chosen[which] = candidates[best, np.arange(len(which))]
        return chosen

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the rows have been."""
        return {"seen": torch.from_numpy(self._seen.copy()), "count": torch.from_numpy(self._count.copy())}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._seen, self._count = state_dict["seen"].numpy().copy(), state_dict["count"].numpy().copy()

    def _ends(self, observation: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        """Where proposals [M, n, P] lead once they were held, [M, n, G], if nothing is in the way."""
        space, reach = self.hierarchy.subgoal_space, self.hold * torch.from_numpy(self._scale)
        here, unit = space.project(torch.from_numpy(observation)), torch.from_numpy(proposals)
        if self.hierarchy.config.subgoal == "relative":
            way = reach * unit
        else:
            way = (space.low + (unit + 1) * space.half_range - here).clamp(-reach, reach)
        return space.clip(here + way).numpy()
