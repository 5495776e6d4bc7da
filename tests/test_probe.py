"""What a belief knows: the probe, and the ideal observer that bounds it."""

import csv
import math

import pytest
import torch
from test_benchmarks import output
from test_references import point, robot
from tiny import ROOT, TINY

from peach_trl.envs import FAMILIES
from peach_trl.experiment import PeachConfig, load_agent, make_agent, make_library
from peach_trl.probe import LinearProbe, probe
from peach_trl.references import ideal_estimates
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
    assert belief.shape == ideal.shape == (30,) and found.prior.shape == (60,)
    assert belief[0] == pytest.approx(1.0, abs=0.05) and ideal[0] == pytest.approx(1.0, abs=0.05)
    assert belief[-1] < 0.2 and ideal[-1] < 0.1
    assert (belief > ideal - 0.02).all()  # nothing knows more than that
    assert (belief[:6] < ideal[:6] + 0.05).all()  # while it searches


def test_an_untrained_belief_is_not(pretrained):
    config, library, _, found = pretrained
    torch.manual_seed(1)
    untrained = probe(make_agent(config, library), config, library).curves()["belief"]
    assert untrained[-1] > 2 * found.curves()["belief"][-1]


def test_an_agent_without_a_belief_is_refused():
    config = load_config(PeachConfig, "peach", ROOT / "configs", [*TINY, "context.latent_dim=0"])
    library = make_library(config)
    with pytest.raises(ValueError, match=r"policy: it keeps no belief .* context.latent_dim above 0"):
        probe(make_agent(config, library), config, library)


def test_benchmark(tmp_path):
    lines = output(
        "probe.py", "product=pretrained", "--split=validation", f"--csv={tmp_path}/a.csv", f"--figure={tmp_path}/a.png"
    ).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["method", "---", "product", "*ideal observer*"]
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and rows[-1]["decision"] == "29" and float(rows[-1]["belief"]) < 0.2
    assert (tmp_path / "a.png").is_file() and (tmp_path / "a.pdf").is_file()
