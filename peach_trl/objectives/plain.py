"""Actor-critic losses with their gradients written out, on plain tensors.

TorchRL's losses move parameters into modules and back with each call, and keep a TensorDict a network; autograd adds a
node an operation. On small networks that is most of a gradient step. Here are SAC (Haarnoja et al. 2018, arXiv
1812.05905) and TD3 (Fujimoto et al. 2018, arXiv 1802.09477): each function returns a loss, and has the gradients of the
parameters written where they belong. :mod:`peach_trl.objectives.adapter` makes losses of TorchRL's out of them.

Rows are [G, n, ...], a batch for each of G agents with networks of their own (several seeds); each has its own loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from peach_trl.modules.layers import REPLACE, Layers, Mix, gradient, run, shared, sizes
from peach_trl.modules.networks import Features

ALMOST_1 = 1 - torch.finfo(torch.float32).resolution  # where TorchRL's TanhNormal ends


@dataclass(slots=True)
class Net:
    """Networks of inputs [G, n, ...]: one for each agent, or E.

    Attributes:
        features: makes one input of several.
        buffers: of the features.
        layers: the parameters, of E G networks.
        end: what follows the last layer, with ``forward`` and ``gradient``.
        into: where the gradients of the parameters go; empty for none.
        norm: whether there is layer normalisation.
        bf16: whether they compute in bfloat16.
        mix: what becomes of that in ``into``, see :func:`~peach_trl.modules.layers.gradient`.
        most: how many rows they had better compute at a time.
    """

    features: Features
    buffers: Sequence[Tensor]
    layers: Layers
    end: Any
    into: Sequence[Tensor] = ()
    norm: bool = False
    bf16: bool = False
    mix: Mix = REPLACE
    most: int = 2**62
    _flat: list[Tensor] | None = None

    def tensors(self) -> list[Tensor]:
        """Everything that is not the same for all networks of a kind: parameters, and where their gradients go."""
        if self._flat is None:
            self._flat = [*self.buffers, *(part for layer in self.layers for part in layer), *self.into]
        return self._flat

    def like(self, tensors: Iterator[Tensor], mix: Mix = REPLACE) -> Net:
        """The same kind with other tensors, which are taken from an iterator."""
        buffers = [next(tensors) for _ in self.buffers]
        layers = [tuple(next(tensors) for _ in layer) for layer in self.layers]
        into = [next(tensors) for _ in self.into]
        return Net(self.features, buffers, layers, self.end, into, self.norm, self.bf16, mix)

    def read(self, *inputs: Tensor) -> Tensor:
        """Observation, goal (if it is read) and whatever else, as features [G, n, F]."""
        return self.features.functional(self.buffers, *inputs)

    def __call__(self, x: Tensor, tape: list[Tensor] | None = None) -> Any:
        """What they put out, [E, G, n, ...]; notes on the ``tape`` what :meth:`backward` needs."""
        y = run(shared(x, sizes(self.layers[0][0])[0]), self.layers, self.bf16, tape)
        if tape is not None:
            tape.append(y)
        return self.end.forward(y.unflatten(0, (-1, sizes(x)[0])))

    def backward(self, tape: list[Tensor], *grads: Tensor, learns: bool = True, wants_x: bool = False) -> Tensor:
        """From the gradient of the outputs to that of the features; writes those of the parameters if it ``learns``."""
        y, agents = tape.pop(), sizes(grads[0])[-3]
        count, *_ = sizes(y)
        if grads[0].ndim > 3:
            grads = tuple(part.flatten(0, 1) for part in grads)
        into = self.into if learns else ()
        grad = gradient(self.end.gradient(y, *grads), tape, self.norm, into, wants_x, self.mix)
        return grad if count == agents else grad.unflatten(0, (-1, agents)).sum(0)


def squashed(loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The action a = tanh(u), u = loc + scale noise, [n, P], and log pi(a), [n, 1] (SAC, appendix C)."""
    u = torch.addcmul(loc, scale, noise)
    # log N(u) - log(1 - tanh(u)^2), with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))
    log_prob = softplus(u * -2).add_(u).mul_(2).addcmul_(noise, noise, value=-0.5).sub_(scale.log())
    constant = sizes(loc)[-1] * (2 * math.log(2) + 0.5 * math.log(2 * math.pi))
    return u.tanh_().clamp_(-ALMOST_1, ALMOST_1), log_prob.sum(-1, keepdim=True).sub_(constant)


def squashed_gradient(
    a: Tensor, scale: Tensor, noise: Tensor, grad_a: Tensor, grad_log_prob: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of loc and scale, given those of a and log pi(a); da/du = 1 - a^2, d log pi/du = 2 a."""
    grad_u = torch.addcmul(grad_a, grad_a * a, a, value=-1).addcmul_(a, grad_log_prob, value=2)
    return grad_u, (grad_u * noise).sub_(grad_log_prob / scale)


def sac_target(
    pi: Net,
    target_Q: Sequence[Net],
    s: Tensor,
    s_Q: Tensor,
    r: Tensor,
    gamma: Tensor,
    noise: Tensor,
    alpha: Tensor,
) -> Tensor:
    """The target y = r + gamma [min_j Q_j(s', a') - alpha log pi(a' | s')], a' ~ pi(. | s') (equation 3), [G, n, 1].

    Args:
        pi: the actor.
        target_Q: the target critics.
        s: features of s' for the actor, [G, n, F].
        s_Q: features of s' for the critics.
        r: rewards, [G, n, 1].
        gamma: discounts, [G, n, 1]; 0 where nothing follows.
        noise: standard normal draws, [G, n, P].
        alpha: entropy coefficients, [G, n, 1].
    """
    loc, scale = pi(s)
    a, log_prob = squashed(loc[0], scale[0], noise)
    return r + gamma * (_least(target_Q, torch.cat([s_Q, a], -1)) - alpha * log_prob)


def td3_target(
    target_pi: Net, target_Q: Sequence[Net], s: Tensor, s_Q: Tensor, r: Tensor, gamma: Tensor, noise: Tensor
) -> Tensor:
    """The target y = r + gamma min_j Q_j(s', a'), a' = pi(s') + clipped noise (algorithm 1), [G, n, 1]."""
    a = (target_pi(s)[0] + noise).clamp_(-1, 1)
    return r + gamma * _least(target_Q, torch.cat([s_Q, a], -1))


def critic_loss(Q: Sequence[Net], x: Tensor, y: Tensor, learns: bool, wants_x: bool) -> tuple[Tensor, Tensor | None]:
    """L_critic = sum_j mean (Q_j(s, a) - y)^2, [G], and the gradient of x, the features of (s, a) [G, n, F]."""
    total, grad_x = None, None
    for critics in Q:
        tape: list[Tensor] | None = [] if learns or wants_x else None
        error = critics(x, tape) - y
        loss = error.square().mean((-2, -1)).sum(0)
        total = loss if total is None else total + loss
        if tape is not None:
            grad = critics.backward(tape, error.mul_(2 / sizes(x)[1]), learns=learns, wants_x=wants_x)
            grad_x = grad if grad_x is None or not wants_x else grad_x.add_(grad)
    assert total is not None
    return total, grad_x if wants_x else None


def sac_actor_loss(
    pi: Net, Q: Sequence[Net], s: Tensor, s_Q: Tensor, noise: Tensor, alpha: Tensor, learns: bool
) -> tuple[Tensor, Tensor]:
    """L_actor = mean [alpha log pi(a | s) - min_j Q_j(s, a)], a ~ pi(. | s) (equation 7); also mean log pi(a | s).

    Entropy coefficients alpha are [G, n, 1], the same for all rows of an agent.
    """
    pi_tape: list[Tensor] | None = [] if learns else None
    loc, scale = (part[0] for part in pi(s, pi_tape))
    a, log_prob = squashed(loc, scale, noise)
    q, grad_a = _least_gradient(Q, torch.cat([s_Q, a], -1), sizes(a)[-1], learns)
    if grad_a is not None and pi_tape is not None:
        pi.backward(pi_tape, *squashed_gradient(a, scale, noise, grad_a, alpha / sizes(s)[1]))
    mean = log_prob.mean((-2, -1))
    return alpha[:, 0, 0] * mean - q.mean((-2, -1)), mean


def td3_actor_loss(pi: Net, Q: Net, s: Tensor, s_Q: Tensor, learns: bool) -> Tensor:
    """L_actor = -mean Q_1(s, pi(s)), [G]: one critic is evaluated, and not learnt."""
    pi_tape: list[Tensor] | None = [] if learns else None
    a = pi(s, pi_tape)[0]
    q, grad_a = _least_gradient([Q], torch.cat([s_Q, a], -1), sizes(a)[-1], learns)
    if grad_a is not None and pi_tape is not None:
        pi.backward(pi_tape, grad_a)
    return -q.mean((-2, -1))


def _least(Q: Sequence[Net], x: Tensor) -> Tensor:
    """min_j Q_j, [G, n, 1]."""
    values = [critics(x) for critics in Q]
    values = values[0] if len(Q) == 1 else torch.cat(values)
    return values[0] if sizes(values)[0] == 1 else values.amin(0)


def _least_gradient(Q: Sequence[Net], x: Tensor, actions: int, learns: bool) -> tuple[Tensor, Tensor | None]:
    """min_j Q_j [G, n, 1], and the gradient of -mean min_j Q_j for the last columns of x, the action [G, n, P]."""
    if not learns:
        return _least(Q, x), None
    tapes: list[list[Tensor]] = [[] for _ in Q]
    values = [critics(x, tape) for critics, tape in zip(Q, tapes, strict=True)]
    every = values[0] if len(Q) == 1 else torch.cat(values)
    least, share = every.amin(0), -1 / sizes(x)[1]
    grad_a = None
    for critics, value, tape in reversed(list(zip(Q, values, tapes, strict=True))):
        grad = torch.full_like(value, share) if sizes(every)[0] == 1 else (value == least).float().mul_(share)
        part = critics.backward(tape, grad, learns=False, wants_x=True)[..., -actions:]
        grad_a = part if grad_a is None else grad_a + part
    return least, grad_a
