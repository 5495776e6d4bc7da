"""Whatever ends a run early leaves its agents, the cause, and no process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_recipes import start
from tiny import ROOT, TINY, tiny_agent, tiny_config

from peach_trl.collecting import WorkerError, collecting
from peach_trl.collectors.faults import VARIABLE
from peach_trl.experiment import load_agent, make_library, make_transitions

pytestmark = pytest.mark.processes
LONG = ["train.iterations=5000", "evaluation.every=90"]  # of TINY, whose last say is the first


def started(folder, *arguments):
    """A run in a process group of its own, once it has written two rows."""
    short = [argument for argument in TINY if not argument.startswith(("train.iterations", "evaluation.every"))]
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), *short, *LONG, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)
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


def workers_of(process):
    """The worker processes of a run, the first one first."""
    command = ["ps", "-ww", "--ppid", str(process.pid), "-o", "pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()  # 1 where there are none
    return sorted(int(line.split()[0]) for line in lines if "spawn_main" in line)


def assert_ends(process, begun, codes, cause, folder, number=1):
    """It ends within 15 s, with its whole group, and leaves its cause and agents that can be read."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode in codes, errors
    while is_there(process.pid) and time.monotonic() - begun < 15:
        time.sleep(0.1)  # Python's own tracker of semaphores follows a little later
    assert time.monotonic() - begun < 15 and not is_there(process.pid), "no process is left"
    folders = [path.parent for path in folder.rglob("manifest.json")]
    assert len(folders) == number
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["finished"] is False and manifest["error"].startswith(cause), manifest["error"]
        config, _, agent = load_agent(str(folder / "checkpoints" / "interrupted.pt"))
        assert config.env.horizon == 20 and all(torch.isfinite(p).all() for p in agent.parameters())


@pytest.mark.parametrize(
    ("number", "group", "code", "cause", "arguments"),
    [
        (signal.SIGINT, False, 130, "KeyboardInterrupt", ["seeds=2"]),
        (signal.SIGTERM, False, 143, "Terminated: stopped by SIGTERM", ["collector.workers=2"]),
        pytest.param(*(signal.SIGINT, True, 130, "KeyboardInterrupt", ["collector.workers=2"]), marks=pytest.mark.slow),
        pytest.param(*(signal.SIGTERM, True, 143, "Terminated", ["collector.workers=2"]), marks=pytest.mark.slow),
    ],
    ids=["int, two seeds", "term, workers", "int, group", "term, group"],
)
def test_a_signal(tmp_path, number, group, code, cause, arguments):
    process = started(tmp_path, *arguments)
    begun = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    assert_ends(process, begun, (code, -number), cause, tmp_path, 2 if "seeds=2" in arguments else 1)


@pytest.mark.slow
def test_a_signal_while_workers_start(tmp_path):
    """Nobody has a collector yet that could end them."""
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), *TINY, "collector.workers=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    until = time.monotonic() + 90
    while not workers_of(process) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (130, -signal.SIGINT)
    time.sleep(2)  # Python's own tracker of semaphores follows a little later
    assert not is_there(process.pid)


@pytest.mark.parametrize(
    ("number", "cause", "arguments"),
    [
        (signal.SIGKILL, "WorkerError: collector: worker 0 was killed by SIGKILL", []),
        pytest.param(
            *(signal.SIGSTOP, "WorkerError: collector: no answer of its workers within 3 s", ["collector.timeout=3"]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["killed", "stopped"],
)
def test_a_worker_that_is_gone(tmp_path, number, cause, arguments):
    process = started(tmp_path, "collector.workers=2", *arguments)
    begun = time.monotonic()
    os.kill(workers_of(process)[0], number)
    assert_ends(process, begun, (1,), cause, tmp_path)


@pytest.mark.slow
def test_a_new_worker_takes_over(tmp_path):
    process = started(tmp_path, "collector.workers=2", "collector.restart_workers=true")
    (rows,) = tmp_path.rglob("metrics.csv")
    os.kill(workers_of(process)[1], signal.SIGKILL)
    before, until = len(rows.read_text().splitlines()), time.monotonic() + 60
    while len(rows.read_text().splitlines()) < before + 10 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(rows.read_text().splitlines()) >= before + 10 and process.poll() is None
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read()
    assert "collector: worker 1 was killed by SIGKILL; new workers take over, all rows start anew" in said
    assert_ends(process, begun, (143,), "Terminated", tmp_path)


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


def test_new_workers_start_anew_in_the_middle_of_a_pass():
    """Their rows are not joined to those that are gone, also where episodes end at other times than batches."""
    changes = {"workers": 2, "restart_workers": True}
    config = tiny_config()
    config = dataclasses.replace(config, collector=dataclasses.replace(config.collector, **changes))
    agent, library = tiny_agent(config), make_library(config)
    transitions = make_transitions(config, library, agent)
    with collecting(config, library, agent.make_policy(), transitions) as trajectories:
        transitions(next(trajectories))
        os.kill(trajectories._workers[0].pid, signal.SIGKILL)
        batch = next(trajectories)
        batch["hierarchy", "start"] = torch.zeros_like(batch["hierarchy", "start"])  # as if they were within episodes
        assert trajectories.restarts == 1 and transitions(batch)


def test_what_a_worker_says(tmp_path):
    """Its exception, in its own words; TorchRL's workers print it, and end."""
    config = tiny_config()
    config = dataclasses.replace(config, collector=dataclasses.replace(config.collector, workers=2))
    policy = tiny_agent(config).make_policy()
    with collecting(config, make_library(config), policy) as trajectories:
        folder = trajectories._faults.folder
        assert next(trajectories).shape == (3, 20) and not list(folder.iterdir())
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(
            WorkerError, match=r"worker \d ended with exit code 1, NotFiniteError: .action. is not"
        ) as found:
            next(trajectories)
        assert not found.value.killed
    assert not folder.exists() and VARIABLE not in os.environ
