"""The meta-test: whose context it reads, and what it counts."""

import csv
import math

import pytest
import torch
from tiny import Ending, random_context, tiny_agent, tiny_config
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import get_primers_from_module

from peach_trl.context import Transition
from peach_trl.evaluation import COLUMNS, meta_test
from peach_trl.experiment import make_env, make_library, make_task_buffer
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.meta_tests import bounds_of, run_meta_test


def same(one, other):
    for name in ("returns", "success", "found", "positions", "loc", "scale"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


SOURCE = {"context__read": "sample", "context__next": "same", "context__update": "trajectory"}


@pytest.mark.parametrize("changes", [{}, SOURCE])
def test_the_context_comes_from_the_meta_tests_own_trajectories(changes):
    """Poisoning all that training knows of the tasks changes nothing (garage #1374 went unnoticed)."""
    config = tiny_config(**changes)
    library = make_library(config)
    agent = tiny_agent(config)
    expected = run_meta_test(agent, config, library, "train", seed=0)
    assert (expected.loc != 0).any()  # something was learnt of the tasks on the way

    training = agent.make_policy(num_tasks=library.num_tasks)
    buffer, rows = make_task_buffer(config, library), random_context(3, 40, seed=1).exclude("mask")
    rows["task_id"] = torch.arange(3).view(3, 1, 1).expand(3, 40, 1)
    rows["episode"] = rows["task_id"]
    rows["transition_type"] = torch.zeros(3, 40, 1, dtype=torch.int64)
    buffer.extend(rows.reshape(-1))
    training.tracker.condition(torch.arange(3), random_context(3, 40, seed=2))
    assert training.tracker.table[:3].abs().max() > 0.1
    same(run_meta_test(agent, config, library, "train", seed=0), expected)


def test_it_is_what_the_policy_does_in_the_environment():
    """Against a plain TorchRL rollout; the belief in the end is that of all its decisions."""
    config = tiny_config(env__goal_tolerance=1.499)  # of a goal 1.5 m away: any step towards it is rewarded
    library = make_library(config)
    agent, tasks = tiny_agent(config), torch.tensor([3, 4, 3])
    result = meta_test(agent.make_policy(3), make_env(config, library, tasks), trajectories=3)
    policy = agent.make_policy(4)  # goes on after the third trajectory
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        batch = make_env(config, library, tasks, policy).rollout(61, policy, break_when_any_done=False)
    reward = batch["next", "reward"][:, :60, 0].unflatten(1, (3, 20))
    torch.testing.assert_close(result.returns, reward.sum(-1) / 20)
    assert torch.equal(result.found, (reward > 0).any(-1).float()) and 0 < result.found.mean()
    assert torch.equal(result.positions, batch["next", "observation"][:, :60, :2].unflatten(1, (3, 20)))
    assert torch.equal(result.subgoals, batch["hierarchy", "goal"][:, :60].unflatten(1, (3, 20)))
    assert result.task_ids.tolist() == [3, 4, 3] and torch.equal(result.goals, library.parameters[tasks])
    ends = (result.positions[:, :, -1] - result.goals.unsqueeze(1)).norm(dim=-1) <= config.env.goal_tolerance
    assert torch.equal(result.success, ends.float())
    rows = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)(batch[:, :60])[-1].reshape(
        3, -1
    )
    loc, scale = agent.top.belief(Transition.of(rows))
    torch.testing.assert_close(result.loc, loc.detach())
    torch.testing.assert_close(result.scale, scale.detach())
    read = agent.top.belief.read(agent.top.belief.scan(Transition.of(rows)))[:, -1]
    torch.testing.assert_close(batch["belief"][:, 60], read.detach())


def test_an_episode_that_goes_on_is_noticed():
    """Also where it is the only one: what is cut off is no episode."""
    config = tiny_config(env__horizon=20)
    library = make_library(config)
    for trajectories in (1, 2):
        with pytest.raises(ValueError, match="horizon = 10: an episode"):
            meta_test(tiny_agent(config).make_policy(2), make_env(config, library, torch.arange(3)), trajectories, 10)


def test_what_an_environment_says_of_success_counts():
    """Not whether a reward was positive, as all of Meta-World's are."""

    class Says(RewardSum):
        def _step(self, before, after):
            return after.set("success", (after["observation"][..., :1] > 0) & (before["step_count"] > 17))

    config = tiny_config()
    library = make_library(config)
    env = TransformedEnv(make_env(config, library, torch.arange(3)), Compose(StepCounter(), Says()))
    result = meta_test(tiny_agent(config).make_policy(2), env, trajectories=2, horizon=20)
    assert torch.equal(result.success, (result.positions[:, :, -1, 0] > 0).float())
    assert torch.equal(result.found, (result.positions[:, :, -2:, 0] > 0).any(-1).float())


def test_success_of_an_episode_that_it_ends():
    """As of mazes that terminate at their goal."""
    config = tiny_config()
    library = make_library(config)
    agent, tasks = tiny_agent(config, seed=1), torch.tensor([0, 1, 2])

    class Says(RewardSum):
        def _step(self, before, after):
            return after.set("success", after["terminated"].clone())

    env = TransformedEnv(Ending(config.env, 3, library=library, tasks=tasks), Says())
    result = meta_test(agent.make_policy(3), env, trajectories=3, horizon=20)
    assert result.success.any() and torch.equal(result.success, result.found)


def test_a_flat_agents_search_sets_no_subgoals(monkeypatch):
    """So its bound is what the search can have by direct control, whatever the reach of subgoals would be."""
    found = []
    monkeypatch.setattr("peach_trl.meta_tests.references", lambda env, **how: found.append(how["reach"]) or {})
    for depth, steps in ((1, 1), (2, 4), (3, 4)):
        config = tiny_config(hierarchy__depth=depth, hierarchy__decision_steps=steps, hierarchy__subgoal_reach=0.2)
        bounds_of(config, make_library(config), "validation")
    assert found == [math.inf, pytest.approx(0.8), pytest.approx(0.8)]


def test_short_episodes_count_as_episodes():
    """Rows end at different times; each has its own first K episodes, by a loop."""
    config = tiny_config()
    library = make_library(config)
    agent, tasks = tiny_agent(config, seed=1), torch.tensor([0, 1, 2])

    def env():
        return Ending(config.env, 3, library=library, tasks=tasks)

    result = meta_test(agent.make_policy(3), env(), trajectories=3)
    policy = agent.make_policy(3)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        transformed = TransformedEnv(env(), get_primers_from_module(policy))
        batch = transformed.rollout(60, policy, break_when_any_done=False)
    assert batch["next", "terminated"].any()
    for row in range(3):
        episode, total, length = 0, 0.0, 0
        for t in range(60):
            step = batch[row, t]["next"]
            if episode == 3:
                break
            torch.testing.assert_close(result.positions[row, episode, length], step["observation"][:2])
            total, length = total + step["reward"].item(), length + 1
            if step["done"]:
                assert result.returns[row, episode].item() == pytest.approx(total / 20)
                assert torch.equal(
                    result.positions[row, episode, length:], step["observation"][:2].expand(20 - length, 2)
                )
                episode, total, length = episode + 1, 0.0, 0
        done = batch["next", "done"][row, :, 0].cumsum(0)
        steps = batch[row : row + 1, : int((done < 3).sum()) + 1]
        rows = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)(steps)[-1]
        loc, scale = agent.top.belief(Transition(*(part.unsqueeze(0) for part in Transition.of(rows))))
        torch.testing.assert_close(result.loc[row], loc[0].detach())
        torch.testing.assert_close(result.scale[row], scale[0].detach())


def test_a_policy_that_forgets_too_early_is_refused():
    config = tiny_config()
    agent, library = tiny_agent(config), make_library(config)
    with pytest.raises(ValueError, match=r"trajectories = 3: this policy forgets .* make_policy\(trajectories=3\)"):
        meta_test(agent.make_policy(2), make_env(config, library, torch.tensor([0])), trajectories=3)


def test_a_row_for_each_task_rollout_and_trajectory(tmp_path):
    config = tiny_config(context__read="sample", evaluation__rollouts=2)
    result = run_meta_test(tiny_agent(config), config, make_library(config), "validation", seed=0)
    result.save_csv(tmp_path / "meta_test.csv", "validation")
    with open(tmp_path / "meta_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    keys = [(row["split"], row["task"], row["rollout"], row["trajectory"]) for row in rows]
    assert keys == [("validation", task, rollout, k) for task in "34" for rollout in "01" for k in "12"]
    assert [float(row["return"]) for row in rows] == pytest.approx(result.returns.flatten().tolist(), abs=1e-5)
    assert [float(row["success"]) for row in rows] == result.success.flatten().tolist()
    assert not torch.equal(result.positions[0], result.positions[1])  # z is drawn anew for each rollout
