"""What a policy carries from step to step: its state, which outlives an episode, and one step of all rows as arrays.

On a few rows an operation of torch is nearly all overhead, and numpy's is a third of it. So the modules of a policy
compute on the numpy arrays of a :class:`Frame`, and are TensorDictModules around that; see :class:`StepModule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.envs import TensorDictPrimer

from peach_trl.modules.perceptron import Perceptron


class Frame:
    """One step of N rows as arrays; as tensors on the same memory it can be read and written like a TensorDict.

    Arrays are replaced, never written into, since a recording may hold them.

    Args:
        arrays: by key; nested keys are tuples, and are not split.
        batch_size: that of the TensorDict it stands for.

    Examples:
        >>> frame = Frame({("hierarchy", "acts"): np.array([[True, False]])}, torch.Size([1]))
        >>> frame.set("reward", torch.ones(1, 1)).arrays["reward"], frame.get(("hierarchy", "acts"))
        (array([[1.]], dtype=float32), tensor([[ True, False]]))
    """

    __slots__ = ("arrays", "batch_size")

    def __init__(self, arrays: dict[Any, np.ndarray], batch_size: torch.Size) -> None:
        self.arrays, self.batch_size = arrays, batch_size

    def get(self, key: NestedKey, default: Tensor | None = None) -> Tensor:
        """One entry as a tensor."""
        value = self.arrays.get(key)
        return cast(Tensor, default) if value is None else torch.from_numpy(value)

    __getitem__ = get

    def set(self, key: NestedKey, value: Tensor) -> Frame:
        """Sets one entry; returns itself, as a TensorDict does."""
        self.arrays[key] = value.detach().numpy()
        return self


class StepModule(TensorDictModuleBase):
    """A module that computes on arrays; subclasses give :meth:`advance`, ``in_keys`` and ``out_keys``."""

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    def advance(self, frame: Frame) -> None:
        """One step: reads entries of the frame, and replaces others."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The same on a TensorDict."""
        read = {key: value for key in self.in_keys if (value := tensordict.get(key, None)) is not None}
        if any(not value.is_cpu for value in read.values()):
            device = next(value.device for value in read.values() if not value.is_cpu)
            raise ValueError(
                f"{type(self).__name__} reads tensors on {device}: policies act on the CPU; play with "
                'copy.deepcopy(policy).to("cpu"), and move what was recorded'
            )
        arrays = {key: value.detach().numpy() for key, value in read.items()}
        frame = Frame(dict(arrays), tensordict.batch_size)
        try:
            self.advance(frame)
        except KeyError as error:
            if (key := error.args[0]) not in self.in_keys or key in frame.arrays:
                raise
            if key in ("observation", "action", "reward", "task_id"):
                known = sorted(map(str, tensordict.keys(True, True)))
                raise ValueError(
                    f"{type(self).__name__} reads {key!r}, which is not there: torchrl.envs.RenameTransform gives it "
                    f"this name where the environment has another; it has {known}"
                ) from None
            raise ValueError(
                f"{type(self).__name__} reads {key!r}, which is not there: what it carries from step to step is added "
                "to an environment by torchrl.modules.get_primers_from_module(policy), by collectors with "
                "auto_register_policy_transforms=True, and by peach_trl.collectors.rollout"
            ) from None
        for key in self.out_keys:
            if (value := frame.arrays[key]) is not arrays.get(key):
                tensordict.set(key, torch.from_numpy(value.copy()))  # a module may hand out an array twice
        return tensordict


class ArrayPerceptron:
    """A :class:`~peach_trl.modules.perceptron.Perceptron` on arrays, always with its current weights.

    Args:
        net: the perceptron.

    Examples:
        >>> net = Perceptron(3, 2, (64, 64), norm=True)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(torch.from_numpy(ArrayPerceptron(net)(x.numpy())), net(x), atol=1e-5)
        True
    """

    def __init__(self, net: Perceptron) -> None:
        self._stores = [layer._parameters for layer in net if not isinstance(layer, nn.ReLU)]
        self._norm, self._seeds, self._bf16 = net.norm, net.seeds, net.bf16
        self._size = max(store["weight"].shape[-2:].numel() for store in self._stores)  # type: ignore[union-attr]
        self._named = [(store, name) for store in self._stores for name in ("weight", "bias")]
        self._views: list[Any] = []
        self._of: list[int] = []

    def is_quick(self, rows: int) -> bool:
        """Whether to compute so many rows here: numpy knows no bfloat16, and for large products it starts threads."""
        return not self._bf16 and rows // (self._seeds or 1) * self._size <= 2**19

    def _parameters(self) -> list[Any]:
        """Weights [..., in, out], biases [..., 1, out], and gains and shifts: views, made once for the same memory."""
        pointers = [store[name].data_ptr() for store, name in self._named]  # type: ignore[union-attr]
        if pointers != self._of:
            if not (weight := cast(Tensor, self._stores[0]["weight"])).is_cpu:
                raise ValueError(
                    f"these networks are on {weight.device}: policies act on the CPU; of what learns elsewhere hand "
                    'them a copy, copy.deepcopy(belief).to("cpu")'
                )
            self._of, self._views = pointers, []
            for store in self._stores:
                weight, bias = (cast(Tensor, store[name]).detach() for name in ("weight", "bias"))
                if weight.ndim == (1 if self._seeds is None else 2):  # of layer normalisation
                    self._views += [weight, bias]
                else:
                    self._views += [weight.mT.numpy(), bias.unsqueeze(-2).numpy()]
        return self._views

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[..., F] to [..., out]."""
        shape, parts = x.shape[:-1], iter(self._parameters())
        x = x.reshape(-1, x.shape[-1]) if self._seeds is None else x.reshape(self._seeds, -1, x.shape[-1])
        first = True
        for weight in parts:
            if not first:
                if self._norm:
                    x = _normalise(x, weight, next(parts))
                    weight = next(parts)
                np.maximum(x, _ZERO, out=x)
            x, first = np.matmul(x, weight), False
            x += next(parts)
        return x.reshape(*shape, x.shape[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": [], "_of": []}


def _normalise(x: np.ndarray, gain: Tensor, shift: Tensor) -> np.ndarray:
    """Layer normalisation, as nn.LayerNorm has it; torch's own, which is one operation."""
    rows, size = torch.from_numpy(x), x.shape[-1:]
    if gain.ndim == 1:
        return torch.native_layer_norm(rows, size, gain, shift, 1e-5)[0].numpy()
    y = torch.native_layer_norm(rows, size, None, None, 1e-5)[0]
    return y.mul_(gain.unsqueeze(-2)).add_(shift.unsqueeze(-2)).numpy()


_ZERO = np.float32(0)


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
