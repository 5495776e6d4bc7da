"""The context encoder q_phi: what a single transition of the top level says about the task.

Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254, section 4.1). What a whole context says is the belief's business
(:mod:`peach_trl.context.belief`); any module that maps four tensors to ``out_features`` numbers can stand in here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import TensorSpec

from peach_trl.config import ConfigError
from peach_trl.modules.networks import observation_scale
from peach_trl.modules.perceptron import Perceptron


class Transition(NamedTuple):
    """One decision of the top level, or many: (s, a, r, s').

    Attributes:
        observation: s, where the decision began, [..., D].
        action: a, the proposal with hindsight, [..., P] in [-1, 1].
        reward: r, the task's rewards over the decision, scaled, [..., 1]; where learning has another reward, these are
            its ``evidence``.
        next_observation: s', where it ended, [..., D].
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor

    @classmethod
    def of(cls, tensordict: TensorDictBase) -> Transition:
        """The four entries of a TensorDict of transitions, as TorchRL names them."""
        after = tensordict.get("next")
        reward = after.get("evidence", None)
        reward = after.get("reward") if reward is None else reward
        return cls(tensordict.get("observation"), tensordict.get("action"), reward, after.get("observation"))


class ContextEncoder(nn.Module):
    """A perceptron over (s, a, r, s'), with layer normalisation.

    Args:
        observation_spec: spec of the observation, [..., D]; a bounded one gives the scale of the network's input.
        action_dim: dimensions of the top level's proposal, P.
        out_features: numbers to put out, E, as the belief asks for.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer. Without it one seed of three never learnt.
        seeds: how many networks at once, see :class:`~peach_trl.modules.perceptron.Perceptron`.
        bf16: compute in bfloat16.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> encoder = ContextEncoder(Unbounded((4,)), action_dim=2, out_features=10)
        >>> s, a, r = torch.randn(3, 7, 4), torch.randn(3, 7, 2), torch.randn(3, 7, 1)
        >>> encoder(s, a, r, s).shape
        torch.Size([3, 7, 10])
    """

    scale: Tensor

    def __init__(
        self,
        observation_spec: TensorSpec,
        action_dim: int,
        out_features: int,
        cells: Sequence[int] = (64, 64),
        norm: bool = True,
        *,
        seeds: int | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", observation_scale(observation_spec))
        features = 2 * observation_spec.shape[-1] + action_dim + 1
        self.net = Perceptron(features, out_features, cells, norm, seeds=seeds, bf16=bf16)

    def forward(self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor) -> Tensor:
        """What each transition says, [..., E]; the arguments are those of :class:`Transition`."""
        return self.net(self.features(observation, action, reward, next_observation))

    def features(self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor) -> Tensor:
        """What the network reads of transitions, [..., 2 D + P + 1]."""
        return torch.cat([observation * self.scale, action, reward, next_observation * self.scale], -1)


def find_encoder(path: str) -> Callable[[TensorSpec, int, int], nn.Module]:
    """A user's encoder, named by ``"module:Class"``; it is called with the first three arguments of ContextEncoder.

    Raises:
        ConfigError: if there is no such class.

    Examples:
        >>> find_encoder("peach_trl.context:ContextEncoder").__name__
        'ContextEncoder'
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"encoder = {path!r}: {error}; write module:Class, with the module on the PYTHONPATH"
        ) from None
