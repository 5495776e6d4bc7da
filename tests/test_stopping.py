"""Whatever ends a run early leaves its agents, the cause, and no process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_recipes import start
from tiny import ROOT, TINY

from peach_trl.experiment import load_agent

LONG = ["train.iterations=5000", "evaluation.every=90"]  # of TINY, whose last say is the first


def started(folder, *arguments):
    """A run in a process group of its own, once it has written two rows."""
    short = [argument for argument in TINY if not argument.startswith(("train.iterations", "evaluation.every"))]
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), *short, *LONG, *arguments]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        rows = [len(path.read_text().splitlines()) for path in folder.rglob("metrics.csv")]
        if rows and min(rows) > 3:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


def is_there(group):
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "code", "cause", "arguments"),
    [
        (signal.SIGINT, 130, "KeyboardInterrupt", ["seeds=2"]),
        (signal.SIGTERM, 143, "Terminated: stopped by SIGTERM", ["collector.workers=2"]),
    ],
    ids=["int, two seeds", "term, workers"],
)
def test_a_signal(tmp_path, number, code, cause, arguments):
    process = started(tmp_path, *arguments)
    begun = time.monotonic()
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (code, -number), errors
    while is_there(process.pid) and time.monotonic() - begun < 15:
        time.sleep(0.1)  # Python's own tracker of semaphores follows a little later
    assert time.monotonic() - begun < 15 and not is_there(process.pid), "no process is left"
    folders = [path.parent for path in tmp_path.rglob("manifest.json")]
    assert len(folders) == (2 if "seeds=2" in arguments else 1)
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["finished"] is False and manifest["error"].startswith(cause)
        config, _, agent = load_agent(str(folder / "checkpoints" / "interrupted.pt"))
        assert config.env.horizon == 20 and all(torch.isfinite(p).all() for p in agent.parameters())


def test_checkpoints_while_training(tmp_path):
    """The last two of every second iteration, to be tested as the final one is."""
    short = [argument for argument in TINY if not argument.startswith("train.iterations")]
    (folder,) = start(tmp_path, "peach", *short, "train.iterations=5", "checkpoint.every=2", plots=False)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["final.pt", "iteration_000004.pt", "iteration_000006.pt", "levels.pt"]  # of 7
    _, _, agent = load_agent(str(folder / "checkpoints" / "iteration_000006.pt"))
    _, _, final = load_agent(str(folder))
    weights = [torch.cat([p.flatten() for p in each.top.actor.parameters()]) for each in (agent, final)]
    assert not torch.equal(*weights)
