"""Reference policies: what can be had, without any learning, on tasks whose hidden goals lie on a circle in the plane.

They bound and place a learning result. The oracle is told the goal. The search walks along the goals until it meets a
reward, and remembers what it saw: near the best that can be had without being told (VariBAD, Zintgraf et al. 2020,
arXiv 1910.08348, sets this Bayes-optimal behaviour against posterior sampling). Thompson sampling (Thompson 1933; in
meta-RL PEARL, Rakelly et al. 2019, arXiv 1903.08254) goes to one possible goal a trajectory. Without context there is
one place to go to, whatever was seen. All know where goals may be, that rewards are above 0 within the tolerance of the
goal only, and how large they are at which distance, which they never grow with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.references.candidates import REMEDY, SHARES, Arc, Candidates, distance_to, train_ids
from peach_trl.seeding import named_generator


def has_references(env: EnvBase) -> bool:
    """Whether there are references for ``env``: two actions, and goals in the plane on a circle about the origin.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> [name for name in ("PointRobot", "SparsePointRobot", "AntGoal") if has_references(FAMILIES[name](1))]
        ['SparsePointRobot']
    """
    try:
        Arc.of(env)
    except ValueError:
        return False
    return True


def references(env: EnvBase, *, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Tensor]:
    """Returns of the reference policies by trajectory number: means over the rows of ``env``, [K] each.

    Args:
        env: the environment; each row is a meta-test of the task that it has. It is left in mid-episode.
        trajectories: of a meta-test, K.
        decision_steps: environment steps between two subgoals of the search; 1 is direct control.
        reach: how far from the position its subgoals may lie along each axis, in metres; ``math.inf`` for no limit.
        seed: of Thompson's draws, one for each row and trajectory: their mean is as good as there are many rows.

    Returns:
        ``"oracle"``, ``"search"``, ``"thompson"`` and ``"no context"``: sums of rewards, divided by the horizon;
        nothing where :func:`has_references` says no.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> env = FAMILIES["SparsePointRobot"](num_envs=20, split="test")
        >>> means = references(env, trajectories=3, decision_steps=5, reach=0.5, seed=0)
        >>> list(means), means["search"].shape, bool(means["oracle"][2] > means["thompson"][2])
        (['oracle', 'search', 'thompson', 'no context'], torch.Size([3]), True)
    """
    if not has_references(env):
        return {}
    env = cast(BatchedMujocoEnv, env)
    chosen = policies(env, trajectories, decision_steps, reach, seed)
    return {name: play(env, policy, trajectories).returns.mean(0) for name, policy in chosen.items()}


def policies(env: BatchedMujocoEnv, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Stay]:
    """The policies of :func:`references` by name, new, for one :func:`play` each.

    Raises:
        ValueError: for ``trajectories`` or ``decision_steps`` below 1, a ``reach`` that is not above 0, and where there
            are no references.
    """
    arc, goals = Arc.of(env), env.library.parameters[env.task_id]
    prior = partial(Candidates, arc, _reward_samples(env), len(goals))

    def search(walk: Tensor) -> Search:
        return Search(arc, prior(), decision_steps, reach, walk)

    walk, place = _best_walk(env, arc, search, trajectories), _best_place(env, arc)
    return {
        "oracle": Stay(goals),
        "search": search(walk.expand(len(goals), -1)),
        "thompson": Thompson(prior(), seed),
        "no context": Stay(place.expand(len(goals), -1)),
    }


class Stay:
    """Goes to a place and stays, whatever it sees: the oracle, the policy without context, and what the others alter.

    One object plays one meta-test of each of R rows, which go to ``places`` [R, 2], in metres; see :func:`play`.
    """

    belief: Candidates | None = None

    def __init__(self, places: Tensor) -> None:
        self._places = places

    def start(self) -> None:
        """A trajectory starts."""

    def subgoal(self, position: Tensor) -> Tensor:
        """Where to go now, [R, 2], from ``position`` [R, 2]; asked once before each step."""
        return self._places

    def see(self, position: Tensor, reward: Tensor) -> None:
        """Remembers the ``reward`` [R] of the step that led to ``position`` [R, 2], if it has a belief."""
        if self.belief is not None:
            self.belief.see(position, reward)


class Thompson(Stay):
    """Draws one of the goals that its ``belief`` has as possible for each trajectory, goes there and stays."""

    def __init__(self, belief: Candidates, seed: int) -> None:
        self.belief: Candidates = belief
        self._generator = named_generator("thompson", seed)

    def start(self) -> None:
        """Draws the goals."""
        drawn = torch.multinomial(self.belief.possible.float(), 1, generator=self._generator)
        self._places = self.belief.goals[drawn[:, 0]]


class Search(Stay):
    """Walks along the possible goals until a decision's steps had a reward, then goes to the best estimate and stays.

    Until then a subgoal is the furthest place on its path such that the straight way there misses no goal before it.

    Args:
        arc: where goals may lie.
        belief: the prior, which it updates.
        decision_steps: environment steps between two subgoals; 1 is direct control.
        reach: how far from the position subgoals may lie along each axis, in metres.
        walk: [R, 3]: radius of the path, in metres; where on the arc it starts, 0 to 1 (from the end it goes on at 0);
            and how near to a goal a subgoal's way has to come, in metres.
    """

    def __init__(self, arc: Arc, belief: Candidates, decision_steps: int, reach: float, walk: Tensor) -> None:
        if decision_steps < 1 or not reach > 0:
            raise ValueError(f"decision_steps = {decision_steps}, reach = {reach}: raise them to >= 1 and above 0")
        self.belief: Candidates = belief
        self._arc, self._decision_steps, self._reach = arc, decision_steps, reach
        self._radius, self._first, self._margin = walk.split(1, -1)
        self._order = (SHARES - self._first) % 1.0  # [R, C], in which the walk comes by the candidates
        self._leads = torch.linspace(0, 4 * arc.tolerance / arc.radius / arc.length, 16)  # of subgoals, in shares

    def start(self) -> None:
        """The first decision starts."""
        self._step = 0

    def subgoal(self, position: Tensor) -> Tensor:
        """The subgoal in force, [R, 2]."""
        if self._step % self._decision_steps == 0:
            target = self.belief.estimate()
            if not self.belief.found.all():
                target = torch.where(self.belief.found.unsqueeze(-1), target, self._ahead(position))
            offset = target - position
            furthest = offset.abs().amax(-1, keepdim=True).clamp(min=1e-9)
            self._places = position + offset * (self._reach / furthest).clamp(max=1.0)
        self._step += 1
        return self._places

    def _ahead(self, position: Tensor) -> Tensor:
        """The furthest place on the path, [R, 2], whose straight way misses no possible goal before it."""
        possible, order = self.belief.possible, self._order
        front = torch.where(possible, order, torch.inf).amin(-1, keepdim=True)
        back = torch.where(possible, order, -torch.inf).amax(-1, keepdim=True)
        ahead = torch.minimum(front + self._leads, back)  # [R, L]
        places = self._arc.places((ahead + self._first) % 1.0, self._radius)  # [R, L, 2]
        missed = _distance_from_way(position, places, self.belief.goals) > self._margin.unsqueeze(-1)  # [R, L, C]
        missed &= possible.unsqueeze(1) & (order.unsqueeze(1) <= ahead.unsqueeze(-1))
        furthest = (~missed.any(-1) * torch.arange(1, len(self._leads) + 1)).argmax(-1)
        return places[torch.arange(len(places)), furthest]


class Played(NamedTuple):
    """What R rows did in K trajectories of T steps."""

    rewards: Tensor  # [R, K, T]
    positions: Tensor  # [R, K, T, 2], after each step, metres
    subgoals: Tensor  # [R, K, T, 2], in force during each step

    @property
    def returns(self) -> Tensor:
        """Sums of rewards divided by the horizon, [R, K]."""
        return self.rewards.mean(-1)


@torch.no_grad()
def play(env: BatchedMujocoEnv, policy: Stay, trajectories: int, *, blind: bool = False) -> Played:
    """Plays the task that each row of ``env`` has, for ``trajectories`` episodes; ``env`` is left at their end.

    Args:
        env: the environment, R rows.
        policy: new; what it learns in one trajectory it has in the next.
        trajectories: K.
        blind: whether ``policy`` sees rewards of 0 only.

    Raises:
        ValueError: for ``trajectories`` below 1, and where positions do not grow with the actions.
        NotFiniteError: when the simulation breaks.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> env = FAMILIES["SparsePointRobot"](num_envs=2)
        >>> played = play(env, Stay(env.library.parameters[env.task_id]), trajectories=3)
        >>> played.positions.shape, played.returns.shape, bool((played.returns > 0.6).all())
        (torch.Size([2, 3, 20, 2]), torch.Size([2, 3]), True)
    """
    if trajectories < 1:
        raise ValueError(f"trajectories = {trajectories}: must be >= 1")
    point, steps = _Point(env), []
    for _ in range(trajectories):
        policy.start()
        point.restart()
        for _ in range(env.horizon):
            subgoal = policy.subgoal(point.position)
            reward = point.go(subgoal)
            policy.see(point.position, torch.zeros_like(reward) if blind else reward)
            steps.append((reward, point.position, subgoal))
    columns = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return Played(*(column.unflatten(1, (trajectories, env.horizon)) for column in columns))


class _Point:
    """The rows of an environment as points that are told where to go; ``position`` [R, 2] in metres.

    Each axis heads for the place at full action, less what momentum does by itself: the length of a step, in metres,
    and for how many steps a point coasts are measured beforehand.
    """

    def __init__(self, env: BatchedMujocoEnv) -> None:
        self._env, self._task_id, self._space = env, env.task_id, cast(GoalSpace, env.goal_space)
        self.restart()
        path = []
        for action in [1.0] * 10 + [0.0] * 10:
            self._act(torch.full(env.action_spec.shape, action))
            path.append(self.position)
        self._step = (path[9] - path[8]).amin().item()
        if self._step <= 0:
            raise ValueError(f"{type(env).__name__} moves {self._step:.3g} m at full action: {REMEDY}")
        self._coast = (path[19] - path[9]).mean().item() / self._step

    def restart(self) -> None:
        self.position = self._before = self._space.project(self._env.restart(task_id=self._task_id)["observation"])

    def go(self, place: Tensor) -> Tensor:
        """One step towards ``place`` [R, 2]; the reward, [R]."""
        momentum = self._coast * (self.position - self._before)
        return self._act(((place - self.position - momentum) / self._step).clamp(-1, 1))

    def _act(self, action: Tensor) -> Tensor:
        values, error = self._env.advance(action)
        if error is not None:
            raise error
        self._before, self.position = self.position, self._space.project(values["observation"])
        return values["reward"][:, 0]


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


def _best_walk(env: BatchedMujocoEnv, arc: Arc, search: Callable[[Tensor], Stay], trajectories: int) -> Tensor:
    """The ``walk`` of :class:`Search`, [3], that returns most over all trajectories and candidates.

    All steps from the first reward on are taken as rewarded, but for the way to the goal in later trajectories, which
    is taken to be as long as the way to the first candidate.
    """
    radii = (arc.radius - arc.tolerance * torch.tensor([0.1, 0.3, 0.5, 0.7])).clamp(min=0)
    margins = arc.tolerance * torch.tensor([0.8, 0.95])
    walks = torch.cartesian_prod(radii, torch.tensor([0.0, 0.125, 0.25, 0.5]), margins)
    near = _near(env, arc, search, walks, trajectories)
    left = (near * torch.arange(near.shape[1], 0, -1.0).unsqueeze(-1)).amax(1)  # [S, C], steps from the first reward on
    later = ((left - 1) // env.horizon).clamp(min=0)  # trajectories after the first reward's
    return walks[(left - later * (near.shape[1] - left.max())).mean(1).argmax()]


def _best_place(env: BatchedMujocoEnv, arc: Arc) -> Tensor:
    """The place [2], on a grid, where going and staying has most rewarded steps over all candidates."""
    radii = (arc.radius - arc.tolerance * torch.linspace(0, 1, 5)).clamp(min=0)
    places = arc.places(*torch.cartesian_prod(torch.linspace(0, 1, 17), radii).T)
    return places[_near(env, arc, Stay, places, 1).sum((1, 2)).argmax()]


def _near(env: BatchedMujocoEnv, arc: Arc, make: Callable[[Tensor], Stay], choices: Tensor, episodes: int) -> Tensor:
    """Which candidates each step is near to, bool [S, K T, C], of the policies of ``choices`` [S, ...], unrewarded."""
    rows, paths = len(env.task_id), []
    for start in range(0, len(choices), rows):
        policy = make(choices[(start + torch.arange(rows)) % len(choices)])
        paths.append(play(env, policy, episodes, blind=True).positions.flatten(1, 2))
    return distance_to(torch.cat(paths)[: len(choices)], arc.places(SHARES)) <= arc.tolerance


def _distance_from_way(start: Tensor, ends: Tensor, goals: Tensor) -> Tensor:
    """Distances [R, L, C] of ``goals`` [C, 2] from the straight ways from ``start`` [R, 2] to ``ends`` [R, L, 2]."""
    way, goal = ends - start.unsqueeze(1), goals - start.unsqueeze(1)  # [R, L, 2], [R, C, 2]
    along = (way @ goal.mT / way.square().sum(-1, keepdim=True).clamp(min=1e-9)).clamp(0, 1)
    return torch.hypot(*(along * way[..., i, None] - goal[:, None, :, i] for i in (0, 1)))
