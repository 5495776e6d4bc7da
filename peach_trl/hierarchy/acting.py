"""Actors at every step of a rollout: on arrays where their networks are the package's own, else as TorchRL has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from peach_trl.distributions import UnitTanhNormal
from peach_trl.modules.carried import ArrayPerceptron
from peach_trl.modules.networks import EndedNet, FeatureNet, Features, Normal, Tanh
from peach_trl.seeding import ProcessGenerator

Greedy: TypeAlias = Callable[[], np.ndarray]
Sample: TypeAlias = Callable[[np.ndarray], np.ndarray]  # of standard normal draws


def outputs_of(actor: Any, inputs: dict[Any, Tensor], batch_size: torch.Size) -> tuple[Greedy, Sample | None]:
    """The same of any TorchRL actor; one with a distribution draws from torch's global generator."""
    if type(actor) is TensorDictModule and actor.out_keys == ["action"]:
        proposal = actor.module(*(inputs[key] for key in actor.in_keys)).detach().numpy()
        return lambda: proposal, None
    tensordict = TensorDict(inputs, batch_size)
    if not hasattr(actor, "get_dist"):
        proposal = actor(tensordict)["action"].detach().numpy()
        return lambda: proposal, None
    distribution: Any = actor.get_dist(tensordict)
    return lambda: distribution.deterministic_sample.detach().numpy(), lambda _: distribution.sample().numpy()


class Draws:
    """Random numbers of exploration, drawn for many steps at once: each level has a block of its own.

    Args:
        generator: of all blocks, which start anew with it.
    """

    def __init__(self, generator: ProcessGenerator) -> None:
        self._source = generator
        self._of: torch.Generator | None = None
        self._blocks: dict[Any, list[Any]] = {}  # the next step, and its numbers, stacked

    def __call__(self, level: int, shape: tuple[int, ...], share: np.floating) -> tuple[np.ndarray, ...]:
        """Standard normal ones and uniform ones in [-1, 1), of this shape; and coins, True for a share of the rows."""
        generator, key = self._source.get(), (level, shape, float(share))
        if generator is not self._of:
            self._of, self._blocks = generator, {}
        block = self._blocks.get(key)
        if block is None or block[0] == len(block[1]):
            steps = min(64, 1 + 2**16 // int(np.prod(shape)))
            normal = torch.randn(steps, *shape, generator=generator)
            uniform = torch.rand(steps, *shape, generator=generator).mul_(2).sub_(1)
            coin = torch.rand(steps, *shape[:-1], 1, generator=generator) < float(share)
            block = self._blocks[key] = [0, normal.numpy(), uniform.numpy(), coin.numpy()]
        step, normals, uniforms, coins = block
        block[0] = step + 1
        return normals[step], uniforms[step], coins[step]

    def state_dict(self) -> dict[str, Any]:
        """The numbers that were drawn and not used yet."""
        generator = self._source.get()
        blocks = self._blocks if generator is self._of else {}
        return {
            "generator": generator.get_state(),
            "blocks": [
                (*key, *(torch.from_numpy(part[block[0] :].copy()) for part in block[1:]))
                for key, block in blocks.items()
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, in a process of the same seed."""
        self._source.load_state_dict(state_dict)
        self._of = self._source.get()
        self._blocks = {
            (level, tuple(shape), share): [0, *(part.numpy().copy() for part in parts)]
            for level, shape, share, *parts in state_dict["blocks"]
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_of": None, "_blocks": {}}


class Network:
    """An actor of :mod:`peach_trl.modules.networks` on arrays.

    Args:
        net: the actor's network, with what follows its last layer.
        in_keys: what it reads, in order.
    """

    def __init__(self, net: EndedNet, in_keys: Sequence[Any]) -> None:
        self.in_keys, self.draws = list(in_keys), isinstance(net.end, Normal)
        self._whole, self._features = net, net.net.features
        self._end: Any = net.end
        self._net = ArrayPerceptron(net.net.net)

    def __call__(self, *inputs: np.ndarray) -> Any:
        """[..., F_i] each to the proposal [..., P], or to mean and deviation of what the proposal is the tanh of."""
        if not self._net.is_quick(inputs[0].size // inputs[0].shape[-1]):
            out = self._whole.forward(*map(torch.from_numpy, inputs))
            return tuple(part.detach().numpy() for part in out) if self.draws else cast(Tensor, out).detach().numpy()
        x = self._net(self._read(*inputs))
        if not self.draws:
            return np.tanh(x, out=x)
        size = x.shape[-1] // 2
        scale = np.logaddexp(x[..., size:] + np.float32(self._end.shift), 0)
        return x[..., :size], scale + np.float32(self._end.least)

    def _read(self, observation: np.ndarray, *others: np.ndarray) -> np.ndarray:
        """The network's features; see :class:`~peach_trl.modules.networks.Features`."""
        features = self._features
        if features.view is not None or features.normalises:
            return features.forward(*map(torch.from_numpy, (observation, *others))).numpy()
        features.check(observation, *others)
        scale, *rest = [cast(Tensor, features._buffers[name]).numpy() for name in features.names]
        parts = [observation * scale, *others]
        if features.goal_space is not None:
            middle, half_range = rest
            zero = features.goal_space.project(observation) if features.relative else middle
            parts[1] = (others[0] - zero) / half_range
        return np.concatenate(parts, -1)


def network_of(actor: Any) -> Network | None:
    """An actor of :mod:`peach_trl.modules.networks` as a network on arrays; ``None`` for others."""
    stochastic = isinstance(actor, ProbabilisticActor) and len(actor.module) == 2
    if stochastic and cast(Any, actor.module[-1]).distribution_class is UnitTanhNormal:
        actor, wanted = actor.module[0], Normal
    elif actor.out_keys == ["action"]:
        wanted = Tanh
    else:
        return None
    net: Any = actor.module if type(actor) is TensorDictModule else None
    known = type(net) is EndedNet and type(net.end) is wanted and type(net.net) is FeatureNet
    return Network(net, actor.in_keys) if known and type(net.net.features) is Features else None
