"""The task families as plain Gymnasium environments."""

import sys
import warnings
from functools import partial

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import PassiveEnvChecker
from tensordict import TensorDict
from tiny import tiny_config

from peach_trl.envs import GoalSpace, PointEnv, families
from peach_trl.envs.families.base import Spaces, TaskCounts, TaskFamily
from peach_trl.envs.gymnasium_api import FamilyGymnasiumEnv, register_families
from peach_trl.envs.video import render_row

XML = """
<mujoco>
  <worldbody>
    <body><joint name="x" type="slide" axis="1 0 0" damping="1"/><geom size="0.1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="x" gear="2" ctrllimited="true" ctrlrange="-3 1"/></actuator>
</mujoco>
"""


class Slider(TaskFamily):
    """Pushed along a line to a target that the task hides; it starts anywhere, and falls off at x > 1."""

    version = 2
    counts = TaskCounts(6, 2, 3)
    episode_steps = 20
    frame_skip = 10

    @classmethod
    def make_model(cls):
        return mujoco.MjModel.from_xml_string(XML)

    @staticmethod
    def draw_tasks(size, generator):
        return torch.rand(size, 1, generator=generator)

    @classmethod
    def make_spaces(cls, model):
        space = GoalSpace([0], -1.0, 1.0, 0.1)
        return Spaces(torch.tensor([-torch.inf, -50.0]), torch.tensor([torch.inf, 50.0]), space, space)

    def _bind(self, batch):
        self._qpos, self._qvel = batch.bind("qpos"), batch.bind("qvel")

    def _reset_state(self, rows):
        self._qpos[rows] = torch.rand(len(rows), 1, generator=self._generator).numpy() / 2

    def _observe(self, out):
        out[:, :1], out[:, 1:] = self._qpos, self._qvel

    def _reward(self, observation):
        return -(observation[:, :1] - self._goal).abs() - 0.1 * torch.from_numpy(self._ctrl).float()

    def _terminated(self, observation):
        return observation[:, :1] > 1

    def goal_position(self, goal, model, data):
        return np.array([goal[0], 0.0, 0.0])


NAME = "peach_trl/Slider-v2"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "Slider", Slider)
    register_families()
    yield
    gymnasium.registry.pop(NAME, None)


def make(**options):
    return gymnasium.make(NAME, **options).unwrapped


def rollout(env, seed, actions, options=None):
    """Everything that an episode returns, and the next one's start."""
    observation, info = env.reset(seed=seed, options=options)
    found = [observation, info["task_id"]]
    for action in actions:
        observation, *rest, info = env.step(action)
        found += [observation, *rest, info["task_id"]]
    observation, info = env.reset()
    return np.concatenate([np.ravel(value) for value in [*found, observation, info["task_id"]]])


ACTIONS = np.linspace(-1, 0.5, 5, dtype=np.float32)[:, None]


@pytest.mark.parametrize("observe_goal", [False, True])
def test_gymnasiums_own_checks_pass(observe_goal):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for harmless in ("infinity", "for normal usage"):
            warnings.filterwarnings("ignore", f".*{harmless}")
        check_env(make(observe_goal=observe_goal), skip_render_check=True)
        check_env(FamilyGymnasiumEnv(Slider, observe_goal=observe_goal), skip_render_check=True)


def test_it_is_registered_once_and_for_gymnasium_make():
    spec = gymnasium.registry[NAME]
    assert register_families()[-1] == NAME and gymnasium.registry[NAME] is spec  # no warning of an override either
    env = gymnasium.make(NAME, split="test", horizon=7)
    assert isinstance(env.unwrapped, FamilyGymnasiumEnv) and isinstance(env.unwrapped.batched, Slider)
    assert env.unwrapped.batched.horizon == 7
    wrapped = env
    while wrapped is not env.unwrapped and not isinstance(wrapped, PassiveEnvChecker):
        wrapped = wrapped.env
    assert isinstance(wrapped, PassiveEnvChecker)  # which checks each step of the next lines
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    env.close()


def test_specs_become_spaces():
    env = make()
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    low, high = np.array([[-np.inf, -50], [np.inf, 50]], np.float32)
    assert env.observation_space == gymnasium.spaces.Box(low, high, dtype=np.float32)
    known = make(observe_goal=True).observation_space
    assert list(known) == ["desired_goal", "observation"] and known["desired_goal"].shape == (1,)
    assert known["observation"] == env.observation_space
    assert env.metadata["render_fps"] == 50 and FamilyGymnasiumEnv.metadata["render_fps"] == 25


def test_types_of_what_a_step_returns():
    env = make()
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation.shape == (2,) and type(info["task_id"]) is int
    observation, reward, terminated, truncated, info = env.step([1.0])
    assert observation.dtype == np.float32 and observation.shape == (2,)
    assert [type(value) for value in (reward, terminated, truncated, info["task_id"])] == [float, bool, bool, int]
    later = env.step([1.0])[0]
    assert not np.shares_memory(observation, later) and (observation != later).all()


def test_it_is_a_row_of_the_batched_environment():
    """The same start and the same actions give the same numbers, also the rewards, whichever the task."""
    batch = Slider(num_envs=4, tasks=[0, 3, 7, 10], seed=5)
    td = batch.reset()
    starts = batch._qpos.copy()
    for row, task in enumerate([0, 3, 7, 10]):
        env = make(observe_goal=True)
        env.reset(seed=1, options={"task_id": task})
        env.batched._qpos[0] = starts[row]
        step = td.clone()
        for action in ACTIONS:
            batch_action = torch.from_numpy(action).expand(4, 1).clone()
            step = batch.step(step.set("action", batch_action))["next"]
            observation, reward, terminated, truncated, info = env.step(action)
            assert observation["observation"].tolist() == step["observation"][row].tolist()
            assert reward == step["reward"][row].item() and info == {"task_id": task}
            assert not terminated and not truncated
        assert observation["desired_goal"].tolist() == batch.library.parameters[task].tolist()
        td = batch.reset()
        batch._qpos[:] = starts


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_the_same_seed_gives_the_same_rollout(order):
    first, again, other = (rollout(make(task_order=order), seed, ACTIONS) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    env = make(task_order=order)
    rollout(env, 11, ACTIONS)
    assert np.array_equal(rollout(env, 3, ACTIONS), first)  # whatever came before


def test_seeds_do_not_touch_torch_and_none_is_random():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    starts = [make().reset()[0][0] for _ in range(4)]
    make().reset(seed=1)
    assert len(set(starts)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_tasks_of_the_split_are_drawn_or_kept():
    env = make(split="test")
    drawn = [env.reset(seed=0 if i == 0 else None)[1]["task_id"] for i in range(40)]
    assert set(drawn) == {8, 9, 10}
    env = make(tasks=[2, 4], task_order="fixed")
    assert [env.reset()[1]["task_id"] for _ in range(3)] == [2, 2, 2]
    assert env.reset(options={"task_id": np.int64(4)})[1] == {"task_id": 4}
    assert [env.reset(options={})[1]["task_id"], env.step([0.0])[4]["task_id"]] == [4, 4]


def test_the_task_decides_the_reward_and_may_come_from_another_split():
    env, goals = make(), Slider.make_library().parameters
    for task in (0, 6, 10):
        observation, info = env.reset(options={"task_id": task})
        observation, reward, *_ = env.step([0.0])
        assert reward == pytest.approx(-abs(observation[0] - goals[task].item()) + 0.1, abs=1e-5)  # control -1


def test_truncated_at_the_horizon_and_terminated_by_the_family():
    env = make(horizon=4)
    for _ in range(2):  # a reset starts the count again
        env.reset(seed=0)
        ends = [env.step([-0.5])[2:4] for _ in range(4)]
        assert ends == [(False, False)] * 3 + [(False, True)]
    env = make(horizon=1000)
    env.reset(seed=0)
    for _ in range(1000):
        observation, _, terminated, truncated, _ = env.step([1.0])
        assert terminated == (observation[0] > 1) and not truncated
        if terminated:
            return
    raise AssertionError("it never fell off")


@pytest.mark.parametrize(("action", "control"), [(-1.0, -3.0), (0.0, -1.0), (0.5, 0.0), (1.0, 1.0)])
def test_actions_stand_for_the_range_of_the_actuator(action, control):
    env = make()
    env.reset(seed=0)
    env.step(np.array([action], dtype=np.float64))
    assert env.batched._ctrl[0, 0] == control
    model = Slider.make_model()
    data = mujoco.MjData(model)
    data.ctrl[:] = control
    mujoco.mj_step(model, data, 10)
    assert env.batched._qvel[0, 0] == pytest.approx(data.qvel[0], abs=1e-12)


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_gymnasiums_vector_environments(mode):
    envs = gymnasium.make_vec(NAME, 3, vectorization_mode=mode, family=Slider, split="test", horizon=5)
    try:
        observation, info = envs.reset(seed=[1, 2, 1])
        assert observation.shape == (3, 2) and info["task_id"].dtype.kind == "i"
        assert np.array_equal(observation[0], observation[2]) and not np.array_equal(observation[0], observation[1])
        for step in range(1, 6):
            observation, reward, terminated, truncated, info = envs.step(np.zeros((3, 1), np.float32))
            assert truncated.tolist() == [step == 5] * 3 and reward.shape == (3,)
        assert np.array_equal(observation[0], observation[2])
        single = make(split="test", horizon=5)
        single.reset(seed=2)
        for _ in range(5):
            last = single.step([0.0])[0]
        assert np.array_equal(observation[1], last)
        assert envs.reset(options={"task_id": 9})[1]["task_id"].tolist() == [9, 9, 9]
    finally:
        envs.close()


def test_any_batched_environment():
    env = FamilyGymnasiumEnv(partial(PointEnv, tiny_config().env), split="test", observe_goal=True)
    observation, info = env.reset(seed=0, options={"task_id": 6})
    goal = env.batched.library.parameters[6].numpy()
    assert np.array_equal(observation["desired_goal"], goal) and observation in env.observation_space
    for _ in range(20):
        observation, reward, terminated, truncated, _ = env.step(np.sign(goal - observation["observation"][:2]))
    assert truncated and not terminated and reward == 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: FamilyGymnasiumEnv("Nothing"),
            ValueError,
            "family = 'Nothing': unknown; the families are AntDir, AntFour",
        ),
        (lambda: make(split="all"), KeyError, "split 'all' is unknown"),
        (lambda: FamilyGymnasiumEnv(Slider, render_mode="human"), ValueError, "render_mode = 'human'"),
        (lambda: make().reset(options={"task_id": 11}), ValueError, r"task_id: ids \[11\]"),
        (lambda: make().reset(options={"task_id": 1.5}), TypeError, "float"),
        (lambda: make().reset(options={"task": 1}), ValueError, r"\['task'\] are unknown"),
        (lambda: make().step([0.0, 0.0]), ValueError, r"action of shape \(2,\): must be \(1,\)"),
        (lambda: make().step(0.0), ValueError, r"action of shape \(\): must be \(1,\)"),
        (lambda: make().step([np.nan]), FloatingPointError, '"action" is not finite'),
    ],
)
def test_wrong_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_pictures():
    env = make(render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0, options={"task_id": 3})
    try:
        frame = env.render()
    except RuntimeError as error:
        pytest.skip(f"no OpenGL for MuJoCo on this machine: {error}")
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8 and len(np.unique(frame)) > 10
    batch = Slider(num_envs=1, seed=0)
    batch.reset(TensorDict(task_id=torch.tensor([3]), batch_size=[1]))
    batch._qpos[:] = env.batched._qpos
    assert np.array_equal(frame, render_row(batch, width=64, height=48))
    for _ in range(5):
        env.step([-1.0])
    assert (env.render() != frame).any()
    env.close()
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert make().render() is None


def test_gymnasium_imports_the_module_by_itself(monkeypatch):
    module = FamilyGymnasiumEnv.__module__
    monkeypatch.delitem(sys.modules, module)
    del gymnasium.registry[NAME]
    env = gymnasium.make(f"{module}:{NAME}", split="test")
    assert env.reset(seed=0)[1]["task_id"] in (8, 9, 10)
