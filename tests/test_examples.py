"""The examples that are scripts of their own run."""

from __future__ import annotations

import difflib
import sys

import pytest
import torch
from test_recipes import start
from tiny import ROOT

from peach_trl.envs import PointEnv
from peach_trl.envs.families import PointRobot
from peach_trl.experiment import PeachConfig, make_agent, make_library
from peach_trl.utils import load_config

sys.path.insert(0, str(ROOT / "examples"))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("updates", "within"), [(20, 20.0), pytest.param(1800, 1.0, marks=pytest.mark.slow)], ids=["runs", "learns"]
)
def test_a_level_under_another_high_level(tmp_path, updates, within):
    """Within so much of the corners of a square of 3 m, on average."""
    import skill

    short = ["train.iterations=0", "train.prefill=0", "train.warmup=2", "env.test_tasks=2", "evaluation.rollouts=1"]
    short += [f"train.warmup_updates={updates}", "evaluation.every=9"]
    (folder,) = start(tmp_path, "peach", *short, plots=False)
    env = PointEnv(load_config(PeachConfig, "peach").env, 3)
    distance = skill.walk(str(folder / "checkpoints" / "levels.pt"), env, side=3.0, steps=20)
    assert distance.shape == (3, 4) and distance.mean() < within


@pytest.mark.parametrize("name", ["sac", "sac_with_context"])
def test_sac(name):
    rewards = __import__(name).train(PointRobot(num_envs=80, split="train", seed=0), frames=3 * 1600, updates=2)
    assert len(rewards) == 3 and all(-3 < reward < 0 for reward in rewards)


def test_a_belief_in_sac_changes_twenty_lines():
    with_one, without = ((ROOT / "examples" / f"{name}.py").read_text() for name in ("sac_with_context", "sac"))
    changed = [line for line in difflib.ndiff(without.splitlines(), with_one.splitlines()) if line.startswith("+ ")]
    assert len(changed) <= 20


def test_a_hierarchy_over_an_environment_of_ones_own():
    import gym_hierarchy

    returns = gym_hierarchy.train(gym_hierarchy.make_env(), frames=12 * 200, updates=2, batch=32)
    assert len(returns) == 12 and all(-2000 < total < 0 for total in returns)


def test_priorities_for_a_level():
    import prioritized_level

    torch.manual_seed(0)
    reached = prioritized_level.train(passes=2, updates=3)
    assert len(reached) == 2 and all(0 <= share <= 1 for share in reached)


def test_a_belief_of_ones_own():
    import own_belief

    short = ("env.horizon=40", "env.train_tasks=4", "train.meta_batch=4", "env.validation_tasks=2")
    assert len(own_belief.train(passes=2, updates=1, overrides=short)) == 3


def test_a_loss_of_ones_own(monkeypatch):
    """Without its weight it is the package's loss, with it another; names of losses stay as they are."""
    from own_loss import ConservativeLoss
    from tensordict import TensorDict

    config, tops = load_config(PeachConfig, "peach"), []
    for loss in (None, ConservativeLoss):
        torch.manual_seed(0)
        options = {} if loss is None else {"loss": loss}
        tops.append(make_agent(config, make_library(config), **options).top)
    torch.manual_seed(1)
    shape, no = (4, 6), torch.zeros(4, 6, 1, dtype=torch.bool)
    after = {"observation": torch.randn(*shape, 4), "reward": torch.ones(*shape, 1), "done": no, "terminated": no}
    after["evidence"] = torch.randn(*shape, 6)
    rows = {"observation": torch.randn(*shape, 4), "action": torch.rand(*shape, 2), "missed": no}
    rows |= {"steps_to_next_obs": torch.full((*shape, 1), 20), "proposal": torch.zeros(*shape, 2)}
    rows |= {"mask": torch.ones(shape, dtype=torch.bool), "part": torch.zeros(shape, dtype=torch.int64)}
    sequences = TensorDict({**rows, "next": TensorDict(after, shape)}, shape)
    monkeypatch.setattr(ConservativeLoss, "weight", 0.0)
    losses = [top.loss(top.believe(sequences.clone())[0]) for top in tops]
    assert all({"loss_actor", "loss_qvalue"} <= set(each.keys()) for each in losses)
    assert torch.allclose(losses[0]["loss_qvalue"], losses[1]["loss_qvalue"], rtol=1e-2)
    monkeypatch.setattr(ConservativeLoss, "weight", 1000.0)
    other = tops[1].loss(tops[1].believe(sequences.clone())[0])["loss_qvalue"]
    assert not torch.allclose(losses[0]["loss_qvalue"], other, rtol=0.05)
    assert "loss_qvalue" in tops[1].update(sequences).keys()
