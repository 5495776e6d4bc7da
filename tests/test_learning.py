"""Slow checks that the recipes learn (`pytest -m slow`, about 12 minutes on 2 cores)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))


def run(recipe: str, folder: Path, monkeypatch, *overrides: str) -> dict[str, float]:
    """Runs a recipe as its command line would; the meta-test of the final agent on the test tasks."""
    module = __import__(recipe)
    monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", *overrides, f"hydra.run.dir={folder}"])
    module.main()
    return json.loads((folder / "manifest.json").read_text())["test"]


@pytest.mark.slow
def test_the_oracle_learns(tmp_path, monkeypatch):
    result = run("hac", tmp_path / "oracle", monkeypatch, "top.observe_goal=true", "train.iterations=10")
    assert result["return/trajectory_3"] >= 0.8


@pytest.mark.slow
def test_peach_searches_and_remembers(tmp_path, monkeypatch):
    """More in a first trajectory than one guess can give, and more in the third than Thompson sampling has."""
    peach = run("peach", tmp_path / "peach", monkeypatch, "train.iterations=25")
    hac = run("hac", tmp_path / "hac", monkeypatch, "train.iterations=25")
    assert peach["return/trajectory_1"] > 0.3 and peach["return/trajectory_3"] > 0.55
    assert peach["return/trajectory_3"] > hac["return/trajectory_3"] + 0.25
