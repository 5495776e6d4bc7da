"""Running mean and deviation of what has no bounds, for networks that read it about zero and about one in size."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from peach_trl.modules.networks import Features

LEAST = 1e-2  # deviation below which an entry counts as constant, in its own units


class Normaliser(nn.Module):
    """Keeps the mean and the deviation of what features read, and writes them wherever these features are.

    A level's networks, their targets and their averages are copies of the same features. All of them are to read the
    same numbers, also while the statistics still change; so they are written into all at once, by name. They are
    buffers, saved with the networks, and what acts in another process reads the same.

    Args:
        features: one of those copies, from whose view the statistics are.
        name: of the features within the modules that :meth:`write` is given.
        steps: observations that the statistics are of, about; what comes later leaves them as they are. ``None``: all.

    Attributes:
        count: observations seen.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> from peach_trl.modules import FeatureNet
        >>> _ = torch.manual_seed(0)
        >>> net = FeatureNet(Features(Unbounded((2,)), normalise=True), extra=0, out=1, cells=(8,))
        >>> normaliser = Normaliser(net.features)
        >>> for _ in range(3):
        ...     _ = normaliser.see(5 + 2 * torch.randn(1000, 2))
        >>> normaliser.write(net)
        >>> bool((net.features(torch.full((2,), 7.0)) - 1).abs().max() < 0.1)  # one deviation above the mean
        True
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, features: Features, name: str = "features", steps: int | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.name, self._view, self._unbounded = name, [features.view], features.unbounded
        self._scale = features.scale.clone()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(len(self._scale), dtype=torch.float64))
        self.register_buffer("square", torch.zeros(len(self._scale), dtype=torch.float64))  # mean (x - mean)^2

    @property
    def settled(self) -> bool:
        """Whether later observations leave the statistics as they are."""
        return self.steps is not None and bool(self.count >= self.steps)

    def settle(self) -> None:
        """Leaves the statistics as they are from now on, as if enough had been seen."""
        self.steps = int(self.count) if self.steps is None else self.steps
        self.count.clamp_(min=self.steps)

    @torch.no_grad()
    def see(self, observation: Tensor) -> bool:
        """Takes observations [..., D] into the statistics, each as much (Chan et al. 1979); says whether it did."""
        if self.settled:
            return False
        (view,) = self._view
        seen = observation.to(self.mean.device)
        seen = (seen if view is None else view(seen)).flatten(0, -2).double()
        share = len(seen) / (self.count + len(seen))
        square, mean = torch.var_mean(seen, 0, correction=0)
        self.square += share * (square - self.square) + share * (1 - share) * (mean - self.mean).square()
        self.mean += share * (mean - self.mean)
        self.count += len(seen)
        return True

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Writes scale and shift into all copies of the features within a module."""
        inverse = 1 / self.square.sqrt().clamp(min=LEAST).float()
        unbounded, own = self._unbounded.to(inverse.device), self._scale.to(inverse.device)
        scale = torch.where(unbounded, inverse, own)
        shift = torch.where(unbounded, -self.mean.float() * inverse, torch.zeros_like(inverse))
        values = {f"{self.name}.scale": scale, f"{self.name}.shift": shift}
        for name, buffer in module.named_buffers():
            for ending, value in values.items():
                if f".{name}".endswith(f".{ending}"):
                    cast(Tensor, buffer).copy_(value)
