"""Locomotion families: the bodies are gymnasium's, the rewards PEARL's, the task lists fixed.

The reference is gymnasium's own environment, stepped one row at a time with the controls of the batched one. Everything
is compared in float64, bit for bit, except what a comment says. Each row is reset once on the way, each at another
time.
"""

# MuJoCo ships no type stubs, so pyright sees none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import pickle
from functools import cache, partial
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.humanoid_v5 import mass_center
from tensordict import TensorDict
from torchrl.envs import check_env_specs

from peach_trl.envs import TaskLibrary
from peach_trl.envs.families.ant import AntDir, AntGoal
from peach_trl.envs.families.bodies import ASSETS, RandomParameters
from peach_trl.envs.families.half_cheetah import HalfCheetahDir, HalfCheetahVel
from peach_trl.envs.families.hopper import HopperRandParams
from peach_trl.envs.families.humanoid import HumanoidDir
from peach_trl.envs.families.walker2d import Walker2dRandParams

STEPS, ROWS = 120, 8
RESETS = [70 + 5 * row for row in range(ROWS)]  # the step after which each row is reset
FAMILIES = [HalfCheetahVel, HalfCheetahDir, AntDir, AntGoal, HumanoidDir, Walker2dRandParams, HopperRandParams]
RANDOM = [Walker2dRandParams, HopperRandParams]
NAMES = {
    HalfCheetahVel: "HalfCheetah-v5",
    HalfCheetahDir: "HalfCheetah-v5",
    AntDir: "Ant-v5",
    AntGoal: "Ant-v5",
    HumanoidDir: "Humanoid-v5",
    Walker2dRandParams: "Walker2d-v5",
    HopperRandParams: "Hopper-v5",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """gymnasium's HalfCheetah logs a warning into the working directory."""
    monkeypatch.chdir(tmp_path)


# The reference: gymnasium.


class Reference(NamedTuple):
    """What gymnasium did: ROWS rows, two episodes each, STEPS steps in all, float64."""

    qpos: np.ndarray  # [2, ROWS, nq], the starts
    qvel: np.ndarray
    first: np.ndarray  # [2, ROWS, D], the observations of the starts
    actions: np.ndarray  # [STEPS, ROWS, A] float32 in [-1, 1]
    observations: np.ndarray  # [STEPS, ROWS, D], after the step
    forces: np.ndarray  # [STEPS, ROWS, bodies, 6], likewise
    terminated: np.ndarray  # [STEPS, ROWS]
    velocity: np.ndarray  # [STEPS, ROWS, 1 or 2], mean over the step, as gymnasium's reward measures it
    place: np.ndarray  # [STEPS, ROWS, 1 or 2], after the step, likewise


def make_gymnasium(family) -> Any:
    options = {"exclude_current_positions_from_observation": False} if family is AntGoal else {}
    return gymnasium.make(NAMES[family], **options).unwrapped


def place_of(family, env) -> np.ndarray:
    if NAMES[family] == "Ant-v5":
        return env.data.body("torso").xpos[:2].copy()
    return mass_center(env.model, env.data) if family is HumanoidDir else env.data.qpos[:1].copy()


@cache
def reference(family) -> Reference:
    env = make_gymnasium(family)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (STEPS, ROWS, env.model.nu)).astype(np.float32)
    low, high = env.model.actuator_ctrlrange.T
    seen: dict[str, list[Any]] = {key: [] for key in Reference._fields if key != "actions"}

    def reset(seed: int) -> None:
        seen["first"].append(env.reset(seed=seed)[0])
        seen["qpos"].append(env.data.qpos.copy())
        seen["qvel"].append(env.data.qvel.copy())

    for row in range(ROWS):
        reset(row)
        for step, action in enumerate(actions[:, row]):
            before = place_of(family, env)
            ctrl = action.astype(np.float64) * ((high - low) / 2) + (low + high) / 2
            observation, _, terminated, _, _ = env.step(ctrl)
            place = place_of(family, env)
            values = observation, env.data.cfrc_ext.copy(), terminated, (place - before) / env.dt, place
            for key, value in zip(Reference._fields[4:], values, strict=True):
                seen[key].append(value)
            if step == RESETS[row]:
                reset(ROWS + row)
    arrays = {key: np.stack(value).reshape(ROWS, -1, *np.shape(value[0])) for key, value in seen.items()}
    return Reference(actions=actions, **{key: value.swapaxes(0, 1) for key, value in arrays.items()})


def make_env(family, rows, **options):
    """The batched environment on gymnasium's starts; with random parameters all of which are gymnasium's."""
    if issubclass(family, RandomParameters):
        size = family.make_library(1, 1, 1).parameters.shape[1]
        options["library"] = TaskLibrary(torch.zeros(1, size), {"train": torch.tensor([0])})
    env = family(rows, seed=0, **options)
    wanted = reference(family)
    episode = np.full(rows, -1)

    def start(rows: np.ndarray) -> None:
        family._reset_state(env, rows)
        episode[rows] += 1
        env._qpos[rows], env._qvel[rows] = wanted.qpos[episode[rows], rows], wanted.qvel[episode[rows], rows]

    env._reset_state = start
    return env


def restart(env, step: int) -> np.ndarray:
    """Resets the rows that gymnasium reset after ``step``, and returns them."""
    mask = np.array(RESETS[: env.batch_size[0]]) == step
    if mask.any():
        env.restart(torch.from_numpy(mask))
    return np.flatnonzero(mask)


def observe(env, dtype: type = np.float64) -> np.ndarray:
    out = np.empty((env.batch_size[0], env._dim), dtype)
    env._observe(out)
    return out


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, ROWS])
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_bodies_equal_gymnasiums(family, rows, threads):
    wanted = reference(family)
    env = make_env(family, rows, threads=threads)
    env.reset()
    assert np.array_equal(observe(env), wanted.first[0, :rows])
    for step in range(STEPS):
        values, error = env.advance(torch.from_numpy(wanted.actions[step, :rows]))
        assert error is None
        expected = wanted.observations[step, :rows].copy()
        assert np.array_equal(observe(env), expected), step
        assert np.array_equal(values["observation"].numpy(), expected.astype(np.float32))
        if family is AntGoal:
            assert not values["terminated"].any()
        else:
            assert np.array_equal(values["terminated"].numpy()[:, 0], wanted.terminated[step, :rows])
        again = restart(env, step)
        expected[again] = wanted.first[1, again]
        assert np.array_equal(observe(env), expected), step
    if family in (AntDir, HumanoidDir, *RANDOM):
        assert wanted.terminated.any() and not wanted.terminated[0].any()
    if family in (AntDir, AntGoal, HumanoidDir):
        assert (wanted.observations[:, :, -78:] != 0).any(axis=(0, 2)).all() and not wanted.first[:, :, -78:].any()


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_models_equal_gymnasiums(family):
    theirs, ours = make_gymnasium(family).model, family.make_model()
    fields = [name for name in dir(theirs) if isinstance(getattr(theirs, name), np.ndarray) and name[0] != "_"]
    assert len(fields) > 100
    wrong = [name for name in fields if not np.array_equal(getattr(theirs, name), getattr(ours, name))]
    assert not wrong
    for name in ("meaninertia", "meanmass", "meansize", "extent"):
        assert getattr(theirs.stat, name) == getattr(ours.stat, name), name
    for name in ("timestep", "integrator", "solver", "iterations", "tolerance", "cone", "jacobian", "impratio"):
        assert getattr(theirs.opt, name) == getattr(ours.opt, name), name


def test_start_noise_is_gymnasiums():
    for family in FAMILIES[1:]:
        scale, env = family.reset_noise, make_gymnasium(family)
        assert scale == env._reset_noise_scale
        assert family.frame_skip == env.frame_skip
        ours = family(500, seed=0)
        ours.reset()
        position, velocity = ours._qpos - env.init_qpos, ours._qvel
        assert 0.99 * scale < np.abs(position).max() <= scale
        assert abs(position.std() / scale - 3**-0.5) < 0.02 and abs(position.mean()) < 0.05 * scale
        normal = family.normal_velocities
        assert normal == (np.abs(velocity).max() > scale) == (NAMES[family] in ("HalfCheetah-v5", "Ant-v5"))
        assert abs(velocity.std() / scale - (1.0 if normal else 3**-0.5)) < 0.03
        assert (np.unique(position).size, np.unique(velocity).size) == (position.size, velocity.size)


# Rewards and terminations: hand-written, from gymnasium's own data.


def pearl_reward(family, wanted: Reference, goal: np.ndarray) -> np.ndarray:
    """``[STEPS, ROWS]``, after the code of PEARL and of rand_param_envs."""
    squares = np.square(wanted.actions.astype(np.float64)).sum(-1)
    velocity, place = wanted.velocity, wanted.place
    clipped = np.square(np.clip(wanted.forces, -1, 1)).sum((-2, -1))
    if family is HalfCheetahVel:
        return -np.abs(velocity[..., 0] - goal[:, 0]) - 0.05 * squares
    if family is HalfCheetahDir:
        return goal[:, 0] * velocity[..., 0] - 0.05 * squares
    if family is AntDir:
        return (velocity * goal).sum(-1) - 0.5 * squares - 0.5e-3 * clipped + 1.0
    if family is AntGoal:
        return -np.abs(place - goal).sum(-1) - 0.1 * squares - 0.5e-3 * clipped
    if family is HumanoidDir:
        impact = np.minimum(0.5e-6 * np.square(wanted.forces).sum((-2, -1)), 10)
        linear = 0.25 * (goal * velocity * 0.015).sum(-1) / 0.003
        return linear - 0.1 * 0.4**2 * squares - impact + 5.0
    return velocity[..., 0] + 1.0 - 1e-3 * squares


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards(family):
    wanted = reference(family)
    env = make_env(family, ROWS)
    env.reset()
    goal = env.library.parameters[env.task_id].double().numpy()
    if not issubclass(family, RandomParameters):
        assert len(np.unique(goal, axis=0)) == (2 if family is HalfCheetahDir else ROWS)
    rewards = pearl_reward(family, wanted, goal)
    for step in range(STEPS):
        values, _ = env.advance(torch.from_numpy(wanted.actions[step]))
        assert values["reward"].shape == (ROWS, 1) and values["reward"].dtype == torch.float32
        np.testing.assert_allclose(values["reward"][:, 0].numpy(), rewards[step], rtol=1e-5, atol=1e-5)
        restart(env, step)


def test_healthy_limits():
    """Where each body counts as fallen, at and beyond each limit."""
    cases: list[tuple[Any, int, list[tuple[float, bool]]]] = [
        (AntDir, 2, [(0.2, False), (0.199, True), (1.0, False), (1.001, True)]),
        (AntGoal, 2, [(0.1, False), (2.0, False)]),
        (HumanoidDir, 2, [(1.0, True), (1.001, False), (1.999, False), (2.0, True)]),
        (Walker2dRandParams, 1, [(0.8, True), (0.801, False), (1.999, False), (2.0, True)]),
        (Walker2dRandParams, 2, [(-1.0, True), (-0.999, False), (0.999, False), (1.0, True)]),
        (HopperRandParams, 1, [(0.7, True), (0.701, False), (150.0, False)]),
        (HopperRandParams, 2, [(-0.2, True), (-0.199, False), (0.199, False), (0.2, True)]),
        (HopperRandParams, 4, [(-100.0, True), (99.9, False)]),
        (HalfCheetahDir, 2, [(3.0, False)]),
    ]
    for family, entry, values in cases:
        env = make_env(family, 1)
        observation = env.reset()["observation"]
        for value, fallen in values:
            env._qpos[0, entry] = value
            failed = env.fails and env._failed(observation).item()
            assert failed == fallen, (family, entry, value)


# Random parameters.


@pytest.mark.parametrize("family", RANDOM)
def test_each_row_has_its_own_physics(family):
    env = family(4, seed=0)
    env.reset()
    fields = list(RandomParameters.bases)
    models = []
    for row in range(4):
        model, start = family.make_model(), 0
        for field in fields:
            value = getattr(model, field)
            exponent = env.library.parameters[row, start : start + value.size].double().numpy().reshape(value.shape)
            value *= (1.3 if field == "dof_damping" else 1.5) ** exponent
            start += value.size
        assert start == env.library.parameters.shape[1]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        own = env.simulation(row)[0]
        for field in [*fields, "dof_invweight0", "body_invweight0", "body_subtreemass"]:
            assert np.array_equal(getattr(own, field), getattr(model, field)), field
            assert not np.array_equal(getattr(own, field), getattr(env.model, field)), field
        models.append(model)
    assert len({model.body_mass[1] for model in models}) == 4
    datas = [mujoco.MjData(model) for model in models]
    for row, data in enumerate(datas):
        data.qpos[:], data.qvel[:] = env._qpos[row], env._qvel[row]
        mujoco.mj_forward(models[row], data)
    actions = torch.rand(STEPS, 4, env.model.nu, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions:
        env.advance(action)
        for row, data in enumerate(datas):
            data.ctrl[:] = action[row].numpy()
            mujoco.mj_step(models[row], data, nstep=family.frame_skip)
            assert np.array_equal(data.qpos, env._qpos[row]) and np.array_equal(data.qvel, env._qvel[row])


@pytest.mark.parametrize("family", RANDOM)
def test_partial_reset_changes_the_physics_of_its_row_only(family):
    env, same = family(3, seed=0), family(3, seed=0)
    env.reset()
    same.reset()
    before = [env.simulation(row)[0] for row in range(3)]
    actions = torch.rand(20, 3, env.model.nu, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for step, action in enumerate(actions):
        if step == 10:
            mask = torch.tensor([[False], [True], [False]])
            env.reset(TensorDict(_reset=mask, task_id=torch.tensor([0, 7, 2]), batch_size=[3]))
        values, theirs = env.advance(action)[0]["observation"], same.advance(action)[0]["observation"]
        assert torch.equal(values[[0, 2]], theirs[[0, 2]]) and torch.equal(values[1], theirs[1]) == (step < 10)
    base, shape = env.model.body_mass, env.model.body_mass.shape
    for row in range(3):
        mass = env.simulation(row)[0].body_mass
        assert np.array_equal(mass, before[row].body_mass) == (row != 1)
    exponent = env.library.parameters[7, : base.size].double().numpy().reshape(shape)
    assert np.array_equal(env.simulation(1)[0].body_mass, base * 1.5**exponent)


@pytest.mark.parametrize("family", RANDOM)
def test_all_random_parameters_can_be_simulated(family):
    library = family.make_library()
    assert library.parameters.abs().max() <= 3.0 and library.parameters.abs().max() > 2.99
    env = family(library.num_tasks, tasks=torch.arange(library.num_tasks), seed=0)
    env.reset()
    for _ in range(60):
        _, error = env.advance(env.action_spec.rand())
        assert error is None


# Tasks.


@pytest.mark.parametrize(
    ("family", "counts", "parameters", "fingerprint"),
    [
        (HalfCheetahVel, (100, 30, 30), 1, "d7d6195fb9dd0c49"),
        (HalfCheetahDir, (2, 2, 2), 1, "4a09fb1d3ff0b608"),
        (AntDir, (100, 30, 30), 2, "4371b9b8c900aef5"),
        (AntGoal, (150, 30, 30), 2, "4007dc3443e93dbf"),
        (HumanoidDir, (100, 30, 30), 2, "4371b9b8c900aef5"),
        (Walker2dRandParams, (40, 10, 10), 65, "7b32e695814ccebe"),
        (HopperRandParams, (40, 10, 10), 41, "98c5218afd18d044"),
    ],
)
def test_task_lists_are_fixed(family, counts, parameters, fingerprint):
    library = family.make_library()
    splits = [library.split(name).tolist() for name in ("train", "validation", "test")]
    assert tuple(map(len, splits)) == counts and sum(splits, []) == list(range(sum(counts)))
    assert library.parameters.shape == (sum(counts), parameters)
    assert library.name == f"{family.__name__}-v1"
    if family is not HalfCheetahDir:
        assert len(library.parameters.unique(dim=0)) == library.num_tasks
        assert not torch.equal(library.parameters, family.make_library(seed=1).parameters)
    assert library.fingerprint() == fingerprint


def test_tasks_are_drawn_as_published():
    velocities = HalfCheetahVel.make_library(2000).parameters[:2000, 0]
    assert velocities.min() >= 0 and velocities.max() <= 3 and abs(velocities.mean() - 1.5) < 0.05
    for family in (AntDir, HumanoidDir):
        directions = family.make_library(2000).parameters[:2000]
        assert torch.allclose(directions.norm(dim=-1), torch.ones(2000)) and directions.mean(0).abs().max() < 0.05
    places = AntGoal.make_library(2000).parameters[:2000]
    assert places.norm(dim=-1).max() <= 3 and abs((places.norm(dim=-1) < 3 * 0.5**0.5).float().mean() - 0.5) < 0.05
    for library in (HalfCheetahDir.make_library(), AntDir.forward_backward()):
        for name in ("train", "validation", "test"):
            assert sorted(library.parameters[library.split(name), 0].tolist()) == [-1.0, 1.0]


# Goals and subgoals.


@pytest.mark.parametrize("family", FAMILIES)
def test_spaces_fit_the_body(family):
    env = make_env(family, 2)
    observation = env.reset()["observation"]
    goal = env.subgoal_space.project(observation)
    assert env.subgoal_space.achieved(observation, goal).all()
    assert not env.subgoal_space.achieved(observation, goal + 2 * env.subgoal_space.tolerance).any()
    assert ((goal >= env.subgoal_space.low) & (goal <= env.subgoal_space.high)).all()
    # The entries are what the documentation says: each moves with its own part of the state only.
    spoken_of = {
        **dict.fromkeys((HalfCheetahVel, HalfCheetahDir), [("_qvel", 0)]),
        **dict.fromkeys((AntDir, HumanoidDir), [("_qvel", 0), ("_qvel", 1)]),
        AntGoal: [("_qpos", 0), ("_qpos", 1)],
        **dict.fromkeys(RANDOM, [("_qpos", 1), ("_qpos", 2), ("_qvel", 0)]),
    }[family]
    assert len(spoken_of) == env.subgoal_space.dim
    for entry, (field, index) in enumerate(spoken_of):
        getattr(env, field)[:, index] = 0.25 + entry
        projected = env.subgoal_space.project(torch.from_numpy(observe(env)))
        assert (projected[:, entry] == 0.25 + entry).all()


def test_goal_spaces():
    for family in (HalfCheetahDir, AntDir, HumanoidDir, *RANDOM):
        assert family(1).goal_space is None
    for family in (HalfCheetahVel, AntGoal):
        env, library = family(1), family.make_library()
        space = env.goal_space
        assert space is not None
        assert ((library.parameters >= space.low) & (library.parameters <= space.high)).all()
    env = AntGoal(1)
    place = env.goal_position(np.array([1.0, 2.0]), *env.simulation(0))
    assert place is not None and place.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold(family):
    env = family(16, seed=0)
    spec = env.observation_spec["observation"]
    low, high = spec.space.low[0], spec.space.high[0]
    bounded = {"Ant-v5": (1.0, 78), "Walker2d-v5": (10.0, 9), "Hopper-v5": (10.0, 6)}.get(NAMES[family])
    assert torch.equal(low, -high) and high.isfinite().sum() == (bounded[1] if bounded else 0)
    env.reset()
    if bounded:
        assert (high[-bounded[1] :] == bounded[0]).all()
        if NAMES[family] == "Ant-v5":
            env._qpos[:, 2] = 0.3  # pressed into the floor
        else:
            env._qvel[:] *= 1e4
    values, _ = env.advance(env.action_spec.rand())
    assert spec.is_in(values["observation"])
    if bounded:
        assert (values["observation"][:, -bounded[1] :].abs() == bounded[0]).any()


# The contract of an environment.


@pytest.mark.parametrize("family", FAMILIES)
def test_specs_and_silence(family, tmp_path, capfd):
    check_env_specs(family(2, seed=0, observe_goal=True))
    env = pickle.loads(pickle.dumps(partial(family, 2, library=family.make_library(), seed=0)))()
    assert env.rollout(3).shape == (2, 3)
    capfd.readouterr()
    family(1).reset()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_rollouts_on_any_threads(family):
    def roll(seed, threads, rows=4):
        env = family(rows, seed=seed, threads=threads, horizon=12, tasks=[0, 1])
        env.set_seed(seed)
        actions = iter(torch.rand(30, rows, env.model.nu, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        rollout = env.rollout(
            30, lambda td: td.set("action", next(actions)), break_when_any_done=False, auto_reset=True
        )
        return rollout["next", "observation"], rollout["next", "reward"]

    observation, reward = roll(3, 1)
    again, reward_again = roll(3, 2)
    assert torch.equal(observation, again) and torch.equal(reward, reward_again)
    assert not torch.equal(observation[:, 0], roll(4, 1)[0][:, 0])
    assert not torch.equal(observation[0, 0], observation[2, 0])  # same task, other start


def draw_actions(env, steps: int) -> torch.Tensor:
    shape = steps, env.batch_size[0], env.model.nu
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def step_both(env, same, action, rows, mask=None) -> dict[str, torch.Tensor]:
    """Steps both environments, ``env`` under ``mask``, and checks that ``rows`` do not differ."""
    (values, error), (theirs, _) = env.advance(action, mask), same.advance(action)
    assert error is None
    for key in ("observation", "reward", "terminated"):
        assert torch.equal(values[key][rows], theirs[key][rows])
    assert np.array_equal(observe(env)[rows], observe(same)[rows])
    return values


@pytest.mark.parametrize(("family", "row", "forces"), [(AntGoal, 0, 78), (HumanoidDir, 2, 95)])
def test_partial_reset_and_partial_step_leave_other_rows(family, row, forces):
    env, same = family(3, seed=0), family(3, seed=0)
    env.reset()
    same.reset()
    others = torch.arange(3) != row
    actions = iter(draw_actions(env, 100))
    while not (env._steps[row] >= 30 and observe(env)[row, -78:].any()):  # the row touches something
        step_both(env, same, next(actions), slice(None))
    touching = False
    for reset in (False, True):
        kept = observe(env)
        if reset:
            env.reset(TensorDict(_reset=~others[:, None], batch_size=[3]))
        after = observe(env)
        assert np.array_equal(after[others], kept[others]) and after[row, -forces:].any() != reset
        for _ in range(10):
            values = step_both(env, same, next(actions), others, others)
            assert np.array_equal(observe(env)[row], after[row]) and values["reward"][row] == 0
            touching |= bool(values["observation"][others, -78:].any())
    assert touching


class TightAnt(AntGoal):
    """An ant that MuJoCo raises for where it has many contacts: its memory is too small for them."""

    @classmethod
    def make_model(cls):
        spec = mujoco.MjSpec.from_file(str(ASSETS / cls.asset))
        spec.memory = 60_000
        return spec.compile()


@pytest.mark.parametrize("family", [AntDir, HumanoidDir, TightAnt])
def test_broken_rows_leave_other_rows(family):
    env, same = family(3, seed=0, threads=2), family(3, seed=0)
    env.reset()
    same.reset()
    others = torch.arange(3) != 1
    actions = iter(draw_actions(env, 100))
    while not (env._steps[0] >= 30 and observe(env)[0, -78:].any()):
        step_both(env, same, next(actions), slice(None))
    before = env._forces.copy()
    env._qpos[1, 2:] = 0.0 if family is TightAnt else np.nan  # in the floor, limbs and all
    action = next(actions)
    (values, error), (theirs, _) = env.advance(action), same.advance(action)
    assert error is not None and error.rows == [1]
    assert values["observation"].isfinite().all() and torch.equal(values["reward"][others], theirs["reward"][others])
    assert np.array_equal(observe(env)[others], observe(same)[others])
    assert not np.array_equal(env._forces[0], before[0])
    if family is TightAnt:
        assert np.array_equal(env._forces[1], before[1])  # of no meaning, but nothing was computed on half a step
    env.restart(~others)
    for _ in range(10):  # what broke leaves no trace, even before the row's first step
        assert step_both(env, same, next(actions), others, others)["reward"][1] == 0
    for _ in range(10):
        step_both(env, same, next(actions), others)
