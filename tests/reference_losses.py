"""SAC, TD3 and the steps of their optimisers, written by hand in plain torch; networks are copies of an agent's."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def copies(networks: list, params) -> list[nn.Module]:
    """The networks of TensorDictModules with the stacked parameters of a loss, as plain modules of several inputs."""
    for i, network in enumerate(networks):
        network.load_state_dict(dict(params.data[i].flatten_keys(".").items()))
    return [copy.deepcopy(network.module) for network in networks]


def squashed(loc: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u), u ~ N(loc, scale^2), and log pi(a), [..., 1]."""
    u = loc + scale * noise
    log_normal = -0.5 * noise**2 - scale.log() - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - softplus(-2 * u))  # of 1 - tanh(u)^2
    return u.tanh(), (log_normal - log_slope).sum(-1, keepdim=True)


def sac_losses(
    actor, critics, targets, batch, task, noise, *, gamma, alpha, low=-math.inf, high=math.inf, task_after=None
):
    """(loss_actor, loss_qvalue) of SAC (Haarnoja et al. 2018).

    Args:
        actor: (s, *task) -> loc, scale.
        critics: two of (s, *task, a) -> [..., 1].
        targets: likewise.
        batch: transitions; the discount is gamma to the power of ``steps_to_next_obs``, if there.
        task: what else the networks read: a goal, z, or nothing.
        noise: standard normal draws for the action at s' and for that at s.
        gamma: discount.
        alpha: entropy coefficient.
        low: lower bound of the targets.
        high: upper bound of the targets.
        task_after: what else the networks read at s'; None for ``task``.
    """
    task_after = task if task_after is None else task_after
    s, a, after = batch["observation"], batch["action"], batch["next"]
    with torch.no_grad():
        next_a, next_log_prob = squashed(*actor(after["observation"], *task_after), noise[0])
        next_q = torch.minimum(*(q(after["observation"], *task_after, next_a) for q in targets)) - alpha * next_log_prob
        discount = gamma ** batch.get("steps_to_next_obs", torch.ones(1))
        y = (after["reward"] + discount * (~after["terminated"]) * next_q).clamp(low, high)
    loss_qvalue = sum(((q(s, *task, a) - y) ** 2).mean() for q in critics)
    new_a, log_prob = squashed(*actor(s, *task), noise[1])
    loss_actor = (alpha * log_prob - torch.minimum(*(q(s, *task, new_a) for q in critics))).mean()
    return loss_actor, loss_qvalue


def td3_losses(actor, critics, target_actor, targets, batch, task, noise, *, gamma, low, high):
    """(loss_actor, loss_qvalue) of TD3 (Fujimoto et al. 2018); ``noise`` is scaled and clipped already."""
    s, a, after = batch["observation"], batch["action"], batch["next"]
    with torch.no_grad():
        next_a = (target_actor(after["observation"], *task) + noise).clamp(-1, 1)
        next_q = torch.minimum(*(q(after["observation"], *task, next_a) for q in targets))
        y = (after["reward"] + gamma * (~after["terminated"]) * next_q).clamp(low, high)
    loss_qvalue = sum(((q(s, *task, a) - y) ** 2).mean() for q in critics)
    return -critics[0](s, *task, actor(s, *task)).mean(), loss_qvalue


class Optimiser:
    """Adam on some modules, by hand-picked losses."""

    def __init__(self, modules: list[nn.Module], learning_rate: float) -> None:
        self.parameters = [p for module in modules for p in module.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=learning_rate)

    def gradient(self, loss: Tensor) -> None:
        """Sets the gradient of ``loss``, to be applied by :meth:`step`."""
        for parameter, gradient in zip(
            self.parameters, torch.autograd.grad(loss, self.parameters, retain_graph=True), strict=True
        ):
            parameter.grad = gradient

    def step(self) -> None:
        self.adam.step()


@torch.no_grad()
def soft_update(targets: list[nn.Module], modules: list[nn.Module], tau: float) -> None:
    for target, module in zip(targets, modules, strict=True):
        for old, new in zip(target.parameters(), module.parameters(), strict=True):
            old.copy_((1 - tau) * old + tau * new)


def assert_same_parameters(params, prefix: str, modules: list[nn.Module], atol: float = 2e-5) -> None:
    """Parameters of a loss, stacked where there are several modules, against those of plain modules."""
    found = dict(params.data.flatten_keys(".").items())
    states = [dict(module.named_parameters()) for module in modules]
    assert states[0]
    for name in states[0]:
        expected = torch.stack([state[name].data for state in states]) if len(modules) > 1 else states[0][name].data
        torch.testing.assert_close(found[prefix + name], expected, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
