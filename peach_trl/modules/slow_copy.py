"""Weights that follow others slowly: targets of bootstrapped values, and the agent that acts in tests."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(targets: list[Tensor], sources: list[Tensor], rate: float) -> None:
    """Target <- (1 - rate) target + rate source, all of them in one call."""
    torch._foreach_lerp_(targets, sources, rate)  # type: ignore[attr-defined]


class SlowCopy(nn.Module):
    """An exponential moving average of a module's weights (Polyak and Juditsky 1992), as a module.

    It starts with the weights of the first :meth:`update`, where torch's ``AveragedModel`` starts, too; buffers are
    copied once.

    Args:
        module: what it is a copy of.
        rate: share of the new weights in each update; 0 to 1.

    Attributes:
        module: the copy; its parameters have no gradient.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> slow = SlowCopy(layer, rate=0.1)
        >>> slow.update(layer)
        >>> _ = layer.weight.data.add_(1)
        >>> slow.update(layer)
        >>> (layer.weight - slow.module.weight).detach()
        tensor([[0.9000, 0.9000]])
    """

    started: Tensor

    def __init__(self, module: nn.Module, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}: must lie in [0, 1]")
        self.module, self.rate = copy.deepcopy(module).requires_grad_(False), rate
        self.register_buffer("started", torch.tensor(False))
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def update(self, module: nn.Module) -> None:
        """Takes in the weights that ``module`` has now; always the same module."""
        rate = self.rate
        if self._pairs is None:
            self._pairs = _data(self.module.parameters()), _data(module.parameters())
            rate = self.rate if self.started else 1.0
            self.started.fill_(True)
        follow(*self._pairs, rate)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pairs": None}

    def _apply(self, fn, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        self._pairs = None  # tensors may be others after this
        return super()._apply(fn, *args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003
        self._pairs = None
        super()._load_from_state_dict(*args, **kwargs)


def _data(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [part.detach() for part in parameters]
