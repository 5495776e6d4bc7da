"""The benchmarks run: what they measure is nobody's test, but they follow the package's interfaces."""

import os
import subprocess
import sys

import pytest
from test_recipes import start
from tiny import ROOT, TINY

pytestmark = pytest.mark.processes


def output(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parts_of_an_iteration():
    found = output("training.py", *TINY)
    for part in (
        "collect a trajectory",
        "convert it",
        "update level 0",
        "draw sequences",
        "update encoder and top level",
    ):
        assert part in found


def test_levels(tmp_path):
    short = ["train.iterations=0", "train.prefill=0", "train.warmup=1", "lower.algorithm=sac"]
    start(tmp_path, "peach", *TINY, *short, "seeds=2", plots=False)
    lines = output("levels.py", f"sac={tmp_path}/runs/peach/*/seed_*").splitlines()
    assert lines[0].startswith("| method | reached, by seed |") and len(lines) == 3
    name, reached, mean, *_, failed = (cell.strip() for cell in lines[2].strip("|").split("|"))
    each = [float(value) for value in reached.split()]
    assert name == "sac" and len(each) == 2 and float(mean) == pytest.approx(sum(each) / 2, abs=0.01)
    assert failed == "0.0 %"


def test_bodies():
    lines = output("bodies.py", "rows=2", "rounds=2", "steps=2").splitlines()
    assert lines[2].startswith("| `gymnasium` |") and lines[2].endswith("| 1.00 |")
    assert lines[-1].startswith("| `fast` |")


@pytest.mark.slow
def test_growth():
    lines = output("growth.py", "by=seeds", "by=z", *TINY).splitlines()
    first = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert first == ["seeds", "---", "1", "2", "4", "8", "z", "---", "0", "2", "5", "16", "64"]


@pytest.mark.slow
def test_updates_against_peers():
    """Plain torch's losses are checked against ours there, at the sizes of the default job."""
    found = output("update.py", "sizes=default", "peers=products,plain", "rounds=2", "updates=2")
    assert found.count("plain torch: losses are ours over 4 updates") == 2


def test_hint(tmp_path):
    """An agent whose top level is untrained never comes to the top."""
    tiny = [value for value in TINY if not value.startswith(("env.radius", "env.goal_tolerance"))]
    short = ["train.iterations=0", "train.prefill=0", "env=TreasureHunt"]
    start(tmp_path, "peach", *tiny, *short, plots=False)
    lines = output("hint.py", f"hunt={tmp_path}/runs/peach/*", "--split", "validation").splitlines()
    assert lines[0].startswith("| method | seed | return / horizon | hint first |") and len(lines) == 3
    assert lines[2].startswith("| hunt | 0 | -") and "| 0% | inf |" in lines[2]
