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
    """One decision of the top level, or many: (s, a, r, s'), where r may be more than a reward.

    Attributes:
        observation: s, where the decision began, [..., D].
        action: a, the proposal with hindsight, [..., P] in [-1, 1].
        evidence: r, what the decision showed of the task's reward, [..., E]; alone it is the sum over its steps, see
            :class:`~peach_trl.hierarchy.evidence.Evidence`.
        next_observation: s', where it ended, [..., D].
    """

    observation: Tensor
    action: Tensor
    evidence: Tensor
    next_observation: Tensor

    @classmethod
    def of(cls, tensordict: TensorDictBase) -> Transition:
        """The entries of a TensorDict of transitions, as TorchRL names them; without evidence it is the reward."""
        after = tensordict.get("next")
        evidence = after.get("evidence", None)
        evidence = after.get("reward") if evidence is None else evidence
        return cls(tensordict.get("observation"), tensordict.get("action"), evidence, after.get("observation"))


class ContextEncoder(nn.Module):
    """A perceptron over (s, a, r, s'), with layer normalisation.

    Args:
        observation_spec: spec of the observation, [..., D]; a bounded one gives the scale of the network's input.
        action_dim: dimensions of the top level's proposal, P.
        out_features: numbers to put out, as the belief asks for.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer. Without it one seed of three never learnt.
        evidence_dim: E; 1 for a reward, 2 + D with the highest one and its state.
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
    evidence_scale: Tensor

    def __init__(
        self,
        observation_spec: TensorSpec,
        action_dim: int,
        out_features: int,
        cells: Sequence[int] = (64, 64),
        norm: bool = True,
        evidence_dim: int = 1,
        *,
        seeds: int | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", observation_scale(observation_spec))
        of_state = (evidence_dim - 2) * (evidence_dim > 1)
        if of_state not in (0, observation_spec.shape[-1]):
            raise ValueError(f"evidence_dim = {evidence_dim}: must be 1 or 2 + D = {2 + observation_spec.shape[-1]}")
        evidence_scale = torch.cat([torch.ones(evidence_dim - of_state), self.scale[:of_state]])
        self.register_buffer("evidence_scale", evidence_scale)
        features = 2 * observation_spec.shape[-1] + action_dim + evidence_dim
        self.net = Perceptron(features, out_features, cells, norm, seeds=seeds, bf16=bf16)

    def forward(self, observation: Tensor, action: Tensor, evidence: Tensor, next_observation: Tensor) -> Tensor:
        """What each transition says, [..., out]; the arguments are those of :class:`Transition`."""
        return self.net(self.features(observation, action, evidence, next_observation))

    def features(self, observation: Tensor, action: Tensor, evidence: Tensor, next_observation: Tensor) -> Tensor:
        """What the network reads of transitions, [..., 2 D + P + E]."""
        scale = self.scale
        return torch.cat([observation * scale, action, evidence * self.evidence_scale, next_observation * scale], -1)


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
