"""PEARL's point robots, and the point and ant mazes."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv, check_env_specs

from peach_trl.envs.families.base import TaskCounts
from peach_trl.envs.families.maze_layouts import LARGE_MAZE, MEDIUM_MAZE, U_MAZE, MazeLayout, maze_walls
from peach_trl.envs.families.mazes import (
    AntLargeMaze,
    AntMediumMaze,
    AntUMaze,
    PointLargeMaze,
    PointMediumMaze,
    PointUMaze,
)
from peach_trl.envs.families.point_robot import HalfCircleB, PointRobot, SparsePointRobot

ROBOTS = [PointRobot, SparsePointRobot, HalfCircleB]
POINTS = [PointUMaze, PointMediumMaze, PointLargeMaze]
ANTS = [AntUMaze, AntMediumMaze, AntLargeMaze]
MAZES = POINTS + ANTS
FAMILIES = ROBOTS + MAZES


def actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, *env.action_spec.shape, generator=generator) - 1


def observations(env, sequence):
    return torch.stack([env.advance(action)[0]["observation"] for action in sequence])


def boxes(model):
    """Centres and half-sizes of the walls in the plane, as compiled: [W, 2] each."""
    ids = [i for i in range(model.ngeom) if model.geom(i).name.startswith("wall")]
    return model.geom_pos[ids, :2], model.geom_size[ids, :2]


def clearance(model, places):
    """Distance in the plane from the nearest wall, [...]; negative inside of one."""
    centre, half = boxes(model)
    outside = np.abs(places[..., None, :] - centre) - half
    apart = np.linalg.norm(np.maximum(outside, 0), axis=-1)
    return (apart + np.minimum(outside.max(-1), 0)).min(-1)


# What every family keeps.


@pytest.mark.parametrize("family", FAMILIES)
def test_specs(family):
    check_env_specs(family(2, seed=0))


@pytest.mark.parametrize("family", [PointRobot, PointUMaze, AntUMaze])
def test_observe_goal_is_shown(family):
    env = family(3, observe_goal=True, split="train", seed=0)
    check_env_specs(env)
    assert torch.equal(env.reset()["goal"], env.library.parameters[:3])


@pytest.mark.parametrize("family", [PointRobot, SparsePointRobot, PointUMaze, AntUMaze])
def test_hidden_goals_do_not_leak(family):
    def rollout(task):
        env = family(2, tasks=[task], seed=0)
        first = env.reset()
        assert set(first.keys()) == {"observation", "task_id", "done", "terminated", "truncated"}
        return torch.cat([first["observation"][None], observations(env, actions(env, 10))])

    assert torch.equal(rollout(0), rollout(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seeds_same_rollouts(family):
    def rollout(seed, threads=1):
        env = family(3, task_order="random", threads=threads, horizon=4, seed=seed)
        torch.manual_seed(0)
        return env.rollout(10, break_when_any_done=False)

    first, again, other, threaded = rollout(1), rollout(1), rollout(2), rollout(1, threads=2)
    assert (first == again).all() and (first == threaded).all()
    assert not torch.equal(first["task_id"], other["task_id"])
    fixed = issubclass(family, SparsePointRobot)  # which always starts at the origin
    assert fixed == torch.equal(first["observation"][:, 0], other["observation"][:, 0])


@pytest.mark.parametrize("family", [PointRobot, PointMediumMaze, AntMediumMaze])
def test_rows_equal_single_envs(family):
    env = family(3, seed=0)
    env.reset()
    singles = [family(1, tasks=[row], seed=0) for row in range(3)]
    for row, single in enumerate(singles):
        single.reset()
        single._batch.state[:] = env._batch.state[row]
    for action in actions(env, 12):
        values, _ = env.advance(action)
        for row, single in enumerate(singles):
            alone, _ = single.advance(action[row : row + 1])
            assert torch.equal(values["observation"][row], alone["observation"][0])
            assert torch.equal(values["reward"][row], alone["reward"][0])


@pytest.mark.parametrize("family", [PointRobot, SparsePointRobot, PointUMaze, AntUMaze])
def test_partial_steps_and_resets_touch_only_their_rows(family):
    env = family(3, seed=0)
    env.reset()
    before = env._qpos.copy()
    env.advance(torch.ones(env.action_spec.shape), torch.tensor([True, False, True]))
    after = env._qpos.copy()
    assert (after != before).any(-1).tolist() == [True, False, True]
    env.reset(TensorDict(_reset=torch.tensor([[False], [False], [True]]), batch_size=[3]))
    assert (env._qpos != after).any(-1).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("family", "fingerprint"),
    [
        (PointRobot, "26e78702b4346319"),
        (SparsePointRobot, "b9b0737c1bfd07d2"),
        (HalfCircleB, "b9b0737c1bfd07d2"),
        (PointUMaze, "2ab21dd5a346edb3"),
        (PointMediumMaze, "43e49ab9fbbd84da"),
        (PointLargeMaze, "678f86c78dc3013d"),
        (AntUMaze, "89dabf92de0f9914"),
        (AntMediumMaze, "a22b0ed180159c43"),
        (AntLargeMaze, "83936001c58e396c"),
    ],
)
def test_lists_of_tasks_are_pinned(family, fingerprint):
    library = family.make_library()
    assert library.name == f"{family.__name__}-v{family.version}"
    assert library.fingerprint() == fingerprint, "the same seed gives other tasks: raise the family's version"


HORIZONS = [20, 20, 60, 300, 600, 800, 700, 1000, 1000]


@pytest.mark.parametrize(("family", "horizon"), list(zip(FAMILIES, HORIZONS, strict=True)))
def test_episodes_truncate_at_the_published_horizon(family, horizon):
    env = family(1, seed=0)
    assert env.horizon == horizon
    env.reset()
    env._steps[:] = horizon - 2
    ends = [env.advance(actions(env, 1)[0])[0] for _ in range(2)]
    assert [bool(end["truncated"]) for end in ends] == [bool(end["done"]) for end in ends] == [False, True]
    assert not any(end["terminated"] for end in ends)


def test_models_compile_silently_and_write_no_file(tmp_path):
    code = (
        "from peach_trl.envs.families import mazes, point_robot\n"
        f"for name in {[family.__name__ for family in FAMILIES]}:\n"
        "    env = getattr(mazes, name, None) or getattr(point_robot, name)\n"
        "    env(2, seed=0).rollout(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# PEARL's point robots.


@pytest.mark.parametrize("family", ROBOTS)
def test_point_robots_are_pearls(family):
    env = family(5, split="test", seed=0)
    position = env.reset()["observation"].double().numpy()
    env._qpos[:] = position  # the observation is rounded to float32
    goal = env.library.parameters[env.library.split("test")[:5]].double().numpy()
    seen = []
    for step in range(20):
        # To the goal, and then away from it.
        wanted = (goal - position) / 0.1 if step < 15 else np.ones_like(goal)
        action = torch.from_numpy(np.clip(wanted, -1, 1)).float()
        published = -0.1 + (action.double().numpy() + 1) * 0.5 * 0.2  # the source's scaling to its box
        position = position + 0.1 * action.double().numpy()
        np.testing.assert_allclose(0.1 * action.double().numpy(), published, atol=1e-12)
        values, _ = env.advance(action)
        assert np.array_equal(values["observation"].numpy(), position.astype(np.float32))
        reward = -np.sqrt(((position - goal) ** 2).sum(-1))
        if family is SparsePointRobot:
            reward = np.where(reward >= -0.2, reward + 1, 0)
        if family is HalfCircleB:
            reward = np.where(reward >= -0.2, 1, 0)
        np.testing.assert_allclose(values["reward"][:, 0].numpy(), reward, rtol=0, atol=1e-6)
        seen.append(reward)
    if family is not PointRobot:
        assert (np.array(seen) == 0).any() and (np.array(seen) > 0.95).any()


def test_point_robots_start_as_published():
    starts = PointRobot(2000, seed=0).reset()["observation"]
    assert starts.abs().max() <= 1 and starts.min(0).values.max() < -0.99 and starts.max(0).values.min() > 0.99
    assert starts.mean(0).abs().max() < 0.05 and starts.std(0).tolist() == pytest.approx([3**-0.5] * 2, abs=0.02)
    env = PointRobot(4, seed=0)
    assert not torch.equal(env.reset()["observation"], env.reset()["observation"])
    for family in (SparsePointRobot, HalfCircleB):
        env = family(4, seed=0)
        env.reset()
        env.advance(torch.ones(4, 2))
        assert env.reset()["observation"].abs().sum() == 0


def test_point_robots_goals_are_published_distributions():
    assert PointRobot.counts == SparsePointRobot.counts == HalfCircleB.counts == (80, 20, 20)
    goals = PointRobot.make_library(train=2000).parameters[:2000]
    assert goals.abs().max() <= 1 and goals.abs().max(0).values.min() > 0.99 and goals.mean(0).abs().max() < 0.05
    library = SparsePointRobot.make_library()
    for name in library.split_names:
        x, y = library.parameters[library.split(name)].double().T
        assert torch.allclose(torch.hypot(x, y), torch.ones(len(x), dtype=torch.float64), atol=1e-6)
        arcs = (torch.atan2(y, x) / torch.pi * len(x)).floor().long()
        assert arcs.tolist() == list(range(len(x)))


def test_nothing_bounds_the_point_robots():
    env = PointRobot(1, horizon=100, seed=0)
    env.reset()
    last = observations(env, torch.ones(100, 1, 2))[-1]
    assert (last > 8.9).all() and env.observation_spec["observation"].is_in(last)


# Layouts of mazes.


@pytest.mark.parametrize("family", MAZES)
def test_starts_and_goals_are_free_and_connected(family):
    layout, model = family.layout, family.make_model()
    cells = np.array(list(itertools.product(range(layout.rows), range(layout.columns))))
    centres = layout.centres(cells, family.cell)
    assert np.array_equal(layout.cells(centres, family.cell), cells)
    # As the compiled boxes have it: free cells are free all over, walls are walls all over.
    free = clearance(model, centres) > 0
    assert clearance(model, centres[free]).min() == pytest.approx(family.cell / 2)
    assert np.array_equal(layout.is_free(cells), free)
    reached, found = set(), {tuple(layout.start)}
    open_cells = {tuple(cell) for cell in cells[free]}
    while found:
        reached |= found
        near = {(r + i, c + j) for r, c in found for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))}
        found = (near & open_cells) - reached
    assert reached == open_cells
    goals = family.make_library().parameters.double().numpy()
    assert clearance(model, goals).min() >= 0.25 * family.cell - 1e-6
    goal_cells = {tuple(cell) for cell in layout.cells(goals, family.cell)}
    assert goal_cells == open_cells - {tuple(layout.start)} and len(goal_cells) == len(goals)


@pytest.mark.parametrize("family", MAZES)
def test_start_region(family):
    env = family(200, seed=0)
    start = env.layout.centres(env.layout.start, env.cell)
    assert env.model.qpos0[:2] == pytest.approx(start)
    observation = env.reset()["observation"].double().numpy()
    noise = observation[:, : env.model.nq] - env.model.qpos0
    width = 0.25 if family in POINTS else 0.1
    assert 0.95 * width < np.abs(noise).max(0).min() and np.abs(noise).max() <= width + 1e-6
    velocity = observation[:, env.model.nq :]
    assert velocity.std() == (0 if family in POINTS else pytest.approx(0.1, rel=0.05))
    # No start is rewarded, whatever the goal.
    goals = env.library.parameters.double().numpy()
    assert np.linalg.norm(observation[:, None, :2] - goals, axis=-1).min() > 0.45


@pytest.mark.parametrize("family", MAZES)
def test_spaces_end_at_the_outer_walls(family):
    env = family(1, seed=0)
    centre, half = boxes(env.model)
    corners = np.abs(centre) + half
    wanted = corners.max(0) - family.cell
    assert np.allclose(env.goal_space.high, wanted) and np.allclose(env.goal_space.low, -wanted)
    assert env.goal_space.indices == env.subgoal_space.indices == (0, 1)
    box = env.observation_spec["observation"].space
    assert np.allclose(box.high[0, :2], wanted) and box.high[0, 2:].isinf().all()
    assert env.goal_position(np.array([1.0, 2.0]), env.model, None)[:2].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "equal length"),
        ("### #S.#", "equal length"),
        ("#### #Sx# ####", "characters"),
        ("#### #..# ####", "exactly one start"),
        ("#### #SS# ####", "exactly one start"),
        ("### #S# ###", "at least one more cell"),
        ("#### #S.. ####", "close the first and last"),
        ("##### #S#.# #####", r"\[\[1, 3\]\] cannot be reached"),
    ],
)
def test_layouts_reject(text, message):
    with pytest.raises(ValueError, match=message):
        MazeLayout(text)


@pytest.mark.parametrize("layout", [U_MAZE, MEDIUM_MAZE, LARGE_MAZE])
def test_walls_cover_each_wall_cell_once(layout):
    covered = np.zeros((layout.rows, layout.columns), dtype=int)
    for wall in layout.walls():
        covered[wall.row : wall.row + wall.rows, wall.column : wall.column + wall.columns] += 1
    assert np.array_equal(covered, 1 - layout._free) and len(layout.walls()) < covered.sum() / 2


@pytest.mark.parametrize("family", MAZES)
def test_walls_to_draw_are_the_compiled_boxes(family):
    centre, half = boxes(family.make_model())
    walls = maze_walls(family)
    np.testing.assert_allclose(walls, np.concatenate([centre - half, centre + half], axis=1))


def test_walls_of_environments():
    env = TransformedEnv(PointLargeMaze(1, seed=0))
    assert np.array_equal(maze_walls(env), maze_walls(PointLargeMaze))
    assert maze_walls(PointRobot) is None


# Tasks of mazes.


@pytest.mark.parametrize("family", MAZES)
def test_splits_have_disjoint_cells(family):
    library = family.make_library()
    assert sum(family.counts) == len(family.layout.goals) == library.num_tasks
    cells = {
        name: {tuple(c) for c in family.layout.cells(library.parameters[library.split(name)].numpy(), family.cell)}
        for name in library.split_names
    }
    for one, other in itertools.combinations(cells.values(), 2):
        assert not one & other
    middle = family.layout.centres(family.layout.cells(library.parameters.numpy(), family.cell), family.cell)
    noise = np.abs(library.parameters.numpy() - middle)
    assert 0.15 * family.cell < noise.max() <= 0.25 * family.cell + 1e-5


def test_a_splits_size_changes_no_other_task():
    full, part = PointMediumMaze.make_library(), PointMediumMaze.make_library(3, 2, 1)
    for name in full.split_names:
        ids = part.split(name)
        assert torch.equal(part.parameters[ids], full.parameters[full.split(name)[: len(ids)]])
    assert full.num_tasks == 25 and part.num_tasks == 6
    assert full.fingerprint() != PointMediumMaze.make_library(seed=1).fingerprint()


@pytest.mark.parametrize("sizes", [{"train": 5}, {"validation": 2}, {"test": 0}])
def test_too_many_tasks_for_the_cells_raise(sizes):
    (split,) = sizes
    with pytest.raises(ValueError, match=f"{split} = .*6 cells for goals.*or use a larger maze"):
        PointUMaze.make_library(**sizes)


def test_too_large_counts_raise():
    class Crowded(PointUMaze):
        counts = TaskCounts(4, 1, 2)

    with pytest.raises(ValueError, match=r"counts = \(4, 1, 2\): Crowded has 6 cells"):
        Crowded.make_library(1, 1, 1)


# Motion in mazes.


def test_balls_top_speed_and_time_constant():
    class Corridor(PointUMaze):
        layout = MazeLayout("########### #S........# ###########")

    env = Corridor(2, library=PointUMaze.make_library(), seed=0)
    env.reset()
    forward, leaning = [1.0, 0.0], [1.0, 1.0]  # the second along the wall: it has no friction
    speed = observations(env, torch.tensor([forward, leaning]).expand(130, 2, 2))[..., 2]
    assert speed[-1].tolist() == pytest.approx([5.0, 5.0], rel=0.01) and speed.max() < 5.0
    assert (speed[20] / 5).tolist() == pytest.approx([1 - np.exp(-1)] * 2, abs=0.02)


@pytest.mark.parametrize("family", POINTS)
def test_walls_stop_the_ball(family):
    cells = np.vstack([family.layout.start, family.layout.goals])
    env = family(len(cells), horizon=10_000, seed=0)
    env.reset()
    nearest, fastest = np.inf, 0.0
    directions = [d for d in itertools.product((-1.0, 0.0, 1.0), repeat=2) if any(d)]
    for direction in directions:
        env._qpos[:], env._qvel[:] = family.layout.centres(cells, family.cell), 0
        path = observations(env, torch.tensor(direction).expand(200, len(cells), 2)).double().numpy()
        nearest = min(nearest, clearance(env.model, path[..., :2]).min())
        fastest = max(fastest, np.abs(path[..., 2:]).max())
        assert (np.abs(path[..., :2]) < env.goal_space.high.numpy()).all()
        # Held against a wall, or a corner of walls, the ball comes to rest there, beside and not in it.
        speed = np.abs(path[-1, :, 2:]).max(-1)
        assert clearance(env.model, path[-1, speed < 1e-3, :2]) == pytest.approx(0.1, abs=2e-3)
        assert (speed < 1e-3).any()
    assert fastest > (4.0 if family is PointUMaze else 4.5)
    assert 0.06 < nearest < 0.1  # of the ball's middle; its radius is 0.1


def test_walls_stop_the_ant():
    family = AntUMaze
    cells = np.repeat(np.vstack([family.layout.start, family.layout.goals]), 4, axis=0)
    env = family(len(cells), seed=0)
    env.reset()
    env._qpos[:, :2] = family.layout.centres(cells, family.cell)
    push = 8 * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    env._qvel[:, :2] = np.tile(push, (len(cells) // 4, 1))  # thrown: faster than an ant runs
    path = observations(env, actions(env, 200).sign())[..., :2].double().numpy()
    nearest = clearance(env.model, path)
    assert nearest.min() > 0.2  # the torso's radius is 0.25
    assert (nearest.min(0) < 1.2).all()  # every ant came to a wall
    assert (np.abs(path) < env.goal_space.high.numpy()).all()


def test_the_ant_is_gymnasiums():
    import gymnasium

    theirs = gymnasium.make("Ant-v5", exclude_current_positions_from_observation=False).unwrapped
    theirs.reset(seed=0)
    env = AntLargeMaze(1, seed=0)
    env.reset()
    middle = env._qpos[0, :2].copy()
    env._qpos[0], env._qvel[0] = theirs.data.qpos, theirs.data.qvel
    env._qpos[0, :2] += middle
    offset = np.zeros(29)
    offset[:2] = middle
    for action in actions(env, 10):
        theirs.do_simulation(action[0].numpy(), theirs.frame_skip)
        wanted = np.concatenate([theirs.data.qpos, theirs.data.qvel]) + offset
        ours = env.advance(action)[0]["observation"][0].numpy()
        np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert env.dt == pytest.approx(theirs.dt)


@pytest.mark.parametrize("family", [PointLargeMaze, AntLargeMaze])
def test_reward_iff_within_tolerance(family):
    env = family(25, seed=0)
    env.reset()
    goal = env.library.parameters.double().numpy()
    generator = np.random.default_rng(0)
    seen = []
    for _ in range(8):
        angle, radius = generator.uniform(0, 2 * np.pi, 25), generator.uniform(0.3, 0.6, 25)
        env._qpos[:, :2] = goal[:25] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        env._qvel[:] = 0
        values, _ = env.advance(torch.zeros(env.action_spec.shape))
        distance = np.linalg.norm(values["observation"][:, :2].double().numpy() - goal[:25], axis=-1)
        assert np.array_equal(values["reward"][:, 0].numpy(), (distance <= 0.45).astype(np.float32))
        seen += values["reward"][:, 0].tolist()
    assert 0.3 < np.mean(seen) < 0.7
