"""What random play shows of an environment: measures that are known, and warnings of what does not work."""

from __future__ import annotations

import re
from unittest import mock

import gymnasium
import pytest
import torch
from gymnasium import spaces
from test_recipes import start
from tiny import TINY

from peach_trl.envs import FAMILIES, GoalSpace, GymnasiumTasksEnv, TaskLibrary
from peach_trl.envs.inspection import HeldActions, inspect
from peach_trl.rules import TaskFacts


class Walk(gymnasium.Env):
    """Two places that actions add to, a constant and a large clock; the reward is the first place."""

    observation_space = spaces.Box(-torch.inf, torch.inf, (4,))
    action_space = spaces.Box(-1.0, 1.0, (2,))
    limit = float("inf")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.clock = [0.0, 0.0], 0
        return self.observe(), {}

    def step(self, action):
        self.place = [place + 0.1 * float(move) for place, move in zip(self.place, action, strict=True)]
        self.clock += 1
        return self.observe(), self.place[0], abs(self.place[0]) > self.limit, False, {}

    def observe(self):
        return torch.tensor([*self.place, 3.0, 1000.0 * self.clock]).numpy()


class Short(Walk):
    limit = 0.15


def world(make=Walk, space=None, rows=50, horizon=20):
    library = TaskLibrary(torch.zeros(rows, 1), {"train": torch.arange(rows)})
    options = {"num_envs": rows, "horizon": horizon, "seed": 0, "subgoal_space": space}
    return GymnasiumTasksEnv(make, library, lambda env, task: None, **options)


def test_a_world_whose_ways_are_known():
    found = inspect(world(space=GoalSpace([0, 1], -2.0, 2.0, 0.1)), decision_steps=5, horizon=20)
    torch.testing.assert_close(found.moved, torch.full((2,), 0.5 * 0.95), atol=0.02, rtol=0)  # uniform up to 0.5
    assert found.length == 20 and found.ended == 0 and 0.5 < found.reward[1] < 2.0 and found.usual < 0.1
    assert found.proposals["hierarchy.subgoal_reach"] == pytest.approx(0.095, abs=0.004)
    assert found.proposals["transitions.reward_scale"] == pytest.approx(
        40 / (20 * max(map(abs, found.reward))), rel=0.01
    )
    assert [warning.split(" of the observation")[0] for warning in found.warnings] == ["entries [3]", "entries [2]"]
    assert any("reward of a step" in line for line in found.lines())


def test_ways_are_measured_within_episodes():
    space = GoalSpace([0, 1], -2.0, 2.0, 0.1)
    found = inspect(world(Short, space), decision_steps=2, horizon=20)
    assert found.ended > 0.5 and found.length < 20 and found.moved.max() <= 0.2


@pytest.mark.parametrize(
    ("space", "steps", "message"),
    [
        (None, 5, "there is no subgoal_space"),
        (GoalSpace([0, 1], -0.2, 0.2, 0.1), 5, r"entries \[0, 1\] pass the subgoal space's bounds"),
        (GoalSpace([0, 1], -2.0, 2.0, 0.9), 5, "every subgoal nearby is achieved"),
        (GoalSpace([0, 2], -4.0, 4.0, 0.1), 5, r"entries \[2\] of the subgoal space do not move"),
        (GoalSpace([0, 1], -9.0, 9.0, 0.1), 30, "decision_steps = 30 is more than the horizon"),
    ],
)
def test_warnings(space, steps, message):
    found = inspect(world(space=space), decision_steps=steps, horizon=20)
    assert any(re.search(message, warning) for warning in found.warnings), found.warnings


def test_what_a_configuration_asks_for():
    space = GoalSpace([0, 1], -2.0, 2.0, 0.3)
    far, near = (inspect(world(space=space), 5, 20, subgoal_reach=reach).warnings for reach in (0.1, 0.05))
    assert not any("hierarchy.subgoal_reach" in warning for warning in far)
    assert any(warning.startswith("no subgoal lies farther than 0.25 from the state") for warning in near)
    short = inspect(world(Short, space), decision_steps=10, horizon=20).warnings
    assert any(re.match(r"episodes have [\d.]+ steps, a decision decision_steps = 10", warning) for warning in short)


def test_rewards_that_are_not_met():
    found = inspect(FAMILIES["Wind"](4, seed=0), decision_steps=4, horizon=8, episodes=1)
    assert any(warning.startswith("no reward but 0 was met") for warning in found.warnings)
    assert "transitions.reward_scale" not in found.proposals


def test_actions_are_held():
    env = world(space=GoalSpace([0, 1], -2.0, 2.0, 0.1), rows=3)
    action = env.rollout(20, HeldActions(env, 5))["action"]
    assert (action[:, :5] == action[:, :1]).all() and not torch.equal(action[:, 4], action[:, 5])
    assert action.unique().numel() == 3 * 4 * 2


def test_the_recipe_prints_and_keeps_it(tmp_path, capsys):
    unknown = mock.patch("peach_trl.envs.point.PointConfig.facts", lambda _: TaskFacts(horizon=30))  # nothing by rule
    with unknown:
        start(tmp_path, "check_env", *TINY, "rows=2", "episodes=2", "hydra.run.dir=runs/one")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"run folder: {tmp_path / 'runs' / 'one'}"
    assert "hierarchy.subgoal_reach" in said and (tmp_path / "runs" / "one" / "check.txt").read_text() in said
