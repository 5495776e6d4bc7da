"""How all levels make a SAC loss: twin critics, squared errors, a fixed entropy coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.objectives import SACLoss

Loss = TypeVar("Loss", bound=SACLoss)


def make_sac(
    loss: type[Loss], actor: TensorDictModule, critics: Sequence[TensorDictModule], alpha: float, **options: Any
) -> Loss:
    """A ``SACLoss`` or a subclass of it (Haarnoja et al. 2018, arXiv 1812.05905), without its value estimator.

    Args:
        loss: the class.
        actor: stochastic.
        critics: two; a list, as one module would be copied with other weights.
        alpha: the entropy coefficient.
        options: further arguments of the class.
    """
    made = loss(
        cast(ProbabilisticTensorDictSequential, actor),
        list(critics),
        alpha_init=alpha,
        fixed_alpha=True,
        target_entropy=0.0,
        loss_function="l2",
        **options,
    )
    _ = made.target_entropy  # SACLoss registers it when it is first read: now, so that state dicts fit
    return made
