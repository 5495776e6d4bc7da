"""Reference policies where the hidden goal is a place in the plane: on an arc, in a square.

The oracle is told the goal. The search walks along the goals until it meets a reward, and remembers what it saw: near
the best that can be had without being told (VariBAD, Zintgraf et al. 2020, arXiv 1910.08348, sets this Bayes-optimal
behaviour against posterior sampling). Thompson sampling (Thompson 1933; in meta-RL PEARL, Rakelly et al. 2019, arXiv
1903.08254) goes to one possible goal a trajectory. Without context there is one place to go to, whatever was seen. All
know where goals may be, that rewards are above 0 within the tolerance of the goal only, and how large they are at which
distance, which they never grow with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.references.candidates import Candidates, Region, Walk, distance_to, train_ids
from peach_trl.references.play import Deciding, Stay, play
from peach_trl.seeding import named_generator


def place_policies(
    env: BatchedMujocoEnv, region: Region, trajectories: int, decision_steps: int, reach: float, seed: int
) -> dict[str, Stay]:
    """The policies for goals in ``region``; arguments and errors: see :func:`~peach_trl.references.policies`."""
    goals = env.library.parameters[env.task_id]
    nothing_seen = prior(env, region, len(goals))

    def search(walk: Tensor) -> Search:
        return Search(region.walk(walk), copy.deepcopy(nothing_seen), decision_steps, reach)

    walk, place = best_walk(env, region, region.walks, search, trajectories), _best_place(env, region)
    return {
        "oracle": Stay(goals),
        "search": search(walk.expand(len(goals), -1)),
        "thompson": Thompson(copy.deepcopy(nothing_seen), seed),
        "no context": Stay(place.expand(len(goals), -1)),
    }


def prior(env: BatchedMujocoEnv, region: Region, rows: int) -> Candidates:
    """The posterior over the goals in ``region`` where nothing was seen yet, of ``rows``; plays ``env`` a little."""
    return Candidates(region, _reward_samples(env), rows)


class Thompson(Stay):
    """Draws one of the goals that its ``belief`` has as possible for each trajectory, goes there and stays."""

    def __init__(self, belief: Candidates, seed: int) -> None:
        self.belief = belief
        self._generator = named_generator("thompson", seed)

    def start(self) -> None:
        """Draws the goals."""
        drawn = torch.multinomial(self.belief.possible.float(), 1, generator=self._generator)
        self._places = self.belief.goals[drawn[:, 0]]

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Updates the belief."""
        self.belief.see(position, reward)


class Search(Deciding):
    """Walks along the possible goals until a decision's steps had a reward, then goes to the best estimate and stays.

    Until then a subgoal is the furthest place on its way such that the straight line there misses no goal before it.

    Args:
        walk: the way of each row.
        belief: the prior, which it updates.
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.
    """

    def __init__(self, walk: Walk, belief: Candidates, decision_steps: int, reach: float) -> None:
        super().__init__(decision_steps, reach)
        self.belief, self._walk = belief, walk

    def see(self, position: Tensor, reward: Tensor, observation: Tensor) -> None:
        """Updates the belief."""
        self.belief.see(position, reward)

    def target(self, position: Tensor) -> Tensor:
        """The estimate where there was a reward, else the next place on the way."""
        target = self.belief.estimate()
        if self.belief.found.all():
            return target
        return torch.where(self.belief.found.unsqueeze(-1), target, self._ahead(position))

    def _ahead(self, position: Tensor) -> Tensor:
        """The furthest place on the way, [R, 2], to which the straight line misses no possible goal before it."""
        possible, order = self.belief.possible, self._walk.order
        front = torch.where(possible, order, torch.inf).amin(-1, keepdim=True)
        back = torch.where(possible, order, -torch.inf).amax(-1, keepdim=True)
        ahead = torch.minimum(front + self._walk.leads, back)  # [R, L]
        places = self._walk.places(ahead)  # [R, L, 2]
        missed = _distance_from_line(position, places, self.belief.goals) > self._walk.margin.unsqueeze(-1)  # [R, L, C]
        missed &= possible.unsqueeze(1) & (order.unsqueeze(1) <= ahead.unsqueeze(-1))
        furthest = (~missed.any(-1) * torch.arange(1, ahead.shape[1] + 1)).argmax(-1)
        return places[torch.arange(len(places)), furthest]


def best_walk(
    env: BatchedMujocoEnv, region: Region, walks: Tensor, search: Callable[[Tensor], Stay], trajectories: int
) -> Tensor:
    """The one of ``walks`` [S, W], [W], with which ``search`` returns most over all trajectories and candidates.

    All steps from the first reward on are taken as rewarded, but for the way to the goal in later trajectories, which
    is taken to be as long as the way to the first candidate.
    """
    near = _near(env, region, search, walks, trajectories)
    left = torch.stack([(one * torch.arange(len(one), 0, -1.0).unsqueeze(-1)).amax(0) for one in near])
    later = ((left - 1) // env.horizon).clamp(min=0)  # trajectories after the first reward's; left: steps from it on
    steps = trajectories * env.horizon
    return walks[(left - later * (steps - left.max())).mean(1).argmax()]


def _best_place(env: BatchedMujocoEnv, region: Region) -> Tensor:
    """The place [2], on a grid, where going and staying has most rewarded steps over all candidates."""
    places = region.stays
    return places[torch.stack([one.sum() for one in _near(env, region, Stay, places, 1)]).argmax()]


def _near(
    env: BatchedMujocoEnv, region: Region, make: Callable[[Tensor], Stay], choices: Tensor, episodes: int
) -> list[Tensor]:
    """Which candidates each step is near to, S times bool [K T, C]; ``choices`` [S, ...] make unrewarded policies."""
    rows, paths, candidates = len(env.task_id), [], region.candidates
    for start in range(0, len(choices), rows):
        policy = make(choices[(start + torch.arange(rows)) % len(choices)])
        paths.append(play(env, policy, episodes, blind=True).positions.flatten(1, 2))
    return [distance_to(path, candidates) <= region.tolerance for path in torch.cat(paths)[: len(choices)]]


def _reward_samples(env: BatchedMujocoEnv) -> Tensor:
    """Distances from the goal and rewards there, [M, 2], on the way to training goals; rows keep their own tasks."""
    own, train = env.task_id, train_ids(env.library)
    chosen = train[torch.linspace(0, len(train) - 1, len(own)).long()]
    goals = env.library.parameters[chosen]
    env.restart(task_id=chosen)
    played = play(env, Stay(goals), 1)
    env.restart(task_id=own)
    distance = torch.linalg.vector_norm(played.positions - goals[:, None, None], dim=-1)
    return torch.stack([distance, played.rewards], -1)[distance > 1e-3 * distance.max()]  # most are at the goal itself


def _distance_from_line(start: Tensor, ends: Tensor, goals: Tensor) -> Tensor:
    """Distances [R, L, C] of ``goals`` [C, 2] from the straight lines from ``start`` [R, 2] to ``ends`` [R, L, 2]."""
    way, goal = ends - start.unsqueeze(1), goals - start.unsqueeze(1)  # [R, L, 2], [R, C, 2]
    along = (way @ goal.mT / way.square().sum(-1, keepdim=True).clamp(min=1e-9)).clamp(0, 1)
    return torch.hypot(*(along * way[..., i, None] - goal[:, None, :, i] for i in (0, 1)))
