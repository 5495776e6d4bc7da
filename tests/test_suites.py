"""Task suites of other projects; each test needs an extra, and most need a virtual environment of its own."""

import pickle

import numpy as np
import pytest
import torch
from test_made import KEPT
from test_recipes import SECONDS, start
from torchrl.envs import check_env_specs

from peach_trl.envs.suites import (
    meta_world,
    meta_world_library,
    ogbench_maze,
    ogbench_maze_library,
    robotics_maze,
    robotics_maze_library,
)


@pytest.fixture
def metaworld():
    return pytest.importorskip("metaworld")


@pytest.fixture
def robotics():
    return pytest.importorskip("gymnasium_robotics")


@pytest.fixture
def ogbench():
    return pytest.importorskip("ogbench")


def splits(library):
    return {name: library.split(name).tolist() for name in library.split_names}


def apart(library):
    """Whether no two splits share a task's parameters."""
    rows = [{tuple(row) for row in library.parameters[library.split(name)].tolist()} for name in library.split_names]
    return len(set.union(*rows)) == sum(len(group) for group in rows)


def same_runs(make, steps, **arguments):
    def run(vectorization, seed=0):
        torch.manual_seed(3)
        np.random.seed(3 if vectorization == "sync" else 4)  # nothing may depend on it
        env = make(3, seed=seed, vectorization=vectorization, horizon=steps // 2, **arguments)
        result = env.rollout(steps, break_when_any_done=False)
        env.close()
        return result

    first = run("sync")
    assert first["next", "truncated"].sum() == 6
    return (first == run("sync")).all() and (first == run("async")).all(), first, run("sync", seed=1)


def reaches(env, drive, steps):
    """Drives row 0 to its goal; True if success, the goal space and the task's parameters always agree."""
    td, agree, reached = env.reset(), True, False
    for _ in range(steps):
        td = env.step(td.set("action", drive(td)))["next"]
        inside = env.goal_space.achieved(td["observation"], td["goal"])
        agree &= bool(torch.equal(inside, td["success"][:, 0]))
        reached |= bool(inside[0])
        if td["done"].any():
            break
    return agree, reached, td


# Meta-World.


def vectors(tasks):
    return [tuple(pickle.loads(task.data)["rand_vec"]) for task in tasks]


@pytest.mark.parametrize("name", ["reach-v3", "door-open-v3"])
def test_ml1_splits_are_the_benchmarks(metaworld, name):
    library = meta_world_library("ML1", name, task_seed=0)
    assert splits(library) == {
        "train": list(range(40)),
        "validation": list(range(40, 50)),
        "test": list(range(50, 100)),
    }
    benchmark = metaworld.ML1(name, seed=0)
    env = meta_world(2, task_name=name, library=library, tasks=[7, 60])
    env.reset()
    playing = [tuple(row.unwrapped._env._last_rand_vec) for row in env._vector.envs]
    assert playing == [vectors(benchmark.train_tasks)[7], vectors(benchmark.test_tasks)[10]]
    assert len(set(vectors(benchmark.train_tasks) + vectors(benchmark.test_tasks))) == 100
    assert apart(library)
    assert torch.equal(library.parameters, meta_world_library("ML1", name, task_seed=0).parameters)
    assert not torch.equal(library.parameters, meta_world_library("ML1", name, task_seed=5).parameters)
    assert "validation" not in meta_world_library("ML1", name, validation_goals=0).split_names


def test_ml10_tests_on_other_kinds_of_tasks(metaworld):
    library = meta_world_library("ML10")
    kinds = {name: set(library.parameters[library.split(name), 0].tolist()) for name in library.split_names}
    assert kinds["train"] == kinds["validation"] == set(range(10)) and kinds["test"] == set(range(10, 15))
    assert [len(library.split(name)) for name in library.split_names] == [400, 100, 250] and apart(library)
    benchmark = metaworld.ML10(seed=0)
    names = list(benchmark.train_classes) + list(benchmark.test_classes)
    env = meta_world(15, benchmark="ML10", library=library, tasks=range(3, 750, 50), horizon=4)
    rollout = env.rollout(9, break_when_any_done=False)
    for row in range(15):
        single = env._vector.envs[row].unwrapped
        assert (
            list(single._envs) == [names[row]]
            and type(single._env)
            is {
                **benchmark.train_classes,
                **benchmark.test_classes,
            }[names[row]]
        )
        tasks = benchmark.train_tasks + benchmark.test_tasks
        assert tuple(single._env._last_rand_vec) == vectors([tasks[3 + 50 * row]])[0]
    assert rollout["next", "truncated"][:, [3, 7]].all() and rollout["observation"][..., -3:].abs().sum() == 0


def test_ml1_specs_and_hidden_goals(metaworld):
    env = meta_world(3, seed=0)
    check_env_specs(env)
    rollout = env.rollout(5)
    assert rollout["observation"].shape == (3, 5, 39) and rollout["next", "observation"][..., -3:].abs().sum() == 0
    assert env.subgoal_space.low.tolist() == pytest.approx([-0.5, 0.4, 0.05])
    assert meta_world(1, task_name="door-open-v3").goal_space is None


def test_ml1_runs_repeat(metaworld):
    same, _, _ = same_runs(meta_world, 20)
    assert same


def test_ml1_episodes_of_a_task_start_alike(metaworld):
    env = meta_world(2, tasks=[0, 1])
    first = env.reset()
    env.rollout(30)
    assert torch.equal(first["observation"], env.reset()["observation"])
    full = meta_world(1, horizon=500, library=env.library, tasks=[0]).rollout(501, break_when_any_done=False)
    assert full["next", "truncated"][0, :, 0].nonzero().flatten().tolist() == [499]


def test_reach_goals_are_for_the_hand(metaworld):
    env = meta_world(2, tasks=[3, 55], observe_goal=True)

    def drive(td):
        return torch.nn.functional.pad(10 * (td["goal"] - td["observation"][:, :3]), (0, 1)).clamp(-1, 1)

    td = env.reset()
    for _ in range(200):
        td = env.step(td.set("action", drive(td)))["next"]
        distance = (td["goal"] - td["observation"][:, :3]).norm(dim=-1)
        clear = (distance - 0.05).abs() > 0.007
        assert torch.equal(distance[clear] <= 0.05, td["success"][clear, 0])
    assert env.goal_space.achieved(td["observation"], td["goal"]).all() and td["success"].all()
    assert distance.max() < 0.003


@pytest.mark.parametrize("name", ["push-v3", "pick-place-v3"])
def test_object_goals_agree_with_success(metaworld, name):
    env = meta_world(2, task_name=name, tasks=[3, 55], observe_goal=True)
    td = env.reset()
    for row, single in enumerate(env._vector.envs):
        assert single.unwrapped._env._target_pos == pytest.approx(td["goal"][row].numpy(), abs=1e-6)
    seen = set()
    for step in range(60):
        for row, single in enumerate(env._vector.envs):  # put the object by hand nearer and nearer to its goal
            place = td["goal"][row].numpy() + np.array([0.12 - 0.002 * step, 0.0, 0.0])
            single.unwrapped._env._set_obj_xyz(place.astype(np.float64))
        td = env.step(td.set("action", torch.zeros(2, 4)))["next"]
        assert torch.equal(env.goal_space.achieved(td["observation"], td["goal"]), td["success"][:, 0])
        seen.update(td["success"][:, 0].tolist())
    assert seen == {False, True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark": "ML45"}, "benchmark = 'ML45'"),
        ({"task_name": "reach-v2"}, "task_name = 'reach-v2'.*reach-v3"),
        ({"horizon": 501}, "horizon = 501"),
        ({"validation_goals": 50}, "validation_goals = 50"),
        ({"task_seed": -1}, "task_seed = -1"),
    ],
)
def test_meta_world_rejects(metaworld, arguments, message):
    with pytest.raises(ValueError, match=message):
        meta_world(1, **arguments)


# Gymnasium-Robotics.


@pytest.mark.parametrize(("env_id", "size"), [("PointMaze_UMaze-v3", 4), ("AntMaze_UMaze-v5", 107)])
def test_robotics_maze(robotics, env_id, size):
    env = robotics_maze(3, env_id=env_id, horizon=10, observe_goal=True, seed=0)
    check_env_specs(env)
    td = env.reset()
    assert td["observation"].shape == (3, size)
    for row, single in enumerate(env._vector.envs):
        maze = single.unwrapped
        assert maze.goal == pytest.approx(td["goal"][row].numpy(), abs=1e-6)
        assert maze.maze.cell_rowcol_to_xy(np.array([1, 1])) == pytest.approx(td["observation"][row, :2].numpy())
    same, _, _ = same_runs(robotics_maze, 20, env_id=env_id)
    assert same


def test_robotics_goals_hide_in_each_free_cell(robotics):
    library = robotics_maze_library("PointMaze_Medium-v3")
    assert [len(library.split(name)) for name in ("train", "validation", "test")] == [13, 6, 6] and apart(library)
    assert torch.equal(library.parameters, robotics_maze_library("PointMaze_Medium-v3").parameters)
    other = robotics_maze_library("PointMaze_Medium-v3", task_seed=1)
    assert not torch.equal(library.parameters, other.parameters)
    assert {tuple(p) for p in library.parameters.tolist()} == {tuple(p) for p in other.parameters.tolist()}
    more = robotics_maze_library("PointMaze_Medium-v3", validation_tasks=10)
    assert torch.equal(more.parameters[more.split("test")], library.parameters[library.split("test")])
    moved = robotics_maze(1, env_id="PointMaze_Medium-v3", start_cell=(6, 6)).reset()["observation"][0]
    assert moved.tolist() == [2.5, -2.5, 0.0, 0.0]


def test_robotics_success_is_the_goal_space(robotics):
    env = robotics_maze(2, env_id="PointMaze_Open-v3", tasks=[0, 1], observe_goal=True, horizon=300)

    def drive(td):
        return (3 * (td["goal"] - td["observation"][:, :2]) - td["observation"][:, 2:]).clamp(-1, 1)

    assert reaches(env, drive, 300)[:2] == (True, True)
    td = env.reset()
    for _ in range(299):  # the goal stays, and staying in it is rewarded
        td = env.step(td.set("action", drive(td)))["next"]
    assert td["reward"].tolist() == [[1.0], [1.0]] and not td["done"].any()
    assert (env._vector.envs[0].unwrapped.goal == td["goal"][0].numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "FetchReach-v4"}, "env_id = 'FetchReach-v4'"),
        ({"start_cell": (0, 0)}, r"start_cell = \(0, 0\)"),
        ({"test_tasks": 25}, "test_tasks = 25"),
        ({"validation_tasks": 0}, "validation_tasks = 0"),
    ],
)
def test_robotics_rejects(robotics, arguments, message):
    with pytest.raises(ValueError, match=message):
        robotics_maze(1, **arguments)


# OGBench.


@pytest.mark.parametrize(("env_id", "size"), [("pointmaze-medium-v0", 2), ("antmaze-medium-v0", 29)])
def test_ogbench_maze(ogbench, env_id, size):
    env = ogbench_maze(3, env_id=env_id, horizon=10, observe_goal=True, seed=0)
    check_env_specs(env)
    td = env.reset()
    assert td["observation"].shape == (3, size)
    for row, single in enumerate(env._vector.envs):
        assert single.unwrapped.cur_goal_xy == pytest.approx(td["goal"][row].tolist())
    same, first, other = same_runs(ogbench_maze, 20, env_id=env_id)
    starts = torch.cat([first["observation"][:, [0, 10], :2], other["observation"][:, [0, 10], :2]])
    assert same and len(starts.reshape(-1, 2).unique(dim=0)) == 12


def test_ogbench_tests_on_its_own_tasks(ogbench):
    library = ogbench_maze_library("pointmaze-medium-v0")
    own = [[20.0, 20.0], [20.0, 0.0], [4.0, 12.0], [0.0, 20.0], [0.0, 0.0]]
    assert library.parameters[library.split("test")].tolist() == own and apart(library)
    assert [len(library.split(name)) for name in ("train", "validation", "test")] == [16, 5, 5]
    assert torch.equal(library.parameters, ogbench_maze_library("pointmaze-medium-v0").parameters)
    assert not torch.equal(library.parameters, ogbench_maze_library("pointmaze-medium-v0", task_seed=1).parameters)
    env = ogbench_maze(5, library=library, split="test")
    start = env.reset()["observation"]
    wanted = torch.tensor([[0.0, 0.0], [0.0, 20.0], [8.0, 16.0], [16.0, 20.0], [20.0, 4.0]])
    assert (start - wanted).abs().max() <= 1.2 and (start != wanted).all()


@pytest.mark.parametrize("terminate", [False, True])
def test_ogbench_success_is_the_goal_space(ogbench, terminate):
    env = ogbench_maze(1, split="test", tasks=[2], observe_goal=True, terminate_at_goal=terminate, seed=0)
    path = iter(torch.tensor([[8.0, 20.0], [0.0, 20.0], [0.0, 12.0], [4.0, 12.0]]))
    target = [next(path)]

    def drive(td):
        if (td["observation"] - target[0]).norm() < 0.3:
            target[0] = next(path, target[0])
        return (5 * (target[0] - td["observation"])).clamp(-1, 1)

    agree, reached, td = reaches(env, drive, 300)
    assert agree and reached and td["terminated"].item() == terminate and td["reward"].item() == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "pointmaze-medium-navigate-v0"}, "env_id = 'pointmaze-medium-navigate-v0'"),
        ({"env_id": "pointmaze-medium-singletask-v0"}, "env_id"),
        ({"env_id": "cube-single-v0"}, "env_id"),
        ({"validation_tasks": 21}, "validation_tasks = 21"),
    ],
)
def test_ogbench_rejects(ogbench, arguments, message):
    with pytest.raises(ValueError, match=message):
        ogbench_maze(1, **arguments)


# Recipes.

MAZE = ["env.horizon=20", "train.meta_batch=2", *KEPT]


@pytest.mark.parametrize(
    ("extra", "changes"),
    [
        ("metaworld", ["env=MetaWorldML1", "env.options.validation_goals=45"]),
        pytest.param(
            *("metaworld", ["env=MetaWorldML10", "env.options.validation_goals=49"]), marks=pytest.mark.slow
        ),  # its copies hold all kinds of task, and take minutes to make
        ("robotics", ["env=robotics_maze", "env.options.env_id=PointMaze_UMaze-v3"]),
        ("ogbench", ["env=ogbench_maze"]),
    ],
)
def test_a_recipe_trains_and_tests(extra, changes, tmp_path, request):
    request.getfixturevalue(extra)
    seconds = 3600 if "env=MetaWorldML10" in changes else SECONDS
    (folder,) = start(tmp_path, "peach", *changes, *MAZE, plots=False, seconds=seconds)
    rows = (folder / "meta_test.csv").read_text().splitlines()
    assert len(rows) > 2 and rows[1].startswith("test,")
