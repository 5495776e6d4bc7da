"""What could be known of a hidden goal: the exact posterior along a path that somebody else took."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.references.policies import prior_of


def ideal_estimates(env: EnvBase, positions: Tensor, rewards: Tensor) -> Tensor | None:
    """The estimates of an ideal observer, who sees what a path shows and knows where goals may be.

    They are the means of the posterior over goals, exact to within the grid of candidates, from a uniform prior: no
    other estimates have a smaller expected squared error. So they bound what any belief can know after the same path,
    whoever chose it.

    Args:
        env: with a hidden goal on a circle or in a square of the plane; its rows are played a little.
        positions: that the steps led to, [R, S, 2], in metres; R need not be the number of rows of ``env``.
        rewards: of the steps, [R, S].

    Returns:
        Estimates before, between and after the steps, [R, S + 1, 2], in metres; ``None`` where the goals of ``env`` are
        of another kind.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> env = FAMILIES["SparsePointRobot"](num_envs=2)
        >>> steps = torch.linspace(0, 1, 5).unsqueeze(-1) * torch.tensor([1.0, 0.0])  # towards one end of the arc
        >>> estimates = ideal_estimates(env, steps.expand(3, 5, 2), torch.zeros(3, 5))
        >>> estimates.shape, bool(estimates[0, -1, 0] < estimates[0, 0, 0])  # the goal is not there
        (torch.Size([3, 6, 2]), True)
    """
    if positions.ndim != 3 or positions.shape[-1] != 2 or rewards.shape != positions.shape[:-1]:
        raise ValueError(f"positions {[*positions.shape]}, rewards {[*rewards.shape]}: give [R, S, 2] and [R, S]")
    candidates = prior_of(env, len(positions))
    if candidates is None:
        return None
    estimates = [candidates.mean()]
    for position, reward in zip(positions.unbind(1), rewards.unbind(1), strict=True):
        candidates.see(position, reward)
        estimates.append(candidates.mean())
    return torch.stack(estimates, 1)
