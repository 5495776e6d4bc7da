"""Traced functions, one Adam call a group, slow copies and targets: all against torch's and TorchRL's own."""

import copy
import pickle

import pytest
import torch
from tiny import random_sequences, random_transitions, tiny_agent, tiny_config
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.objectives import SoftUpdate

from peach_trl.levels.adam import FusedAdam
from peach_trl.levels.targets import Targets
from peach_trl.modules.execution import Traced, TracedKinds, each, set_execution
from peach_trl.modules.perceptron import Perceptron
from peach_trl.modules.slow_copy import SlowCopy


@pytest.fixture
def settings():
    yield
    set_execution()


def test_traces_write_into_their_arguments(settings):
    def function(x, into):
        into.copy_(2 * x)
        return (x + 1,)

    traced, into = Traced(function, after=1), torch.zeros(2)
    for number in range(4):
        x = torch.full((2,), float(number))
        assert torch.equal(traced(x, into)[0], x + 1) and torch.equal(into, 2 * x)
    assert traced._trace is not None
    set_execution(trace=False)
    assert torch.equal(traced(torch.ones(3), torch.zeros(3))[0], 2 * torch.ones(3))  # not the trace, which is of [2]


def test_kinds_have_functions_of_their_own():
    kinds = TracedKinds(most=2)
    found = [
        kinds.get(name, lambda factor=factor: lambda x: (factor * x,))
        for name, factor in (("a", 2), ("b", 3), ("a", 5))
    ]
    assert [function(torch.ones(1))[0].item() for function in found] == [2, 3, 2]
    kinds.get("c", lambda: lambda x: (x,))
    assert pickle.loads(pickle.dumps(kinds)).most == 2 and copy.deepcopy(kinds).most == 2


def _doubled(x):
    return (2 * x,)


def test_traces_are_few(settings):
    """However many shapes there are, torch keeps no more than ``most``; results are the same."""
    kinds = TracedKinds(most=3, soon=2, often=5)
    for count in range(8):
        for shape in range(1, 40):
            x = torch.full((shape,), float(count))
            function = kinds.get(shape, lambda: _doubled)
            assert torch.equal(function(x)[0], 2 * x)
    traced = [shape for shape, function in kinds._kinds.items() if function.traced]
    assert traced == [1, 2, 3]  # the first two soon, and the first of those that came up often


def test_side_by_side_gives_the_same(settings):
    items = list(range(9))
    set_execution(side_by_side=2)
    assert each(lambda x: x * x, items) == [x * x for x in items]


def updated(trace, batch, changes):
    set_execution(trace=trace)
    agent = tiny_agent(tiny_config(**changes))
    for step in range(6):
        torch.manual_seed(step)
        agent.levels[0].update(batch.clone())
        agent.top.update(random_sequences(3, 9, seed=0))
    return agent.state_dict()


@pytest.mark.parametrize("changes", [{}, {"lower__algorithm": "sac"}, {"context__read": "sample"}])
def test_traced_updates_are_the_same(settings, changes):
    batch = random_transitions((32,), seed=1, goal=True).exclude("steps_to_next_obs")
    states = [updated(trace, batch, changes) for trace in (True, False)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("changes", [{}, {"lower__algorithm": "sac"}, {"top__critic_norm": True}])
def test_parts_of_a_batch_add_up(settings, monkeypatch, changes):
    """Large batches are computed in parts: the same losses, and gradients of parameters and of the context."""
    batch = random_transitions((32,), seed=1, goal=True).exclude("steps_to_next_obs")
    states = [updated(True, batch, changes)]
    monkeypatch.setattr(Perceptron, "most", 7)
    states.append(updated(True, batch, changes))
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top__loss_test": 0.0},
        {"top__loss_test": 0.5, "top__loss_actor": 2.0, "top__loss_qvalue": 0.7},
        {"context__latent_dim": 0},
    ],
)
def test_an_update_of_the_top_level_is_what_recipes_write_out(changes):
    tops = [tiny_agent(tiny_config(**changes)).top for _ in range(2)]
    for step in range(4):
        batch = random_sequences(3, 9, seed=step)
        torch.manual_seed(step)
        found = tops[0].update(batch.clone())
        torch.manual_seed(step)
        b, q = tops[1].believe(batch.clone())
        losses = tops[1].loss(b)
        losses.update(tops[1].kl_loss(q))
        tops[1].weigh(losses).backward()
        tops[1].step()
        assert ("loss_test" in found.keys()) == bool(tops[0].config.loss_test)
        for name, value in found.items():
            torch.testing.assert_close(value, losses[name].detach(), rtol=0, atol=1e-6, msg=name)
    for (name, one), other in zip(tops[0].state_dict().items(), tops[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


def test_adam_is_torchs_bit_by_bit():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))]
    nets.append(copy.deepcopy(nets[0]))
    rates = (3e-3, 1e-2)
    groups = [[{"params": net[i].parameters(), "lr": lr} for i, lr in zip((0, 2), rates, strict=True)] for net in nets]
    adams = FusedAdam(groups[0]), torch.optim.Adam(groups[1], fused=True)
    x = torch.randn(16, 3)
    for step in range(5):
        for net, adam in zip(nets, adams, strict=True):
            net(x).square().sum().backward()
            if step == 2:
                net[0].bias.grad = None  # which then stays as it is
            adam.step()
            adam.zero_grad()
        if step == 3:
            adams[0].load_state_dict(copy.deepcopy(adams[0].state_dict()))
    assert all(torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))
    counters = {id(state["step"]): state["step"].item() for state in adams[0].state.values()}
    assert sorted(counters.values()) == [4, 5, 5]  # one a group and number of steps
    states = [adam.state_dict()["state"] for adam in adams]
    assert states[0].keys() == states[1].keys()
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_slow_copy_is_torchs_averaged_model():
    net = nn.Linear(3, 2)
    slow, torchs = SlowCopy(net, 0.1), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        with torch.no_grad():
            net.weight.add_(1)
        slow.update(net), torchs.update_parameters(net)
        torch.testing.assert_close(slow.module.weight, torchs.module.weight)
    other = SlowCopy(net, 0.1)
    other.load_state_dict(slow.state_dict())
    with torch.no_grad():
        net.weight.add_(1)
    slow.update(net), other.update(net)  # goes on where it was, rather than starting anew
    assert torch.equal(slow.module.weight, other.module.weight)
    with pytest.raises(ValueError, match=r"rate = 2: must lie in \[0, 1\]"):
        SlowCopy(net, 2)


def test_targets_are_torchrls_soft_update():
    config = tiny_config()
    losses = [tiny_agent(config).levels[0].loss for _ in range(2)]
    updates = Targets(losses[0], 0.1), SoftUpdate(losses[1], tau=0.1)
    for _ in range(3):
        for loss, update in zip(losses, updates, strict=True):
            with torch.no_grad():
                for parameter in loss.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1)
            update.step()
    pairs = zip(losses[0].state_dict().items(), losses[1].state_dict().values(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_an_update_leaves_nothing_for_the_next_gradient(algorithm):
    """Gradients are written into the same memory again and again: never while somebody has them."""
    batches = [random_transitions((32,), seed, goal=True).exclude("steps_to_next_obs") for seed in range(3)]
    level = tiny_agent(tiny_config(lower__algorithm=algorithm)).levels[0]
    parameters = list(level.loss.qvalue_network_params.parameters())
    for batch in batches:  # traced from here on
        level.update(batch)
    assert all(parameter.grad is None for parameter in parameters)

    def gradient(loss):
        return [part.clone() for part in torch.autograd.grad(loss, parameters, retain_graph=True)]

    torch.manual_seed(0)
    first = level.loss(batches[0])["loss_qvalue"]
    expected = gradient(first)
    other = level.loss(batches[1])["loss_qvalue"]
    assert any(not torch.equal(one, two) for one, two in zip(gradient(other), expected, strict=True))
    level.loss.learn(batches[2])
    assert all(torch.equal(one, two) for one, two in zip(gradient(first), expected, strict=True))
    before = [parameter.grad.clone() for parameter in parameters]
    first.backward()  # on top of what learn left
    for parameter, old, own in zip(parameters, before, expected, strict=True):
        torch.testing.assert_close(parameter.grad, old + own)
