"""Networks of the levels, built from specs; every proposal lies in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.functional import softplus
from torchrl.data import Bounded, TensorSpec
from torchrl.modules import ProbabilisticActor

from peach_trl.config import option
from peach_trl.distributions import UnitTanhNormal
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.modules.perceptron import Perceptron
from peach_trl.modules.views import View


@dataclass(frozen=True)
class NetworkConfig:
    """Hidden layers of a level's actor and critics; see ``configs/`` for values."""

    actor_cells: tuple[int, ...] = option(low=1, high=10**6, help="units of the actor's hidden layers")
    critic_cells: tuple[int, ...] = option(low=1, high=10**6, help="units of each critic's hidden layers")
    critic_norm: bool = option(help="layer normalisation in the critics, against values that run away off the data")
    bf16: bool = option(help="compute the networks in bfloat16, for large ones on processors that have it")


def observation_scale(spec: TensorSpec) -> Tensor:
    """What to multiply observations by, [D]: the inverse of the spec's bounds, or 1 where it has none.

    Examples:
        >>> observation_scale(Bounded(-4.0, 4.0, shape=(2,))).tolist()
        [0.25, 0.25]
    """
    bound = _bound(spec)
    return torch.where(bound.isfinite(), 1 / bound, torch.ones_like(bound))


def _bound(spec: TensorSpec) -> Tensor:
    """The largest absolute value of each entry, [D]; inf where there is no bound worth the name."""
    none = torch.full((spec.shape[-1],), torch.inf)
    if not isinstance(spec, Bounded):
        return none
    bound = torch.maximum(spec.low.abs(), spec.high.abs()).reshape(-1, spec.shape[-1])[0].float()
    return torch.where((bound > 0) & (bound < 1e6), bound, none)


OUTLIER = 10.0  # standard deviations from the mean that a normalised entry is clipped to


class Features(nn.Module):
    """Concatenates a level's inputs, scaled to about [-1, 1]: observation, goal, and whatever else it reads.

    Args:
        observation_spec: spec of ``observation``, [..., D].
        goal_space: space of ``goal``, or ``None`` if the level reads none.
        goal_range: half-range of the goals about the state, [G], if they are read relative to the state; ``None``
            reads them as they are, in the space's bounds.
        view: what of the observation is read, V numbers, and how goals are; ``None`` for all of it.
        normalise: whether entries without bounds are to be normalised, by what :meth:`set_statistics` is told.

    Attributes:
        unbounded: which of the numbers that are read of the observation have no bounds, and so are normalised: bool
            [V]; all False with ``normalise=False``.
    """

    scale: Tensor
    shift: Tensor
    names: list[str]  # of the buffers, in the order of `functional`; `buffers()` has them in any

    def __init__(
        self,
        observation_spec: TensorSpec,
        goal_space: GoalSpace | None = None,
        goal_range: Tensor | None = None,
        view: View | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.observation_dim = observation_spec.shape[-1]
        whole, bounded = observation_scale(observation_spec), _bound(observation_spec).isfinite()
        self.view = view
        if view is not None:  # what is made of several entries stands behind them: WITHIN_1, and without bounds
            whole = torch.cat([whole, torch.ones(2)])[view.entries]
            bounded = torch.cat([bounded, torch.tensor([True, False])])[view.entries]
        self.unbounded = ~bounded if normalise else torch.zeros_like(bounded)
        self.normalises = bool(self.unbounded.any())
        self.register_buffer("scale", whole)
        self.goal_space, self.relative = goal_space, goal_range is not None or (view is not None and view.turns)
        if goal_space is not None:
            middle = goal_space.low + goal_space.half_range
            self.register_buffer("middle", torch.zeros_like(middle) if self.relative else middle)
            half = goal_space.half_range if goal_range is None else goal_range
            self.register_buffer("half_range", half.clone())  # critics that shared it could not be loaded
        if self.normalises:
            self.register_buffer("shift", torch.zeros_like(whole))
        self.names = list(self._buffers)

    @property
    def dim(self) -> int:
        """Size of the features without any further inputs."""
        return self.scale.shape[-1] + (self.goal_space.dim if self.goal_space is not None else 0)

    def forward(self, observation: Tensor, *others: Tensor) -> Tensor:
        """[..., D] and the goal [..., G], if there is one, then further inputs as they are; returns [..., F]."""
        return self.functional([cast(Tensor, self._buffers[name]) for name in self.names], observation, *others)

    def check(self, *inputs: Any) -> None:
        """Refuses inputs of another size than they were made for, also of one number, which would go for all.

        Raises:
            ValueError: that names the shape, and the size that is wanted.
        """
        sizes = self.observation_dim, *([self.goal_space.dim] if self.goal_space is not None else [])
        for name, size, value in zip(("observation", "goal"), sizes, inputs, strict=False):
            if value.shape[-1] != size:
                raise ValueError(f"{name} of shape {list(value.shape)}: this network reads {size} numbers of it")

    def functional(self, buffers: Sequence[Tensor], observation: Tensor, *others: Tensor) -> Tensor:
        """With other buffers, in the order of ``self.names``."""
        self.check(observation, *others)
        seen = (observation if self.view is None else self.view(observation)) * buffers[0]
        if self.normalises:
            seen = (seen + buffers[-1]).clamp(-OUTLIER, OUTLIER)
        parts = [seen]
        if self.goal_space is not None:
            goal, others = others[0], others[1:]
            zero = self.goal_space.project(observation) if self.relative else buffers[1]
            offset = goal - zero
            if self.relative and self.view is not None:
                offset = self.view.goal(observation, offset)
            parts.append(offset / buffers[2])
        return torch.cat([*parts, *others], -1)


class FeatureNet(nn.Module):
    """A perceptron over :class:`Features`.

    Args:
        features: of observation and goal.
        extra: size of the inputs that follow them.
        out: size of the output.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer (Ball et al. 2023, arXiv 2302.02948, for critics).
        seeds: how many networks at once, see :class:`~peach_trl.modules.perceptron.Perceptron`.
        bf16: compute in bfloat16.
    """

    def __init__(
        self,
        features: Features,
        extra: int,
        out: int,
        cells: Sequence[int],
        norm: bool = False,
        *,
        seeds: int | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.net = Perceptron(features.dim + extra, out, cells, norm, seeds=seeds, bf16=bf16)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., F_i] each to [..., out]."""
        return self.net.forward(self.features.forward(*inputs))

    @property
    def seeds(self) -> int | None:
        """How many networks at once."""
        return self.net.seeds


class Identity(nn.Identity):
    """A network's output as it is."""

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """From the gradient of the output to that of x."""
        return grad


class Bound(nn.Module):
    """-H sigmoid(x), in [-H, 0]."""

    def __init__(self, horizon: float) -> None:
        super().__init__()
        self.horizon = horizon

    def forward(self, x: Tensor) -> Tensor:
        """[..., 1] to [..., 1]."""
        return torch.sigmoid(x).mul(-self.horizon)

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """From the gradient of the output to that of x."""
        share = torch.sigmoid(x)
        return grad * (share - 1) * share * self.horizon


class Tanh(nn.Module):
    """tanh(x), in [-1, 1], with a gradient that leads back from where it is flat.

    A deterministic actor that was driven to x = -10 while its critic knew nothing puts out -1 whatever it reads, and
    learns no more: tanh has no slope there, and no noise of its own ever leaves. One goal-reaching level of twenty was
    lost like that. So the gradient of a loss that is a mean over n rows [..., n, P] is that of the same loss with a
    penalty ``pull / 2 (|x| - flat)^2`` on each x beyond ``flat``, where ``|tanh(x)|`` is .995.

    Examples:
        >>> x = torch.tensor([[-10.0, 1.0], [-10.0, 1.0]], requires_grad=True)
        >>> Tanh()(x).mean(0).sum().backward()
        >>> x.grad[0]
        tensor([-0.0350,  0.2100])
    """

    flat, pull = 3.0, 0.01

    def forward(self, x: Tensor) -> Tensor:
        """[..., n, P] to the same."""
        return cast(Tensor, _Tanh.apply(x, self))

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """From the gradient of the output to that of x."""
        rows = int(x.shape[-2]) if x.ndim > 1 else 1
        beyond = x - x.clamp(-self.flat, self.flat)
        return grad * (1 - x.tanh().square_()) + beyond * (self.pull / rows)


class _Tanh(torch.autograd.Function):
    """The same for autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, end: Tanh) -> Tensor:
        """tanh(x)."""
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tanh], output: Tensor) -> None:
        """Keeps x."""
        ctx.save_for_backward(inputs[0])
        ctx.end = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """As :meth:`Tanh.gradient`."""
        return ctx.end.gradient(*ctx.saved_tensors, grad), None


class Normal(nn.Module):
    """A network's output [..., 2 P] as mean and standard deviation [..., P], as TorchRL's NormalParamExtractor has it.

    The deviation is softplus(x + c) + 0.01, and 1 where x is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.least = 0.01
        self.shift = math.log(math.expm1(1 - self.least))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation."""
        loc, scale = x.chunk(2, -1)
        return loc, softplus(scale + self.shift) + self.least

    def gradient(self, x: Tensor, grad_loc: Tensor, grad_scale: Tensor) -> Tensor:
        """From the gradients of mean and deviation to that of x."""
        slope = torch.sigmoid(x[..., grad_loc.shape[-1] :] + self.shift)
        return torch.cat([grad_loc, grad_scale * slope], -1)


class EndedNet(nn.Module):
    """A network of several inputs, and what follows its last layer: one of the above.

    Args:
        net: the network.
        end: a module with a method ``gradient``.
    """

    def __init__(self, net: FeatureNet, end: Bound | Tanh | Normal | Identity) -> None:
        super().__init__()
        self.net, self.end = net, end

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[..., F_i] each to what the end makes of the network's output."""
        return self.end.forward(self.net.forward(*inputs))

    @property
    def seeds(self) -> int | None:
        """How many networks at once."""
        return self.net.seeds


class BoundedValue(EndedNet):
    """Q = -H sigmoid(x), a value in [-H, 0] (HAC's bounded critic); starts near -H / 2."""

    def __init__(self, net: FeatureNet, horizon: float) -> None:
        super().__init__(net, Bound(horizon))


def features_and_end(network: nn.Module) -> tuple[FeatureNet, nn.Module]:
    """The network behind what this module builds, and what follows its last layer."""
    if isinstance(network, EndedNet):
        return network.net, network.end
    if isinstance(network, FeatureNet):
        return network, Identity()
    raise TypeError(f"network of type {type(network).__name__}: must be a FeatureNet or an EndedNet")


def deterministic_actor(net: FeatureNet, in_keys: Sequence[str]) -> TensorDictModule:
    """pi(s, g) = tanh(net), written under ``action``."""
    return TensorDictModule(EndedNet(net, Tanh()), in_keys=list(in_keys), out_keys=["action"])


def stochastic_actor(net: FeatureNet, in_keys: Sequence[str]) -> ProbabilisticActor:
    """A tanh-squashed Gaussian over ``action`` in [-1, 1]; ``net`` puts out 2 x ``proposal_dim``."""
    params = TensorDictModule(EndedNet(net, Normal()), list(in_keys), ["loc", "scale"])
    return ProbabilisticActor(
        params,
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=UnitTanhNormal,
        return_log_prob=True,
    )
