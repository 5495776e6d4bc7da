"""Comparison of runs: which belong together, the two statistics, and what is written."""

from __future__ import annotations

import base64
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from scipy.stats import mannwhitneyu
from test_tables import write_run
from tiny import ROOT

from peach_trl.utils.comparison import compare, group, runs_below
from peach_trl.utils.statistics import performance_profile, probability_of_improvement

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def runs(folder, name, seeds=3, depth=2, shift=0.0, metrics=True):
    """Folders of runs of one method, with what they scored a little above that of their seed."""
    found = []
    for seed in range(seeds):
        run = folder / name / f"seed_{seed}"
        keys = [(task, rollout, k) for task in (4, 10) for rollout in (0, 1) for k in (1, 2)]
        rows = [("test", t, r, k, shift + seed / 10 + t / 100 + k, 1, 1) for t, r, k in keys]
        write_run(run, seed, rows=rows, references={"oracle": [3.0, 3.0]})
        (run / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "seeds": 1, "hierarchy": {"depth": depth}}))
        if metrics:
            lines = "".join(f"{step},{0.1 * step + seed},{0.2 * step}\n" for step in (10, 20))
            (run / "metrics.csv").write_text("step,eval/return/trajectory_1,eval/return/trajectory_2\n" + lines)
        found.append(run)
    return found


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    draws = np.random.default_rng(0)
    one, other = draws.normal(0.3, size=(7, 5)).round(1), draws.normal(size=(6, 5)).round(1)  # with ties
    found = probability_of_improvement(one, other)
    expected = np.mean([mannwhitneyu(one[:, k], other[:, k]).statistic / (7 * 6) for k in range(5)])
    assert found.iqm == pytest.approx(expected) and found.low < found.iqm < found.high
    whole = probability_of_improvement(one, other, over="whole seeds and tasks")
    assert whole.iqm == found.iqm and whole.high - whole.low > found.high - found.low
    assert probability_of_improvement(other, one).iqm == pytest.approx(1 - expected)
    with pytest.raises(ValueError, match="of the same tasks"):
        probability_of_improvement(one, other[:, :4])


def test_intervals_of_improvement_are_those_of_seeds_that_are_drawn_anew():
    one, other = np.array([[0.0], [2.0]]), np.array([[1.0]])
    found = probability_of_improvement(one, other, repetitions=4000)
    assert (found.iqm, found.low, found.high) == (0.5, 0.0, 1.0)  # both seeds may be the same one
    assert probability_of_improvement(other, other) == (0.5, 0.5, 0.5)


def test_performance_profile_is_a_share_of_all_scores():
    scores = np.random.default_rng(1).normal(size=(20, 30))
    share, low, high = performance_profile(scores, [-9.0, 0.0, 9.0])
    assert share.tolist() == [1.0, (scores > 0).mean(), 0.0]
    assert (low <= share).all() and (share <= high).all() and 0.02 < high[1] - low[1] < 0.15


def test_runs_are_grouped_by_what_differs(tmp_path):
    runs(tmp_path, "a", depth=2), runs(tmp_path, "b", depth=3)
    found = group(runs_below(tmp_path))
    assert list(found) == ["hierarchy.depth=2", "hierarchy.depth=3"] and [*map(len, found.values())] == [3, 3]
    (tmp_path / "a" / "savepoints" / "savepoint-1").mkdir(parents=True)  # of a run that is not finished
    (tmp_path / "a" / "savepoints" / "savepoint-1" / "manifest.json").write_text("{}")
    assert list(group(runs_below(tmp_path / "a"))) == ["all runs"]


def test_tests_of_checkpoints_are_grouped_by_what_was_trained(tmp_path):
    for depth in (2, 3):
        for seed in (0, 1):
            trained = {"seed": seed, "config": {"seed": seed, "hierarchy": {"depth": depth}}}
            folder = write_run(tmp_path / f"{depth}_{seed}", 7, trained=trained)
            (folder / "config.yaml").write_text(yaml.safe_dump({"checkpoint": f"runs/{depth}_{seed}", "seed": 0}))
    found = group(runs_below(tmp_path))
    assert list(found) == ["hierarchy.depth=2", "hierarchy.depth=3"] and [*map(len, found.values())] == [2, 2]
    runs(tmp_path, "trained", depth=3, seeds=1)  # beside a run of its own
    assert list(group(runs_below(tmp_path))) == ["hierarchy.depth=2", "hierarchy.depth=3"]


def test_methods_that_differ_in_a_group_of_one_recipe_are_not_pooled(tmp_path):
    for best_of in (1, 64):
        trained = {"seed": 0, "config": {"seed": 0, "hierarchy": {"depth": 2}, "sequences": {"best_of": best_of}}}
        folder = write_run(tmp_path / str(best_of), 7, trained=trained)
        (folder / "config.yaml").write_text(yaml.safe_dump({"checkpoint": f"runs/{best_of}", "seed": 0}))
    runs(tmp_path, "trained", seeds=1)
    names = [f"sequences.best_of={value}" for value in (1, 64, None)]
    assert sorted(group(runs_below(tmp_path))) == sorted(names)


def test_bounds_are_returns(tmp_path, monkeypatch):
    found = []
    draw = lambda path, curves, bounds, label: found.append(bounds)  # noqa: E731
    monkeypatch.setattr("peach_trl.utils.comparison.plot_by_trajectory", draw)
    monkeypatch.setattr("peach_trl.utils.comparison._page", lambda *args: "")
    for value in ("return", "success"):
        compare({"a": runs(tmp_path, value)}, tmp_path / "out", value)
    assert found == [{"oracle": [3.0, 3.0]}, {}]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.pictures, self.cells = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_a_comparison_is_one_page(tmp_path):
    methods = {"two <levels>": runs(tmp_path, "a"), "three": runs(tmp_path, "b", seeds=2, shift=0.5, metrics=False)}
    text = compare(methods, tmp_path / "out")
    assert text.splitlines()[0].startswith("| method | trajectory 1 | trajectory 2 |") and "two <levels>" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {"by_trajectory", "curves", "profile", "improvement"}
    assert names == {"table.md", "results.csv", "index.html"} | {
        f"{n}.{end}" for n in figures for end in ("png", "pdf")
    }
    page = Tags()
    page.feed((tmp_path / "out" / "index.html").read_text())
    assert page.open == [] and len(page.pictures) == 4
    assert all(base64.b64decode(src.partition(",")[2]).startswith(b"\x89PNG") for src in page.pictures)
    assert {"two <levels>", "three"} <= set(page.cells) and "hierarchy:" in (
        tmp_path / "out" / "index.html"
    ).read_text()
    assert not re.search(r'(src|href)="http', (tmp_path / "out" / "index.html").read_text())  # nothing from elsewhere
    compare({"alone": runs(tmp_path, "c", seeds=1)}, tmp_path / "one")
    assert not (tmp_path / "one" / "improvement.png").exists()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_opens_the_page(tmp_path):
    compare({"two": runs(tmp_path, "a"), "three": runs(tmp_path, "b", shift=0.5)}, tmp_path / "out")
    check = "document.title = [...document.images].every(image => image.naturalWidth > 400) ? 'drawn' : 'broken'"
    script = f"<script>{check}</script>"
    page = tmp_path / "out" / "index.html"
    page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>drawn</title>" in shown and shown.count("<img") == 4 and "<td>three</td>" in shown


def test_the_script(tmp_path, monkeypatch, capsys):
    runs(tmp_path, "a", depth=2), runs(tmp_path, "b", depth=3)
    script = str(ROOT / "recipes" / "compare.py")

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")

    start(str(tmp_path / "*"), "--out", str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "| hierarchy.depth=3 |" in said and said.endswith(f"{tmp_path / 'out' / 'index.html'}\n")
    start(f"deep={tmp_path / 'b'}", f"flat={tmp_path / 'a'}", "--out", str(tmp_path / "out"))
    assert "| deep |" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no runs in there"):
        start(str(tmp_path / "empty"))
