"""Losses and gradients that are not finite change no weight, and say where they come from."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from test_recipes import start
from tiny import TINY, random_sequences, record, tiny_agent, tiny_config

import peach_trl.levels
import peach_trl.meta_tests
from peach_trl.best_agents import BestAgents
from peach_trl.context import SequenceSampler
from peach_trl.data import TaskReplayBuffer
from peach_trl.envs.errors import NotFiniteError
from peach_trl.experiment import make_env, make_library
from peach_trl.hierarchy import LevelTransitions
from peach_trl.levels import NotFiniteLossError
from peach_trl.levels.adam import FusedAdam
from peach_trl.levels.errors import NotFiniteGradients
from peach_trl.seeding import named_generator
from peach_trl.utils import load_checkpoint
from peach_trl.utils.run import Run


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_optimiser_takes_no_step(bad):
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    adam, plain = FusedAdam(weights, lr=0.1), torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True)
    weights[0].grad, weights[1].grad = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    with pytest.raises(NotFiniteGradients):
        adam.step()
    assert all(torch.equal(weight, torch.ones(3)) for weight in weights) and adam.state[weights[0]]["step"] == 0
    weights[1].grad = torch.full((3,), 1e30)  # large, but finite
    adam.step()
    plain.param_groups[0]["params"][0].grad = torch.ones(3)
    plain.step()
    assert torch.equal(weights[0], plain.param_groups[0]["params"][0])


def batches(config):
    agent = tiny_agent(config)
    batch = record(config, agent.make_policy(trajectories=2), [0, 1, 2], 40)
    lower, top = LevelTransitions(agent.hierarchy, config.transitions, seed=0, evidence=agent.evidence)(batch)
    return agent, lower, top


def test_a_level_names_loss_entry_and_task():
    agent, rows, _ = batches(tiny_config())
    level, state = agent.levels[0], {name: value.clone() for name, value in agent.levels[0].state_dict().items()}
    rows["next", "reward"][rows["task_id"] == 1] = torch.nan
    with pytest.raises(
        NotFiniteLossError, match=r"level_0: loss_qvalue.* is not finite; .*next/reward is not \(tasks \[1\]\)"
    ):
        level.update(rows)
    assert all(torch.equal(value, level.state_dict()[name]) for name, value in state.items())
    level.update(rows[rows["task_id"].squeeze(-1) != 1])  # goes on as if nothing had been


@pytest.mark.parametrize("changes", [{}, {"context__belief": "recurrent"}])
def test_the_top_level_goes_on_after_a_batch_that_is_not_finite(changes):
    """Nothing of what was refused is left in a gradient, the belief's included."""
    good = random_sequences(3, 9, seed=0)
    bad = good.clone()
    bad["next", "reward"][1] = torch.nan
    agents = [tiny_agent(tiny_config(**changes)) for _ in range(2)]
    with pytest.raises(NotFiniteLossError, match="top: "):
        agents[0].top.update(bad)
    assert all(parameter.grad is None for parameter in agents[0].top.belief.parameters())
    for agent in agents:
        torch.manual_seed(1)
        agent.top.update(good)
    state = agents[1].top.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in agents[0].top.state_dict().items())


def test_a_run_ends_with_the_cause_and_the_batch(tmp_path, capfd):
    """A learning rate that is absurd: no checkpoint that looks finished, and a batch to look at."""
    with pytest.raises(BaseException):  # noqa: B017  # hydra ends the program
        start(tmp_path, "peach", *TINY, "top.alpha_3=1.0", "top.loss_test=1e38", plots=False)
    (folder,) = [path.parent for path in tmp_path.rglob("manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] is False and manifest["error"].startswith("NotFiniteLossError: top: ")
    assert "in iteration " in manifest["error"] and "post_mortem.pt" in manifest["error"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["interrupted.pt", "post_mortem.pt"]
    assert "observation" in load_checkpoint(folder / "checkpoints" / "post_mortem.pt")["batch"]


def test_an_agent_that_is_not_finite_is_never_finished(tmp_path, capfd):
    """The last step of all may have made it so; a batch that cannot be kept does not hide the cause either."""
    step = peach_trl.levels.TopLevel.step

    def breaks(top):
        step(top)
        next(iter(top.loss.actor_network_params.data.values(True, True))).fill_(torch.inf)

    short = [value for value in TINY if not value.startswith(("train.iterations", "train.top_updates"))]
    short += ["train.iterations=1", "train.top_updates=1"]
    with mock.patch.object(peach_trl.levels.TopLevel, "step", breaks), pytest.raises(BaseException):  # noqa: B017
        start(tmp_path, "peach", *short, plots=False)
    (folder,) = [path.parent for path in tmp_path.rglob("manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] is False and manifest["error"].startswith("FloatingPointError: top.")
    assert "is not finite" in manifest["error"] and not list(folder.rglob("*.pt"))


def test_a_batch_that_cannot_be_kept_does_not_hide_the_cause(tmp_path, capfd):
    checkpoint = Run.checkpoint

    def full(run, name, state, replace=False):
        if name == "post_mortem":
            raise OSError(28, "No space left on device")
        return checkpoint(run, name, state, replace)

    with mock.patch.object(Run, "checkpoint", full), pytest.raises(BaseException):  # noqa: B017
        start(tmp_path, "peach", *TINY, "top.alpha_3=1.0", "top.loss_test=1e38", plots=False)
    (folder,) = [path.parent for path in tmp_path.rglob("manifest.json")]
    error = json.loads((folder / "manifest.json").read_text())["error"]
    assert error.startswith("NotFiniteLossError: top: ") and "the batch could not be saved: [Errno 28]" in error
    assert [path.name for path in folder.rglob("*.pt")] == ["interrupted.pt"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_observations_that_are_not_finite_are_not_learnt_from(bad):
    agent = tiny_agent(tiny_config())
    observation = torch.zeros(2, 3, agent.observation_spec.shape[-1])
    observation[1, 2, 1] = bad
    with pytest.raises(FloatingPointError, match=r"observation: entries \[1\] are not finite"):
        agent.see(observation)


def test_a_meta_test_with_rewards_that_are_not_finite(monkeypatch):
    config = tiny_config()
    library, agent = make_library(config), tiny_agent(config)
    meta_test = peach_trl.meta_tests.meta_test

    def broken(*arguments):
        result = meta_test(*arguments)
        result.returns[1] = torch.nan
        return result

    monkeypatch.setattr(peach_trl.meta_tests, "meta_test", broken)
    with pytest.raises(FloatingPointError, match=r"validation tasks: rewards of tasks \[4\] are not finite"):
        peach_trl.meta_tests.run_meta_test(agent, config, library, "validation", seed=0)


@pytest.mark.parametrize("belief", ["product", "recurrent", "attention"])
def test_what_a_mask_leaves_out_may_be_anything(belief):
    """Losses and gradients are the same, whatever stands behind the decisions of a sequence."""
    config = tiny_config(context__belief=belief)
    agents, losses = [], []
    for anything in (0.0, torch.nan, torch.inf):
        agent, _, rows = batches(config)
        buffer = TaskReplayBuffer(3, 200, episodes=20, seed=0)
        buffer.extend(rows)
        sequences = SequenceSampler(buffer, episodes=3, generator=named_generator("sequences", 0))(torch.arange(3))
        mask = sequences["mask"] = sequences["mask"] & (torch.arange(sequences.shape[1]) < torch.tensor([[9], [6]] * 3))
        assert not mask.all() and mask.any(1).all()
        for value in sequences.values(True, True):
            if value.is_floating_point():
                value[~mask] = anything
        losses.append(agent.top.update(sequences))
        agents.append(agent)
    for other, found in zip(agents[1:], losses[1:], strict=True):
        assert all(torch.equal(value, found[name]) and value.isfinite().all() for name, value in losses[0].items())
        weights = other.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in agents[0].state_dict().items())


def test_a_start_that_is_not_finite_is_told():
    env = make_env(tiny_config(), make_library(tiny_config()), torch.arange(3))
    env.reset()
    env._after_reset = lambda rows: env._qpos.__setitem__((1, 0), float("nan"))
    with pytest.raises(NotFiniteError, match=r'"observation" is not finite in rows .1., .*: check their starts'):
        env.reset()


def test_nan_never_is_the_best(tmp_path):
    config = tiny_config()
    best = BestAgents(tiny_agent(config))

    def result(value):
        return SimpleNamespace(returns=torch.tensor([[value]]))

    for number, value in enumerate((0.5, torch.nan, torch.inf, 0.4)):
        best.take([result(value)], number)
    assert best.iterations == [0]
