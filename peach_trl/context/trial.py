"""Tries of encoders and beliefs of one's own: what does not fit is said when they are handed over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peach_trl.config import ConfigError, attempt
from peach_trl.context.encoder import Transition

ROWS, LENGTH = 2, 3


@torch.no_grad()
def try_encoder(encoder: nn.Module, sizes: tuple[int, int, int], out: int, seeds: int = 1) -> None:
    """Has an encoder read two transitions of zeros for each seed.

    Args:
        encoder: any module.
        sizes: of observation, action and evidence, ``(D, P, E)``.
        out: how many numbers it must put out.
        seeds: how many agents' transitions it reads at once.

    Raises:
        ConfigError: if it fails, or puts out something else.

    Examples:
        >>> try_encoder(nn.Bilinear(4, 2, 10), (4, 2, 1), 10)
        Traceback (most recent call last):
        ...
        peach_trl.config.ConfigError: context.encoder = Bilinear: it takes (s, a, r, s') of 4, 2, 1 and 4 numbers;...
    """
    name, rows = f"context.encoder = {type(encoder).__name__}", ROWS * seeds
    takes = f"it takes (s, a, r, s') of {sizes[0]}, {sizes[1]}, {sizes[2]} and {sizes[0]} numbers"
    found = attempt(f"{name}: {takes};", lambda: encoder(*_zeros(sizes, rows)))
    shape = list(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.shape != (rows, out):
        raise ConfigError(f"{name}: puts out {shape} for a transition; this belief needs [{out}]")


@torch.no_grad()
def try_belief(belief: Any, sizes: tuple[int, int, int], seeds: int = 1) -> None:
    """Has a belief read three transitions, all at once and one after the other.

    Args:
        belief: with ``initial``, ``update``, ``scan`` and ``posterior``.
        sizes: of observation, action and evidence, ``(D, P, E)``.
        seeds: how many agents' transitions it reads at once.

    Raises:
        ConfigError: if one of them fails or returns something else, or both ways disagree.
    """
    name, rows = f"the belief {type(belief).__name__}", ROWS * seeds
    generator = torch.Generator().manual_seed(0)
    columns = (torch.rand(rows, LENGTH, size, generator=generator) for size in (*sizes, sizes[0]))
    transitions = Transition(*(column.to(next(belief.parameters()).device) for column in columns))
    training = belief.training
    belief.eval()
    try:
        states = attempt(f"{name}: scan(transitions [B, L]);", lambda: belief.scan(transitions))
        _check(f"{name}: scan(transitions [B, L])", states, (rows, LENGTH + 1, belief.state_dim))
        state = attempt(f"{name}: initial(B);", lambda: belief.initial(rows))
        for step in range(LENGTH):
            one = Transition(*(column[:, step] for column in transitions))
            state = attempt(f"{name}: update(state [B, S], transition [B]);", lambda: belief.update(state, one))  # noqa: B023
            _check(f"{name}: update(state [B, S], transition [B])", state, (rows, belief.state_dim))
            if not torch.allclose(state, states[:, step + 1], rtol=1e-3, atol=1e-4):
                raise ConfigError(
                    f"{name}: after {step + 1} transitions update() has another state than scan(), by "
                    f"{(state - states[:, step + 1]).abs().max():.2g}: policies read the one, losses the other"
                )
        found = attempt(f"{name}: posterior(states [B, L + 1, S]);", lambda: belief.posterior(states))
    finally:
        belief.train(training)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"{name}: posterior() returns a {type(found).__name__}; return (mean, deviation)")
    for part in found:
        _check(f"{name}: posterior(states [B, L + 1, S])", part, (rows, LENGTH + 1, belief.latent_dim))
    if not bool((found[1] > 0).all()):
        raise ConfigError(f"{name}: posterior() has a deviation of {found[1].min():.2g}; it must be above 0")


def _zeros(sizes: tuple[int, int, int], rows: int) -> list[Tensor]:
    return [torch.zeros(rows, size) for size in (*sizes, sizes[0])]


def _check(what: str, value: Any, shape: tuple[int, ...]) -> None:
    found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found != list(shape):
        raise ConfigError(f"{what} returns {found}; it must return {list(shape)}")
