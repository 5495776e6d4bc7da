"""Networks of the levels, built from specs; every proposal lies in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.modules import MLP, ProbabilisticActor

from peach_trl.config import option
from peach_trl.distributions import UnitTanhNormal
from peach_trl.envs.goal_space import GoalSpace


@dataclass(frozen=True)
class NetworkConfig:
    """Hidden layers of a level's actor and critics; see ``configs/`` for values."""

    actor_cells: tuple[int, ...] = option(low=1, help="units of the actor's hidden layers")
    critic_cells: tuple[int, ...] = option(low=1, help="units of each critic's hidden layers")
    critic_norm: bool = option(help="layer normalisation in the critics, against values that run away off the data")


def observation_scale(spec: TensorSpec) -> Tensor:
    """What to multiply observations by, [D]: the inverse of the spec's bounds, or 1 where it has none.

    Examples:
        >>> observation_scale(Bounded(-4.0, 4.0, shape=(2,))).tolist()
        [0.25, 0.25]
    """
    ones = torch.ones(spec.shape[-1])
    if not isinstance(spec, Bounded):
        return ones
    bound = torch.maximum(spec.low.abs(), spec.high.abs()).reshape(-1, spec.shape[-1])[0].float()
    return torch.where(bound.isfinite() & (bound > 0) & (bound < 1e6), 1 / bound, ones)


class Features(nn.Module):
    """Concatenates a level's inputs, scaled to about [-1, 1]: observation, goal, and whatever else it reads.

    Args:
        observation_spec: spec of ``observation``, [..., D].
        goal_space: space of ``goal``, or ``None`` if the level reads none.
        goal_range: half-range of the goals about the state, [G], if they are read relative to the state; ``None``
            reads them as they are, in the space's bounds.
    """

    scale: Tensor

    def __init__(
        self, observation_spec: TensorSpec, goal_space: GoalSpace | None = None, goal_range: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("scale", observation_scale(observation_spec))
        self.goal_space, self.goal_range = goal_space, goal_range

    @property
    def dim(self) -> int:
        """Size of the features without any further inputs."""
        return self.scale.shape[-1] + (self.goal_space.dim if self.goal_space is not None else 0)

    def forward(self, observation: Tensor, *others: Tensor) -> Tensor:
        """[..., D] and the goal [..., G], if there is one, then further inputs as they are; returns [..., F]."""
        parts = [observation * self.scale]
        if self.goal_space is not None:
            goal, others = others[0], others[1:]
            if self.goal_range is not None:
                parts.append((goal - self.goal_space.project(observation)) / self.goal_range)
            else:
                parts.append((goal - self.goal_space.low) / self.goal_space.half_range - 1)
        return torch.cat([*parts, *others], -1)


def mlp(features: int, out: int, cells: Sequence[int], norm: bool = False) -> MLP:
    """TorchRL's MLP of ReLUs, with layer normalisation behind each hidden layer if asked for."""
    norms = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": n} for n in cells]} if norm else {}
    return MLP(features, out, num_cells=list(cells), activation_class=nn.ReLU, **norms)


class FeatureNet(nn.Module):
    """An MLP over :class:`Features`.

    Args:
        features: of observation and goal.
        extra: size of the inputs that follow them.
        out: size of the output.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer (Ball et al. 2023, arXiv 2302.02948, for critics).
    """

    def __init__(self, features: Features, extra: int, out: int, cells: Sequence[int], norm: bool = False) -> None:
        super().__init__()
        self.features = features
        self.net = mlp(features.dim + extra, out, cells, norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., F_i] each to [..., out]."""
        x = self.features.forward(*inputs)
        for layer in self.net:  # without nn.Module's hooks, which cost as much as a small layer itself
            x = layer.forward(x)
        return x


class BoundedValue(nn.Module):
    """Q = -H sigmoid(x), a value in [-H, 0] (HAC's bounded critic); starts near -H / 2."""

    def __init__(self, net: nn.Module, horizon: float) -> None:
        super().__init__()
        self.net, self.horizon = net, horizon

    def forward(self, *inputs: Tensor) -> Tensor:
        """Bounded value, [..., 1]."""
        return -self.horizon * torch.sigmoid(self.net(*inputs))


class _Head(nn.Module):
    """A network of several inputs, and a function of its output."""

    def __init__(self, net: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, head

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.head.forward(self.net.forward(*inputs))


def deterministic_actor(net: nn.Module, in_keys: Sequence[str]) -> TensorDictModule:
    """pi(s, g) = tanh(net), written under ``action``."""
    return TensorDictModule(_Head(net, nn.Tanh()), in_keys=list(in_keys), out_keys=["action"])


def stochastic_actor(net: nn.Module, in_keys: Sequence[str]) -> ProbabilisticActor:
    """A tanh-squashed Gaussian over ``action`` in [-1, 1]; ``net`` puts out 2 x ``proposal_dim``."""
    head = NormalParamExtractor(scale_lb=1e-3)  # type: ignore[arg-type]
    params = TensorDictModule(_Head(net, head), list(in_keys), ["loc", "scale"])
    return ProbabilisticActor(
        params,
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=UnitTanhNormal,
        return_log_prob=True,
    )
