"""Interquartile means and bootstrap intervals."""

import numpy as np
import pytest

from peach_trl.utils.statistics import interval, iqm

OVER = ["seeds", "seeds and tasks", "whole seeds and tasks"]


@pytest.mark.parametrize(
    ("count", "mean"),  # of 0, 1, 4, 9, ..., (count - 1)^2; by scipy 1.17's trim_mean(0.25)
    [(1, 0.0), (2, 0.5), (3, 5 / 3), (4, 2.5), (5, 14 / 3), (6, 7.5), (7, 11.0), (8, 13.5), (9, 90 / 5), (11, 203 / 7)],
)
def test_iqm_by_hand(count, mean):
    scores = np.random.default_rng(0).permutation(np.arange(count) ** 2)
    assert iqm(scores) == pytest.approx(mean, rel=1e-12)


def test_iqm_is_scipys_trimmed_mean():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for count in range(1, 40):
        scores = generator.normal(size=(3, count))
        np.testing.assert_allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=-1), rtol=1e-12)


def by_loops(scores, repetitions, level, over):
    """The ends of the interval, from loops over single entries and Python's own sorting."""
    generator, means = np.random.default_rng(1), []
    count, tasks = len(scores), len(scores[0])
    for _ in range(repetitions):
        chosen = [generator.integers(tasks) if "tasks" in over else k for k in range(tasks)]
        whole = [generator.integers(count) for _ in range(count)]
        drawn = []
        for task in chosen:
            for i in range(count):
                drawn.append(scores[whole[i] if "whole" in over else generator.integers(count)][task])
        drawn.sort()
        quarter = len(drawn) // 4
        kept = drawn[quarter : len(drawn) - quarter]
        means.append(sum(kept) / len(kept))
    means.sort()
    outside = round((1 - level) / 2 * repetitions)
    return means[outside], means[-1 - outside]


def test_bootstrap_against_loops():
    # Seeds differ more than tasks, and both by more than single scores: so do the three intervals.
    scores = np.linspace(-1, 1, 5)[:, None] + np.linspace(-0.6, 0.6, 8)
    scores += 0.1 * np.random.default_rng(0).normal(size=(5, 8))
    ends = {over: by_loops(scores.tolist(), 3000, 0.9, over) for over in OVER}
    width = {over: high - low for over, (low, high) in ends.items()}
    assert 1.2 * width["seeds"] < width["seeds and tasks"] < width["whole seeds and tasks"] / 1.2
    for over in OVER:
        result = interval(scores, 8000, 0.9, over=over)
        assert result.iqm == iqm(scores.ravel())
        assert (result.low, result.high) == pytest.approx(ends[over], abs=0.05 * width[over])


def test_what_is_resampled():
    by_task, by_seed = np.tile(np.arange(8.0), (4, 1)), np.tile(np.arange(8.0)[:, None], (1, 4))
    assert interval(by_task, over="seeds")[1:] == (3.5, 3.5)  # each task keeps its score, whichever the seed
    assert interval(by_task).low < 3 and interval(by_task).high > 4
    stratified, whole = interval(by_seed), interval(by_seed, over="whole seeds and tasks")
    assert whole.high - whole.low > 1.5 * (stratified.high - stratified.low)
    one = interval(by_seed[:1], over="seeds")
    assert one == (0, 0, 0)


def test_the_seed_fixes_the_interval_and_the_level_widens_it():
    scores = np.random.default_rng(0).normal(size=(3, 5))
    assert interval(scores, seed=1) == interval(scores, seed=1) != interval(scores, seed=2)
    narrow, wide = interval(scores, level=0.5), interval(scores, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([1.0, 2.0], {}, r"scores \(2,\): must be \[seeds, tasks\]"),
        (np.zeros((2, 3, 4)), {}, "average over rollouts"),
        (np.zeros((0, 3)), {}, "give at least 1 x 1"),
        ([[1.0, np.nan]], {}, "1 are not finite"),
        ([[1.0]], {"repetitions": 0}, "repetitions = 0"),
        ([[1.0]], {"level": 95}, "level = 95"),
        ([[1.0]], {"over": "runs"}, "over = 'runs': must be 'seeds'"),
    ],
)
def test_what_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        interval(scores, **options)
