"""The wind and the treasure hunt: as published, and what can be had in them."""

import math

import numpy as np
import pytest
import torch
from tiny import ROOT
from torchrl.envs import check_env_specs

from peach_trl import meta_tests
from peach_trl.envs.families import TreasureHunt, Wind
from peach_trl.experiment import PeachConfig, make_agent, make_library
from peach_trl.references import play, policies, references
from peach_trl.utils import load_config
from peach_trl.utils.run import Run

FAMILIES = [Wind, TreasureHunt]
torch.set_num_threads(1)


def actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, *env.action_spec.shape, generator=generator) - 1


def rollout(env, sequence):
    steps = [env.advance(action)[0] for action in sequence]
    return tuple(torch.stack([step[key] for step in steps]) for key in ("observation", "reward"))


# What both keep.


@pytest.mark.parametrize("family", FAMILIES)
def test_specs(family):
    for observe_goal in (False, True):
        check_env_specs(family(3, observe_goal=observe_goal, seed=0))
    hidden = family(3, seed=0).reset()
    assert set(hidden.keys()) == {"observation", "task_id", "done", "terminated", "truncated"}


@pytest.mark.parametrize(("family", "fingerprint"), [(Wind, "6c4639c15e70dab7"), (TreasureHunt, "f8654bbbb169a7f2")])
def test_lists_of_tasks_are_pinned(family, fingerprint):
    library = family.make_library()
    assert library.name == f"{family.__name__}-v{family.version}"
    assert library.fingerprint() == fingerprint, "the same seed gives other tasks: raise the family's version"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_single_envs(family):
    env = family(3, threads=2, seed=0)
    env.reset()
    together = rollout(env, actions(env, 30))
    for row in range(3):
        single = family(1, tasks=[row], seed=1)
        single.reset()
        alone = rollout(single, actions(env, 30)[:, row : row + 1])
        assert all(torch.equal(a[:, row], b[:, 0]) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_change_and_rows_are_apart(family):
    env = family(3, seed=0)
    env.reset()
    before = env._qpos.copy()
    env.advance(torch.ones(3, 2), torch.tensor([True, False, True]))
    after = env._qpos.copy()
    assert (after != before).any(-1).tolist() == [True, False, True]
    env.restart(torch.tensor([False, False, True]), torch.tensor([0, 1, 7]))
    assert env.task_id.tolist() == [0, 1, 7]
    assert (env._qpos != after).any(-1).tolist() == [False, False, True] and np.array_equal(env._qpos[2], before[2])
    fresh = family(3, tasks=[0, 1, 7], seed=0)
    fresh.reset()
    for one in (env, fresh):
        one._qpos[:] = before
    assert all(
        torch.equal(a, b) for a, b in zip(*(rollout(one, actions(env, 30)) for one in (env, fresh)), strict=True)
    )


# The wind.


def test_wind_is_the_sources():
    env = Wind(20, split="test", seed=0)
    wind = env.library.parameters[env.library.split("test")].double().numpy()
    state, goal = np.zeros((20, 2)), np.array([0.0, 1.0])
    assert env.reset()["observation"].abs().sum() == 0
    seen = []
    for step in range(75):
        # To the place, where it stays; for some of the rows, 1 mm within or outside of the radius.
        aside = np.where(np.arange(20) % 3 == 1, 0.029, np.where(np.arange(20) % 3 == 2, 0.031, 0.0))
        place = goal + aside[:, None] * np.array([0.6, 0.8])
        action = torch.from_numpy(np.clip((place - state - wind) / 0.1, -1, 1)).float()
        state = state + 0.1 * action.double().numpy() + wind
        values, _ = env.advance(action)
        assert np.array_equal(values["observation"].numpy(), state.astype(np.float32))
        reward = np.linalg.norm(state - goal, axis=-1) <= 0.03
        assert np.array_equal(values["reward"][:, 0].numpy(), reward.astype(np.float32))
        assert bool(values["truncated"].all()) == bool(values["done"].any()) == (step == 74)
        assert not values["terminated"].any()
        seen.append(reward)
    assert np.array(seen)[-1].tolist() == [row % 3 < 2 for row in range(20)] and not np.array(seen)[4].any()


def test_winds_are_the_published_distribution():
    assert Wind.counts == (40, 20, 20) and Wind.episode_steps == 75
    winds = Wind.make_library(train=2000).parameters[:2000]
    assert winds.abs().max() <= 0.08 and winds.abs().amax(0).min() > 0.079
    assert winds.std(0).tolist() == pytest.approx([0.08 / 3**0.5] * 2, abs=1e-3)
    cells = (Wind.make_library().parameters[-20:].double() + 0.08) / 0.16 * torch.tensor([5, 4])  # one in each
    assert sorted(cells.floor().long().tolist()) == [[x, y] for x in range(5) for y in range(4)]


def test_a_wind_is_no_state_to_reach():
    env = Wind(2, observe_goal=True, seed=0)
    assert env.goal_space is None and torch.equal(env.reset()["goal"], env.library.parameters[:2])
    assert env.subgoal_space.achieved(torch.tensor([0.0, 1.0]), torch.tensor([0.06, 1.06]))
    site = env.model.site("place")
    assert site.pos[:2].tolist() == [0.0, 1.0] and site.size[0] == 0.03


def test_the_place_of_the_wind_is_drawn(tmp_path, monkeypatch):
    """Reports draw the place, not the wind, though there is no goal space."""
    drawn = {}
    monkeypatch.setattr(meta_tests, "plot_trajectories", lambda png, paths, goals, tolerance, **more: drawn.update(
        goals=goals, tolerance=tolerance, candidates=more["candidates"]))  # fmt: skip
    config = load_config(PeachConfig, "peach", ROOT / "configs", ["env=Wind", "env.horizon=10"])
    library = make_library(config)
    result = meta_tests.run_meta_test(make_agent(config, library), config, library, "validation", seed=0)
    with Run(tmp_path / "run", config) as run:
        meta_tests.save_meta_test(run, config, library, result, "validation")
    assert drawn["goals"].tolist() == [[0.0, 1.0]] * 5 and drawn["tolerance"] == 0.03 and drawn["candidates"] is None
    assert torch.equal(result.goals, library.parameters[library.split("validation")])


def test_references_of_the_wind():
    """On 4,000 winds the standard error of the oracle is 0.1; what a decision of 5 steps costs is small."""
    env = Wind(4000, library=Wind.make_library(test=4000), split="test", seed=0)
    found = references(env, trajectories=2, decision_steps=5, reach=0.9, seed=0)
    returns = {name: (75 * values).tolist() for name, values in found.items()}
    assert list(returns) == ["oracle", "search", "thompson", "no context"]
    assert returns["oracle"] == pytest.approx([62.2] * 2, abs=0.2)
    assert returns["search"][0] == pytest.approx(62.2, abs=0.3) and returns["search"][1] == returns["oracle"][1]
    # Off by less than the radius: a disc's area over the square's, and over that of two winds' difference, at most.
    share = math.pi * 0.03**2 / 0.16**2
    assert returns["no context"] == pytest.approx([share * 65] * 2, abs=0.5)
    assert 0.7 * share * 65 < returns["thompson"][0] < share * 65 and returns["thompson"][1] == returns["oracle"][1]


def test_direct_control_in_the_wind_needs_one_step():
    env = Wind(60, library=Wind.make_library(test=60), split="test", seed=0)
    chosen = policies(env, 1, 1, math.inf, seed=0)
    oracle, search = (play(env, chosen[name], 1).rewards.sum(-1) for name in ("oracle", "search"))
    assert (oracle - search).max() <= 1 and (oracle >= search).all()


def test_the_wind_is_felt_not_told():
    """Up to the end of the first decision all aim at the place itself."""
    env = Wind(20, split="test", seed=0)
    chosen = policies(env, 1, 5, 0.9, seed=0)
    search, blind = play(env, chosen["search"], 1), play(env, chosen["no context"], 1)
    assert torch.equal(search.positions[:, 0, :5, 1].sign(), blind.positions[:, 0, :5, 1].sign())
    decisions = search.subgoals.unflatten(2, (15, 5))
    assert (decisions == decisions[..., :1, :]).all()
    assert torch.equal(decisions[:, 0, 0, 0], torch.tensor([0.0, 0.9]).expand(20, 2))


# The treasure hunt.


def published_reward(state, goal):
    """One row, as the source has it."""
    top = math.hypot(*state)
    if top <= 0.5:
        return -0.5 + top - 5
    if math.dist(state, goal) <= 0.1:
        return 10.0
    return -5 * max(1.0, top)


def test_treasure_hunt_is_the_sources():
    env = TreasureHunt(60, split="test", seed=0)
    goal = env.library.parameters[env.library.split("test")].double().numpy()
    state = np.tile([0.0, -1.0], (60, 1))
    assert torch.equal(env.reset()["observation"], torch.tensor([0.0, -1.0, 0.0, 0.0]).expand(60, 4))
    kinds = set()
    for step in range(100):
        # Up the mountain, to the treasure, and then out to the walls.
        place = np.zeros((60, 2)) if step < 12 else goal if step < 40 else np.full((60, 2), 9.0) * [1, -1]
        action = torch.from_numpy(np.clip((place - state) / 0.1, -1, 1)).float()
        state = np.clip(state + 0.1 * action.double().numpy(), -1.5, 1.5)
        values, _ = env.advance(action)
        hint = goal * (np.linalg.norm(state, axis=-1, keepdims=True) < 0.1)
        wanted = np.concatenate([state, hint], axis=-1).astype(np.float32)
        assert np.array_equal(values["observation"].numpy(), wanted)
        reward = [published_reward(*row) for row in zip(state.tolist(), goal.tolist(), strict=True)]
        np.testing.assert_allclose(values["reward"][:, 0].numpy(), reward, rtol=0, atol=1e-5)
        assert bool(values["truncated"].all()) == (step == 99) and not values["terminated"].any()
        kinds |= {(x <= -5.4, x == 10, x == -5, x < -6) for x in reward}
    assert len(kinds) == 5 and np.array_equal(state, np.tile([1.5, -1.5], (60, 1)))


def test_treasures_lie_on_the_circle():
    assert TreasureHunt.counts == (60, 60, 60) and TreasureHunt.episode_steps == 100
    goals = TreasureHunt.make_library().parameters.double()
    assert goals.norm(dim=-1).tolist() == pytest.approx([1.0] * 180)
    arcs = (torch.atan2(goals[:, 1], goals[:, 0]) / (2 * torch.pi) % 1 * 60).floor().view(3, 60)
    assert arcs.tolist() == [list(range(60))] * 3


@pytest.fixture(scope="module")
def hunt():
    env = TreasureHunt(60, split="test", seed=0)
    chosen = policies(env, 1, 5, 0.5, seed=0)
    return env, {name: play(env, policy, 1) for name, policy in chosen.items()}


def test_references_of_the_treasure_hunt(hunt):
    """By hand: steps to a treasure along the axes, 10 more where the way leads over the top, 5 to 10 points a step."""
    env, played = hunt
    goals = env.library.parameters[env.library.split("test")].double()
    sums = {name: one.rewards.sum(-1).mean().item() for name, one in played.items()}
    assert list(sums) == ["oracle", "search", "no hint", "thompson", "no context"]

    def worth(start):  # of going straight, at once: the first step within 0.1 m is the first one paid
        offset = goals - torch.tensor(start)
        steps = ((offset.norm(dim=-1) - 0.1) / offset.norm(dim=-1) * offset.abs().amax(-1) / 0.1).ceil().clamp(min=1)
        return steps, 1000 - 15 * (steps - 1)

    assert sums["oracle"] == pytest.approx(worth([0.0, -1.0])[1].mean(), abs=3)  # less what the mountain costs
    steps, value = worth([0.0, 0.0])
    mountain = 0.5 + 2 * (0.1 + 0.2 + 0.3 + 0.4)  # up and down again, at most
    assert sums["search"] == pytest.approx(value.mean().item() - 150 - mountain, abs=1)
    assert 400 < sums["no hint"] < 0.9 * sums["search"] and sums["search"] < sums["oracle"]
    assert sums["no context"] == pytest.approx(15 * 100 * 2 / 60 - 500)  # two of the treasures lie at the start
    assert -500 < sums["thompson"] < -380


def test_the_hint_is_read_at_the_top_only(hunt):
    _, played = hunt
    path, subgoals = played["search"].positions[:, 0], played["search"].subgoals[:, 0]
    assert (path[:, :10] == path[:1, :10]).all() and path[:, 9].abs().max() < 1e-6
    assert (subgoals[:, :10] == subgoals[:1, :10]).all() and (subgoals[:, 10] != 0).any(-1).all()
    around = played["no hint"].positions[:, 0].norm(dim=-1)
    assert around.min() > 0.8 and (played["no hint"].rewards[:, 0] > 0).any(-1).all()


def test_the_hint_is_remembered():
    env = TreasureHunt(20, split="test", seed=0)
    chosen = policies(env, 2, 5, 0.5, seed=0)
    search, oracle = play(env, chosen["search"], 2), play(env, chosen["oracle"], 1)
    assert (search.rewards[:, 1].sum(-1) - oracle.rewards[:, 0].sum(-1)).abs().max() < 40  # two steps
