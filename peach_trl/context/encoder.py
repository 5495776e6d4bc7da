"""The context encoder q_phi: what a single transition of the top level says about the task.

Source: PEARL (Rakelly et al. 2019, arXiv 1903.08254, section 4.1). What a whole context says is the belief's business
(:mod:`peach_trl.context.belief`); any module that maps four tensors to ``out_features`` numbers can stand in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import TensorSpec

from peach_trl.modules.networks import Features
from peach_trl.modules.perceptron import Perceptron
from peach_trl.modules.views import View

_COLUMNS = ("observation", "action", ("next", "reward"), ("next", "observation"))


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
        """The entries of a TensorDict of transitions, as TorchRL names them; without evidence it is the reward.

        Raises:
            ValueError: that names what is not there.
        """
        after = tensordict.get("next", {})
        evidence = after.get("evidence", None)
        evidence = after.get("reward", None) if evidence is None else evidence
        observation, action = (tensordict.get(key, None) for key in _COLUMNS[:2])
        found = observation, action, evidence, after.get("observation", None)
        if missing := [name for name, value in zip(_COLUMNS, found, strict=True) if value is None]:
            raise ValueError(f"a belief reads {missing}, which transitions lack; rename_key_() what has another name")
        return cls(*found)

    def where(self, mask: Tensor | None) -> Transition:
        """With zeros where a mask [...] is False: whatever stands there, also NaN, then has no part in what follows.

        Examples:
            >>> column = torch.tensor([[1.0], [torch.nan]])
            >>> Transition(column, column, column, column).where(torch.tensor([True, False])).action.flatten()
            tensor([1., 0.])
        """
        if mask is None:
            return self
        lead = self.observation.shape[:-1]
        if mask.dtype != torch.bool or mask.ndim > len(lead) or mask.shape != lead[len(lead) - mask.ndim :]:
            raise ValueError(f"mask of shape {list(mask.shape)} {mask.dtype}: must be bool of shape {list(lead)}")
        there = mask.unsqueeze(-1)
        return Transition(*(torch.where(there, column, 0) for column in self))


class ContextEncoder(nn.Module):
    """A perceptron over (s, a, r, s'), with layer normalisation.

    Args:
        observation_spec: spec of the observation, [..., D]; a bounded one gives the scale of the network's input.
        action_dim: dimensions of the top level's proposal, P.
        out_features: numbers to put out, as the belief asks for.
        cells: units of the hidden layers.
        norm: layer normalisation behind each hidden layer. Without it one seed of three never learnt.
        evidence_dim: E; 1 for a reward, 2 + D with the highest one and its state.
        view: what of each observation is read; ``None`` for all of it.
        normalise: whether entries without bounds are normalised, see :class:`~peach_trl.modules.Features`.
        seeds: how many networks at once, see :class:`~peach_trl.modules.perceptron.Perceptron`.
        bf16: compute in bfloat16.

    Attributes:
        read: makes features of an observation.
        rewards: how many of the E numbers are rewards.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> encoder = ContextEncoder(Unbounded((4,)), action_dim=2, out_features=10)
        >>> s, a, r = torch.randn(3, 7, 4), torch.randn(3, 7, 2), torch.randn(3, 7, 1)
        >>> encoder(s, a, r, s).shape
        torch.Size([3, 7, 10])
    """

    def __init__(
        self,
        observation_spec: TensorSpec,
        action_dim: int,
        out_features: int,
        cells: Sequence[int] = (64, 64),
        norm: bool = True,
        evidence_dim: int = 1,
        view: View | None = None,
        normalise: bool = False,
        *,
        seeds: int | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.read = Features(observation_spec, view=view, normalise=normalise)
        self._of_state = (evidence_dim - 2) * (evidence_dim > 1)
        if self._of_state not in (0, observation_spec.shape[-1]):
            raise ValueError(f"evidence_dim = {evidence_dim}: must be 1 or 2 + D = {2 + observation_spec.shape[-1]}")
        self.rewards = evidence_dim - self._of_state
        dim = self.read.observation_dim
        self._sizes = (dim,), (action_dim,), (evidence_dim, 1) if self._of_state else (evidence_dim,), (dim,)
        features = (3 if self._of_state else 2) * self.read.dim + action_dim + self.rewards
        self.net = Perceptron(features, out_features, cells, norm, seeds=seeds, bf16=bf16)

    def check(self, *transition: Any) -> None:
        """Refuses arrays or tensors (s, a, r, s') of other sizes; see :meth:`features`."""
        for column, value, sizes in zip(Transition._fields, transition, self._sizes, strict=True):
            if value.shape[-1] not in sizes or value.shape[:-1] != transition[0].shape[:-1]:
                lead = ", ".join(map(str, (*transition[0].shape[:-1], sizes[0])))
                raise ValueError(f"{column} of shape {list(value.shape)}: this encoder reads [{lead}]")

    def forward(self, observation: Tensor, action: Tensor, evidence: Tensor, next_observation: Tensor) -> Tensor:
        """What each transition says, [..., out]; the arguments are those of :class:`Transition`.

        Where the highest reward and its state are read, evidence of one number is the reward of a decision of one step.
        """
        return self.net(self.features(observation, action, evidence, next_observation))

    def features(self, observation: Tensor, action: Tensor, evidence: Tensor, next_observation: Tensor) -> Tensor:
        """What the network reads of transitions: of s, a, r, the state of the highest reward, and s'.

        Raises:
            ValueError: for one of another size than it was made for; it names the shape and the size.
        """
        self.check(observation, action, evidence, next_observation)
        parts = [self.read(observation), action, evidence]
        if self._of_state and evidence.shape[-1] == 1:  # a reward alone is that of a single step, and led to s'
            parts[2:] = evidence, evidence, self.read(next_observation)
        elif self._of_state:
            parts[2:] = evidence[..., : -self._of_state], self.read(evidence[..., -self._of_state :])
        return torch.cat([*parts, self.read(next_observation)], -1)
