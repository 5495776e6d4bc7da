"""Values by rule, and the reward to learn from: what a run makes of its task."""

import dataclasses

import pytest
import torch
from tiny import ROOT, record

from peach_trl.config import ConfigError
from peach_trl.context import Transition
from peach_trl.experiment import PeachConfig, make_agent, make_library, make_sequence_sampler, make_task_buffer
from peach_trl.experiment import make_transitions as transitions_of
from peach_trl.hierarchy import LevelTransitions
from peach_trl.rules import TaskFacts, explained, resolve
from peach_trl.utils import load_config


def config_of(*overrides):
    return load_config(PeachConfig, "peach", ROOT / "configs", overrides)


def test_levels_with_numbers_of_decisions_of_their_own():
    """A decision of the top level is as long as they say, whatever the goal's size would suggest."""
    facts = TaskFacts(horizon=100, best_reward=1.0)
    keys = ("hierarchy.decision_steps", "top.gamma", "top.test_penalty")
    found = resolve({**dict.fromkeys(keys, "auto"), "hierarchy.steps": [5, 2], "hierarchy.depth": 3}, facts, 60, 3)
    plain = resolve({**dict.fromkeys(keys, "auto"), "hierarchy.decision_steps": 10, "hierarchy.depth": 3}, facts, 60, 3)
    assert found["hierarchy.decision_steps"] == (10, "the product of hierarchy.steps = [5, 2]")
    assert [found[key][0] for key in keys[1:]] == [plain[key][0] for key in keys[1:]]


def test_the_default_tasks_values_were_there_before_the_rules():
    config = config_of()
    assert config.hierarchy.decision_steps == 20 and config.transitions.reward_scale == 0.2
    assert config.top.gamma == pytest.approx(0.9 ** (1 / 20), abs=1e-5) and config.top.test_penalty == 0.4
    assert config.train.iterations == 50  # 1.98 million steps with warm-up and prefill
    assert config.top.average == pytest.approx(25 / (50 * 150), abs=1e-6)
    assert config_of("train.iterations=100").top.average == pytest.approx(25 / (100 * 150), abs=1e-6)
    assert config_of("train.iterations=1").top.average == 0.01 and config_of("top.average=1").top.average == 1


@pytest.mark.parametrize(
    ("env", "steps", "scale", "trajectories"),
    [
        ("HalfCircleV", 5, 0.4, 3),
        ("HalfCircleB", 4, 0.66667, 2),
        ("SparsePointRobot", 2, 2.0, 5),
        ("Wind", 4, 0.53333, 1),
    ],
)
def test_other_tasks_follow(env, steps, scale, trajectories):
    config = config_of(f"env={env}")
    assert config.hierarchy.decision_steps == steps and config.transitions.reward_scale == scale
    assert config.train.trajectories == config.sequences.episodes == trajectories
    decision = config.top.gamma**steps
    assert decision == pytest.approx(1 - 1 / max(10, trajectories * config.env.horizon / steps / 3), abs=1e-3)
    a_pass = config.env.train_tasks * config.train.envs_per_task * trajectories * config.env.horizon
    assert a_pass * (config.train.iterations + 5) <= 2_000_000 and config.train.envs_per_task == 1 + (env == "Wind")


def test_values_that_are_set_stay_and_are_told_apart():
    config = config_of("top.gamma=0.9", "hierarchy.decision_steps=10")
    assert config.top.gamma == 0.9 and config.top.test_penalty == 0.2  # 20 decisions an episode now
    lines = {line.split(" = ")[0]: line for line in explained(config)}
    assert "not 0.99488" in lines["top.gamma"] and "not 20" in lines["hierarchy.decision_steps"]
    assert "not" not in lines["top.test_penalty"]


def test_a_gradient_step_has_no_more_tasks_than_there_are():
    assert config_of().train.meta_batch == 16
    assert config_of("env=HalfCheetahDir").train.meta_batch == 2  # forwards and backwards
    flat = load_config(PeachConfig, "flat", ROOT / "configs", ["env=HalfCheetahDir"])
    assert flat.train.meta_batch == 2 and config_of("train.meta_batch=61").train.meta_batch == 60


def test_a_family_without_facts_wants_values():
    with pytest.raises(ConfigError, match=r"reward_scale = 'auto': the task family does not state its best_reward"):
        config_of("env=HalfCheetahVel", "transitions.reward_scale=auto")
    with pytest.raises(ConfigError, match="seed = 'auto': must be of type int"):
        config_of("seed=auto")


def test_dense_reward_is_learnt_from_and_beliefs_read_the_sparse_one():
    config = config_of(
        "env=SparsePointRobot", "env.train_tasks=3", "env.validation_tasks=2", "env.test_tasks=2",
        "replay.top_capacity=1000", "transitions.reward=dense", "train.meta_batch=2",
    )  # fmt: skip
    library = make_library(config)
    agent = make_agent(config, library)
    batch = record(config, agent.make_policy(5), [0, 2], 100)
    dense = transitions_of(config, library, agent)(batch)[-1]
    sparse = transitions_of(
        dataclasses.replace(config, transitions=dataclasses.replace(config.transitions, reward="task")), library, agent
    )(batch)[-1]
    assert torch.equal(dense["next", "evidence"], sparse["next", "evidence"])
    assert torch.equal(sparse["next", "evidence"][:, :1], sparse["next", "reward"])  # 10 decisions: a factor of 1
    distance = torch.linalg.vector_norm(
        batch["next", "observation"] - library.parameters[batch["task_id"].squeeze(-1)], dim=-1
    )
    expected = -config.transitions.reward_scale * distance.unflatten(1, (-1, 2)).sum(-1).flatten()
    torch.testing.assert_close(dense["next", "reward"].flatten(), expected)
    alone = LevelTransitions(agent.hierarchy, config.transitions, dense=lambda reached, task_id: reached[..., 0])
    assert torch.equal(alone(batch)[-1]["next", "evidence"], sparse["next", "reward"])  # likewise without our recipe
    buffer = make_task_buffer(config, library)
    buffer.extend(dense)
    sequences = make_sequence_sampler(config, buffer)(torch.tensor([0]))
    assert torch.equal(Transition.of(sequences).evidence, sequences["next", "evidence"])
    losses = agent.top.update(sequences)
    assert torch.isfinite(losses["loss_qvalue"]).all()


def test_a_family_without_dense_reward_says_so():
    with pytest.raises(ConfigError, match="transitions.reward = 'dense': Wind has no dense reward; set it to task"):
        config_of("env=Wind", "transitions.reward=dense")
