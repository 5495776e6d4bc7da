"""What a belief knows: the probe, and the ideal observer that bounds it."""

import csv
import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch
from test_benchmarks import output
from test_references import point, robot
from tiny import ROOT, TINY
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.context import Belief
from peach_trl.envs import FAMILIES
from peach_trl.experiment import PeachConfig, load_agent, make_agent, make_env, make_library
from peach_trl.probe import LinearProbe, probe, see
from peach_trl.references import Arc, Candidates, ideal_estimates
from peach_trl.utils import load_config


def test_a_linear_probe_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    x[:, 3] = 2.0  # says nothing
    y = x @ torch.randn(4, 2, generator=generator) + 3
    assert torch.allclose(LinearProbe(x, y, 1e-9)(x), y, atol=1e-3)
    assert torch.allclose(LinearProbe(x, y, 1e9)(x), y.mean(0).expand_as(y), atol=1e-3)


def test_the_ideal_observer_knows_what_is_left():
    """On half circle V: a quarter of the arc is walked along in vain; or the goal is met."""
    env = robot(4, horizon=100)
    angles = torch.linspace(0, torch.pi / 4, 40)
    path = torch.stack([angles.cos(), angles.sin()], -1).expand(2, 40, 2)
    tolerance, goal = env.goal_space.tolerance.item(), torch.tensor([math.cos(0.9), math.sin(0.9)])
    distance = torch.linalg.vector_norm(path[1] - goal, dim=-1)
    rewards = torch.stack([torch.zeros(40), torch.where(distance < tolerance, 1 - distance, 0.0)])
    estimates = ideal_estimates(env, path, rewards)
    assert estimates.shape == (2, 41, 2)
    left = torch.linspace(torch.pi / 4 + tolerance, torch.pi, 1000)  # about as far as the last place showed
    expected = torch.stack([left.cos().mean(), left.sin().mean()])
    assert torch.allclose(estimates[0, -1], expected, atol=0.05)
    assert torch.allclose(estimates[:, 0], torch.tensor([0.0, 2 / torch.pi]), atol=0.02)  # the mean of the half circle
    assert torch.linalg.vector_norm(estimates[1, -1] - goal) < 0.05 and rewards[1].max() > 0


def test_a_goal_beyond_the_end_of_the_region():
    """Its reward fits no candidate that is left: the nearest one stands for it, not those that were not seen yet."""
    arc = Arc(radius=1.0, start=0.0, length=math.pi, tolerance=0.2)
    candidates = Candidates(arc, torch.tensor([[0.0, 1.0], [0.2, 1.0]]), rows=2)
    candidates.see(torch.tensor([[1.0, -0.1]] * 2), torch.tensor([0.0, 0.0]))  # the end is excluded
    candidates.see(torch.tensor([[1.0, -0.15]] * 2), torch.tensor([1.0, 0.0]))
    assert torch.linalg.vector_norm(candidates.estimate()[0] - torch.tensor([1.0, 0.0])) < 0.05
    assert candidates.possible[1].sum() > 0.8 * candidates.possible.shape[1]


def test_where_there_is_no_ideal_observer():
    env = FAMILIES["Wind"](num_envs=2)
    assert ideal_estimates(env, torch.zeros(2, 3, 2), torch.zeros(2, 3)) is None
    for family in ("TreasureHunt", "PointRobot", "AntGoal"):
        assert ideal_estimates(FAMILIES[family](num_envs=2), torch.zeros(2, 3, 2), torch.zeros(2, 3)) is None
    with pytest.raises(ValueError, match=r"positions \[2, 3, 3\], rewards \[2, 3\]: give \[R, S, 2\] and \[R, S\]"):
        ideal_estimates(point(2), torch.zeros(2, 3, 3), torch.zeros(2, 3))


@pytest.fixture(scope="module")
def pretrained():
    config, library, agent = load_agent("pretrained")
    return config, library, agent, probe(agent, config, library)


def test_a_trained_belief_is_near_the_ideal_observer(pretrained):
    *_, found = pretrained
    curves = found.curves()
    belief, ideal = curves["belief"], curves["ideal observer"]
    assert belief.shape == ideal.shape == (31,) and found.prior.shape == (60,)
    assert belief[0] == pytest.approx(1.0, abs=0.05) and ideal[0] == pytest.approx(1.0, abs=0.05)
    assert belief[-1] < 0.2 and ideal[-1] < 0.1
    assert (belief > ideal - 0.02).all()  # nothing knows more than that
    assert (belief[:6] < ideal[:6] + 0.05).all()  # while it searches


class Counting(Belief):
    """Knows how many decisions there were, and nothing of the task."""

    state_dim = 1

    def __init__(self, latent_dim):
        super().__init__(torch.nn.Linear(1, 1), latent_dim)

    def update(self, state, transition):
        return state + 1

    def scan(self, transitions, mask=None):
        steps = torch.arange(transitions.observation.shape[-2] + 1.0)
        return steps.unsqueeze(-1).expand(*transitions.observation.shape[:-2], -1, 1)

    def posterior(self, state):
        loc = state.expand(*state.shape[:-1], self.latent_dim)
        return loc, torch.ones_like(loc)


def agent_of(*overrides):
    small = [change for change in TINY if "env=gymnasium" not in overrides or not change.startswith("env.")]
    config = load_config(PeachConfig, "peach", ROOT / "configs", [*small, *overrides])
    library = make_library(config)
    torch.manual_seed(0)
    return config, library, make_agent(config, library, belief=Counting(config.context.latent_dim))


@pytest.mark.parametrize("overrides", [["env.horizon=60"], ["env.horizon=50"], ["hierarchy.depth=1"]])
def test_beliefs_are_asked_before_between_and_after_decisions(overrides):
    config, library, agent = agent_of(*overrides)
    steps = config.hierarchy.top_steps
    env = make_env(config, library, torch.tensor([0, 1, 0]))
    seen = see(agent.make_policy(2), env, 2, steps, observed=True)
    number = 2 * math.ceil(config.env.horizon / steps)
    assert seen.beliefs[..., 0].tolist() == [[*range(number + 1)]] * 3
    assert torch.equal(seen.parameters, library.parameters[[0, 1, 0]])
    assert seen.ideal.shape == (3, number + 1, 2)


def test_a_belief_that_only_counts_says_nothing_of_the_task():
    config, library, agent = agent_of("env.train_tasks=8", "env.test_tasks=8")
    curve = probe(agent, config, library).curves()["belief"]
    assert (curve > 0.95).all()


def test_episodes_that_end_early():
    """A pole that falls: the belief stays what it was, and its next trajectory is asked from its own start on."""
    pole = ["env.options.env_id=InvertedPendulum-v5", "env.options.set_task=_reset_noise_scale"]
    pole += ["env.options.train=[.02,.03,.04,.05]", "env.options.validation=[.01]", "env.options.test=[.06]"]
    config, library, agent = agent_of("env=gymnasium", *pole, "env.horizon=60", "hierarchy.decision_steps=20")
    torch.manual_seed(0)
    with set_exploration_type(ExplorationType.RANDOM):
        seen = see(agent.make_policy(2), make_env(config, library, torch.arange(4)), 2, 20, observed=True)
    counts = seen.beliefs[..., 0]
    assert counts.shape == (4, 7) and seen.ideal is None
    assert (counts[:, 1:] >= counts[:, :-1]).all() and (counts[:, -1] < 6).all()  # it falls within 60 steps
    assert (counts[:, -1] >= 2).all()  # at least a decision in each of two trajectories


def test_decisions_of_other_lengths_are_refused():
    config, library, agent = agent_of("hierarchy.clock=own_goal")
    with pytest.raises(ValueError, match=r"decision_steps = 7: decisions begin at other steps"):
        see(agent.make_policy(2), make_env(config, library, torch.arange(2)), 2, 7)
    with pytest.raises(ValueError, match=r"seeds = 2: each has a belief of its own"):
        probe(agent, dataclasses.replace(config, seeds=2), library)


def test_an_agent_without_a_belief_is_refused():
    config = load_config(PeachConfig, "peach", ROOT / "configs", [*TINY, "context.latent_dim=0"])
    library = make_library(config)
    with pytest.raises(ValueError, match=r"policy: it keeps no belief .* context.latent_dim above 0"):
        probe(make_agent(config, library), config, library)


@pytest.mark.processes
def test_benchmark(tmp_path):
    lines = output(
        "probe.py", "product=pretrained", "--split=validation", f"--csv={tmp_path}/a.csv", f"--figure={tmp_path}/a.png"
    ).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["method", "---", "product", "*ideal observer*"]
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 31 and rows[-1]["decision"] == "30" and float(rows[-1]["belief"]) < 0.2
    assert (tmp_path / "a.png").is_file() and (tmp_path / "a.pdf").is_file()
    command = [sys.executable, str(ROOT / "benchmarks" / "probe.py"), f"none={tmp_path}/nowhere/*"]
    refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert refused.returncode == 1 and refused.stderr.startswith("Error: ") and "no such folder" in refused.stderr
