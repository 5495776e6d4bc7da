"""Environments that a configuration names: any that a function makes, with a list of tasks that another makes.

``env=gymnasium`` and the task suites are such configurations; so is your own module. ``env.make`` names a function
``make(num_envs, *, library, tasks, horizon, ...)`` that returns a TorchRL environment with a row for each of the task
ids ``tasks`` [N], and ``env.tasks`` one that returns the :class:`~peach_trl.envs.TaskLibrary`, in the splits
``"train"``, ``"validation"`` and ``"test"``. Both get those of ``env.options`` that they name as arguments; the first
also gets ``observe_goal``, ``seed`` and ``not_finite`` where it names them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.config import ConfigError, attempt, imported, option
from peach_trl.declared import declared
from peach_trl.envs.errors import NOT_FINITE
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv, TasksOptions
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.rules import TaskFacts

_NONE = object()  # no value

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class MadeConfig:
    """An environment by the names of functions; see the module."""

    make: str = option(help="module:function that makes the environment")
    tasks: str = option(help="module:function that makes the list of tasks")
    horizon: int = option(low=1, high=10**6, help="environment steps per episode, at most")
    best_reward: float | None = option(above=0, help="largest reward of a step, for values by rule; null: not known")
    goal_size: float | None = option(above=0, help="how far from a goal there are rewards; null: no goals, not known")
    step_length: float | None = option(above=0, help="how far a step can lead along an axis; null: not known")
    not_finite: str = option(choices=NOT_FINITE, help="what a row that breaks does")
    options: dict = option(help="what the two functions take besides")

    @property
    def train_tasks(self) -> int:
        """Number of training tasks."""
        return len(self.make_library().split("train"))

    has_dense_reward = False

    def dense_reward(self, observation: Tensor, parameters: Tensor) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def facts(self) -> TaskFacts:
        """What values by rule need to know."""
        return TaskFacts(self.horizon, self.best_reward, self.goal_size, self.step_length)

    def check(self) -> None:
        """Checks that both functions are there, and take the options."""
        functions = [imported("make", self.make), imported("tasks", self.tasks)]
        for name in self.options:
            if not any(_takes(function, name) for function in functions):
                raise ConfigError(
                    f"options.{name} = {self.options[name]!r}: neither {self.make} nor {self.tasks} takes it"
                )

    def make_library(self) -> TaskLibrary:
        """The tasks, in the splits ``"train"``, ``"validation"`` and ``"test"``."""
        return _library(self.tasks, json.dumps(self.options, sort_keys=True))

    def make_env(self, library: TaskLibrary, tasks: Tensor, *, observe_goal: bool, seed: int) -> EnvBase:
        """One row for each of ``tasks`` [N]."""
        make = imported("env.make", self.make)
        more = {"observe_goal": observe_goal, "seed": seed, "not_finite": self.not_finite}
        if observe_goal and not _takes(make, "observe_goal"):
            raise ConfigError(f"top.observe_goal = True: {self.make} takes no observe_goal; set it to false")
        given = _taken(make, more) | _taken(make, _tuples(self.options))
        facts = {"library": library, "tasks": tasks, "horizon": self.horizon}
        env = attempt(f"env.make = {self.make}, with env.options:", partial(make, len(tasks), **facts, **given))
        env = _completed(env, self.make, len(tasks), {"horizon": self.horizon, "library": library, "goal_space": None})
        if not _takes(make, "seed"):
            with torch.random.fork_rng(devices=[]):  # some take torch's generator for their own
                env.set_seed(seed)
        return env


def _completed(env: Any, make: str, rows: int, facts: Mapping[str, Any]) -> EnvBase:
    """What a function of one's own made, with the facts that recipes ask of it, where it does not say them."""
    if not isinstance(env, EnvBase):
        raise ConfigError(f"env.make = {make}: it returned a {type(env).__name__}; return a TorchRL environment")
    if env.batch_size != torch.Size([rows]):
        raise ConfigError(
            f"env.make = {make}: an environment of batch size {list(env.batch_size)}, for {rows} tasks; make a row for "
            f"each, [{rows}]"
        )
    for name in ("observation", "task_id"):
        if name not in env.observation_spec.keys():
            raise ConfigError(f"env.make = {make}: its observation_spec has no {name!r}; add it, [{rows}, ...]")
    for name, value in facts.items():
        if declared(env, name, _NONE) is _NONE:
            setattr(env, name, value)
    return env


@lru_cache(maxsize=8)
def _library(tasks: str, options: str) -> TaskLibrary:
    function = imported("env.tasks", tasks)
    given = _taken(function, _tuples(json.loads(options)))
    library = attempt(f"env.tasks = {tasks}, with env.options:", partial(function, **given))
    if not isinstance(library, TaskLibrary):
        raise ConfigError(f"env.tasks = {tasks}: it returned a {type(library).__name__}; return a TaskLibrary")
    missing = [name for name in SPLITS if name not in library.split_names]
    if missing:
        raise ConfigError(f"env.tasks = {tasks}: its library has no split {missing[0]}; give it some tasks")
    _warn_of_shared(library, tasks)
    return library


def _warn_of_shared(library: TaskLibrary, tasks: str) -> None:
    """Says so where a task that is held out has the parameters of one for training."""
    of = {name: set(map(tuple, library.parameters[library.split(name)].tolist())) for name in SPLITS}
    for name in SPLITS[1:]:
        if shared := of["train"] & of[name]:
            warnings.warn(
                f"env.tasks = {tasks}: {len(shared)} {name} tasks are training tasks, too, such as that of parameters "
                f"{list(min(shared))}; what is measured on them is no generalisation",
                stacklevel=3,
            )


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function names an argument, in its signature or in that of a ``**options: Unpack[...]``."""
    parameters = inspect.signature(function).parameters
    others = [parameter.name for parameter in parameters.values() if parameter.kind == parameter.VAR_KEYWORD]
    if name in parameters or not others:
        return name in parameters and name not in others
    try:
        hint = typing.get_type_hints(function).get(others[0])
    except NameError:  # of a type that is imported for checkers only
        return False
    named = typing.get_args(hint) if typing.get_origin(hint) is typing.Unpack else ()
    return any(name in getattr(options, "__annotations__", ()) for options in named)


def _taken(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _takes(function, name)}


def _tuples(values: Any) -> Any:
    """The same with tuples in place of lists, as arguments in Python are mostly written."""
    if isinstance(values, Mapping):
        return {name: _tuples(value) for name, value in values.items()}
    return tuple(map(_tuples, values)) if isinstance(values, (list, tuple)) else values


# env=gymnasium


def gymnasium_env(
    num_envs: int,
    *,
    env_id: str,
    set_task: str,
    subgoal: Mapping[str, Any],
    library: TaskLibrary,
    tasks: Tensor,
    horizon: int,
    goal: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    observation_keys: Sequence[str] | None = None,
    observation_low: Sequence[float] | None = None,
    observation_high: Sequence[float] | None = None,
    success_key: str | None = None,
    fails: bool = False,
    **options: Unpack[TasksOptions],
) -> GymnasiumTasksEnv:
    """An environment of Gymnasium's registry, whose tasks differ in what is set before a reset.

    Args:
        num_envs: number of rows, N.
        env_id: such as ``"Pendulum-v1"``, or ``"my_module:MyEnv-v0"``.
        set_task: ``module:function``, called as ``function(env, parameters)`` with the task's parameters, an array [P],
            right before each reset, whose options it may return; or the name of an attribute of the unwrapped
            environment, as ``"g"`` or ``"model.opt.timestep"``, that is set to the only parameter.
        subgoal: arguments of the :class:`~peach_trl.envs.GoalSpace` of subgoals: ``indices``, ``low``, ``high``,
            ``tolerance``, ``metric``.
        library: the tasks.
        tasks: ids of those that the rows play, [N].
        horizon: environment steps until truncation.
        goal: likewise of goals, where tasks are states to reach.
        arguments: of ``gymnasium.make``; ``render_mode`` is ``"rgb_array"`` where there is one, for videos.
        observation_keys: as of :class:`~peach_trl.envs.GymnasiumTasksEnv`.
        observation_low: likewise, a number for each entry of the observation.
        observation_high: likewise.
        success_key: likewise.
        fails: likewise.
        options: likewise.

    Examples:
        >>> library = listed_tasks(train=[5.0, 10.0], validation=[7.0], test=[15.0])
        >>> space = {"indices": [0, 1], "low": -1.0, "high": 1.0, "tolerance": 0.1}
        >>> tasks = library.split("train")
        >>> env = gymnasium_env(2, env_id="Pendulum-v1", set_task="g", subgoal=space, library=library, tasks=tasks,
        ...     horizon=200)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 3])
    """
    parameters = torch.full((int(library.source_ids.max()) + 1, library.parameters.shape[1]), torch.nan)
    parameters[library.source_ids] = library.parameters
    put = partial(_call if ":" in set_task else _set, set_task, parameters.numpy())
    low, high = (None if bound is None else torch.tensor(bound) for bound in (observation_low, observation_high))
    return GymnasiumTasksEnv(
        partial(gymnasium.make, env_id, **{"max_episode_steps": horizon, **_drawing(env_id), **(arguments or {})}),
        library,
        put,
        num_envs=num_envs,
        horizon=horizon,
        tasks=tasks,
        subgoal_space=GoalSpace(**subgoal),
        goal_space=None if goal is None else GoalSpace(**goal),
        observation_keys=observation_keys,
        observation_low=low,
        observation_high=high,
        success_key=success_key,
        fails=fails,
        **options,
    )


def _drawing(env_id: str) -> dict[str, Any]:
    """The argument by which an environment draws pictures, if it can."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry = gymnasium.spec(name).entry_point
    made: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    modes = getattr(made, "metadata", {}).get("render_modes", [])
    return {"render_mode": "rgb_array"} if "rgb_array" in modes else {}


def listed_tasks(
    train: Sequence[Any], validation: Sequence[Any], test: Sequence[Any], name: str = "tasks"
) -> TaskLibrary:
    """Tasks by their parameters: a number or a list of numbers each.

    Examples:
        >>> listed_tasks(train=[[0.0, 1.0], [1.0, 0.0]], validation=[[0.5, 0.5]], test=[[1.0, 1.0]])
        TaskLibrary(tasks: 4 tasks of 2 parameters; train: 2, validation: 1, test: 1)
    """
    splits, parameters = {}, []
    for split, listed in zip(SPLITS, (train, validation, test), strict=True):
        splits[split] = torch.arange(len(parameters), len(parameters) + len(listed))
        parameters += [[float(value) for value in (task if isinstance(task, Sequence) else [task])] for task in listed]
    if len(widths := sorted({len(values) for values in parameters})) > 1:
        raise ValueError(f"tasks of {' and '.join(map(str, widths))} parameters: give each as many")
    return TaskLibrary(torch.tensor(parameters), splits, name)


def _call(path: str, parameters: np.ndarray, env: gymnasium.Env, task: int) -> Any:
    return imported("env.options.set_task", path)(env, parameters[task])


def _set(path: str, parameters: np.ndarray, env: gymnasium.Env, task: int) -> None:
    if parameters.shape[1] != 1:
        raise ConfigError(
            f"env.options.set_task = {path}: an attribute takes one parameter, tasks have {parameters.shape[1]}; write "
            "a function(env, parameters), module:function"
        )
    *parents, name = path.split(".")
    target: Any = env.unwrapped
    for parent in parents:
        target = getattr(target, parent)
    if not hasattr(target, name):
        raise ConfigError(f"env.options.set_task = {path}: {type(target).__name__} has no {name}; name another")
    setattr(target, name, float(parameters[task, 0]))
