"""The examples that are scripts of their own run."""

from __future__ import annotations

import sys

from test_recipes import start
from tiny import ROOT

from peach_trl.envs import PointEnv
from peach_trl.experiment import PeachConfig
from peach_trl.utils import load_config

sys.path.insert(0, str(ROOT / "examples"))


def test_a_level_under_another_high_level(tmp_path):
    import skill

    short = ["train.iterations=0", "train.prefill=0", "train.warmup=2", "env.test_tasks=2", "evaluation.rollouts=1"]
    (folder,) = start(tmp_path, "peach", *short, "evaluation.every=9", plots=False)
    env = PointEnv(load_config(PeachConfig, "peach").env, 3)
    distance = skill.walk(str(folder / "checkpoints" / "levels.pt"), env, side=3.0, steps=20)
    assert distance.shape == (3, 4) and distance.mean() < 1.0  # of a side of 3 m
