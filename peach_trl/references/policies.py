"""Reference policies: what can be had, without any learning, on tasks that are known well enough to compute it.

They bound and place a learning result. Each kind of task has a module: hidden places (``places``), and those that a
distance tells (``dense``), the wind (``wind``), the treasure hunt (``treasure``). Names mean the same everywhere: the
oracle is told the task; the search sets a subgoal every decision, as the agent does, and looks on purpose for what it
must know; Thompson sampling takes one task that agrees with what it saw for the true one, for a whole trajectory;
without context nothing seen is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.families.bodies import Body
from peach_trl.envs.families.point_robot import PointRobot, SparsePointRobot
from peach_trl.envs.families.treasure_hunt import TreasureHunt
from peach_trl.envs.families.wind import Wind
from peach_trl.references.arc import Arc
from peach_trl.references.candidates import REMEDY, Candidates, Region
from peach_trl.references.dense import dense_policies
from peach_trl.references.places import place_policies, prior
from peach_trl.references.play import Stay, play
from peach_trl.references.square import Square
from peach_trl.references.treasure import treasure_policies
from peach_trl.references.wind import wind_policies

Maker = Callable[[int, int, float, int], dict[str, Stay]]
"""Makes the policies, of trajectories, decision steps, reach and seed."""


def has_references(env: EnvBase) -> bool:
    """Whether there are references for ``env``: for hidden places in the plane, say, on a circle about the origin.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> [name for name in ("Wind", "SparsePointRobot", "AntGoal") if has_references(FAMILIES[name](1))]
        ['Wind', 'SparsePointRobot']
    """
    return _maker_or_none(env) is not None


def references(env: EnvBase, *, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Tensor]:
    """Returns of the reference policies by trajectory number: means over the rows of ``env``, [K] each.

    Args:
        env: the environment; each row is a meta-test of the task that it has. It is left in mid-episode.
        trajectories: of a meta-test, K.
        decision_steps: environment steps between two subgoals of the search; 1 is direct control.
        reach: how far from the position its subgoals may lie along each axis, in metres; ``math.inf`` for no limit.
        seed: of Thompson's draws, one for each row and trajectory: their mean is as good as there are many rows; and of
            the starts, where these are drawn.

    Returns:
        ``"oracle"``, ``"search"``, ``"thompson"`` and ``"no context"``, and what else a kind of tasks has: sums of
        rewards, divided by the horizon; nothing where :func:`has_references` says no.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> env = FAMILIES["SparsePointRobot"](num_envs=20, split="test")
        >>> means = references(env, trajectories=3, decision_steps=5, reach=0.5, seed=0)
        >>> list(means), means["search"].shape, bool(means["oracle"][2] > means["thompson"][2])
        (['oracle', 'search', 'thompson', 'no context'], torch.Size([3]), True)
    """
    maker = _maker_or_none(env)
    if maker is None:
        return {}
    env, means = _played_in(env), {}
    for name, policy in _made(maker, trajectories, decision_steps, reach, seed).items():
        env.set_seed(seed, static_seed=True)  # all start at the same places, where these are drawn
        means[name] = play(env, policy, trajectories).returns.mean(0)
    return means


def policies(env: BatchedMujocoEnv, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Stay]:
    """The policies of :func:`references` by name, new, for one :func:`play` each.

    Raises:
        ValueError: for ``trajectories`` or ``decision_steps`` below 1, a ``reach`` that is not above 0, and where there
            are no references.
    """
    return _made(_maker(_played_in(env)), trajectories, decision_steps, reach, seed)


def prior_of(env: EnvBase, rows: int) -> Candidates | None:
    """The exact posterior over the goals of ``env`` where nothing was seen yet, of R rows.

    Returns:
        ``None`` where goals are not hidden places on a circle or in a square, met within a distance.
    """
    env = _played_in(env)
    try:
        return prior(env, _region(env), rows)
    except ValueError:
        return None


def _played_in(env: EnvBase) -> BatchedMujocoEnv:
    """Where the policies play: in the environment, or in what stands in for it."""
    known = cast(BatchedMujocoEnv, env)
    return (known.stand_in() if isinstance(env, BatchedMujocoEnv) else None) or known


def _made(maker: Maker, trajectories: int, decision_steps: int, reach: float, seed: int) -> dict[str, Stay]:
    if trajectories < 1:
        raise ValueError(f"trajectories = {trajectories}: must be >= 1")
    return maker(trajectories, decision_steps, reach, seed)


def _maker_or_none(env: EnvBase) -> Maker | None:
    try:
        return _maker(_played_in(env))
    except ValueError:
        return None


def _maker(env: EnvBase) -> Maker:
    """What makes the policies of ``env``; a ``ValueError`` where there are none."""
    if isinstance(env, Wind):
        return partial(wind_policies, env)
    if isinstance(env, TreasureHunt):
        return partial(treasure_policies, env)
    if _is_dense(env):
        return partial(dense_policies, cast(PointRobot, env))
    return partial(place_policies, cast(BatchedMujocoEnv, env), _region(env))


def _is_dense(env: EnvBase) -> bool:
    return isinstance(env, PointRobot) and not isinstance(env, SparsePointRobot)


def _region(env: EnvBase) -> Region:
    """Where hidden goals lie that are met within a distance, and told by nothing else."""
    if isinstance(env, Body | Wind | TreasureHunt) or _is_dense(env):
        raise ValueError(f"{type(env).__name__}: its goals are told by more, or not gone to as actions point; {REMEDY}")
    try:
        return Square.of(env)
    except ValueError:
        return Arc.of(env)
