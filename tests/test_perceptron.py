"""Perceptrons with their gradient written out: alone, as ensembles and of several seeds, against plain torch."""

import copy
import pickle

import pytest
import torch
from torch import nn

from peach_trl.modules.layers import gradient, run
from peach_trl.modules.networks import Tanh
from peach_trl.modules.perceptron import Perceptron


def plain(net, x):
    """The same layers, by autograd."""
    for layer in net:
        x = layer(x)
    return x


def gradients(y, of):
    return torch.autograd.grad((y**2).sum(), of, retain_graph=True)


@pytest.mark.parametrize("rows", [6, 40])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("cells", [(), (16,), (16, 8)])
def test_it_is_the_sequence_of_its_layers(norm, cells, rows):
    torch.manual_seed(0)
    net = Perceptron(5, 3, cells, norm)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, rows, 5, requires_grad=True)
    for _ in range(5):  # from the third call on the function is traced
        found, expected = net(x), plain(net, x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        of = [x, *net.parameters()]
        for one, other in zip(gradients(found, of), gradients(expected, of), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_that_nobody_wants_are_left_out():
    net, x = Perceptron(5, 3, (16,), True), torch.randn(6, 5)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    frozen, x = copy.deepcopy(net).requires_grad_(False), x.requires_grad_()
    frozen(x).sum().backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        assert not net(x).requires_grad


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_seeds_and_ensembles_are_networks_of_their_own(norm, together, monkeypatch):
    """Values and gradients of [2 members, 3 seeds], whichever way they are computed."""
    monkeypatch.setattr(Perceptron, "together", lambda self, rows: together)
    torch.manual_seed(1)
    nets = [[Perceptron(5, 3, (16, 8), norm) for _ in range(3)] for _ in range(2)]
    stack = Perceptron(5, 3, (16, 8), norm, seeds=3)
    number = len(list(stack.parameters()))
    own = [[list(net.parameters()) for net in row] for row in nets]
    stacked = [torch.stack([torch.stack([ps[i].detach() for ps in row]) for row in own]) for i in range(number)]
    stacked = [part.requires_grad_() for part in stacked]
    x = torch.randn(12, 5, requires_grad=True)
    for _ in range(4):
        found = stack.functional(stacked, x)
        expected = torch.stack(
            [torch.cat([plain(net, x[4 * s : 4 * s + 4]) for s, net in enumerate(row)]) for row in nets]
        )
        assert found.shape == (2, 12, 3)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        d_x, *d_stacked = gradients(found, [x, *stacked])
        e_x, *d_own = gradients(expected, [x, *(part for row in own for ps in row for part in ps)])
        torch.testing.assert_close(d_x, e_x, rtol=1e-4, atol=1e-4)
        for e in range(2):
            for s in range(3):
                for i in range(number):
                    torch.testing.assert_close(
                        d_stacked[i][e, s], d_own[(3 * e + s) * number + i], rtol=1e-4, atol=1e-4
                    )


@pytest.mark.parametrize("mix", [(0.0, 1.0), (0.0, 0.25), (1.0, 0.25)])
@pytest.mark.parametrize("features", [5, 16, 20])  # with rows shorter than a vector products are computed transposed
def test_gradients_are_mixed_into_what_is_there(features, mix):
    torch.manual_seed(3)
    net, x = Perceptron(features, 3, (16, 8), True), torch.randn(40, features, requires_grad=True)
    parameters = list(net.parameters())
    y = net(x)
    expected = gradients(y, [x, *parameters])
    tape = []
    with torch.no_grad():
        found = run(x[None], net.blocks(parameters, 40)[0], tape=tape)
        torch.testing.assert_close(found[0], y)
        into = [torch.ones(1, *part.shape) for part in parameters]
        d_x = gradient(2 * found, tape, True, into, wants_x=True, mix=mix)
    torch.testing.assert_close(d_x[0], expected[0], rtol=1e-4, atol=1e-5)
    for part, grad in zip(into, expected[1:], strict=True):
        torch.testing.assert_close(part[0], mix[0] + mix[1] * grad, rtol=1e-4, atol=1e-5)


def test_each_seed_is_drawn_by_itself():
    first, second = Perceptron(5, 3, (16,), True, seeds=2)[0].weight
    assert not torch.allclose(first, second)


def test_weights_that_change_are_seen():
    net, x = Perceptron(5, 3, (16,)), torch.randn(6, 5)
    before = net(x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert not torch.allclose(net(x), before)
    net[0].weight.data = torch.zeros_like(net[0].weight)
    torch.testing.assert_close(net(x), plain(net, x))


def test_copies_stand_alone():
    net, x = Perceptron(5, 3, (16,), True), torch.randn(6, 5)
    expected = net(x)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    with torch.no_grad():
        net[0].weight.zero_()
    assert all(torch.equal(twin(x), expected) for twin in twins)
    assert not torch.allclose(net(x), expected)


def test_bfloat16_is_near():
    torch.manual_seed(2)
    net, x = Perceptron(5, 3, (32, 32), True), torch.randn(64, 5, requires_grad=True)
    short = copy.deepcopy(net)
    short.bf16 = True
    of = [x, *net.parameters()]
    expected, found = net(x), short(x)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    for one, other in zip(gradients(found, [x, *short.parameters()]), gradients(expected, of), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.1 * other.norm()


def test_a_wrong_input_is_named():
    with pytest.raises(ValueError, match="an input of 4 numbers: this network reads 5"):
        Perceptron(5, 3, (16,))(torch.zeros(1, 4))


@pytest.mark.parametrize("end", [Tanh(), nn.Tanh()], ids=["ours", "plain"])
def test_an_actor_learns_back_from_where_tanh_is_flat(end):
    x = torch.full((8, 2), -10.0, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(1500):
        optimiser.zero_grad()
        (end(x) - 0.9).square().mean().backward()
        optimiser.step()
    if isinstance(end, Tanh):
        torch.testing.assert_close(end(x), torch.full((8, 2), 0.9), atol=0.01, rtol=0)
    else:
        assert (end(x) < -0.99).all()  # lost


def test_its_gradient_is_that_of_tanh_where_it_is_not_flat():
    end, x, grad = Tanh(), torch.linspace(-2.9, 2.9, 20).view(2, 5, 2).requires_grad_(), torch.randn(2, 5, 2)
    (expected,) = torch.autograd.grad(x.tanh(), x, grad)
    torch.testing.assert_close(torch.autograd.grad(end(x), x, grad)[0], expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda x: end(x).sum()))(x), 1 - x.tanh() ** 2)
    torch.testing.assert_close(end.gradient(x, grad), expected)
    far = torch.tensor([[[5.0], [-4.0]]])  # [1, n = 2, 1]
    torch.testing.assert_close(end.gradient(far, torch.zeros(1, 2, 1)), 0.01 * torch.tensor([[[2.0], [-1.0]]]) / 2)


def test_some_parameters_may_be_frozen():
    """As of an encoder whose first layer is not to change."""
    torch.manual_seed(0)
    net = Perceptron(3, 2, (8, 8), norm=True)
    net[0].weight.requires_grad_(False)
    plain = nn.Sequential(*copy.deepcopy(net))
    x = torch.randn(5, 3)
    net(x).sum().backward()
    plain(x).sum().backward()
    assert net[0].weight.grad is None
    for own, other in zip(list(net.parameters())[1:], list(plain.parameters())[1:], strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
