"""What a level says when a gradient step would leave weights that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor


class NotFiniteGradients(FloatingPointError):  # noqa: N818  # the optimiser's word to its level, which says more
    """Gradients are not finite; the optimiser has not taken its step, and nothing has changed."""


class NotFiniteLossError(FloatingPointError):
    """A loss or its gradient is not finite: the step was not taken, and weights are as they were before.

    Args:
        level: name of the level.
        losses: by name, scalars, or a number for each seed.
        batch: that they were computed of, for a post-mortem.

    Examples:
        >>> NotFiniteLossError("top", {"loss_actor": torch.tensor(0.5), "loss_qvalue": torch.tensor(torch.nan)})
        NotFiniteLossError('top: loss_qvalue is not finite. Weights are as before the step. Lower the learning rates, or
        look for what broke in the batch')
    """

    def __init__(self, level: str, losses: Mapping[str, Tensor], batch: TensorDictBase | None = None) -> None:
        self.level, self.batch = level, batch
        self.losses = {name: value.detach() for name, value in losses.items()}
        broken = [name for name, value in self.losses.items() if not value.isfinite().all()]
        what = f"{', '.join(broken)} is not finite" if broken else "the gradient is not finite, though all losses are"
        entries = "" if batch is None else "".join(_broken(batch))
        super().__init__(
            f"{level}: {what}{entries}. Weights are as before the step. Lower the learning rates, or look for what "
            "broke in the batch"
        )


def _broken(batch: TensorDictBase) -> list[str]:
    """What to say of entries that are not finite."""
    found, tasks = [], batch.get("task_id", None)
    for key, value in batch.items(True, True):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            rows = ~value.isfinite().flatten(batch.ndim).all(-1) if value.ndim > batch.ndim else ~value.isfinite()
            name = key if isinstance(key, str) else "/".join(key)
            of = "" if tasks is None else f" (tasks {tasks.squeeze(-1)[rows].unique().tolist()})"
            found.append(f"; in the batch {name} is not{of}")
    return found


def all_finite(grads: list[Any]) -> bool:
    """Whether all numbers in a list of gradients are finite; one pass over them, which leaves them as they are."""
    found, one = (torch.full((), value, device=grads[0].device) for value in (0.0, 1.0))
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, one)  # type: ignore[attr-defined]
    return not found.item()
