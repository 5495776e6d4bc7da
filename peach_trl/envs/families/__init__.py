"""Task families, all on the batched simulator: PEARL's, Hierarchical Actor-Critic's, searches of others, and mazes."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from typing import Any, TypeVar, cast

from torch import Tensor

from peach_trl.config import MANY, ConfigError, option
from peach_trl.envs.errors import NOT_FINITE
from peach_trl.envs.families.ant import AntDir, AntGoal
from peach_trl.envs.families.ant_search import AntGoalSparse, AntHalfCircle, AntSemiCircleSparse
from peach_trl.envs.families.base import Spaces, TaskCounts, TaskFamily
from peach_trl.envs.families.body_options import BodyOptions
from peach_trl.envs.families.hac_ant import AntFourRooms, AntReacher
from peach_trl.envs.families.hac_pendulum import Pendulum
from peach_trl.envs.families.hac_ur5 import UR5Reacher
from peach_trl.envs.families.half_cheetah import HalfCheetahDir, HalfCheetahVel
from peach_trl.envs.families.hopper import HopperRandParams
from peach_trl.envs.families.humanoid import HumanoidDir
from peach_trl.envs.families.mazes import (
    AntLargeMaze,
    AntMediumMaze,
    AntUMaze,
    PointLargeMaze,
    PointMediumMaze,
    PointUMaze,
)
from peach_trl.envs.families.point_robot import HalfCircleB, PointRobot, SparsePointRobot
from peach_trl.envs.families.reacher import ReacherCircle
from peach_trl.envs.families.treasure_hunt import TreasureHunt
from peach_trl.envs.families.walker2d import Walker2dRandParams
from peach_trl.envs.families.wind import Wind
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.rules import TaskFacts

_CLASSES: tuple[type[TaskFamily], ...] = (
    *(HalfCheetahVel, HalfCheetahDir, AntDir, AntGoal, HumanoidDir, Walker2dRandParams, HopperRandParams),
    *(PointRobot, SparsePointRobot, HalfCircleB, Wind, TreasureHunt),
    *(AntHalfCircle, AntSemiCircleSparse, AntGoalSparse, ReacherCircle),
    *(Pendulum, UR5Reacher, AntReacher, AntFourRooms),
    *(PointUMaze, PointMediumMaze, PointLargeMaze, AntUMaze, AntMediumMaze, AntLargeMaze),
)

#: every family by its name
FAMILIES: dict[str, type[TaskFamily]] = {family.__name__: family for family in _CLASSES}
Family = TypeVar("Family", bound=type[TaskFamily])


def register_family(family: Family) -> Family:
    """Makes a family of your own known by its class's name; a decorator.

    ``env.family=MyFamily env.package=my_module`` then plays it in every recipe: the module is imported first. An entry
    point ``my_module`` of the group ``peach_trl.families`` in your package's metadata makes the import unnecessary.

    Raises:
        ValueError: if another family has this name.

    Examples:
        >>> @register_family
        ... class StrongWind(Wind):
        ...     "As Wind, but for its name."
        >>> FAMILIES["StrongWind"].__name__
        'StrongWind'
        >>> del FAMILIES["StrongWind"]
    """
    name = family.__name__
    if FAMILIES.get(name, family) is not family:
        raise ValueError(f"family {name}: {FAMILIES[name].__module__} has one of this name; give yours another")
    FAMILIES[name] = family
    return family


@cache
def _load_entry_points() -> None:
    for entry_point in entry_points(group="peach_trl.families"):
        entry_point.load()


def _known(name: str) -> None:
    """Raises a ConfigError for a family that nobody registered."""
    if name not in FAMILIES:
        _load_entry_points()
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"family = {name!r}: must be one of {', '.join(FAMILIES)}; {hint}One of your own needs register_family and "
            "env.package"
        )


@dataclass(frozen=True)
class FamilyConfig:
    """Which family is played, and how much of it; the published values are in ``configs/env``."""

    family: str = option(help="name of the task family")
    horizon: int = option(low=1, high=10**6, help="environment steps per episode")
    train_tasks: int = option(low=1, high=MANY, help="number of training tasks")
    validation_tasks: int = option(low=1, high=MANY, help="number of validation tasks")
    test_tasks: int = option(low=1, high=MANY, help="number of test tasks")
    task_seed: int = option(low=0, high=2**62, help="seed of the tasks, apart from the seed of the run")
    threads: int = option(low=1, high=1024, help="threads that step the simulations; results do not depend on it")
    not_finite: str = option(choices=NOT_FINITE, help="what a row whose simulation breaks does")

    def check(self) -> None:
        """Refuses families that nobody registered, and a simulator that cannot step them."""
        if find_spec("mujoco.batch") is None:
            raise ConfigError(
                f"family = {self.family}: mujoco {version('mujoco')} cannot step simulations in batches; pip install "
                "'mujoco>=3.17', or use an environment that needs no batches, such as env=gymnasium"
            )
        _known(self.family)

    def make_library(self) -> TaskLibrary:
        """The tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``."""
        counts = self.train_tasks, self.validation_tasks, self.test_tasks
        return FAMILIES[self.family].make_library(*counts, seed=self.task_seed)

    def facts(self) -> TaskFacts:
        """What values by rule need to know of the family."""
        family = FAMILIES[self.family]
        return TaskFacts(self.horizon, family.best_reward, family.goal_size, family.step_length)

    @property
    def has_dense_reward(self) -> bool:
        """Whether the family has a dense reward to learn from."""
        return FAMILIES[self.family].dense_reward is not TaskFamily.dense_reward

    def dense_reward(self, observation: Tensor, parameters: Tensor) -> Tensor:
        """See :meth:`TaskFamily.dense_reward`."""
        return FAMILIES[self.family].dense_reward(observation, parameters)

    def make_env(self, library: TaskLibrary, tasks: Tensor, *, observe_goal: bool, seed: int) -> TaskFamily:
        """One row for each of ``tasks`` [N]."""
        return FAMILIES[self.family](
            len(tasks),
            library=library,
            tasks=tasks,
            horizon=self.horizon,
            threads=self.threads,
            not_finite=self.not_finite,  # type: ignore[arg-type]
            observe_goal=observe_goal,
            seed=seed,
            **self.options(),
        )

    def options(self) -> dict[str, Any]:
        """What the family takes besides."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PackageFamilyConfig(FamilyConfig):
    """A family of another package, with arguments of its own."""

    package: str | None = option(
        help="module that registers the family, see peach_trl.envs.families.register_family; null: an entry point does"
    )
    arguments: dict = option(help="what the family takes besides")

    def check(self) -> None:
        """Imports the package, if there is one, which registers the family."""
        try:
            if self.package is not None:
                importlib.import_module(self.package)
        except ImportError as error:
            raise ConfigError(f"package = {self.package!r}: {error}; put it on the PYTHONPATH") from None
        super().check()

    def options(self) -> dict[str, Any]:
        """What the family takes besides."""
        return self.arguments


@dataclass(frozen=True, kw_only=True)
class BodyFamilyConfig(FamilyConfig):
    """A family with a body that can be simulated in several ways, see ``configs/body``."""

    body: BodyOptions

    def options(self) -> dict[str, Any]:
        """What the family takes besides."""
        return {"body": self.body}


@dataclass(frozen=True, kw_only=True)
class PlaceFamilyConfig(BodyFamilyConfig):
    """A family whose goals lie around the start."""

    radius: float = option(above=0, help="distance of the goals from the start, at most, metres")
    goal_tolerance: float = option(above=0, help="distance from the goal within which there are rewards, metres")

    def make_library(self) -> TaskLibrary:
        """The tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``."""
        counts = self.train_tasks, self.validation_tasks, self.test_tasks
        family = cast(type[AntHalfCircle], FAMILIES[self.family])
        return family.make_library(*counts, seed=self.task_seed, radius=self.radius)

    def facts(self) -> TaskFacts:
        """What values by rule need to know of the family."""
        return dataclasses.replace(super().facts(), goal_size=self.goal_tolerance)

    def options(self) -> dict[str, Any]:
        """What the family takes besides."""
        return super().options() | {"radius": self.radius, "goal_tolerance": self.goal_tolerance}


__all__ = [
    "FAMILIES",
    "AntDir",
    "AntFourRooms",
    "AntGoal",
    "AntGoalSparse",
    "AntHalfCircle",
    "AntLargeMaze",
    "AntMediumMaze",
    "AntReacher",
    "AntSemiCircleSparse",
    "AntUMaze",
    "BodyFamilyConfig",
    "BodyOptions",
    "FamilyConfig",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "HalfCircleB",
    "HopperRandParams",
    "HumanoidDir",
    "Pendulum",
    "PointLargeMaze",
    "PointMediumMaze",
    "PointRobot",
    "PackageFamilyConfig",
    "PlaceFamilyConfig",
    "PointUMaze",
    "ReacherCircle",
    "Spaces",
    "SparsePointRobot",
    "TaskCounts",
    "TaskFamily",
    "TreasureHunt",
    "UR5Reacher",
    "Walker2dRandParams",
    "Wind",
    "register_family",
]
