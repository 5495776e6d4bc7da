"""The task families of Hierarchical Actor-Critic: Pendulum, UR5Reacher, AntReacher and AntFourRooms."""

import math
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from peach_trl.envs.families.hac_ant import AntFourRooms, AntReacher
from peach_trl.envs.families.hac_pendulum import Pendulum
from peach_trl.envs.families.hac_ur5 import UR5Reacher

FAMILIES = [Pendulum, UR5Reacher, AntReacher, AntFourRooms]
ANTS = [AntReacher, AntFourRooms]
PI, DEGREE = math.pi, math.pi / 180
every_family = pytest.mark.parametrize("family", FAMILIES)


def step(env, td, action):
    return env.step(td.set("action", action.expand(*td.batch_size, -1).clone()))["next"]


def uniform(env, generator):
    return 2 * torch.rand(env.batch_size[0], env.model.nu, generator=generator) - 1


# The contract of environments.


@every_family
def test_specs(family):
    check_env_specs(family(2, seed=0, horizon=4))
    check_env_specs(family(2, seed=0, horizon=4, observe_goal=True))


@every_family
def test_goal_is_shown_when_known_only(family):
    hidden, known = family(3, split="test", seed=0), family(3, split="test", seed=0, observe_goal=True)
    first, second = hidden.reset(), known.reset()
    assert "goal" not in first.keys() and torch.equal(first["observation"], second["observation"])
    goals = known.library.parameters[known.library.split("test")[:3]]
    assert torch.equal(second["goal"], goals)
    assert torch.equal(step(known, second, torch.zeros(known.model.nu))["goal"], goals)
    assert first["observation"].shape[1] == {Pendulum: 4, UR5Reacher: 6}.get(family, 29)


@every_family
def test_hidden_goal_leaves_no_trace(family):
    def path(tasks):
        env = family(2, seed=0, tasks=tasks)
        td = env.reset()
        if family in ANTS:  # their starts depend on the goal, as published
            env._qpos[:, :2] = [[4.0, 4.0], [-4.0, 5.0]]
        return torch.stack([(td := step(env, td, torch.ones(env.model.nu)))["observation"] for _ in range(5)])

    assert torch.equal(path([0, 1]), path([2, 3]))


@every_family
def test_same_seed_same_rollout(family):
    def rollout(seed, threads=1):
        torch.manual_seed(0)
        env = family(3, seed=seed, threads=threads, horizon=4, task_order="random")
        return env.rollout(10, break_when_any_done=False)

    first, again, threaded, other = rollout(1), rollout(1), rollout(1, threads=2), rollout(2)
    assert (first == again).all() and (first == threaded).all()
    assert not torch.equal(first["task_id"], other["task_id"])
    assert not torch.equal(first["observation"][:, 0], other["observation"][:, 0])
    assert first["next", "truncated"][:, [3, 7], 0].all() and not first["next", "terminated"].any()
    assert first["next", "done"].sum() == 6
    starts = first["observation"][:, [0, 4, 8]]
    assert not torch.equal(starts[:, 0], starts[:, 1])  # a new start at each reset


@every_family
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_observation_equals_plain_mujoco(family, rows, threads):
    env = family(rows, seed=0, threads=threads)
    td = env.reset()
    model, scale = env.model, env.model.actuator_ctrlrange[:, 1]
    datas = [mujoco.MjData(model) for _ in range(rows)]
    for row, data in enumerate(datas):
        data.qpos[:], data.qvel[:] = env._qpos[row], env._qvel[row]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        action = uniform(env, generator)
        td = step(env, td, action)
        for row, data in enumerate(datas):
            data.ctrl[:] = action[row].double().numpy() * scale
            mujoco.mj_step(model, data, env.frame_skip)
            assert np.array_equal(td["observation"][row].numpy(), observed(family, data)), (row, td["observation"])


def observed(family, data):
    """The observation, written down once more."""
    q, v = data.qpos, data.qvel
    if family is Pendulum:
        turned = q[0] % (2 * PI)  # the source's bound_angle
        angle = turned - 2 * PI if turned > PI else turned
        return np.array([math.cos(q[0]), math.sin(q[0]), angle, v[0]], dtype=np.float32)
    if family is UR5Reacher:
        q = np.sign(q) * (np.abs(q) % (2 * PI))  # the source's bound_angle
    return np.concatenate([q, v]).astype(np.float32)


# The published values.

TIMES = dict(zip(FAMILIES, [(0.002, 10, 1000), (0.002, 15, 600), (0.02, 15, 500), (0.02, 15, 700)], strict=True))
SPACES = {  # entries, low, high and tolerance, of goals and of subgoals
    Pendulum: (
        ((2, 3), [-16 * DEGREE, -0.6], [16 * DEGREE, 0.6], [9.5 * DEGREE, 0.6]),
        ((2, 3), [-PI, -15], [PI, 15], [9.5 * DEGREE, 0.6]),
    ),
    UR5Reacher: (
        ((0, 1, 2), [-PI, -PI / 4, -PI / 4], [PI, 0, PI / 4], [10 * DEGREE] * 3),
        ((0, 1, 2, 3, 4, 5), [-2 * PI] * 3 + [-4] * 3, [2 * PI] * 3 + [4] * 3, [10 * DEGREE] * 3 + [2] * 3),
    ),
    AntReacher: (
        ((0, 1, 2), [-9.5, -9.5, 0.45], [9.5, 9.5, 0.55], [0.5, 0.5, 0.2]),
        ((0, 1, 2, 15, 16), [-11.75, -11.75, 0, -3, -3], [11.75, 11.75, 1, 3, 3], [0.5, 0.5, 0.2, 0.5, 0.5]),
    ),
    AntFourRooms: (
        ((0, 1, 2), [-6.5, -6.5, 0.45], [6.5, 6.5, 0.55], [0.4, 0.4, 0.2]),
        ((0, 1, 2, 15, 16), [-8, -8, 0, -3, -3], [8, 8, 1, 3, 3], [0.4, 0.4, 0.2, 0.8, 0.8]),
    ),
}


@every_family
def test_published_goal_spaces(family):
    env = family(1)
    for space, (indices, *numbers) in zip((env.goal_space, env.subgoal_space), SPACES[family], strict=True):
        assert space.metric == "box" and space.indices == indices
        for found, wanted in zip((space.low, space.high, space.tolerance), numbers, strict=True):
            assert found.tolist() == pytest.approx(wanted)


@every_family
def test_published_times(family):
    env, (timestep, frames, horizon) = family(1), TIMES[family]
    assert env.model.opt.timestep == timestep and env.dt == pytest.approx(timestep * frames) and env.horizon == horizon
    env.reset()
    env.step(env.rand_action())
    assert env.simulation(0)[1].time == pytest.approx(env.dt)


def test_published_bodies():
    pendulum, ur5 = Pendulum.make_model(), UR5Reacher.make_model()
    assert pendulum.body("pole").mass == 1 and pendulum.body("pole").ipos.tolist() == [0, 0, 0.5]
    assert pendulum.actuator_ctrlrange.tolist() == [[-2, 2]] and pendulum.dof_damping.tolist() == [0.1]
    assert [ur5.body(name).mass[0] for name in ("shoulder", "upper_arm", "forearm")] == [3.7, 8.393, 2.275]
    assert ur5.actuator_ctrlrange[:, 1].tolist() == [3.15, 5, 3.15] and ur5.dof_damping.tolist() == [10] * 3
    assert ur5.actuator_gainprm[:, 0].tolist() == [10] * 3 and ur5.actuator_biasprm[:, 2].tolist() == [-10] * 3
    assert not ur5.jnt_limited.any()
    assert AntReacher.make_model().actuator_gear[:, 0].tolist() == [16] * 8
    assert AntFourRooms.make_model().actuator_gear[:, 0].tolist() == [15] * 8


def test_ant_moves_as_the_published_body():
    # The source's ant is gymnasium's with weaker motors and a longer timestep.
    text = (Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml").read_text()
    text = text.replace('gear="150"', 'gear="16"').replace('timestep="0.01"', 'timestep="0.02"')
    models = [mujoco.MjModel.from_xml_string(text), AntReacher.make_model()]
    assert [models[0].jnt(i).name for i in range(1, 9)] == [models[1].jnt(i).name for i in range(1, 9)]
    datas = [mujoco.MjData(model) for model in models]
    generator = np.random.default_rng(0)
    for _ in range(10):
        control = generator.uniform(-1, 1, 8)
        for model, data in zip(models, datas, strict=True):
            data.ctrl[:] = control
            mujoco.mj_step(model, data, 15)
    assert np.abs(datas[0].qpos[:2]).max() > 0.1
    np.testing.assert_allclose(datas[0].qpos, datas[1].qpos, atol=1e-9)


@every_family
def test_model_compiles_silently(family, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    family(2, seed=0).rollout(3)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


# Tasks.


@every_family
def test_tasks_are_pinned(family):
    library = family.make_library()
    pinned = ["cb315df8d3afcb97", "c4abf14114a64e8a", "131731d4641d4b8b", "d849e9c634a1d612"]
    assert library.fingerprint() == pinned[FAMILIES.index(family)] and library.name == f"{family.__name__}-v1"
    assert [len(library.split(name)) for name in ("train", "validation", "test")] == [100, 30, 30]
    assert family.make_library(seed=1).fingerprint() not in pinned


@every_family
def test_goals_fill_their_bounds(family):
    goals, space = family.make_library(1000, 1, 1).parameters, family(1).goal_space
    assert len(goals.unique(dim=0)) == len(goals)
    assert (goals >= space.low).all() and (goals <= space.high).all()
    share = (goals - space.low) / (space.high - space.low)
    assert (share.amin(0) < 0.02).all() and (share.amax(0) > 0.98).all()


def test_ur5_goals_are_within_reach():
    env = UR5Reacher(1)
    model, data = env.model, mujoco.MjData(env.model)
    goals = UR5Reacher.make_library().parameters.double().numpy()
    assert (np.abs(goals[:, 0]) > PI / 4).all()
    heights = []
    for goal in goals:
        data.qpos[:] = goal
        mujoco.mj_kinematics(model, data)
        heights.append([data.body("forearm").xpos[2], data.site("wrist").xpos[2]])
        assert np.allclose(env.goal_position(goal, model, mujoco.MjData(model)), data.site("wrist").xpos)
    assert 0.05 < np.min(heights, 0)[0] < 0.15 < np.min(heights, 0)[1] < 0.25  # both heights of the source are tried
    raised = env.goal_position(np.array([0.0, -PI / 2, 0.0]), model, data)  # the arm points up
    assert raised == pytest.approx([0, 0.13585 - 0.1197, 0.089159 + 0.425 + 0.39225], abs=1e-6)


def test_four_rooms_have_walls_doors_and_goals_off_the_walls():
    model = AntFourRooms.make_model()
    walls = [model.geom(i) for i in range(model.ngeom) if model.geom(i).name.startswith("wall")]

    def in_wall(points, margin=0.0):
        return np.any([(np.abs(points - wall.pos[:2]) < wall.size[:2] + margin).all(-1) for wall in walls], axis=0)

    points = np.stack(np.meshgrid(np.arange(-8.4, 8.5, 0.1), np.arange(-8.4, 8.5, 0.1)), -1) + 0.01
    nearer, farther = np.abs(points).min(-1), np.abs(points).max(-1)
    door = (farther > 3.5) & (farther < 6.5)
    assert np.array_equal(in_wall(points), (farther > 8) | (nearer < 0.5) & ~door)
    goals = AntFourRooms.make_library(200, 1, 1).parameters.numpy()[:, :2]
    assert not in_wall(goals, margin=0.25 + 0.5).any()  # the torso's radius, and half a metre
    assert len(np.unique(goals > 0, axis=0)) == 4 and (np.abs(goals) >= 3).all()


def test_pendulum_goal_position_is_the_bob():
    env = Pendulum(1)
    model, data = env.simulation(0)
    assert env.goal_position(np.array([PI / 2, 3.0]), model, data) == pytest.approx([0.5, 0, 0.6])
    assert env.goal_position(np.array([0.0, 0.0]), model, data) == pytest.approx([0, 0, 1.1])


# Reward.


@every_family
def test_reward_is_one_at_the_goal(family):
    env = family(4, seed=0, observe_goal=True)
    td = env.reset()
    goal = td["goal"].double().numpy()
    if family is Pendulum:
        env._qpos[:, 0], env._qvel[:, 0] = goal[:, 0] + 6 * PI, goal[:, 1]
    elif family is UR5Reacher:
        env._qpos[:] = goal
    else:
        env._qpos[:, :2] = goal[:, :2]
    env._qpos[2:, 0] += np.array([1.5, -1.5]) * env.goal_space.tolerance[0].item()
    td = step(env, td, torch.zeros(env.model.nu))
    assert td["reward"][:, 0].tolist() == [1, 1, 0, 0]
    assert torch.equal(env.goal_space.achieved(td["observation"], td["goal"]), td["reward"][:, 0] == 1)


# Starts.


def test_pendulum_starts():
    observation = Pendulum(500, seed=0).reset()["observation"]
    angle = observation[:, 2] % (2 * PI)
    assert PI / 4 <= angle.min() < 0.9 and 5.4 < angle.max() <= 7 * PI / 4 + 1e-6
    assert 0.045 < observation[:, 3].abs().max() <= 0.05 and observation[:, 3].min() < 0 < observation[:, 3].max()


def test_ur5_starts():
    observation = UR5Reacher(500, seed=0).reset()["observation"]
    assert 0.37 < observation[:, 0].max() <= PI / 8 and -PI / 8 <= observation[:, 0].min() < -0.37
    assert observation[0, 1:].tolist() == pytest.approx([3.22757851e-03, -1.27944547e-01, 0, 0, 0])
    assert observation[:, 1:].unique(dim=0).shape == (1, 5)


@pytest.mark.parametrize(("family", "limit"), [(AntReacher, 9.5), (AntFourRooms, 6.5)])
def test_ant_starts(family, limit):
    td = family(500, seed=0, observe_goal=True, task_order="random").reset()
    start, goal = td["observation"], td["goal"]
    pose = [0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1] + [0] * 14
    assert torch.allclose(start[:, 2:], torch.tensor(pose))
    assert limit - 0.2 < start[:, :2].max() <= limit and -limit <= start[:, :2].min() < 0.2 - limit
    if family is AntReacher:
        distance = (start - torch.nn.functional.pad(goal, (0, 26)))[:, :2].norm(dim=-1)
        assert 8 < distance.min() < 8.2
    else:
        assert (start[:, :2].abs() >= 3).all()
        relative, counts = torch.unique(start[:, :2].sign() * goal[:, :2].sign(), dim=0, return_counts=True)
        assert relative.tolist() == [[-1, -1], [-1, 1], [1, -1]] and counts.min() > 125  # the three other rooms


def test_partial_reset_starts_only_its_rows_anew():
    env = AntFourRooms(4, seed=0)
    td = step(env, env.reset(), torch.ones(8))
    before = env._qpos.copy()
    env.reset(td.exclude("task_id").set("_reset", torch.tensor([[True], [False], [True], [False]])))
    assert np.array_equal(env._qpos[1::2], before[1::2])
    assert (env._qpos[::2, 2] == 0.55).all() and (env._qvel[::2] == 0).all()


# Bodies.


def test_pendulum_turns_and_cannot_be_lifted_at_once():
    env = Pendulum(2, seed=0)
    td = env.reset()
    env._qpos[:], env._qvel[:] = PI, 0.0
    furthest = np.zeros(2)
    for _ in range(200):
        td = step(env, td, torch.tensor([[1.0], [0.0]]))
        furthest = np.maximum(furthest, np.abs(env._qpos[:, 0] - PI))
    assert 0.3 < furthest[0] < PI - 16 * DEGREE and furthest[1] < 1e-6  # turns, and hangs
    for _ in range(500):  # pushed along its motion it spins, within the bound of the spec
        td = step(env, td, torch.where(td["observation"][:, 3:] >= 0, 1.0, -1.0))
        assert env.observation_spec["observation"].is_in(td["observation"])
    assert 18 < td["observation"][:, 3].abs().max() <= 22


def test_servos_bring_the_ur5_to_its_goals():
    env = UR5Reacher(8, seed=0, observe_goal=True)
    td = env.reset()
    for _ in range(150):
        asked = 60 * (td["goal"] - td["observation"][:, :3])
        td = step(env, td, (asked / torch.tensor([3.15, 5.0, 3.15])).clamp(-1, 1))
    assert td["reward"].all()
    for _ in range(60):  # let go, the arm falls to the floor and stays on it
        td = step(env, td, torch.zeros(3))
    assert all(env.simulation(row)[1].site("wrist").xpos[2] > 0 for row in range(8)) and not td["reward"].any()


def test_ur5_angles_lose_whole_turns():
    env = UR5Reacher(2, seed=0)
    td = env.reset()
    seen = []
    for _ in range(160):
        raise_arm = 12 * (-PI / 4 - td["observation"][:, 1:2])
        pan, elbow = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)
        td = step(env, td, torch.cat([pan, raise_arm.clamp(-1, 1), elbow], -1))
        seen.append(td["observation"][:, 0])
        assert env.observation_spec["observation"].is_in(td["observation"])
    assert (np.abs(env._qpos[:, 0]) > 2 * PI).all()
    seen = torch.stack(seen)
    assert seen[:, 0].max() > 6 and seen[-1, 0] < 3 and seen[:, 1].min() < -6 and seen[-1, 1] > -3


@pytest.mark.parametrize("family", ANTS)
def test_ant_stands_and_stays_low(family):
    env = family(2, seed=0)
    td, generator = env.reset(), torch.Generator().manual_seed(0)
    heights, joints = [], []
    low, high = env.model.jnt_range[1:].T
    for _ in range(200):
        action = uniform(env, generator)
        action[1] = 0.0
        td = step(env, td, action)
        heights.append(td["observation"][:, 2].numpy())
        joints.append(td["observation"][:, 7:15].numpy())
    heights = np.array(heights)
    assert 0.3 < heights.min() and heights[:, 0].max() < 0.9 and heights[:, 0].std() > 0.01
    assert heights[150:, 1].std() < 1e-4  # left alone, it sinks a little and stands still
    assert ((low - 0.1 < joints) & (joints < high + 0.1)).all()  # joint limits, which are soft
    assert ((np.min(joints, (0, 1)) < low + 0.1) & (np.max(joints, (0, 1)) > high - 0.1)).all()


def pushed(family, start, direction, seconds=10.0):
    """Where the torso gets when pushed at 0.5 m/s along ``direction``, by up to twice its weight, ``[2]``."""
    model = family.make_model()
    data = mujoco.MjData(model)
    data.qpos[:] = [*start, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    weight = 9.81 * model.body_mass.sum()
    for _ in range(round(seconds / model.opt.timestep)):
        share = np.clip(4 * (0.5 - data.qvel[:2] @ direction), -2, 2)
        data.body("torso").xfrc_applied[:2] = weight * share * np.array(direction)
        mujoco.mj_step(model, data)
    return data.qpos[:2]


@pytest.mark.parametrize(("family", "inner"), [(AntReacher, 11.75), (AntFourRooms, 8.0)])
@pytest.mark.parametrize("direction", [[1, 0], [-1, 0], [0, 1], [0, -1]])
def test_outer_walls_stop_the_ant(family, inner, direction):
    along = np.array(direction)
    end = pushed(family, (inner - 2) * along + 4.75 * np.abs(along[::-1]), direction) @ along
    assert inner - 0.6 < end < inner - 0.2


@pytest.mark.parametrize("offset", [2.0, -2.0, 7.4, -7.4, 5.0, -5.0])
def test_inner_walls_stop_the_ant_and_doors_let_it_pass(offset):
    east, south = pushed(AntFourRooms, [-2, offset], [1, 0])[0], -pushed(AntFourRooms, [offset, 2], [0, -1])[1]
    # 5 m is at a door, the others at the cross and the stubs
    assert min(east, south) > 1 if abs(offset) == 5.0 else max(east, south) < -0.7
