"""Interquartile means with bootstrap intervals over seeds and tasks, as rliable defines them.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv 2108.13264), and
their code ``rliable`` 1.2: ``metrics.aggregate_iqm``, and ``library.StratifiedBootstrap`` with percentile intervals.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from peach_trl.seeding import named_generator

Over = Literal["seeds", "seeds and tasks", "whole seeds and tasks"]


class Interval(NamedTuple):
    """An interquartile mean and the ends of its interval, in the units of the scores."""

    iqm: float
    low: float
    high: float


def iqm(scores: Any) -> np.ndarray:
    """The interquartile mean over the last axis: what is left without the lowest and the highest quarter.

    ``scipy.stats.trim_mean(scores, 0.25, axis=-1)``, as in rliable: of n scores, the lowest and the highest
    ``int(n / 4)`` are left out, and all others weigh the same. No score counts in part, so of 5 scores 3 are left, of 7
    scores 5.

    Args:
        scores: [..., n] with n >= 1.

    Returns:
        [...], in the units of the scores.

    Examples:
        >>> iqm([0.0, 1.0, 2.0, 3.0, 100.0])
        np.float64(2.0)
    """
    scores = np.sort(np.asarray(scores, dtype=float), axis=-1)
    count = scores.shape[-1]
    return scores[..., count // 4 : count - count // 4].mean(axis=-1)


def interval(
    scores: Any, repetitions: int = 2000, level: float = 0.95, seed: int = 0, over: Over = "seeds and tasks"
) -> Interval:
    """The interquartile mean of all scores, and a bootstrap interval around it (between percentiles).

    What is drawn anew, with replacement, in each repetition:

    - ``"seeds"``: for each task on its own (stratified), as many seeds as there are. This asks: what if the same tasks
      were learnt again with other seeds? rliable's default.
    - ``"seeds and tasks"``: the tasks, and then seeds for each of them. This asks: and if the tasks were others of
      their kind? The interval is usually wider. rliable's ``task_bootstrap=True``; the default here, as the tasks of a
      meta-test are themselves a sample.
    - ``"whole seeds and tasks"``: the tasks, and seeds with their scores on all of these tasks. The two above take the
      scores of one seed on two tasks as independent, which they are where each task is learnt in a run of its own, as
      in rliable. An agent that is meta-trained on all tasks is good or bad at all of them together: where seeds differ
      more than tasks, only this interval is wide enough.

    Args:
        scores: [seeds, tasks]; average over rollouts first.
        repetitions: number of resamples.
        level: share of the resampled interquartile means that lie in the interval.
        seed: of the resampling; the same seed gives the same interval.
        over: what is drawn anew.

    Raises:
        ValueError: for scores of another shape, for none of them, for NaN or infinity, and for the other arguments out
            of range.

    Examples:
        >>> scores = [[0.1, 0.5, 0.9, 0.6], [0.3, 0.5, 0.7, 0.4]]  # 2 seeds, 4 tasks
        >>> result = interval(scores)
        >>> round(result.iqm, 3), result.low < 0.5 < result.high
        (0.5, True)
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores {scores.shape}: must be [seeds, tasks]; average over rollouts, give at least 1 x 1")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores: {(~np.isfinite(scores)).sum()} are not finite; leave no run or task without a score")
    if repetitions < 1 or not 0 < level < 1:
        raise ValueError(f"repetitions = {repetitions}, level = {level}: must be >= 1, and between 0 and 1")
    seeds, tasks = _draw(scores.shape, repetitions, seed, over)
    resampled = iqm(scores[seeds, tasks].reshape(repetitions, -1))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(iqm(scores.ravel())), float(low), float(high))


def _draw(shape: tuple[int, int], repetitions: int, seed: int, over: Over) -> tuple[np.ndarray, np.ndarray]:
    """Which seed and which task each entry of a resample is: two arrays that broadcast to [repetitions, S, T]."""
    generator, (seeds, tasks) = named_generator("bootstrap", seed), shape

    def draw(count: int, *size: int) -> np.ndarray:
        return torch.randint(count, (repetitions, *size), generator=generator).numpy()

    if over == "seeds":
        return draw(seeds, seeds, tasks), np.arange(tasks)
    if over == "seeds and tasks":
        return draw(seeds, seeds, tasks), draw(tasks, 1, tasks)
    if over == "whole seeds and tasks":
        return draw(seeds, seeds, 1), draw(tasks, 1, tasks)
    raise ValueError(f"over = {over!r}: must be 'seeds', 'seeds and tasks' or 'whole seeds and tasks'")


def performance_profile(
    scores: Any, thresholds: Any, repetitions: int = 500, level: float = 0.95, seed: int = 0, over: Over = "seeds"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of scores above each threshold, over all seeds and tasks, and a bootstrap band around it.

    Agarwal et al. 2021, section 4.2 (run-score distributions); rliable's ``create_performance_profile``.

    Args:
        scores: [seeds, tasks].
        thresholds: [n].
        repetitions: as of :func:`interval`.
        level: likewise.
        seed: likewise.
        over: likewise.

    Returns:
        The share and the ends of the band, [n] each.

    Examples:
        >>> share, low, high = performance_profile([[0.1, 0.5], [0.3, 0.9]], [0.0, 0.4, 0.9])
        >>> share
        array([1. , 0.5, 0. ])
    """
    scores, thresholds = np.asarray(scores, dtype=float), np.asarray(thresholds, dtype=float)
    seeds, tasks = _draw(scores.shape, repetitions, seed, over)
    resampled = scores[seeds, tasks].reshape(repetitions, -1)
    shares = np.stack([(resampled > threshold).mean(-1) for threshold in thresholds], -1)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (scores.ravel()[:, None] > thresholds).mean(0), low, high


def probability_of_improvement(
    scores: Any,
    others: Any,
    repetitions: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    over: Over = "seeds",
) -> Interval:
    """How likely a seed of the first method is to score more than one of the second on the same task.

    Agarwal et al. 2021, section 4.3: the Mann-Whitney U statistic of each task, as a share, and their mean; half of it
    counts where two are equal. rliable's ``probability_of_improvement``, which draws seeds anew for each task.

    Args:
        scores: [seeds, tasks].
        others: [seeds, tasks] of the second method.
        repetitions: as of :func:`interval`.
        level: likewise.
        seed: likewise.
        over: likewise; tasks are drawn for both at once.

    Returns:
        The probability, in place of an interquartile mean, and its interval.

    Examples:
        >>> probability_of_improvement([[0.3, 0.5], [0.4, 0.6]], [[0.1, 0.5], [0.2, 0.6]]).iqm
        0.75
    """
    scores, others = np.asarray(scores, dtype=float), np.asarray(others, dtype=float)
    if scores.ndim != 2 or others.ndim != 2 or scores.shape[1] != others.shape[1]:
        raise ValueError(f"scores {scores.shape} and {others.shape}: must be [seeds, tasks] of the same tasks")
    wins = (scores[:, None] > others) + 0.5 * (scores[:, None] == others)  # [seeds, other seeds, tasks]
    first, tasks = _draw(scores.shape, repetitions, seed, over)
    second, _ = _draw(others.shape, repetitions, seed + 1, over)
    every = np.broadcast_to(tasks, (repetitions, *tasks.shape[-2:])) if tasks.ndim > 1 else [tasks] * repetitions
    resampled = np.array([wins[a[:, None], b[None], t].mean() for a, b, t in zip(first, second, every, strict=True)])
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(wins.mean()), float(low), float(high))
