"""The reference policies: known returns, and what they must never do."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from peach_trl.envs import FAMILIES, PointEnv, TaskLibrary
from peach_trl.experiment import PeachConfig, make_env, make_library
from peach_trl.references import Arc, Candidates, Square, Stay, Thompson, has_references, play, policies, references
from peach_trl.references.play import Point
from peach_trl.utils import load_config

SparsePointRobot = FAMILIES["SparsePointRobot"]
torch.set_num_threads(1)


def point(rows, library=None, split="validation", **changes):
    config = load_config(PeachConfig, "peach").env
    return PointEnv(replace(config, **changes), rows, library=library, split=split, seed=0)


def robot(rows, horizon, split="test", family=SparsePointRobot):
    return family(rows, library=family.make_library(test=60), split=split, horizon=horizon, seed=0)


def means(played):
    return played.returns.mean(0).tolist()


def thompson(env, samples, trajectories):
    belief = Candidates(Arc.of(env), torch.tensor(samples), len(env.task_id))
    return play(env, Thompson(belief, seed=0), trajectories).returns.mean(0)


def circle_library(radius=8.0, train=12, test=32):
    angles = 2 * math.pi * (torch.arange(train + test) + 0.3) / torch.tensor([train] * train + [test] * test)
    goals = radius * torch.stack([angles.cos(), angles.sin()], -1)
    return TaskLibrary(goals, {"train": torch.arange(train), "test": torch.arange(train, train + test)})


# Returns that others computed, with programs of their own.


@pytest.fixture(scope="module")
def on_point():
    """Decisions of 20 steps, which may lie as far away as the point can go in one."""
    env = point(60)
    chosen = policies(env, 3, 20, 5.0, seed=0)
    return env, chosen, {name: play(env, copy.deepcopy(policy), 3) for name, policy in chosen.items()}


@pytest.mark.parametrize("changes", [{"speed": 1.2}, {"goal_tolerance": 0.1, "radius": 0.5, "arena": 1.0}])
def test_how_a_point_moves_is_known_where_walls_are_near(changes):
    """Measured where there is room, and the same in shares of its top speed where there is not."""
    config = tiny_config(**{f"env__{name}": value for name, value in changes.items()})
    env = make_env(config, library := make_library(config), library.split("train")[:1])
    point, roomy = Point(env), tiny_config(env__arena=100 * config.env.speed, env__speed=config.env.speed)
    measured = Point(make_env(roomy, there := make_library(roomy), there.split("train")[:1]))
    assert point._step == pytest.approx(measured._step, rel=0.01)
    assert point._coast == pytest.approx(measured._coast, rel=0.01)


def test_point(on_point):
    *_, played = on_point
    assert means(played["oracle"]) == pytest.approx([0.88] * 3, abs=0.02)  # .86 to .90
    assert means(played["search"]) == pytest.approx([0.66, 0.89, 0.89], abs=0.02)
    drawn = thompson(point(240), [[0.0, 1.0], [2.5, 1.0]], 3)
    assert drawn.tolist() == pytest.approx([0.16, 0.33, 0.47], abs=0.05)  # standard error 0.02
    # A disc of 2.5 m covers 2 * 18.2 of the 180 degrees, which are 0.2 of the goals.
    assert means(played["no context"]) == pytest.approx([0.2 * 0.9] * 3, abs=0.02)


@pytest.mark.slow
def test_direct_control():
    env = robot(60, horizon=100)
    chosen = policies(env, 3, 1, math.inf, seed=0)
    assert play(env, chosen["oracle"], 1).rewards.sum(-1).mean() == pytest.approx(93.4, abs=0.2)
    rewards = play(env, chosen["search"], 3).rewards.sum(-1).mean(0)
    assert rewards[0] == pytest.approx(81.6, abs=1.0) and rewards.sum() == pytest.approx(268.4, abs=2.0)


def test_half_circle_b():
    env = robot(60, horizon=60, family=FAMILIES["HalfCircleB"])
    chosen = policies(env, 2, 1, math.inf, seed=0)
    assert play(env, chosen["oracle"], 1).rewards.sum(-1).mean() == pytest.approx(53.6, abs=0.2)
    rewards = play(env, chosen["search"], 2).rewards.sum(-1).mean(0)
    assert rewards[0] == pytest.approx(41.8, abs=0.5) and rewards.sum() == pytest.approx(95.4, abs=0.5)
    drawn = 60 * thompson(robot(300, horizon=60, family=FAMILIES["HalfCircleB"]), [[0.0, 1.0], [0.2, 1.0]], 2)
    assert drawn.tolist() == pytest.approx([6.4, 12.4], abs=2.5)  # standard error 1.0 to 1.3


def test_point_robot():
    """Against draws of starts and goals; three distances tell the goal, so that the next trajectory is the oracle's."""
    PointRobot = FAMILIES["PointRobot"]
    library = PointRobot.make_library(test=2000)
    played = {}
    for name in ("oracle", "search", "thompson", "no context"):
        env = PointRobot(2000, library=library, split="test", seed=0)  # the same starts for all
        played[name] = play(env, policies(env, 2, 2, 0.2, seed=0)[name], 2).rewards.sum(-1).mean(0).tolist()
    offset = 4 * torch.rand(2, 100_000, 2, generator=torch.Generator().manual_seed(0)) - 2
    offset = (offset[0] - offset[1]).abs() / 2  # of goals from starts, both uniform in the square
    left = [torch.hypot(*(offset - 0.1 * step).clamp(min=0).T) for step in range(1, 21)]
    assert played["oracle"] == pytest.approx([-sum(left).mean().item()] * 2, abs=0.2)
    assert played["thompson"][0] == pytest.approx(-20 * offset.norm(dim=-1).mean().item(), abs=1.5)  # as good as none
    assert -17 < played["no context"][0] < -15.3 and 0 < played["oracle"][0] - played["search"][0] < 2
    assert played["search"][1] == pytest.approx(played["oracle"][1], abs=0.25)  # its way is a straight line
    assert played["thompson"][1] == pytest.approx(played["oracle"][1], abs=0.05)
    assert played["thompson"][0] == pytest.approx(-20 * 1.043, abs=1.0)


def test_horizon_too_short_for_a_search():
    env = robot(60, horizon=20)
    chosen = policies(env, 6, 1, math.inf, seed=0)
    assert 20 * play(env, chosen["oracle"], 1).returns.mean() == pytest.approx(13.38, abs=0.1)
    returns = 20 * play(env, chosen["search"], 6).returns.mean(0)
    assert returns.sum() == pytest.approx(5.4 + 11.9 + 12.2 + 3 * 13.4, abs=1.0)
    assert returns[2:].min() > 13.1
    drawn = 20 * thompson(robot(300, horizon=20), [[0.01 * i, 1 - 0.01 * i] for i in range(21)], 6)
    assert drawn.tolist() == pytest.approx([1.5, 3.2, 4.7, 6.2, 7.7, 9.0], abs=0.6)  # standard error 0.2 to 0.4


def test_walk_depends_on_the_number_of_trajectories():
    env = robot(60, horizon=20)
    first = 20 * play(env, policies(env, 1, 1, math.inf, seed=0)["search"], 1).returns.mean()
    assert first > 5.4  # which the walk that is best for six trajectories does not reach in the first


# What holds for any numbers.


def test_order(on_point):
    *_, played = on_point
    oracle, search, thompson = (played[name].returns.mean(0) for name in ("oracle", "search", "thompson"))
    assert (oracle >= search - 0.005).all() and (search > thompson + 0.2).all()
    assert (search.diff() > -0.005).all() and (thompson.diff() > 0.05).all()
    assert (thompson[1:] > played["no context"].returns.mean(0)[1:]).all()


def test_subgoals_of_the_search(on_point):
    *_, played = on_point
    path, subgoals = played["search"].positions, played["search"].subgoals
    decisions = subgoals.unflatten(2, (10, 20))
    assert (decisions == decisions[..., :1, :]).all()  # unchanged within a decision
    assert (decisions[:, :, 1:, 0] != decisions[:, :, :-1, 0]).any(-1).float().mean() > 0.2
    start = torch.cat([torch.zeros_like(path[:, :, :1]), path[:, :, 19:-1:20]], 2)  # where decisions are made
    assert (decisions[..., 0, :] - start).abs().max() <= 5.0 + 1e-4


def test_reward_counts_at_decisions(on_point):
    """The search walks as if there were no reward until the decision with the first one is over."""
    env, chosen, played = on_point
    blind = play(env, copy.deepcopy(chosen["search"]), 1, blind=True).positions[:, 0]
    path, rewards = played["search"].positions[:, 0], played["search"].rewards[:, 0]
    first = (rewards > 0).float().argmax(1)
    over = 20 * (first // 20 + 1)
    same = (path == blind).all(-1)
    before = torch.arange(200) < over.unsqueeze(-1)
    assert same[before].all() and not same[:, -1].any()


@pytest.mark.parametrize("make", [point, robot])
def test_control(make):
    """Arrives, does not pass the place by much and stays there; the next trajectory is the same."""
    env = make(4, horizon=60)
    place = env.library.parameters[env.task_id]
    played = play(env, Stay(place), 2)
    offset = (place[:, None] - played.positions[:, 0]) * place.sign()[:, None]  # negative: passed
    assert offset.min() > -0.05 * env.goal_space.tolerance and offset[:, -10:].abs().max() < 1e-3
    assert torch.equal(played.positions[:, 0], played.positions[:, 1])


def test_tasks_at_random_stay():
    env = SparsePointRobot(8, horizon=20, task_order="random", seed=0)
    env.restart()
    returns = play(env, Stay(env.library.parameters[env.task_id]), 2).returns
    assert returns.min() > 0.5 and torch.equal(returns[:, 0], returns[:, 1])


@pytest.mark.parametrize("name", ["search", "thompson", "no context"])
def test_goals_are_not_looked_at(name):
    """Rows with other goals do the same up to the first reward that differs; with two of these, not for ever."""
    rows = 20
    library = SparsePointRobot.make_library(test=rows, validation=rows)
    played = []
    for split in ("validation", "test"):
        tasks = library.split(split).roll(rows // 2 if split == "test" else 0)
        env = SparsePointRobot(rows, library=library, tasks=tasks, horizon=60)
        played.append(play(env, policies(env, 2, 5, 0.5, seed=0)[name], 2))
    rewards, positions = ([getattr(one, key).flatten(1, 2) for one in played] for key in ("rewards", "positions"))
    differs = (rewards[0] != rewards[1]).cumsum(1) > 0
    told = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), differs[:, :-1]], 1)  # before the step
    same = (positions[0] == positions[1]).all(-1)
    assert same[~told].all() and differs.any()
    assert bool(same.all()) == (name == "no context")


def test_search_goes_on_in_the_next_trajectory():
    """What was searched in one trajectory is not searched again in the next."""
    env = robot(60, horizon=20)
    played = play(env, policies(env, 3, 1, math.inf, seed=0)["search"], 3, blind=True)
    goals = Candidates(Arc.of(env), torch.zeros(0, 2), 1).goals
    near = (torch.cdist(played.positions[0], goals) <= 0.2).any(1).float()  # [K, C]
    assert (near[0] * near[1]).mean() < 0.1 and near.amax(0).mean() > 0.98


@pytest.mark.slow
def test_whole_circle():
    library = circle_library()
    env = point(32, library=library, split="test")
    arc = Arc.of(env)
    assert (arc.radius, arc.length) == (pytest.approx(8.0), 2 * math.pi)
    result = references(env, trajectories=2, decision_steps=20, reach=5.0, seed=0)
    assert result["search"][1] > 0.7 and 0.3 < result["search"][0] < result["search"][1]
    assert result["no context"].tolist() == pytest.approx([0.1 * 0.9] * 2, abs=0.05)  # 2 * 18.2 of 360 degrees


@pytest.fixture(scope="module")
def in_square():
    env = point(20, goals="square", radius=5.0, validation_tasks=20)
    chosen = policies(env, 2, 20, 4.4, seed=0)
    return env, chosen, {name: play(env, copy.deepcopy(policy), 2) for name, policy in chosen.items()}


def test_square(in_square):
    """By hand: going there takes the longer axis's distance, less 2.5 m, at 0.25 m a step, and 2 steps to speed up."""
    env, _, played = in_square
    oracle, search, thompson, still = (means(played[name]) for name in ("oracle", "search", "thompson", "no context"))
    away = (env.library.parameters[env.task_id].abs().amax(-1) - 2.5).clamp(min=0) / 0.25
    assert oracle == pytest.approx([1 - (away + 1).mean().item() / 200] * 2, abs=0.02)
    assert still == pytest.approx([torch.pi * 2.5**2 / 10**2] * 2, abs=0.04)  # the share of a disc
    assert 0.65 < search[0] < 0.8 and search[1] == pytest.approx(oracle[1], abs=0.01)
    assert thompson[0] < 0.35 and thompson[0] < thompson[1] < search[1]
    assert (played["search"].rewards.amax((1, 2)) == 1).all()  # nowhere was left out


def test_a_sweep_of_the_square_comes_by_all_of_it(in_square):
    env, chosen, _ = in_square
    square = Square.of(env)
    path = play(env, copy.deepcopy(chosen["search"]), 1, blind=True).positions[0, 0]
    generator = torch.Generator().manual_seed(0)
    goals = 10 * torch.rand(2000, 2, generator=generator) - 5
    near = torch.cdist(path, goals) <= 2.5
    assert near.any(0).all() and near[:155].any(0).all()  # within 78 % of a trajectory
    assert torch.cdist(goals, square.candidates).amin(1).max() <= square.slack
    walk = square.walk(square.walks)
    for share in (0.1, 0.37, 0.9):  # where the way comes by its candidates, and not before
        places = walk.places(torch.full((len(square.walks), 1), share))
        passed = torch.cdist(places, square.candidates)[:, 0] <= walk.margin
        assert (walk.order[passed] <= share + 1 / 255).all()


def test_larger_squares_take_more_rounds():
    walks = {width: Square(width, 2.5, 0.25).walks for width in (3.0, 5.0, 9.0)}
    assert [int(found[0, 4]) for found in walks.values()] == [1, 1, 3]  # the corners of two are too far apart
    assert not len(Square(100.0, 2.5, 0.25).walks)
    with pytest.raises(ValueError, match="goal_tolerance = 0.1: raise it to"):
        Square.of(point(1, goals="square", radius=5.0, goal_tolerance=0.1))


# What tasks are known to be.


def test_arc():
    arc = Arc.of(point(2))
    assert arc.radius == pytest.approx(8.0) and arc.tolerance == 2.5
    assert abs(arc.start) < 0.1 and arc.start + arc.length == pytest.approx(math.pi, abs=0.1)
    ends = arc.places(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([[8.0, 0.0], [-8.0, 0.0]]), atol=0.6, rtol=0.0)


def test_arc_across_the_cut_of_angles():
    angles = torch.linspace(0.75 * math.pi, 1.25 * math.pi, 11)
    library = TaskLibrary(torch.stack([angles.cos(), angles.sin()], -1), {"train": torch.arange(11)})
    arc = Arc.of(point(1, library=library, split="train", radius=1.0))
    assert arc.length == pytest.approx(0.55 * math.pi, abs=1e-4)
    assert arc.start % (2 * math.pi) == pytest.approx(0.725 * math.pi, abs=1e-4)


def test_belief_is_exact():
    """Against each candidate by itself, with rewards 1 - distance; the goal may lie 4 mm from its candidate."""
    arc = Arc(radius=1.0, start=0.0, length=math.pi, tolerance=0.2)
    distance = torch.linspace(0, 0.2, 2001)
    goal, generator = torch.tensor([math.cos(1.0), math.sin(1.0)]), torch.Generator().manual_seed(0)
    belief = Candidates(arc, torch.stack([distance, 1 - distance], -1), rows=1)
    possible = [True] * len(belief.goals)
    for width, found in ((1.0, False), (0.4, True)):
        for place in goal + width * (torch.rand(20, 2, generator=generator) - 0.5):
            away = math.dist(place, goal)
            if not found and away < 0.25:
                continue
            belief.see(place[None], torch.tensor([1 - away if away <= 0.2 else 0.0]))
            for i, candidate in enumerate(belief.goals.tolist()):
                nearer, further = math.dist(place, candidate) - 0.004, math.dist(place, candidate) + 0.004
                possible[i] &= nearer <= away <= further if away <= 0.2 else further > 0.2
        wrong = (belief.possible[0] != torch.tensor(possible)).sum()
        assert wrong <= 2 and belief.possible[0].float().mean() < (0.01 if found else 0.9)
        belief.see(goal[None] + 1.0, torch.tensor([0.0]))
        assert bool(belief.found) == found  # also of a reward that was not the last
    assert math.dist(belief.estimate()[0], goal) < 0.008


def test_no_references():
    assert [
        name
        for name in ("HalfCheetahVel", "PointUMaze", "AntGoal", "ReacherCircle")
        if has_references(FAMILIES[name](1))
    ] == []
    assert references(FAMILIES["HalfCheetahVel"](1), trajectories=1, decision_steps=1, reach=1.0, seed=0) == {}


def test_errors():
    env = FAMILIES["PointUMaze"](2)
    with pytest.raises(ValueError, match="radii .* on a circle about the origin"):
        policies(env, 1, 1, 1.0, seed=0)
    env = robot(2, horizon=20)
    for wrong in ((0, 5, 1.0), (1, 0, 1.0), (1, 5, 0.0), (1, 5, math.nan)):
        with pytest.raises(ValueError, match=">= 1"):
            policies(env, *wrong, seed=0)
    with pytest.raises(ValueError, match="trajectories = 0"):
        play(env, Stay(torch.zeros(2, 2)), 0)


def test_a_point_stands_in_for_the_ant():
    """Half a metre a second, and so 39 of 200 steps to a goal that counts 1.75 m away."""
    env = FAMILIES["AntHalfCircle"](60, split="validation")
    found = references(env, trajectories=2, decision_steps=20, reach=1.2, seed=0)
    least, most = 1 - 39 / 200, 1 - 39 / 200 / math.sqrt(2)  # along an axis, or along both at once
    assert least - 0.02 < found["oracle"][0] < most and found["search"][1] > found["search"][0]
    assert has_references(env) and not has_references(FAMILIES["AntSemiCircleSparse"](1))
