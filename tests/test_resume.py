"""A run that was interrupted goes on as if it had never stopped."""

import csv
import json
from unittest import mock

import pytest
import torch
from test_recipes import start
from tiny import TINY

import peach_trl.report
from peach_trl.utils.run import load_checkpoint

SHORT = [argument for argument in TINY if not argument.startswith(("train.iterations", "train.top_updates"))]
SHORT += ["train.top_updates=6", "checkpoint.every=3", "evaluation.final=validation"]  # traced from the third on
TIMES = ("time/seconds/iteration",)


class Interrupt(Exception):
    pass


def interrupted(folder, recipe, *arguments, after=4):
    """A run that ends with an error after so many passes."""
    iteration = peach_trl.report.Report.iteration

    def breaks(report, phase):
        iteration(report, phase)
        if phase.number + 1 == after:
            raise Interrupt

    with mock.patch.object(peach_trl.report.Report, "iteration", breaks), pytest.raises(SystemExit):
        start(folder, recipe, *arguments, plots=False)


def rows_of(folder):
    """What metrics.csv holds, without what a clock says."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same(one, other):
    """Two runs that left the same behind."""
    assert rows_of(one) == rows_of(other)
    agents = [load_checkpoint(run)["agent"] for run in (one, other)]
    assert agents[0].keys() == agents[1].keys()
    for name, value in agents[0].items():
        assert torch.equal(value, agents[1][name]), name
    assert (one / "meta_test.csv").read_text() == (other / "meta_test.csv").read_text()


CASES = {
    "flat": ["peach", "hierarchy.depth=1", "hierarchy.decision_steps=1"],
    "depth 2": ["peach"],
    "depth 3": ["peach", "hierarchy.depth=3"],
    "no context": ["peach", "context.latent_dim=0"],
    "recurrent, samples": ["peach", "context.belief=recurrent", "context.read=sample"],
    "attention": ["peach", "context.belief=attention"],
    "workers": ["peach", "collector.workers=2"],
    "seeds": ["peach", "seeds=2", "evaluation.agent=best"],
    "everything on": [
        "peach",
        "novelty.weight=0.6",
        "exploration.costly=0.5",
        "views.normalise=500",
        "lower.algorithm=sac",
    ],
    "source": ["source"],
    "hac": ["hac", "top.observe_goal=true", "top.objective=goal"],
}
FAST = ("depth 2", "workers", "seeds")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])
def test_bit_for_bit(tmp_path, case):
    """Six passes are four, of which a savepoint has three, and then three more."""
    recipe, *arguments = CASES[case]
    arguments = [*SHORT, *arguments, "train.iterations=4"]
    whole = start(tmp_path / "whole", recipe, *arguments, plots=False)
    interrupted(tmp_path / "parts", recipe, *arguments)
    (folder,) = (path.parent for path in (tmp_path / "parts").rglob("savepoints"))
    start(tmp_path / "parts", recipe, f"resume={folder}", plots=False)
    parts = sorted(path.parent for path in folder.rglob("metrics.csv"))
    assert len(parts) == len(whole) == (2 if case == "seeds" else 1)
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)
    manifest = json.loads((parts[0] / "manifest.json").read_text())
    assert manifest["finished"] and "error" not in manifest and len(manifest["resumed"]) == 1
    assert not (folder / "savepoints").exists() and not list(folder.rglob("*interrupted.pt"))
