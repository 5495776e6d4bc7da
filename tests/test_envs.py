"""Environments: goal spaces, task libraries, and the batched point."""

import dataclasses
import pickle
from functools import partial

import mujoco
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv, StepCounter, TransformedEnv, check_env_specs

from peach_trl.config import ConfigError
from peach_trl.envs import (
    GoalSpace,
    NotFiniteError,
    PointConfig,
    PointEnv,
    TaskLibrary,
    circle_tasks,
    half_circle_tasks,
    square_tasks,
)

CONFIG = PointConfig(
    arena=10.0,
    horizon=20,
    goals="half_circle",
    radius=8.0,
    goal_tolerance=2.5,
    subgoals="place",
    subgoal_tolerance=0.5,
    speed=0.25,
    frame_skip=5,
    train_tasks=30,
    validation_tasks=15,
    test_tasks=15,
    task_seed=0,
    threads=1,
    not_finite="truncate",
)


def with_action(td, action):
    return td.set("action", action.expand(*td.batch_size, 2).clone())


# Goal spaces.


def test_goal_space_box_and_euclidean():
    box = GoalSpace([0, 2], low=[-1.0, -2.0], high=[1.0, 4.0], tolerance=[0.5, 1.0], metric="box")
    observation = torch.tensor([0.0, 99.0, 0.0])
    assert box.dim == 2 and box.half_range.tolist() == [1.0, 3.0]
    goals = torch.tensor([[0.5, 1.0], [0.6, 0.0], [0.0, 1.1]])
    assert box.achieved(observation, goals).tolist() == [True, False, False]
    assert box.project(observation.expand(4, 5, 3)).shape == (4, 5, 2)
    ball = GoalSpace([1, 2], -5.0, 5.0, 5.0, "euclidean")
    goals = torch.tensor([[3.0, 4.0], [3.1, 4.0]])
    assert ball.achieved(torch.tensor([9.0, 0.0, 0.0]), goals).tolist() == [True, False]
    assert ball.tolerance.shape == () and ball.clip(torch.tensor([-6.0, 1.0])).tolist() == [-5.0, 1.0]
    assert repr(pickle.loads(pickle.dumps(ball))) == repr(ball)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": []}, "indices"),
        ({"indices": [-1, 0]}, "indices"),
        ({"indices": [1, 1]}, "indices"),
        ({"low": [0.0, 0.0, 0.0]}, "low"),
        ({"high": -1.0}, "raise high"),
        ({"high": float("inf")}, "high"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"metric": "euclidean", "tolerance": [1.0, 1.0]}, "one radius"),
        ({"metric": "cosine"}, "metric"),
    ],
)
def test_goal_space_rejects(change, message):
    good = {"indices": [0, 1], "low": -1.0, "high": 1.0, "tolerance": 0.1, "metric": "box"}
    GoalSpace(**good)
    with pytest.raises(ValueError, match=message):
        GoalSpace(**(good | change))


def test_goal_space_rejects_short_observations():
    with pytest.raises(ValueError, match="no entry 2"):
        GoalSpace([1, 2], -1.0, 1.0, 0.1).project(torch.zeros(3, 2))


# Task libraries.


def test_splits_are_disjoint_and_independent_of_each_others_sizes():
    small, large = half_circle_tasks(8.0, 5, 6, 7, seed=3), half_circle_tasks(8.0, 50, 6, 7, seed=3)
    for name in ("validation", "test"):
        assert torch.equal(small.parameters[small.split(name)], large.parameters[large.split(name)])
    ids = torch.cat([small.split(name) for name in small.split_names])
    assert ids.tolist() == list(range(18)) and len(small.parameters.unique(dim=0)) == 18
    assert torch.allclose(small.parameters.norm(dim=-1), torch.tensor(8.0)) and (small.parameters[:, 1] >= 0).all()
    assert torch.equal(small.parameters, half_circle_tasks(8.0, 5, 6, 7, seed=3).parameters)
    assert not torch.equal(small.parameters, half_circle_tasks(8.0, 5, 6, 7, seed=4).parameters)


def test_goals_of_a_circle_lie_one_in_each_arc():
    library = circle_tasks(8.0, 60, 6, 7, seed=0)
    for name in library.split_names:
        x, y = library.parameters[library.split(name)].double().T
        assert torch.hypot(x, y).tolist() == pytest.approx([8.0] * len(x))
        assert (torch.atan2(y, x) / (2 * torch.pi) % 1 * len(x)).floor().tolist() == list(range(len(x)))


def test_goals_of_a_square_lie_one_in_each_rectangle():
    library = square_tasks(5.0, 60, 6, 7, seed=0)
    for name, (columns, rows) in {"train": (10, 6), "validation": (3, 2), "test": (7, 1)}.items():
        goals = (library.parameters[library.split(name)].double() + 5) / 10 * torch.tensor([columns, rows])
        assert goals.floor().tolist() == [[x, y] for y in range(rows) for x in range(columns)]


@pytest.mark.parametrize(
    ("goals", "fingerprint"),
    [("half_circle", "e5034324ca346548"), ("circle", "8b2f07099ca19071"), ("square", "133027a721f0e8ab")],
)
def test_lists_of_tasks_are_pinned(goals, fingerprint):
    library = dataclasses.replace(CONFIG, goals=goals).make_library()
    assert library.name == {"half_circle": "HalfCircle-v2", "circle": "Circle-v1", "square": "Square-v1"}[goals]
    assert library.fingerprint() == fingerprint, "the same seed gives other tasks: raise the version in the name"
    assert PointEnv(dataclasses.replace(CONFIG, goals=goals), 2).library.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"a": [0, 1, 2], "b": [3, 2, 1]}, r"\[1, 2\]"),
        ({"a": [0, 4]}, r"\[4\] are out of range"),
        ({"a": [1, 1]}, r"\[1\] are given more than once"),
        ({"a": [0.5]}, "integers"),
        ({"a": [[0]]}, "1-D"),
    ],
)
def test_task_library_rejects(splits, message):
    with pytest.raises(ValueError, match=message):
        TaskLibrary(torch.zeros(4, 2), {name: torch.tensor(ids) for name, ids in splits.items()})


def test_subset_renumbers_and_remembers():
    library = half_circle_tasks(8.0, 5, 6, 7, seed=0)
    subset = library.subset([7, 2], repeats=2)
    assert subset.num_tasks == 4 and subset.source_ids.tolist() == [7, 7, 2, 2]
    assert subset.split("all").tolist() == [0, 1, 2, 3]
    assert torch.equal(subset.parameters, library.parameters[[7, 7, 2, 2]])
    with pytest.raises(KeyError, match="'all'"):
        subset.split("train")
    with pytest.raises(ValueError, match="repeats"):
        library.subset([0], repeats=0)


# The environment's contract.


@pytest.mark.parametrize("observe_goal", [False, True])
def test_specs(observe_goal):
    env = PointEnv(CONFIG, 3, observe_goal=observe_goal, seed=0)
    check_env_specs(env)
    assert ("goal" in env.reset().keys()) == observe_goal


def test_observe_goal_is_the_tasks_goal():
    env = PointEnv(CONFIG, 3, observe_goal=True, split="test")
    rollout = env.rollout(2)
    wanted = env.library.parameters[env.library.split("test")[:3]]
    assert torch.equal(rollout["goal"][:, 0], wanted) and torch.equal(rollout["next", "goal"][:, -1], wanted)


def test_same_seeds_same_rollouts():
    def rollout(seed, threads=1):
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIG, threads=threads)
        env = PointEnv(config, 4, task_order="random", seed=seed)
        return env.rollout(45, break_when_any_done=False)

    first, again, other, threaded = rollout(1), rollout(1), rollout(2), rollout(1, threads=2)
    assert (first == again).all() and (first == threaded).all()
    assert not torch.equal(first["task_id"], other["task_id"])


def test_set_seed_reseeds_the_draws_of_tasks():
    env = PointEnv(CONFIG, 16, task_order="random", seed=0)
    env.set_seed(5)
    first = env.reset()["task_id"]
    assert not torch.equal(first, env.reset()["task_id"])
    env.set_seed(5)
    assert torch.equal(first, env.reset()["task_id"])


def test_rows_equal_single_envs_and_plain_mujoco():
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(15, 3, 2, generator=generator) - 1
    env = PointEnv(CONFIG, 3)
    singles = [PointEnv(CONFIG, 1, tasks=[row]) for row in range(3)]
    plain = [mujoco.MjData(env.model) for _ in range(3)]
    td, tds = env.reset(), [single.reset() for single in singles]
    for action in actions:
        td = env.step(td.set("action", action))["next"]
        for row in range(3):
            tds[row] = singles[row].step(tds[row].set("action", action[row : row + 1]))["next"]
            assert torch.equal(td["observation"][row], tds[row]["observation"][0])
            plain[row].ctrl[:] = action[row].numpy()
            mujoco.mj_step(env.model, plain[row], nstep=5)
            values = np.concatenate([plain[row].qpos, plain[row].qvel * 0.1]).astype(np.float32)
            assert np.array_equal(td["observation"][row].numpy(), values)
    assert np.array_equal(env.simulation(1)[1].qpos, plain[1].qpos)
    assert td["observation"][:, :2].abs().min() > 0


def test_observations_are_not_views_of_the_simulator():
    env = PointEnv(CONFIG, 2)
    td = with_action(env.reset(), torch.ones(2))
    first = env.step(td)["next"]
    kept = first.clone()
    env.step(with_action(first.clone(), torch.ones(2)))
    env.reset(TensorDict(task_id=torch.tensor([5, 6]), batch_size=[2]))
    assert (first == kept).all() and kept["observation"].abs().sum() > 0


def test_each_row_is_rewarded_for_its_own_goal():
    library = TaskLibrary(torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]), {"train": torch.arange(3)})
    config = dataclasses.replace(CONFIG, goal_tolerance=1.0)
    rollout = PointEnv(config, 3, library=library).rollout(14, lambda td: with_action(td, torch.tensor([1.0, 0.0])))
    distance = (rollout["next", "observation"][..., :2] - library.parameters[:, None]).norm(dim=-1)
    assert torch.equal(rollout["next", "reward"][..., 0], (distance <= 1.0).float())
    assert rollout["next", "reward"][:, :, 0].amax(1).tolist() == [1.0, 0.0, 0.0]
    assert rollout["next", "reward"][0, 0] == 0.0


def test_truncates_at_the_horizon_of_each_row():
    env = PointEnv(CONFIG, 2)
    td = env.reset()
    for _ in range(7):
        td = env.step(with_action(td, torch.ones(2)))["next"]
    td["_reset"] = torch.tensor([[False], [True]])
    td = env.reset(td)
    for step in range(1, CONFIG.horizon + 1):
        td = env.step(with_action(td, torch.ones(2)))["next"]
        wanted = [[7 + step >= CONFIG.horizon], [step >= CONFIG.horizon]]
        assert td["truncated"].tolist() == td["done"].tolist() == wanted
        assert not td["terminated"].any()


def test_stepping_some_rows_leaves_the_others():
    env = PointEnv(CONFIG, 3)
    td = with_action(env.reset(), torch.ones(2))
    td["_step"] = torch.tensor([True, False, True])
    moved = env.step(td)["next", "observation"][:, 0] > 0
    assert moved.tolist() == [True, False, True]


# Task ids at reset.


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_full_reset_honours_task_ids(shape, order):
    env = PointEnv(CONFIG, 3, task_order=order, observe_goal=True, seed=0)
    ids = torch.tensor([9, 40, 2])
    td = env.reset(TensorDict(task_id=ids.reshape(shape), batch_size=[3]))
    assert td["task_id"][:, 0].tolist() == env.task_id.tolist() == [9, 40, 2]
    assert torch.equal(td["goal"], env.library.parameters[ids])
    again = env.reset()["task_id"][:, 0].tolist()
    assert (again == [9, 40, 2]) == (order == "fixed")


def test_partial_reset_sets_only_its_rows():
    env = PointEnv(CONFIG, 3)
    td = env.step(with_action(env.reset(), torch.ones(2)))["next"]
    before = td.clone()
    td.update({"_reset": torch.tensor([[False], [True], [False]]), "task_id": torch.tensor([[-7], [9], [1000]])})
    env.reset(td)
    assert env.task_id.tolist() == [0, 9, 2]
    after = env.step(with_action(before.clone(), torch.zeros(2)))["next", "observation"]
    assert after[1].abs().sum() == 0 and (after[[0, 2]] > before["observation"][[0, 2]]).any(-1).all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 1, 60]), r"task_id: ids \[60\]"),
        (torch.tensor([0, -1, 1]), r"task_id: ids \[-1\]"),
        (torch.tensor([0.0, 1.0, 2.0]), "task_id of dtype torch.float32"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), "task_id of dtype torch.int32"),
        (torch.zeros(3, 2, dtype=torch.int64), r"task_id of shape \(3, 2\)"),
    ],
)
def test_wrong_task_ids_raise(ids, message):
    env = PointEnv(CONFIG, 3)
    with pytest.raises(ValueError, match=message):
        env.reset(TensorDict(task_id=ids, batch_size=[3]))
    assert env.task_id.tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_collector_keeps_or_redraws_tasks(order, wrapped):
    env = PointEnv(CONFIG, 8, task_order=order, tasks=[3, 4, 5], seed=0)
    collector = Collector(
        TransformedEnv(env, StepCounter()) if wrapped else env, None, frames_per_batch=8 * 45, total_frames=8 * 45
    )
    (data,) = list(collector)
    collector.shutdown()
    ids, horizon = data["task_id"][..., 0], CONFIG.horizon
    assert data["next", "done"][:, [19, 39], 0].all() and data["next", "done"].sum() == 16
    assert torch.equal(data["next", "task_id"][..., 0], ids)  # a step stays within its task
    assert torch.isin(ids, torch.tensor([3, 4, 5])).all()
    episodes = ids[:, [0, horizon, 2 * horizon]]
    assert torch.equal(ids[:, :horizon], episodes[:, :1].expand(-1, horizon))
    assert data["observation"][:, [0, horizon, 2 * horizon]].abs().sum() == 0
    if order == "fixed":
        assert torch.equal(ids, torch.tensor([3, 4, 5, 3, 4, 5, 3, 4])[:, None].expand_as(ids))
    else:
        assert not torch.equal(episodes[:, 0], episodes[:, 1]) and not torch.equal(episodes[:, 1], episodes[:, 2])


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_automatic_reset_touches_only_the_rows_that_are_done(order):
    env = PointEnv(CONFIG, 64, task_order=order, seed=0)
    td = env.reset(TensorDict(task_id=torch.full((64,), 50), batch_size=[64]))
    for _ in range(5):
        td = env.step(with_action(td, torch.ones(2)))["next"]
    late = torch.arange(64) < 32
    td = env.reset(td.exclude("task_id").set("_reset", late[:, None]))  # no task id given: as an automatic reset
    kept = torch.full((64,), order == "fixed") | ~late
    assert torch.equal(env.task_id == 50, kept)
    for _ in range(CONFIG.horizon - 5):
        _, td = env.step_and_maybe_reset(with_action(td, torch.ones(2)))
    assert torch.equal(td["observation"].abs().sum(-1) == 0, ~late)
    assert torch.equal(td["task_id"][:, 0], env.task_id)
    assert torch.equal(env.task_id == 50, torch.full((64,), order == "fixed"))


def test_serial_env_of_batches_takes_task_ids():
    env = SerialEnv(2, partial(PointEnv, CONFIG, 3))
    ids = torch.tensor([[[1], [2], [3]], [[4], [5], [6]]])
    assert torch.equal(env.reset(TensorDict(task_id=ids, batch_size=[2, 3]))["task_id"], ids)
    env.close()


def test_factory_pickles():
    env = pickle.loads(pickle.dumps(partial(PointEnv, CONFIG, 2, library=PointEnv.make_library(CONFIG))))()
    assert env.rollout(2).shape == (2, 2)


# Physics.


@pytest.mark.parametrize("speed", [0.1, 0.25])
def test_terminal_speed_and_time_constant(speed):
    env = PointEnv(dataclasses.replace(CONFIG, speed=speed), 1)
    path = env.rollout(20, lambda td: with_action(td, torch.tensor([1.0, -1.0])))["next", "observation"][0]
    assert path[-1].tolist()[2:] == pytest.approx([speed, -speed], rel=0.01)
    assert (path[-1] - path[-2])[:2].tolist() == pytest.approx([speed, -speed], rel=0.01)
    assert 0.58 < path[1, 2] / speed < 0.68  # 1 - 1/e after two steps


@pytest.mark.parametrize(
    "change", [{}, {"speed": 1.0}, {"arena": 1.0, "radius": 0.5}, {"frame_skip": 2}, {"frame_skip": 10}]
)
def test_stays_in_the_arena_and_in_the_spec(change):
    config = dataclasses.replace(CONFIG, horizon=300, **change)
    env = PointEnv(config, 8)
    generator = torch.Generator().manual_seed(0)
    corner = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -0.3], [-1.0, 0.0]])
    td = env.reset()
    furthest = torch.zeros(4)
    for step in range(300):
        noise = 2 * torch.rand(4, 2, generator=generator) - 1
        held = corner if step < 150 else -corner
        td = env.step(td.set("action", torch.cat([held, noise.sign()])))["next"]
        assert env.observation_spec.is_in(td.select("observation", "task_id")), td["observation"]
        furthest = torch.maximum(furthest, td["observation"].abs().amax(0))
    assert furthest[0] >= config.arena - config.speed  # the limit was reached


def test_an_action_that_is_not_finite_steps_no_row():
    env = PointEnv(CONFIG, 3, tasks=[4, 5, 6], not_finite="truncate")
    td = env.step(with_action(env.reset(), torch.ones(2)))["next"]
    with pytest.raises(NotFiniteError, match=r'"action".*rows \[0\].*task ids \[4\].*steps \[2\]'):
        env.step(td.clone().set("action", torch.tensor([[float("nan"), 0.0], [0.0, 0.0], [0.0, 0.0]])))
    again = PointEnv(CONFIG, 3, tasks=[4, 5, 6])
    wanted = again.step(with_action(again.step(with_action(again.reset(), torch.ones(2)))["next"], torch.ones(2)))
    assert (env.step(with_action(td, torch.ones(2)))["next"] == wanted["next"]).all()


def test_a_broken_row_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs the broken simulation here
    env, whole = PointEnv(CONFIG, 3, tasks=[4, 5, 6]), PointEnv(CONFIG, 3, tasks=[4, 5, 6])
    td = env.step(with_action(env.reset(), torch.ones(2)))["next"]
    ahead = whole.step(with_action(whole.reset(), torch.ones(2)))["next"]
    env._qpos[1, 0] = np.nan
    with pytest.raises(NotFiniteError, match=r'"observation".*rows \[1\].*task ids \[5\].*steps \[2\]') as caught:
        env.step(with_action(td.clone(), torch.ones(2)))
    result = caught.value.tensordict
    ahead = whole.step(with_action(ahead, torch.ones(2)))["next"]
    others = torch.tensor([0, 2])
    assert (result[others] == ahead[others]).all()
    assert result["truncated"].flatten().tolist() == result["done"].flatten().tolist() == [False, True, False]
    assert torch.equal(result["observation"][1], td["observation"][1]) and result["reward"][1] == 0
    fresh = env.reset(result.exclude("task_id").set("_reset", result["done"]))
    assert fresh["observation"][1].abs().sum() == 0
    after = env.step(with_action(fresh, torch.ones(2)))["next"]
    assert (after[others] == whole.step(with_action(ahead, torch.ones(2)))["next"][others]).all()
    assert after["observation"][1, 0] > 0


def test_a_collector_goes_on_where_a_broken_row_is_truncated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    envs = [PointEnv(CONFIG, 3, not_finite="truncate") for _ in range(2)]
    steps = 0

    def sabotage(td):
        nonlocal steps
        steps += 1
        if steps == 8:  # the collector tries the policy once at first
            envs[0]._qpos[2] = np.inf
        return with_action(td, torch.ones(2))

    with pytest.warns(RuntimeWarning, match=r"rows \[2\], task ids \[2\], at steps \[7\]"):
        broken = next(iter(Collector(envs[0], sabotage, frames_per_batch=60, total_frames=60)))
    steps = 100
    sound = next(iter(Collector(envs[1], sabotage, frames_per_batch=60, total_frames=60)))
    assert (broken.exclude("collector")[:2] == sound.exclude("collector")[:2]).all()
    assert broken["next", "truncated"][2].flatten().nonzero().flatten().tolist() == [6]
    assert broken["observation"].isfinite().all() and broken["observation"][2, 7].abs().sum() == 0


def test_a_reward_that_is_not_finite_is_found():
    class Broken(PointEnv):
        def _reward(self, observation):
            return torch.where(observation[:, :1] > 0.1, torch.inf, 0.0)

    env = Broken(CONFIG, 2)
    action = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    td = env.step(env.reset().set("action", action))["next"]
    with pytest.raises(NotFiniteError, match=r'"reward".*rows \[1\].*steps \[2\]'):
        env.step(td.set("action", action))


def test_goals_out_of_reach_are_rejected():
    with pytest.raises(ConfigError, match="radius = 9.9"):
        dataclasses.replace(CONFIG, radius=9.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"num_envs": 2, "tasks": [60]}, r"tasks: ids \[60\]"),
        ({"num_envs": 2, "tasks": []}, "tasks of shape"),
        ({"num_envs": 2, "task_order": "sorted"}, "task_order"),
        ({"num_envs": 2, "not_finite": "ignore"}, "not_finite"),
        ({"num_envs": 2, "library": TaskLibrary(torch.zeros(1, 3), {"train": torch.tensor([0])})}, "2 parameters"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointEnv(CONFIG, **arguments)


def test_subgoals_of_the_point_may_be_whole_states():
    space = PointEnv(dataclasses.replace(CONFIG, subgoals="state"), 2).subgoal_space
    assert space.dim == 4 and space.metric == "box"
    torch.testing.assert_close(space.tolerance, torch.tensor([0.5, 0.5, 0.1, 0.1]))  # metres, metres a step
    moving = torch.tensor([[0.3, 0.0, 0.2, 0.0]])
    assert space.achieved(moving, torch.tensor([[0.0, 0.0, 0.15, 0.0]])) and not space.achieved(
        moving, torch.zeros(1, 4)
    )
