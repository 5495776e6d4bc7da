"""Any Gymnasium environment with tasks: what is right for a single one has to be right in each row of the batch."""

import pickle
import sys
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import check_env_specs

from peach_trl.envs import GoalSpace, NotFiniteError, TaskLibrary
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv
from peach_trl.envs.suites import meta_world, ogbench_maze, robotics_maze
from peach_trl.modules.views import View, find_view

GAINS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
LIBRARY = TaskLibrary(torch.tensor(GAINS)[:, None], {"train": torch.arange(4), "test": torch.tensor([4, 5])})
POSITION, STEPS, GAIN, RESETS, NOISE = range(5)


class Drift(gymnasium.Env):
    """Moves by gain * action and ends at 8 for good, or by itself after 30 steps; breaks in several ways below -1."""

    action_space = spaces.Box(-0.1, 1.0, (1,), np.float64)

    def __init__(self, kind="flat"):
        self.kind, self.gain, self.resets = kind, 0.0, 0
        box = spaces.Box(-np.inf, np.inf, (5,), np.float64)
        parts = {"observation": box, "achieved_goal": spaces.Discrete(99), "desired_goal": box}
        self.observation_space = spaces.Dict(parts) if kind == "dict" else box

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps, self.resets = 0.0, 0, self.resets + 1
        self.noise = self.np_random.uniform()
        if options is not None:
            self.gain = options["gain"]
        return self.observe(), {}

    def step(self, action):
        assert action.dtype == np.float64 and action in self.action_space
        self.position += self.gain * action[0]
        self.steps += 1
        reward = np.float64(self.position)
        if self.position < -1:
            reward = {"nan reward": np.nan, "huge reward": 1e300}.get(self.kind, reward)
        info = {} if self.steps % 2 else {"success": np.float64(self.position > 4), "else": object()}
        return self.observe(), reward, self.position > 8, self.steps >= 30, info

    def observe(self):
        position = np.nan if self.kind == "nan" and self.position < -1 else self.position
        if self.kind == "nan start" and self.gain == 3.0 and self.resets == 1:
            position = np.inf
        observation = np.array([position, self.steps, self.gain, self.resets, self.noise])
        if self.kind != "dict":
            return observation
        return {"desired_goal": observation + 7, "achieved_goal": self.steps, "observation": observation}


def set_gain(env, task):
    env.unwrapped.gain = GAINS[task]


def gain_option(env, task):
    return {"gain": GAINS[task]}


def make(kind="flat", num_envs=3, horizon=20, set_task=set_gain, library=LIBRARY, make_env=Drift, **arguments):
    make_env = partial(make_env, kind) if make_env is Drift else make_env
    return GymnasiumTasksEnv(
        make_env, library, set_task, num_envs=num_envs, horizon=horizon, **{"seed": 0, **arguments}
    )


def forces(*values):
    return torch.tensor(values)[:, None]


def step(env, td, *values):
    return env.step(td.set("action", forces(*values)))["next"]


# Specs and keys.


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("kind", ["flat", "dict"])
def test_specs(kind, vectorization):
    keys = ("observation", "achieved_goal") if kind == "dict" else None
    env = make(
        kind, observation_keys=keys, observe_goal=kind == "dict", success_key="success", vectorization=vectorization
    )
    check_env_specs(env)
    td = env.reset()
    assert ("goal" in td.keys()) == (kind == "dict") and td["observation"].dtype == torch.float32
    assert env.action_spec.low.tolist() == [[pytest.approx(-0.1)]] * 3 and env.action_spec.high.tolist() == [[1.0]] * 3
    env.close()


def test_dict_observations_are_concatenated_in_order_and_hide_the_goal():
    env = make("dict", observation_keys=("achieved_goal", "observation"), observe_goal=True)
    td = step(env, env.reset(), 1.0, 0.5, 1.0)
    assert td["observation"][:, :3].tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 3.0, 1.0]]
    assert td["observation"].shape == (3, 6) and td["goal"].tolist() == [[1.0], [2.0], [3.0]]


def test_declared_bounds_and_spaces_are_kept():
    low, high = torch.full((5,), -1e3), torch.full((5,), torch.inf)
    space = GoalSpace([0], -1.0, 9.0, 0.5)
    env = make(observation_low=low, observation_high=high, goal_space=space)
    check_env_specs(env)
    bounds = env.observation_spec["observation"]
    assert torch.equal(bounds.low[2], low) and torch.equal(bounds.high[0], high)
    assert env.goal_space is space and env.subgoal_space is None


def test_success_is_read_from_info_and_missing_means_no():
    env = make(success_key="success", num_envs=2, tasks=[0, 3])
    td, seen = env.reset(), []
    for _ in range(4):
        seen.append(td["success"][:, 0].tolist())
        td = step(env, td, 0.1, 0.6)
    seen.append(td["success"][:, 0].tolist())
    assert seen == [[False, False], [False, False], [False, True], [False, False], [False, True]]
    assert "success" not in make().reset().keys()


# Physics, ends and tasks, row by row.


def test_rows_equal_single_environments_of_gymnasium():
    library = TaskLibrary(torch.arange(3.0)[:, None], {"train": torch.arange(3)})
    horizon = 30
    env = make(
        make_env=partial(gymnasium.make, "InvertedPendulum-v5"), library=library, set_task=set_gravity, horizon=horizon
    )
    seeds = list(env._seeds)
    singles = [gymnasium.make("InvertedPendulum-v5") for _ in range(3)]
    td = env.reset()
    for row, single in enumerate(singles):
        set_gravity(single, row)
        assert np.array_equal(single.reset(seed=seeds[row])[0].astype(np.float32), td["observation"][row].numpy())
    generator, ends = torch.Generator().manual_seed(0), 0
    for _ in range(horizon - 1):
        action = 6 * torch.rand(3, 1, generator=generator) - 3
        td.set("action", action)
        td, root = env.step_and_maybe_reset(td)
        for row, single in enumerate(singles):
            observation, reward, terminated, _, _ = single.step(action[row].numpy())
            assert np.array_equal(observation.astype(np.float32), td["next", "observation"][row].numpy())
            assert td["next", "reward"][row].item() == np.float32(reward)
            assert td["next", "terminated"][row].item() == terminated == td["next", "done"][row].item()
            if terminated:
                ends += 1
                observation, _ = single.reset()
            assert np.array_equal(observation.astype(np.float32), root["observation"][row].numpy())
        td = root
    assert ends >= 3


def set_gravity(env, task):
    env.unwrapped.model.opt.gravity[:] = [0.0, 0.0, -9.81 * (1 + task)]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_terminal_observation_is_the_last_one_of_the_episode(vectorization):
    env = make(vectorization=vectorization)
    td = step(env, env.reset(), 0.1, 0.1, 1.0)
    td = step(env, td, 0.1, 0.1, 1.0)
    td.set("action", forces(0.1, 0.1, 1.0))
    td, root = env.step_and_maybe_reset(td)
    assert td["next", "terminated"][:, 0].tolist() == td["next", "done"][:, 0].tolist() == [False, False, True]
    assert not td["next", "truncated"].any() and td["next", "reward"][2].item() == 9.0
    assert td["next", "observation"][2, [POSITION, STEPS, RESETS]].tolist() == [9.0, 3.0, 1.0]
    assert root["observation"][2, [POSITION, STEPS, RESETS]].tolist() == [0.0, 0.0, 2.0]
    assert torch.equal(root["observation"][:2], td["next", "observation"][:2])
    env.close()


@pytest.mark.parametrize("horizon", [20, 99])
def test_truncates_at_the_horizon_of_each_row_or_when_the_environment_does(horizon):
    env = make(horizon=horizon, num_envs=2, tasks=[0])
    limit = min(horizon, 30)
    td = env.reset()
    for _ in range(7):
        td = step(env, td, 0.0, 0.0)
    td = env.reset(td.set("_reset", torch.tensor([[False], [True]])))
    for number in range(1, limit - 6):
        td = step(env, td, 0.0, 0.0)
        assert td["truncated"][:, 0].tolist() == td["done"][:, 0].tolist() == [7 + number >= limit, False]
    assert not td["terminated"].any()


@pytest.mark.parametrize("set_task", [set_gain, gain_option])
def test_tasks_are_set_in_the_rows_that_they_are_for(set_task):
    env = make(set_task=set_task)
    assert env.reset()["observation"][:, GAIN].tolist() == [1.0, 2.0, 3.0]
    td = env.reset(TensorDict(task_id=torch.tensor([5, 0, 4]), batch_size=[3]))
    assert td["observation"][:, GAIN].tolist() == [6.0, 1.0, 5.0] and env.task_id.tolist() == [5, 0, 4]
    td.update({"_reset": torch.tensor([[False], [True], [False]]), "task_id": torch.tensor([[-7], [3], [1000]])})
    td = step(env, env.reset(td), 0.5, 0.5, 0.5)
    assert td["observation"][:, POSITION].tolist() == [3.0, 2.0, 2.5] and td["task_id"][:, 0].tolist() == [5, 3, 4]


def test_subsets_of_a_library_play_the_tasks_that_they_are_made_of():
    env = make(library=LIBRARY.subset([5, 2], repeats=2), split="all", num_envs=4, observe_goal=True)
    td = env.reset()
    assert td["task_id"][:, 0].tolist() == [0, 1, 2, 3]
    assert td["observation"][:, GAIN].tolist() == td["goal"][:, 0].tolist() == [6.0, 6.0, 3.0, 3.0]


def test_fixed_and_random_order():
    assert make(num_envs=5).reset()["task_id"][:, 0].tolist() == [0, 1, 2, 3, 0]
    env = make(num_envs=64, task_order="random", split="test")
    first, second = env.reset()["task_id"], env.reset()["task_id"]
    assert set(first[:, 0].tolist()) == {4, 5} and not torch.equal(first, second)
    assert (env.tasks.tolist(), env.task_order) == ([4, 5], "random")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_partial_reset_touches_only_its_rows(vectorization):
    env = make(vectorization=vectorization)
    td = step(env, env.reset(), 0.5, 0.5, 0.5)
    before = td["observation"].clone()
    td = env.reset(td.exclude("task_id").set("_reset", torch.tensor([[False], [True], [False]])))
    assert torch.equal(td["observation"][[0, 2]], before[[0, 2]])
    assert td["observation"][1, [POSITION, STEPS, RESETS]].tolist() == [0.0, 0.0, 2.0]
    assert td["observation"][1, NOISE] != before[1, NOISE]  # drawn on, not seeded again
    td = step(env, td, 0.5, 0.5, 0.5)["observation"]
    assert td[:, POSITION].tolist() == [1.0, 1.0, 3.0] and td[:, STEPS].tolist() == [2.0, 1.0, 2.0]
    assert td[:, RESETS].tolist() == [1.0, 2.0, 1.0]
    env.close()


def test_stepping_some_rows_leaves_the_others():
    env = make(horizon=3)
    td = step(env, env.reset(), 0.5, 0.5, 0.5)
    td = step(env, td.set("_step", torch.tensor([True, False, True])), 0.5, float("nan"), 0.5)
    assert td["observation"][:, STEPS].tolist() == [2.0, 1.0, 2.0]
    assert td["reward"][:, 0].tolist() == [1.0, 0.0, 3.0] and td["observation"][1, POSITION] == 1.0
    td = step(env, td, 0.5, 0.5, 0.5)
    assert td["observation"][:, STEPS].tolist() == [3.0, 2.0, 3.0]
    assert td["truncated"][:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_row_that_ended_can_stand_still(vectorization):
    env = make(vectorization=vectorization, num_envs=2, tasks=[4])
    td = step(env, env.reset(), 0.2, 1.0)
    td = step(env, td, 0.2, 1.0)
    assert td["terminated"][:, 0].tolist() == [False, True]
    td = step(env, td.set("_step", torch.tensor([True, False])), 0.2, 1.0)
    assert td["terminated"][:, 0].tolist() == td["done"][:, 0].tolist() == [False, True]
    assert td["observation"][:, [POSITION, STEPS]].tolist() == [[3.0, 3.0], [10.0, 2.0]]
    env.close()


def test_rows_that_are_done_wait_for_their_reset():
    env = make(num_envs=2, horizon=1)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(TensorDict(action=forces(0.0, 0.0), batch_size=[2]))
    with pytest.raises(RuntimeError, match=r"rows \[1\] were never reset"):
        env.reset(TensorDict({"_reset": torch.tensor([[True], [False]])}, batch_size=[2]))
    td = step(env, env.reset(), 0.0, 0.0)
    td = env.reset(td.set("_reset", torch.tensor([[True], [False]])))
    assert td["done"][:, 0].tolist() == [False, True]
    with pytest.raises(RuntimeError, match=r"rows \[1\] are done"):
        step(env, td, 0.0, 0.0)
    td = step(env, td.set("_step", torch.tensor([True, False])), 0.0, 0.0)
    assert td["done"].all() and td["observation"][:, STEPS].tolist() == [1.0, 1.0]


def test_actions_are_clipped_to_the_bounds():
    env = make(num_envs=2, tasks=[0])
    assert step(env, env.reset(), 3.0, -3.0)["observation"][:, POSITION].tolist() == [1.0, pytest.approx(-0.1)]


def test_what_was_handed_out_has_no_ties_to_the_environment():
    env = make()
    td = env.reset()
    kept = td.clone()
    moved = step(env, td.clone(), 1.0, 1.0, 1.0)
    kept_moved = moved.clone()
    env.reset(TensorDict(task_id=torch.tensor([3, 3, 3]), batch_size=[3]))
    assert (td == kept).all() and (moved == kept_moved).all()
    td = env.reset()
    td.set("_step", torch.tensor([True, True, False]))
    td["observation"].fill_(100.0)
    assert step(env, td, 1.0, 1.0, 1.0)["observation"][2, POSITION] == 0


# Randomness.


def collect(vectorization="sync", seed=0, order="random"):
    torch.manual_seed(7)
    env = make(num_envs=4, vectorization=vectorization, seed=seed, task_order=order, success_key="success")
    collector = Collector(env, None, frames_per_batch=4 * 50, total_frames=4 * 50)
    (data,) = list(collector)
    collector.shutdown()
    return data.exclude("collector")


def test_sync_and_async_are_the_same_bit_for_bit():
    first, second = collect("sync"), collect("async")
    assert (first == second).all() and first["next", "done"].sum() >= 8
    assert first["next", "terminated"].any() and first["next", "truncated"].any()


def test_one_seed_one_run():
    first, again, other = collect(), collect(), collect(seed=1)
    assert (first == again).all()
    assert not torch.equal(first["task_id"], other["task_id"])
    assert not torch.equal(first["observation"][:, 0, NOISE], other["observation"][:, 0, NOISE])


def test_copies_are_seeded_apart_and_only_once():
    env = make(num_envs=4)
    noise = torch.stack([env.reset()["observation"][:, NOISE] for _ in range(3)])
    assert len(noise.unique()) == 12
    env.set_seed(5)
    first = env.reset()["observation"]
    env.set_seed(5)
    assert torch.equal(first[:, NOISE], env.reset()["observation"][:, NOISE])


def test_seed_none_follows_torch():
    def start(torch_seed):
        torch.manual_seed(torch_seed)
        return make(seed=None).reset()["observation"]

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


# Numbers that are not finite.


@pytest.mark.parametrize(("kind", "key"), [("nan", "observation"), ("nan reward", "reward"), ("huge reward", "reward")])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_broken_row_takes_no_other_with_it(kind, key, vectorization):
    env = make(kind, tasks=[1, 3, 2], vectorization=vectorization, success_key="success")
    td = env.reset()
    for _ in range(2):
        td = step(env, td, 0.5, -0.1, 0.5)
    with pytest.raises(NotFiniteError, match=rf'"{key}".*rows \[1\], task ids \[3\], at steps \[3\]') as caught:
        step(env, td.clone(), 0.5, -0.1, 0.5)
    result = caught.value.tensordict
    assert (caught.value.rows, caught.value.task_ids, caught.value.steps) == ([1], [3], [3])
    assert torch.equal(result["observation"][1], td["observation"][1]) and result["reward"][1] == 0
    assert result["observation"][:, POSITION].tolist() == [3.0, pytest.approx(-0.8), 4.5]
    assert result["reward"][[0, 2], 0].tolist() == [3.0, 4.5]
    assert result["truncated"][:, 0].tolist() == result["done"][:, 0].tolist() == [False, True, False]
    td = env.reset(result.set("_reset", result["done"]))
    td = step(env, td, 0.5, 0.5, 0.5)
    assert td["observation"][:, STEPS].tolist() == [4.0, 1.0, 4.0] and not td["done"].any()
    env.close()


def test_truncating_broken_rows_lets_a_rollout_go_on():
    env = make("nan", tasks=[1, 3, 2], not_finite="truncate")
    policy = lambda td: td.set("action", forces(0.1, -0.1, 0.1))  # noqa: E731
    with pytest.warns(RuntimeWarning, match=r'"observation".*rows \[1\]') as caught:
        rollout = env.rollout(9, policy, break_when_any_done=False)
    assert len([warning for warning in caught if warning.category is RuntimeWarning]) == 3
    assert rollout["next", "observation"].isfinite().all()
    assert rollout["next", "truncated"][1, :, 0].tolist() == [False, False, True] * 3
    assert not rollout["next", "done"][[0, 2]].any()


def test_a_broken_action_steps_nothing():
    env = make(not_finite="truncate")
    td = env.reset()
    with pytest.raises(NotFiniteError, match=r'"action".*rows \[2\], task ids \[2\], at steps \[1\]'):
        step(env, td.clone(), 0.5, 0.5, float("nan"))
    assert step(env, td, 0.5, 0.5, 0.5)["observation"][:, STEPS].tolist() == [1.0, 1.0, 1.0]


def test_a_broken_start_can_be_tried_again():
    env = make("nan start")
    with pytest.raises(NotFiniteError, match=r'"observation".*rows \[2\], task ids \[2\], at steps \[0\]') as caught:
        env.reset()
    td = caught.value.tensordict
    assert td["done"][:, 0].tolist() == [False, False, True]
    td = env.reset(td.set("_reset", td["done"]))
    assert td["observation"][:, RESETS].tolist() == [1.0, 1.0, 2.0]
    assert step(env, td, 0.5, 0.5, 0.5)["observation"][:, POSITION].tolist() == [0.5, 1.0, 1.5]


# Collectors, pickling, wrong arguments.


@pytest.mark.parametrize("vectorization", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_collects_in_worker_processes(vectorization):
    factory = partial(make, vectorization=vectorization, num_envs=2, horizon=5, library=LIBRARY)
    factory = pickle.loads(pickle.dumps(factory))
    collector = MultiSyncCollector([factory], None, frames_per_batch=[40], total_frames=40, cat_results=0)
    (data,) = list(collector)
    collector.shutdown()
    assert data.shape == (2, 20) and data["next", "done"][:, [4, 9, 14, 19]].all() and data["next", "done"].sum() == 8
    assert data["observation"][:, [0, 5, 10, 15], RESETS].tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_closing_and_going_on_makes_new_copies(vectorization):
    def starts():
        env = make(vectorization=vectorization)
        first = env.reset()["observation"]
        env.close()
        second = env.reset()["observation"]
        env.close()
        return torch.stack([first, second])

    first, again = starts(), starts()
    assert torch.equal(first, again) and len(first[..., NOISE].unique()) == 6
    assert (first[..., RESETS] == 1).all()


class Discrete(Drift):
    action_space = spaces.Discrete(3)


class Open(Drift):
    action_space = spaces.Box(-np.inf, np.inf, (1,))


class Words(Drift):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Text(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs = 0"),
        ({"horizon": 0}, "horizon = 0"),
        ({"tasks": [6]}, r"tasks: ids \[6\]"),
        ({"task_order": "sorted"}, "task_order = 'sorted'"),
        ({"not_finite": "ignore"}, "not_finite = 'ignore'"),
        ({"vectorization": "threads"}, "vectorization = 'threads'"),
        ({"kind": "dict"}, "among the entries of the observation, .*'achieved_goal'"),
        ({"kind": "dict", "observation_keys": ("obs",)}, r"observation_keys = \('obs',\)"),
        ({"kind": "dict", "observation_keys": ("observation", "desired_goal")}, "observe_goal=True"),
        ({"observation_keys": ("observation",)}, "no dict"),
        ({"observation_low": torch.zeros(5)}, "both or neither"),
        ({"observation_low": torch.zeros(4), "observation_high": torch.ones(4)}, r"observation_low of shape \(4,\)"),
        ({"make_env": Discrete}, "Box of floats"),
        ({"make_env": Open}, "finite bounds"),
        ({"make_env": Words}, "numeric"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_wrong_task_ids_raise_and_change_nothing():
    env = make()
    env.reset()
    with pytest.raises(ValueError, match=r"task_id: ids \[6\]"):
        env.reset(TensorDict(task_id=torch.tensor([0, 6, 1]), batch_size=[3]))
    assert env.task_id.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "module", "extra"),
    [
        (meta_world, "metaworld", "metaworld"),
        (robotics_maze, "gymnasium_robotics", "robotics"),
        (ogbench_maze, "ogbench", "ogbench"),
    ],
)
def test_suites_say_which_extra_they_need(call, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf'{module} cannot be imported: pip install "peach_trl\[{extra}\]"'
    ) as caught:
        call(2, task_seed=12345)
    assert ("mujoco 3.3.0" in str(caught.value)) == (extra == "metaworld")


def test_a_termination_or_a_break_is_a_failure_where_it_is_said_to_be():
    view = View(5, [POSITION])
    env = make("nan", tasks=[1, 3, 2], not_finite="truncate", fails=True, views={"body": view}, reads={"lower": "body"})
    check_env_specs(env)
    assert find_view(env, "lower") is view and find_view(env, "top") is None
    td = env.reset()
    for _ in range(2):
        td = env.step(td.set("action", forces(1.0, 1.0, 1.0)))["next"]
    assert td["failed"].flatten().tolist() == [False, False, False]
    td = env.step(td.set("action", forces(0.0, 1.0, -0.1)))["next"]  # the second is at 12, beyond 8
    assert td["terminated"].flatten().tolist() == td["failed"].flatten().tolist() == [False, True, False]
    mask = torch.tensor([[False], [True], [False]])
    td = env.reset(TensorDict({"_reset": mask}, [3]))
    assert not td["failed"].any()
    assert "failed" not in make().reset().keys()
