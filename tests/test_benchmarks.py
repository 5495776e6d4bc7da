"""The benchmarks run: what they measure is nobody's test, but they follow the package's interfaces."""

import os
import subprocess
import sys

import pytest
from tiny import ROOT, TINY


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
