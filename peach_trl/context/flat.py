"""A belief for flat policies: any TorchRL actor that reads ``belief`` or ``z``, with one action a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, TensorSpec, Unbounded

from peach_trl.context.belief import Belief
from peach_trl.context.tracker import BeliefTracker, TrackerState
from peach_trl.hierarchy.evidence import Evidence
from peach_trl.modules.carried import CarriedState

ACTION, STARTS = ("context", "action"), ("context", "starts")


class FlatBeliefTracker(BeliefTracker):
    """Keeps the belief of every row, and writes what a flat actor reads of it, before each action.

    Put it before the actor in a ``TensorDictSequential``. What it carries from step to step is added to an environment
    by TorchRL's ``get_primers_from_module(policy)``, by collectors with ``auto_register_policy_transforms=True``, and
    by :func:`~peach_trl.collectors.rollout.rollout` and :func:`~peach_trl.evaluation.meta_test` by themselves. It reads
    the observation [N, D] and its own state, and writes ``belief`` [N, 2 Z] or ``z`` [N, Z]. A row's meta-episode is L
    trajectories; then it starts with the prior again.

    Args:
        belief: what is kept; its encoder maps (s, a, r, s') of one step.
        observation_spec: spec of the observation, [..., D].
        action_spec: spec of the action, [..., A]; discrete ones are read one-hot.
        trajectories: L.
        read: ``"belief"``: the parameters of q(z | c); ``"sample"``: a draw z ~ q(z | c).
        update: ``"decision"``: read anew at every step; ``"trajectory"``: at the first one of each trajectory only, as
            PEARL's posterior sampling has it (Rakelly et al. 2019, arXiv 1903.08254, algorithm 2).
        evidence: what the belief reads of rewards; ``None``: the reward of the step.
        seed: of the draws of z; ``None`` for this process's seed.
        observation_key: where the environment has its observation.
        action_key: where the actor writes its action.
        reward_key: where the environment has its reward.

    Examples:
        >>> from tensordict.nn import TensorDictModule, TensorDictSequential
        >>> from torch import nn
        >>> from torchrl.envs import GymEnv, StepCounter, TransformedEnv
        >>> from peach_trl.collectors import rollout
        >>> from peach_trl.context import GaussianProduct
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=5))
        >>> class Encoder(nn.Linear):  # of (s, a, r, s')
        ...     def forward(self, *parts):
        ...         return super().forward(torch.cat(parts, -1))
        >>> belief = GaussianProduct(Encoder(3 + 1 + 1 + 3, 2 * 2), latent_dim=2)
        >>> tracker = FlatBeliefTracker(belief, env.observation_spec["observation"], env.action_spec, trajectories=2)
        >>> actor = TensorDictModule(lambda s, b: b[..., :1].tanh(), ["observation", "belief"], ["action"])
        >>> batch = rollout(env, TensorDictSequential(tracker, actor), 20)
        >>> batch["context", "trajectory"][::5, 0].tolist()  # two meta-episodes of two trajectories
        [0, 1, 0, 1]
        >>> batch["belief"][[0, 1, 5, 10]].abs().sum(-1) > 0  # more and more is known, then nothing again
        tensor([False,  True,  True, False])
    """

    _told = ()

    def __init__(
        self,
        belief: Belief,
        observation_spec: TensorSpec,
        action_spec: TensorSpec,
        *,
        trajectories: int = 1,
        read: str = "belief",
        update: str = "decision",
        evidence: Evidence | None = None,
        seed: int | None = None,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        reward_key: NestedKey = "reward",
    ) -> None:
        if not action_spec.shape:
            kind = type(action_spec).__name__
            raise ValueError(
                f"action spec {kind} of shape []: an encoder reads actions [..., A]; make discrete ones one-hot, as "
                "GymEnv does with categorical_action_encoding=False"
            )
        self.action_dim, self._action = action_spec.shape[-1], action_key
        self._read_of = {"observation": observation_key, "reward": reward_key}
        dim = observation_spec.shape[-1]
        options: Any = {"trajectories": trajectories, "read": read, "update": update, "seed": seed}
        super().__init__(belief, None, dim, evidence=evidence, **options)
        self.in_keys += [STARTS]

    def _where_it_did(self) -> NestedKey:
        return ACTION

    def _turns(self, arrays: dict[Any, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        starts = arrays[STARTS]
        return np.ones_like(starts), starts

    def after(self, recorded: TensorDictBase) -> Tensor:
        """See :meth:`BeliefTracker.after`; what was done in the last step stands there as the action."""
        return super().after(recorded.copy().set(ACTION, recorded.get(self._action).float()))

    def make_tensordict_primer(self) -> CarriedState:
        """The transform that adds the tracker's state to an environment, kept when rows are reset."""
        more = {"action": Unbounded(self.action_dim), "starts": Binary(1, dtype=torch.bool)}
        return _FlatState(
            self.belief, self.observation_dim, self.key, self.evidence, self._read_of, self._action, **more
        )


class _FlatState(TrackerState):
    """The state of a flat tracker; also notes what was done, and which rows were reset."""

    def __init__(self, *args: Any, **more: Any) -> None:
        *of_all, self._action = args
        super().__init__(*of_all, **more)

    def carry(self, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[NestedKey, Tensor]:
        starts = torch.zeros_like(before[STARTS])
        return {**super().carry(before, after), ACTION: before[self._action].float(), STARTS: starts}

    def _reset_func(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        rows = tensordict.get("_reset", None)
        tensordict_reset = super()._reset_func(tensordict, tensordict_reset)
        starts = tensordict_reset.get(STARTS)
        starts = torch.ones_like(starts) if rows is None else rows.reshape(starts.shape).clone()
        return tensordict_reset.set(STARTS, starts)
