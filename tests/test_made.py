"""Environments that a configuration names: Gymnasium's by id, and those of a user's own module."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import TypedDict, Unpack

import pytest
import torch
from tensordict import TensorDict
from test_recipes import start
from tiny import ROOT, TINY
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from peach_trl.config import ConfigError
from peach_trl.envs import GoalSpace, MadeConfig, PointEnv, TaskLibrary
from peach_trl.envs.made import _takes, gymnasium_env, listed_tasks
from peach_trl.experiment import HacConfig, PeachConfig, make_agent, make_env, make_library
from peach_trl.utils import load_config

KEPT = [change for change in TINY if not change.startswith("env.")]
SHORT = ["env=gymnasium", "env.horizon=20", *KEPT]


OWN = """
make: own_world:make
tasks: own_world:tasks
horizon: 20
best_reward: 1.0
goal_size: 1.4
step_length: 0.25
not_finite: raise
options:
  size: 3
  goals: [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.5, 0.5], [0.1, 1.0]]
"""


def config_of(*changes, schema=PeachConfig, recipe="peach"):
    return load_config(schema, recipe, ROOT / "configs", [*SHORT, *changes])


def test_a_pendulum_by_its_id():
    config = config_of()
    assert isinstance(config.env, MadeConfig) and config.env.train_tasks == 16
    library = make_library(config)
    env = make_env(config, library, library.split("test"))
    assert env.library is library and env.horizon == 20 and env.subgoal_space.dim == 2
    batch = env.rollout(5)
    assert batch.shape == (4, 5)
    assert [copy.unwrapped.g for copy in env._vector.envs] == [3.5, 7.5, 11.5, 15.5]
    assert make_agent(config, library).hierarchy.proposal_dims == [1, 2]


@pytest.mark.parametrize("recipe", ["peach", "pearl"])
def test_a_run_on_a_pendulum(recipe, tmp_path):
    (folder,) = start(tmp_path, recipe, *SHORT, plots=False)
    rows = (folder / "meta_test.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 2 and (folder / "checkpoints" / "final.pt").is_file()


def test_tasks_are_set_by_function_or_attribute():
    library = listed_tasks(train=[[1.0, 0.5], [2.0, 0.7]], validation=[[3.0, 1.0]], test=[[4.0, 1.0]])
    space = {"indices": [0, 1], "low": -1.0, "high": 1.0, "tolerance": 0.1}
    arguments = {"env_id": "Pendulum-v1", "subgoal": space, "library": library, "horizon": 5}
    seen = []

    def put(env, parameters):
        env.unwrapped.g, env.unwrapped.m = map(float, parameters)
        seen.append(parameters.tolist())

    module = sys.modules["own_tasks"] = types.ModuleType("own_tasks")
    module.put = put
    env = gymnasium_env(2, set_task="own_tasks:put", tasks=library.split("train"), **arguments)
    env.reset()
    assert seen == [[1.0, 0.5], pytest.approx([2.0, 0.7])]
    with pytest.raises(ConfigError, match="tasks have 2"):
        gymnasium_env(1, set_task="g", tasks=library.split("train")[:1], **arguments).reset()
    one = listed_tasks(train=[1.0, 2.0], validation=[3.0], test=[4.0])
    with pytest.raises(ConfigError, match="PendulumEnv has no gravity"):
        gymnasium_env(1, set_task="gravity", tasks=torch.tensor([0]), **(arguments | {"library": one})).reset()
    part = one.repeat(2).subset([3, 6])  # test tasks of both agents: numbered anew, and still those tasks
    env = gymnasium_env(2, set_task="g", tasks=torch.tensor([0, 1]), **(arguments | {"library": part}))
    env.reset()
    assert [copy.unwrapped.g for copy in env._vector.envs] == part.parameters.flatten().tolist()


def test_a_module_of_ones_own(tmp_path):
    """A function for the environment and one for the tasks are all that is needed."""
    module = sys.modules["own_world"] = types.ModuleType("own_world")
    parts = config_of().env
    point = load_config(PeachConfig, "peach", ROOT / "configs", TINY).env

    def make(num_envs, *, library, tasks, horizon, size):
        assert horizon == parts.horizon and size == 3
        return PointEnv(point, num_envs, library=library, tasks=tasks)

    module.make, module.tasks = (
        make,
        lambda goals: TaskLibrary(
            torch.tensor(goals), {"train": torch.arange(3), "validation": torch.tensor([3]), "test": torch.tensor([4])}
        ),
    )
    own = ["env.make=own_world:make", "env.tasks=own_world:tasks"]
    with pytest.raises(ConfigError, match=r"env.options.env_id = .*: neither own_world:make nor own_world:tasks takes"):
        config_of(*own)  # the pendulum's options
    named = ["env=functions", *own, "+env.options.size=3", "+env.options.goals=[[1,0],[0,1],[-1,0],[0,-1],[1,1]]"]
    assert load_config(PeachConfig, "peach", overrides=named).env.options["size"] == 3
    group = tmp_path / "conf" / "env"
    group.mkdir(parents=True)
    (group / "own.yaml").write_text(OWN)
    (folder,) = start(tmp_path, "peach", "--config-dir", str(tmp_path / "conf"), "env=own", *KEPT, plots=False)
    assert (folder / "meta_test.csv").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("env.make=nowhere:make", r"env.make = 'nowhere:make': No module named 'nowhere'; write module:name"),
        ("env.tasks=peach_trl.envs:nothing", r"env.tasks = .*has no attribute 'nothing'"),
        ("+env.options.sizes=3", r"env.options.sizes = 3: neither .*gymnasium_env nor .*listed_tasks takes it"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config_of(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "env.options.env_id=Pendulun-v1",
            r"env.make = .*gymnasium_env, with env.options: NameNotFound: .*\.py, line \d",
        ),
        ("env.options.subgoal.low=[0.0]", r"env.make = .*, with env.options: ValueError: .*goal_space.py, line \d"),
        ("+env.options.subgoal.hight=[0.0]", r"env.make = .*: TypeError: .*unexpected keyword argument 'hight'"),
        (
            "env.options.train=[[1.0],[2.0,3.0]]",
            r"env.tasks = .*listed_tasks, with env.options: ValueError: tasks of 1 and 2 par",
        ),
    ],
)
def test_options_that_functions_cannot_use(change, message):
    with pytest.raises(ConfigError, match=message):
        config = config_of(change)
        make_env(config, make_library(config), torch.tensor([0]))


def test_held_out_tasks_that_are_trained_on():
    with pytest.warns(UserWarning, match=r"1 test tasks are training tasks, too, such as that of parameters \[5.0\]"):
        config_of("env.options.train=[4.0,5.0]", "env.options.test=[5.0,6.0]", "train.meta_batch=2").env.make_library()


def test_an_oracle_needs_goals():
    config = config_of("top.observe_goal=true", schema=HacConfig, recipe="hac")
    with pytest.raises(ConfigError, match=r"top.observe_goal = True: the tasks of this environment are no states"):
        make_agent(config, make_library(config))
    goal = "env.options.goal={indices: [0], low: -1.0, high: 1.0, tolerance: 0.1}"
    config = config_of("top.observe_goal=true", goal, schema=HacConfig, recipe="hac")
    assert make_agent(config, make_library(config)) and isinstance(
        make_env(config, make_library(config), torch.tensor([0])).goal_space, GoalSpace
    )


class Line(EnvBase):
    """A point on a line, as TorchRL's documentation has environments, with no more than recipes ask for."""

    def __init__(self, tasks, horizon):
        rows = len(tasks)
        super().__init__(batch_size=[rows])
        self.tasks, self.limit, self.subgoal_space = tasks.unsqueeze(-1), horizon, GoalSpace([0], -2.0, 2.0, 0.3)
        seen = {"observation": Unbounded((rows, 2)), "task_id": Unbounded((rows, 1), dtype=torch.int64)}
        self.observation_spec = Composite(seen, shape=[rows])
        self.action_spec, self.reward_spec = Bounded(-1, 1, (rows, 1)), Unbounded((rows, 1))
        flags = {key: Unbounded((rows, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=[rows])
        self.place, self.steps = torch.zeros(rows, 1), torch.zeros(rows, 1, dtype=torch.int64)

    def shown(self, **more):
        observation = torch.cat([self.place, self.place.sign()], -1)
        ends = self.steps >= self.limit
        flags = {"done": ends, "truncated": ends.clone(), "terminated": torch.zeros_like(ends)}
        return TensorDict({"observation": observation, "task_id": self.tasks.clone(), **flags, **more}, self.batch_size)

    def _reset(self, tensordict=None):
        rows = torch.ones_like(self.steps, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict.keys():
            rows = tensordict["_reset"].view_as(rows)
        self.place, self.steps = self.place.masked_fill(rows, 0), self.steps.masked_fill(rows, 0)
        return self.shown()

    def _step(self, tensordict):
        self.place, self.steps = (self.place + 0.2 * tensordict["action"]).clamp(-2, 2), self.steps + 1
        return self.shown(reward=(self.place > 1).float())

    def _set_seed(self, seed):
        return seed


@pytest.fixture
def line_world(tmp_path):
    """Options of a recipe that plays it, and its module."""
    module = sys.modules["own_world"] = types.ModuleType("own_world")
    splits = {"train": torch.arange(3), "validation": torch.tensor([3]), "test": torch.tensor([4])}
    module.tasks = lambda goals: TaskLibrary(torch.tensor(goals), splits)
    module.make = lambda num_envs, *, library, tasks, horizon, size: Line(tasks, horizon)
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "own.yaml").write_text(OWN)
    return module, ["--config-dir", str(tmp_path / "conf"), "env=own", *KEPT]


def test_an_environment_written_for_torchrl_alone(line_world, tmp_path):
    """It has neither horizon nor goals nor a library."""
    (folder,) = start(tmp_path, "peach", *line_world[1], plots=False)
    assert (folder / "meta_test.csv").is_file()


def test_an_environment_of_ones_own_starts_as_the_seed_says(line_world):
    """Also where its function takes no seed."""
    seeds = []

    class Draws(Line):
        def _set_seed(self, seed):
            seeds.append(seed)
            return seed

    module, _ = line_world
    module.make = lambda num_envs, *, library, tasks, horizon, size: Draws(tasks, horizon)
    options = {"size": 3, "goals": [[float(i), 0.0] for i in range(5)]}
    own = dataclasses.replace(config_of().env, make="own_world:make", tasks="own_world:tasks", options=options)
    own.make_env(own.make_library(), torch.arange(2), observe_goal=False, seed=5)
    assert seeds == [5]
    module.make = lambda num_envs, *, library, tasks, horizon, size, seed: Draws(tasks, horizon)
    own.make_env(own.make_library(), torch.arange(2), observe_goal=False, seed=6)  # it sees to that by itself
    assert seeds == [5]


def test_episodes_of_a_registered_environment_are_as_long_as_is_said():
    """The registry's own limit, 200 steps of the pendulum, does not cut them."""
    library = listed_tasks(train=[5.0], validation=[7.0], test=[15.0])
    space = {"indices": [0, 1], "low": -1.0, "high": 1.0, "tolerance": 0.1}
    options = {"env_id": "Pendulum-v1", "set_task": "g", "subgoal": space, "library": library}
    env = gymnasium_env(1, **options, tasks=library.split("train"), horizon=230)
    done = env.rollout(300)["next", "done"]
    assert done.shape == (1, 230, 1) and done[0, -1]


def test_annotations_of_functions_of_ones_own():
    def some(num_envs, **options: float | None):
        pass

    def named(num_envs, **options: Unpack[Named]):
        pass

    def unknown(num_envs, **options: NowhereToBeFound):  # noqa: F821
        pass

    assert [_takes(function, "size") for function in (some, named, unknown)] == [False, True, False]
    assert all(_takes(function, "num_envs") for function in (some, named, unknown))


class Named(TypedDict):
    size: int


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tasks, horizon: None, "it returned a NoneType; return a TorchRL environment"),
        (lambda tasks, horizon: Line(tasks[:1], horizon), "an environment of batch size [1], for"),
        (lambda tasks, horizon: without_ids(Line(tasks, horizon)), "its observation_spec has no 'task_id'; add it"),
    ],
)
def test_what_a_function_of_ones_own_makes_is_checked(line_world, tmp_path, capsys, make, message):
    module, arguments = line_world
    module.make = lambda num_envs, *, library, tasks, horizon, size: make(tasks, horizon)
    with pytest.raises(SystemExit) as end:
        start(tmp_path, "peach", *arguments, plots=False)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"env.make = own_world:make: {message}" in said


def without_ids(env):
    del env.observation_spec["task_id"]
    return env
