"""The gradient steps of benchmarks/update.py by other means: matrix products alone, plain torch, JAX.

The mathematics is written once, in :func:`losses`; plain torch and JAX bring their own networks, gradients and
optimisers to it. update.py checks their losses against the package's over several updates.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

Layers = list[tuple[Tensor, Tensor]]  # weight and bias, or gain and shift, of each layer


@dataclass(frozen=True)
class Problem:
    """A gradient step: what every contender starts from and computes.

    Attributes:
        algorithm: sac or td3.
        nets: layers of ``actor``, ``critic_0``, ``critic_1`` and, with a context, of ``encoder``.
        data: the batch, in columns.
        rates: learning rates of encoder, actor and critics.
        gamma, tau, alpha, noise, clip, horizon: of the algorithm; a horizon H bounds values to [-H, 0].
        reads: ``belief``: its parameters, of sequences; ``sample``: z, of contexts apart from the batch; or nothing.
        precision: of a factor of the belief.
        beta: coefficient of the KL divergence.
        slow, average: rates of the slow encoder behind targets and of the averaged weights; 1 for none.
    """

    algorithm: str
    nets: dict[str, Layers]
    data: dict[str, Tensor]
    rates: dict[str, float]
    gamma: float
    tau: float
    alpha: float = 0.0
    noise: float = 0.0
    clip: float = 0.0
    horizon: float | None = None
    reads: str | None = None
    precision: str = "exponential"
    beta: float = 0.0
    slow: float = 1.0
    average: float = 1.0
    noises: dict[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of the draws, in their order

    @property
    def targets(self) -> list[str]:
        """Names of the networks that have a target."""
        return ["critic_0", "critic_1"] + ["actor"] * (self.algorithm == "td3")

    def rate(self, name: str) -> float:
        """The learning rate of a network."""
        return self.rates[name.partition("_")[0]]


# The mathematics, for torch and JAX alike: `ops` has the functions, `nets` the networks by their names.


def gaussian(ops: Any, x: Any) -> tuple[Any, Any]:
    """Mean and deviation of the actor's Gaussian, as TorchRL's NormalParamExtractor has it."""
    loc, raw = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return loc, ops.softplus(raw + math.log(math.expm1(0.99))) + 0.01


def squashed(ops: Any, loc: Any, scale: Any, noise: Any) -> tuple[Any, Any]:
    """A = tanh(u) and log pi(a), [..., 1]."""
    u = loc + scale * noise
    log_slope = 2 * (math.log(2) - u - ops.softplus(-2 * u))
    log_prob = -0.5 * noise * noise - ops.log(scale) - 0.5 * math.log(2 * math.pi) - log_slope
    return ops.tanh(u), log_prob.sum(-1)[..., None]


def factors(ops: Any, p: Problem, encoder: Callable, d: dict[str, Any]) -> Any:
    """Precision and precision-weighted mean of each transition of the context."""
    s, after = d["context_s"] * d["scale"], d["context_s_after"] * d["scale"]
    out = encoder(ops.concat([s, d["context_a"], d["context_r"], after], -1))
    size = out.shape[-1] // 2
    mu, x = out[..., :size], out[..., size:]
    if p.precision == "exponential":
        precision = ops.exp(ops.clip(x - 1, -8, 10))
    else:
        precision = 1 / ops.square(ops.softplus(x) + 1e-3)
    return ops.concat([precision, precision * mu], -1) * d["context_mask"][..., None]


def product(ops: Any, total: Any) -> tuple[Any, Any]:
    """Mean and deviation of the product of factors with the prior."""
    size = total.shape[-1] // 2
    precision = 1 + total[..., :size]
    return total[..., size:] / precision, ops.rsqrt(precision)


def believe(ops: Any, p: Problem, encoder: Callable, d: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What is read before and after each decision of sequences is ``read[:, :-1]`` and ``read[:, 1:]``; and q."""
    total = ops.cumsum(factors(ops, p, encoder, d), 1)
    loc, scale = product(ops, ops.concat([ops.zeros_like(total[:, :1]), total], 1))
    return ops.concat([loc, ops.log(scale)], -1), loc, scale


def contexts(ops: Any, p: Problem, nets: dict, d: dict[str, Any], noise: dict[str, Any]) -> tuple[list, list, Any]:
    """What actor and critics read besides the state, what targets read, and L_KL."""
    if p.reads is None:
        return [], [], None
    if p.reads == "belief":
        read, loc, scale = believe(ops, p, nets["encoder"], d)
        with ops.no_grad():
            slow = read if p.slow == 1 else believe(ops, p, nets["slow"], d)[0]
        now, after = read[:, :-1], ops.stop(slow[:, 1:])
    else:
        loc, scale = product(ops, factors(ops, p, nets["encoder"], d).sum(1))
        z = loc + scale * noise["z"]
        now = ops.broadcast(z[:, None], (*d["s"].shape[:-1], z.shape[-1]))
        after = ops.stop(now)
    kl = (0.5 * (ops.square(loc) + ops.square(scale) - 1) - ops.log(scale)).sum(-1).mean()
    return [now], [after], kl


def linked(ops: Any, d: dict[str, Any]) -> tuple[Any, Any]:
    """S' and whether a value follows: it goes on from a trajectory's end to the next one's start, if there is one."""
    after, follows = d["s_after"], ~d["terminated"]
    if "part" in d:
        goes_on = d["context_mask"][:, 1:] & (d["part"][:, 1:] != d["part"][:, :-1])
        goes_on = ops.concat([goes_on, ops.zeros_like(goes_on[:, :1])], 1)[..., None]
        after = ops.where(goes_on, ops.concat([d["s"][:, 1:], d["s"][:, :1]], 1), after)
        follows = follows | goes_on
    return after, follows


def features(d: dict[str, Any], s: Any) -> list[Any]:
    """The state, and the goal if there is one, scaled."""
    if "goal" not in d:
        return [s * d["scale"]]
    zero = s[..., d["goal_slice"]] if d["goal_relative"] else d["goal_middle"]
    return [s * d["scale"], (d["goal"] - zero) / d["goal_range"]]


def losses(ops: Any, p: Problem, nets: dict[str, Any], d: dict[str, Any], noise: dict[str, Any]) -> dict[str, Any]:
    """L_critic, L_actor and with a context L_KL, of SAC or TD3 (see peach_trl/objectives/plain.py for sources)."""
    bound = (lambda x: x) if p.horizon is None else (lambda x: -p.horizon * ops.sigmoid(x))
    now, after, kl = contexts(ops, p, nets, d, noise)
    s_after, follows = linked(ops, d)
    now, after = features(d, d["s"]) + now, features(d, s_after) + after
    with ops.no_grad():
        following, log_prob = propose(ops, p, nets["target_actor" if p.algorithm == "td3" else "actor"], after, noise)
        x = ops.concat([*after, following], -1)
        value = ops.minimum(*(bound(nets[f"target_critic_{i}"](x)) for i in range(2))) - p.alpha * log_prob
        y = d["r"] + follows * p.gamma ** d.get("steps", 1) * value
        y = ops.stop(y if p.horizon is None else ops.clip(y, -p.horizon, 0))
    x = ops.concat([*now, d["a"]], -1)
    critic = sum(ops.square(bound(nets[f"critic_{i}"](x)) - y).mean() for i in range(2))
    fixed = [ops.stop(part) for part in now]
    if p.algorithm == "td3":
        a = ops.tanh(nets["actor"](ops.concat(fixed, -1)))
        actor = -bound(nets["frozen_critic_0"](ops.concat([*fixed, a], -1)))
    else:
        a, log_prob = squashed(ops, *gaussian(ops, nets["actor"](ops.concat(fixed, -1))), noise["now"])
        x = ops.concat([*fixed, a], -1)
        actor = p.alpha * log_prob - ops.minimum(*(nets[f"frozen_critic_{i}"](x) for i in range(2)))
    found = {"loss_qvalue": critic, "loss_actor": actor.mean()}
    return found if kl is None else {**found, "loss_kl": kl}


def propose(ops: Any, p: Problem, actor: Callable, inputs: list[Any], noise: dict[str, Any]) -> tuple[Any, Any]:
    """The action that a target evaluates, and its log-probability, 0 for TD3."""
    out = actor(ops.concat(inputs, -1))
    if p.algorithm == "sac":
        return squashed(ops, *gaussian(ops, out), noise["after"])
    return ops.clip(ops.tanh(out) + ops.clip(noise["after"] * p.noise, -p.clip, p.clip), -1, 1), 0.0


def weigh(p: Problem, found: dict[str, Any]) -> Any:
    """The sum of the losses by their coefficients."""
    return found["loss_qvalue"] + found["loss_actor"] + p.beta * found.get("loss_kl", 0.0)


# The contenders. Each has run(n), which makes n updates.


class Products:
    """The matrix products of the step, and nothing else: preallocated tensors, no gradient of what needs none."""

    note = "a bound from below"

    def __init__(self, p: Problem) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.flop = 0
        rows = p.data["s"].shape[:-1].numel()
        inputs = p.reads is not None
        if inputs:
            context = p.data["context_s"].shape[:-1].numel()
            self._net(p.nets["encoder"], context, weights=True)
            if p.slow < 1:
                self._net(p.nets["encoder"], context)
        self._net(p.nets["actor"], rows)
        self._net(p.nets["actor"], rows, weights=True)
        for i in range(2):
            critic = p.nets[f"critic_{i}"]
            self._net(critic, rows)
            self._net(critic, rows, weights=True, inputs=inputs)
            if p.algorithm == "sac" or i == 0:
                self._net(critic, rows, inputs=True)

    def _net(self, layers: Layers, rows: int, weights: bool = False, inputs: bool = False) -> None:
        """Forward, and backward as far as it is needed."""
        matrices = [weight for weight, _ in layers if weight.ndim == 2]
        for i, weight in enumerate(matrices):
            out, size = weight.shape
            x, y = torch.randn(rows, size), torch.randn(rows, out)
            self._call(torch.addmm, torch.zeros(out), x, weight.t(), out=y)
            if weights:
                self._call(torch.mm, y.t(), x, out=torch.empty(out, size))
            if inputs or (weights and i > 0):
                self._call(torch.mm, y, weight, out=torch.empty(rows, size))

    def _call(self, function: Callable, *args: Tensor, out: Tensor) -> None:
        self.calls.append((function, args, out))
        self.flop += 2 * args[-2].numel() * args[-1].shape[-1]

    @torch.no_grad()
    def run(self, n: int) -> None:
        """N times all products."""
        for _ in range(n):
            for function, args, out in self.calls:
                function(*args, out=out)


TORCH = SimpleNamespace(
    **{name: getattr(torch, name) for name in ("exp", "log", "tanh", "sigmoid", "square", "rsqrt", "clip", "where")},
    **{name: getattr(torch, name) for name in ("minimum", "cumsum", "zeros_like", "no_grad")},
    **{"concat": torch.cat, "softplus": softplus, "stop": Tensor.detach, "broadcast": Tensor.expand},
)


class PlainTorch:
    """The same in eager torch, as one would write it: nn.Sequential, autograd, fused Adam, in-place averages.

    With ``compiled`` the losses and their gradients go through torch.compile.
    """

    note = "the same losses, optimisers and averages; takes sequences to be full"

    def __init__(self, p: Problem, compiled: bool = False) -> None:
        self.p, self.first = p, True
        self.learnt = nn.ModuleDict({name: sequential(layers) for name, layers in p.nets.items()})
        self.nets: dict[str, Any] = dict(self.learnt.items())
        self.pairs: list[tuple[list[Tensor], list[Tensor], float, bool]] = []
        for name in p.targets:
            self._copy(f"target_{name}", [name], p.tau)
        if p.slow < 1:
            self._copy("slow", ["encoder"], p.slow, starts=True)
        if p.average < 1:
            self._copy("average", ["encoder", "actor"], p.average, starts=True)
        for i in range(2):
            self.nets[f"frozen_critic_{i}"] = frozen(self.learnt[f"critic_{i}"])
        groups = [{"params": list(self.learnt[name].parameters()), "lr": p.rate(name)} for name in p.nets]
        self.adam = torch.optim.Adam(groups, fused=True)
        self.losses = torch.compile(losses) if compiled else losses

    def _copy(self, name: str, sources: list[str], rate: float, starts: bool = False) -> None:
        source = self.learnt[sources[0]] if len(sources) == 1 else nn.ModuleList([self.learnt[s] for s in sources])
        self.nets[name] = copy.deepcopy(source).requires_grad_(False)
        target, now = ([part.data for part in net.parameters()] for net in (self.nets[name], source))
        self.pairs.append((target, now, rate, starts))

    def update(self, noise: dict[str, Tensor] | None = None) -> dict[str, float]:
        """One update; returns the losses."""
        if noise is None:
            noise = {name: torch.randn(shape) for name, shape in self.p.noises.items()}
        found = self.losses(TORCH, self.p, self.nets, self.p.data, noise)
        weigh(self.p, found).backward()
        self.adam.step()
        self.adam.zero_grad()
        for targets, sources, rate, starts in self.pairs:
            torch._foreach_lerp_(targets, sources, 1.0 if starts and self.first else rate)
        self.first = False
        return found

    def run(self, n: int) -> None:
        """N updates."""
        for _ in range(n):
            self.update()


def sequential(layers: Layers) -> nn.Sequential:
    """Linear layers and normalisations with a ReLU in front of each linear layer but the first."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        if weight.ndim == 1:
            modules.append(nn.LayerNorm(len(weight)))
        else:
            modules += [nn.ReLU()] * (len(modules) > 0) + [nn.Linear(*reversed(weight.shape))]
        modules[-1].load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(*modules)


def frozen(net: nn.Module) -> nn.Module:
    """The network on the same memory, without a gradient of its parameters."""
    twin = copy.deepcopy(net).requires_grad_(False)
    for mine, its in zip(twin.parameters(), net.parameters(), strict=True):
        mine.data = its.data
    return twin


class Jax:
    """The same in JAX, jitted: a call an update, or with ``scan`` one call of lax.scan for all of them."""

    note = "the same losses, optimisers and averages; takes sequences to be full"

    def __init__(self, p: Problem, scan: bool = False) -> None:
        import jax
        from jax import numpy as jnp

        self.p, self.jax, self.scan = p, jax, scan
        names = ("exp", "log", "tanh", "square", "clip", "where", "minimum", "cumsum", "zeros_like")
        self.ops = SimpleNamespace(
            **{name: getattr(jnp, name) for name in names},
            **{"softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid, "rsqrt": jax.lax.rsqrt},
            **{"concat": jnp.concatenate, "broadcast": jnp.broadcast_to},
            **{"stop": jax.lax.stop_gradient, "no_grad": contextlib.nullcontext},
        )
        self.data = {k: jnp.asarray(v.numpy()) if isinstance(v, Tensor) else v for k, v in p.data.items()}
        self.fixed = {k: v for k, v in self.data.items() if isinstance(v, bool | slice)}
        self.data = {k: v for k, v in self.data.items() if k not in self.fixed}
        self.state = self._start()
        self.step = jax.jit(self._step, donate_argnums=0)
        self.steps = jax.jit(self._steps, static_argnums=2, donate_argnums=0)

    def _start(self) -> dict[str, Any]:
        jnp = self.jax.numpy
        nets = {
            # Kernels are [in, out] here, as JAX's libraries have them.
            name: [(jnp.array(w.t().numpy() if w.ndim == 2 else w.numpy()), jnp.array(b.numpy())) for w, b in layers]
            for name, layers in self.p.nets.items()
        }
        copied = self.p.targets + ["slow"] * (self.p.slow < 1) + ["average"] * (self.p.average < 1)
        sources = nets | {"slow": nets.get("encoder"), "average": [nets.get("encoder"), nets["actor"]]}
        return {
            "nets": nets,
            "copies": {name: self.jax.tree.map(jnp.copy, sources[name]) for name in copied},
            "m": self.jax.tree.map(jnp.zeros_like, nets),
            "v": self.jax.tree.map(jnp.zeros_like, nets),
            "t": jnp.zeros((), jnp.int32),
            "key": self.jax.random.key(0),
        }

    def _net(self, layers: list[Any]) -> Callable[[Any], Any]:
        jax = self.jax

        def call(x: Any) -> Any:
            for i, (weight, bias) in enumerate(layers):
                if weight.ndim == 1:
                    centred = x - x.mean(-1, keepdims=True)
                    variance = (centred * centred).mean(-1, keepdims=True)
                    x = centred * jax.lax.rsqrt(variance + 1e-5) * weight + bias
                else:
                    x = (jax.nn.relu(x) if i else x) @ weight + bias
            return x

        return call

    def _losses(self, nets: dict, copies: dict, data: dict, noise: dict) -> tuple[Any, dict[str, Any]]:
        functions = {name: self._net(layers) for name, layers in nets.items()}
        functions |= {f"frozen_{name}": self._net(self.jax.lax.stop_gradient(nets[name])) for name in nets}
        functions |= {f"target_{name}": self._net(copies[name]) for name in self.p.targets}
        if "slow" in copies:
            functions["slow"] = self._net(copies["slow"])
        found = losses(self.ops, self.p, functions, data | self.fixed, noise)
        return weigh(self.p, found), found

    def _step(self, state: dict, data: dict, noise: dict | None = None) -> tuple[dict, dict]:
        """One update; draws the noise where none is given."""
        jax, p, key = self.jax, self.p, state["key"]
        if noise is None:
            key, *keys = jax.random.split(key, len(p.noises) + 1)
            noise = {n: jax.random.normal(k, shape) for k, (n, shape) in zip(keys, p.noises.items(), strict=True)}
        grads, found = jax.grad(self._losses, has_aux=True)(state["nets"], state["copies"], data, noise)
        t = state["t"] + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["v"], grads)
        m_share, v_share, nets, copies = 1 - 0.9**t, 1 - 0.999**t, {}, {}
        for name, net in state["nets"].items():  # Adam
            adam = partial(adam_step, p.rate(name), m_share, v_share)
            nets[name] = jax.tree.map(adam, net, m[name], v[name])
        sources = nets | {"slow": nets.get("encoder"), "average": [nets.get("encoder"), nets["actor"]]}
        for name, tree in state["copies"].items():
            rate = p.tau if name in p.targets else jax.numpy.where(t == 1, 1.0, getattr(p, name))
            copies[name] = jax.tree.map(partial(follow, rate), tree, sources[name])
        return {"nets": nets, "copies": copies, "m": m, "v": v, "t": t, "key": key}, found

    def _steps(self, state: dict, data: dict, n: int) -> dict:
        return self.jax.lax.scan(lambda s, _: (self._step(s, data)[0], None), state, None, length=n)[0]

    def update(self, noise: dict[str, Tensor]) -> dict[str, Any]:
        """One update with given draws; returns the losses."""
        noise = {name: self.jax.numpy.asarray(draw.numpy()) for name, draw in noise.items()}
        self.state, found = self.step(self.state, self.data, noise)
        return found

    def run(self, n: int) -> None:
        """N updates."""
        if self.scan:
            self.state = self.steps(self.state, self.data, n)
        else:
            for _ in range(n):
                self.state, _ = self.step(self.state, self.data)
        self.jax.block_until_ready(self.state)


def adam_step(rate: float, m_share: Any, v_share: Any, w: Any, m: Any, v: Any) -> Any:
    """A weight after a step of Adam, from its moments and how much of them there is so far."""
    return w - rate * (m / m_share) / ((v / v_share) ** 0.5 + 1e-8)


def follow(rate: Any, target: Any, source: Any) -> Any:
    """A target after a step towards its source."""
    return target + rate * (source - target)
