"""State of a policy that outlives an episode, such as what is known of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs import TensorDictPrimer


class CarriedState(TensorDictPrimer):
    """A ``TensorDictPrimer`` whose entries keep their values when single rows are reset.

    Only a reset of the whole environment, as at the start of a rollout or a collector, writes the default values. A
    subclass may also note what a step returned, in :meth:`carry`: after a reset, a policy sees no other trace of an
    episode's last step.

    TorchRL hides the state from the reset of rows that are done, so the transform remembers that of the last step.

    Args:
        primers: specs of the entries, without the environment's batch size.
        kwargs: as ``TensorDictPrimer`` has them.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.data import Composite, Unbounded
        >>> from torchrl.envs import GymEnv, StepCounter, TransformedEnv
        >>> state = CarriedState(Composite(steps=Unbounded(1)), default_value=0.0, expand_specs=True)
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), state).append_transform(StepCounter(max_steps=3))
        >>> policy = TensorDictModule(lambda steps: (steps + 1, torch.zeros(1)), ["steps"], ["steps", "action"])
        >>> env.rollout(7, policy, break_when_any_done=False)["steps"].flatten()  # three episodes
        tensor([1., 2., 3., 4., 5., 6., 7.])
    """

    def __init__(self, primers: Composite, **kwargs: Any) -> None:
        super().__init__(primers, **kwargs)
        self._last: dict[NestedKey, Tensor] = {}

    @property
    def keys(self) -> list[NestedKey]:
        """The entries, leaves only."""
        return list(cast(Composite, self.primers).keys(True, True))

    def carry(self, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[NestedKey, Tensor]:
        """Entries to be noted after a step.

        Args:
            before: the step's root entries, the policy's included; anything with ``get``.
            after: what the environment returned under ``"next"``.
        """
        return {}

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        next_tensordict = super()._step(tensordict, next_tensordict)
        for key, value in self.carry(tensordict, next_tensordict).items():  # type: ignore[arg-type]
            next_tensordict.set(key, value)
        self._last = {key: next_tensordict.get(key) for key in self.keys}
        return next_tensordict

    def _reset_func(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        rows = tensordict.get("_reset", None)
        tensordict_reset = super()._reset_func(tensordict, tensordict_reset)
        if rows is None:
            self._last = {}
        for key, value in self._last.items():
            tensordict_reset.set(key, value)
        return tensordict_reset
