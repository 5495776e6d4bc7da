"""A run that was interrupted goes on as if it had never stopped."""

import csv
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_recipes import start
from test_run import Trap
from tiny import ROOT, TINY, tiny_agent, tiny_config

import peach_trl.report
import peach_trl.runs
from peach_trl.experiment import load_agent
from peach_trl.utils.checkpoints import load_checkpoint

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
    "workers": ["peach", "collector.workers=2", "context.read=sample"],
    "ray": ["peach", "collector.workers=3", "collector.engine=ray"],
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
FAST = ("depth 2", "seeds")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])
def test_bit_for_bit(tmp_path, case):
    """Six passes are five, of which a savepoint has four, and then two more; rates of learning have begun to fall."""
    if case == "ray":
        pytest.importorskip("ray")
    recipe, *arguments = CASES[case]
    arguments = [*SHORT, *arguments, "train.iterations=4", "checkpoint.every=4"]
    whole = start(tmp_path / "whole", recipe, *arguments, "checkpoint.every=null", plots=False)
    interrupted(tmp_path / "parts", recipe, *arguments, after=5)
    (folder,) = (path.parent for path in (tmp_path / "parts").rglob("savepoints"))
    start(tmp_path / "parts", recipe, f"resume={folder}", plots=False)
    parts = sorted(path.parent for path in folder.rglob("metrics.csv"))
    assert len(parts) == len(whole) == (2 if case == "seeds" else 1)
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)
    manifest = json.loads((parts[0] / "manifest.json").read_text())
    assert manifest["finished"] and "error" not in manifest and len(manifest["resumed"]) == 1
    assert not (folder / "savepoints").exists() and not list(folder.rglob("*interrupted.pt"))


def test_curves_go_on_without_a_gap_or_a_double(tmp_path, capfd):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(tmp_path, "peach", *SHORT, "train.iterations=4")
    (folder,) = (path.parent for path in tmp_path.rglob("savepoints"))
    assert f"to go on with it: resume={folder}" in capfd.readouterr().err.replace("\n", "")
    assert len(rows_of(folder)) == 4  # the last of them was after the savepoint
    start(tmp_path, "peach", f"resume={folder}", plots=False)
    steps = [int(row["step"]) for row in rows_of(folder)]
    assert steps == [120 * number for number in range(1, 7)][: len(steps)] and len(steps) == 6
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = [event.step for event in events.Scalars("train/return/trajectory_1")]
    assert shown == steps


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was interrupted after four passes; it has savepoints after two and four."""
    folder = tmp_path_factory.mktemp("stopped")
    interrupted(folder, "peach", *SHORT, "train.iterations=4", "checkpoint.every=2")
    (run,) = (path.parent for path in folder.rglob("savepoints"))
    return run


def copied(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def refused(capsys, *arguments):
    """What is printed where a resume is refused: exit code 2, one line and what stands above it."""
    with pytest.raises(SystemExit) as end:
        start(arguments[0].parent, "peach", *map(str, arguments[1:]), plots=False)
    assert end.value.code == 2
    return capsys.readouterr().err.rstrip().splitlines()


def resumed(folder, *arguments):
    start(folder.parent, "peach", f"resume={folder}", *arguments, plots=False)


def test_another_configuration_is_refused_and_shown(stopped, tmp_path, capsys):
    folder = copied(stopped, tmp_path)
    lines = refused(capsys, folder, f"resume={folder}", "train.iterations=5", "top.alpha=0.2")
    assert "  top.alpha: 0.1 -> 0.2" in lines and "  train.iterations: 4 -> 5" in lines
    assert lines[-1].endswith(
        "2 of its keys would change, top.alpha, train.iterations; leave them as they were, or allow it by "
        "resume_allow=[top.alpha,train.iterations]"
    )
    assert not json.loads((folder / "manifest.json").read_text()).get("resumed")


def test_a_change_that_is_allowed(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    values = ["top.alpha=0.1", "top.gamma=0.83", "lower.gamma=0.77"]
    resumed(folder, "train.iterations=5", *values, "resume_allow=[train,top.gamma,lower.gamma]")
    assert len(rows_of(folder)) == 7 and "iterations: 5" in (folder / "config.yaml").read_text()
    _, _, agent = load_agent(folder)  # values of the configuration are not what they were
    discounts = [loss.value_estimator.gamma.item() for loss in (agent.top.loss, agent.levels[0].loss)]
    assert discounts == pytest.approx([0.83, 0.77])


def test_groups_within_groups_are_found():
    from peach_trl.resume import _place

    values = {"env": {"body": {"torque": 1.0}, "horizon": 5}, "lower": {"gamma": 1}}
    names = {"body": "env.body", "env": "env", "env.horizon": "env.horizon", "lower.gamma": "lower.gamma"}
    assert {name: _place(values, name) for name in names} == names


@pytest.mark.parametrize("change", ["flipped", "cut", "gone", "no digests", "manifest"])
def test_a_damaged_savepoint_is_passed_over(stopped, tmp_path, capsys, change):
    folder = copied(stopped, tmp_path)
    first, last = sorted((folder / "savepoints").glob("savepoint-*"))
    for number, savepoint in enumerate((last, first)):
        files = sorted(savepoint.rglob("*.pt"))
        path = files[number % len(files)]
        if change == "flipped":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif change == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif change == "manifest":
            (savepoint / "manifest.json").write_text("{")
        else:
            (path if change == "gone" else savepoint / "sha256.json").unlink()
        if savepoint is last:
            intact = shutil.copytree(folder, tmp_path / "intact")
    resumed(intact)
    said = capsys.readouterr().out
    assert f"{last.name}: damaged, " in said and "resumed after iteration 2, at environment step 240" in said
    assert len(rows_of(intact)) == 6
    assert (folder / "checkpoints" / "interrupted.pt").is_file()  # of when it was interrupted
    agent = (folder / "checkpoints" / "interrupted.pt").read_bytes()
    assert refused(capsys, folder, f"resume={folder}")[-1].endswith("none of its 2 savepoints is whole; start the run "
                                                                     "anew in another folder")  # fmt: skip
    assert (folder / "checkpoints" / "interrupted.pt").read_bytes() == agent and len(rows_of(folder)) == 4


def test_a_pickle_with_code_is_not_run(stopped, tmp_path, capsys):
    """Also where its digest is right."""
    from peach_trl.utils.savepoints import seal

    folder, trap = copied(stopped, tmp_path), tmp_path / "trap"
    for savepoint in (folder / "savepoints").glob("savepoint-*"):
        torch.save({"x": Trap(trap)}, next(savepoint.rglob("state.pt")))
        (savepoint / "sha256.json").unlink()
        seal(savepoint)
    assert "none of its 2 savepoints is whole" in refused(capsys, folder, f"resume={folder}")[-1]
    assert not trap.exists()


def test_what_cannot_go_on(stopped, tmp_path, capsys):
    folder = copied(stopped, tmp_path)
    assert "there is no such folder" in refused(capsys, folder, f"resume={tmp_path / 'nowhere'}")[-1]
    assert "a sweep has many runs" in refused(capsys, folder, "-m", f"resume={folder}", "top.tau=0.1,0.2")[-1]
    stuck = ["collector.workers=2", "resume_allow=[collector.workers]"]
    assert "collector.workers cannot change" in refused(capsys, folder, f"resume={folder}", *stuck)[-1]
    assert (
        "is named by the time, and no later start would find it; set hydra.run.dir"
        in refused(capsys, folder, "resume=auto")[-1]
    )
    assert "set hydra.sweep.dir=FOLDER" in refused(capsys, folder, "-m", "resume=auto", "seed=0,1")[-1]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no run that could go on" in refused(capsys, folder, f"resume={empty}")[-1]
    resumed(folder)
    assert "is finished; there is nothing to go on with" in refused(capsys, folder, f"resume={folder}")[-1]
    from peach_trl.resume import FinishedError, refuse_finished

    with pytest.raises(FinishedError):  # also where it was finished while another process made ready to go on with it
        refuse_finished(folder)
    assert "a run is in it; give another folder" in refused(capsys, folder, f"hydra.run.dir={folder}")[-1]
    assert not (folder / "savepoints").exists()
    start(tmp_path, "peach", "resume=auto", f"hydra.run.dir={folder}", plots=False)  # a job that is started again
    assert "is finished; there is nothing to go on with" in capsys.readouterr().out
    from peach_trl.resume import locked

    other = copied(stopped, tmp_path / "other")
    with locked(other):
        assert "another process runs it now" in refused(capsys, other, f"resume={other}")[-1]
    shutil.rmtree(other / "savepoints" / "savepoint-000000000002")
    shutil.rmtree(other / "savepoints" / "savepoint-000000000004")
    rows = (other / "metrics.csv").read_text()
    assert "4 iterations, and no savepoint" in refused(capsys, other, f"resume={other}")[-1]
    assert (other / "metrics.csv").read_text() == rows


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_that_does_not_fit_leaves_the_run_as_it_was(stopped, tmp_path, capsys):
    folder = copied(stopped, tmp_path)
    before = everything(folder)
    refused(capsys, folder, f"resume={folder}", "top.actor_cells=[8]", "resume_allow=[top]")
    assert everything(folder) == before
    resumed(folder)
    assert len(rows_of(folder)) == 6


@pytest.mark.parametrize("left", ["no manifest", "empty manifest", "one of two"])
def test_a_kill_in_the_first_moments(tmp_path, capsys, left):
    """The configuration is written before all else, so that whatever is missing then, the run starts."""
    arguments = [*SHORT, "train.iterations=1", "resume=auto", f"hydra.run.dir={tmp_path / 'run'}"]
    arguments += ["seeds=2"] * (left == "one of two")
    made, folder = peach_trl.runs.Run.__init__, tmp_path / "run"

    def killed(run, at, *args, **kwargs):
        if left != "one of two" or at.name == "seed_1":
            raise Interrupt
        made(run, at, *args, **kwargs)

    with mock.patch.object(peach_trl.runs.Run, "__init__", killed), pytest.raises(SystemExit):
        start(tmp_path, "peach", *arguments, plots=False)
    if left == "empty manifest":
        (folder / "manifest.json").touch()
    assert (folder / "savepoints" / "config.yaml").is_file()
    start(tmp_path, "peach", *arguments, plots=False)
    assert "the run starts anew" in capsys.readouterr().out
    manifests = [json.loads(path.read_text()) for path in folder.rglob("manifest.json")]
    assert len(manifests) == 1 + (left == "one of two") and all(manifest["finished"] for manifest in manifests)


@pytest.mark.parametrize("name", ["manifest.json", "savepoints/config.yaml"])
@pytest.mark.parametrize("content", ["[1, 2]", "{", "x: [", "\x00"])
def test_damaged_files_are_a_sentence(stopped, tmp_path, capsys, name, content):
    folder = copied(stopped, tmp_path)
    (folder / name).write_text(content)
    assert folder.name in (line := refused(capsys, folder, f"resume={folder}")[-1]) and Path(name).name in line


def test_before_the_first_savepoint_it_starts_anew(tmp_path, capsys):
    interrupted(tmp_path, "peach", *SHORT, "train.iterations=4", "seeds=2", after=2)
    (folder,) = (path.parent for path in tmp_path.rglob("savepoints"))
    start(tmp_path, "peach", f"resume={folder}", plots=False)
    assert "no savepoint was written yet: the run starts anew" in capsys.readouterr().out
    assert [len(rows_of(folder / name)) for name in ("seed_0", "seed_1")] == [6, 6]


@pytest.mark.slow
def test_an_error_before_the_first_batch_of_workers(tmp_path):
    """What hands weights to them waited, at the end of the program, for a thread that could start no more."""
    interrupted(tmp_path, "peach", *SHORT, "train.iterations=4", "collector.workers=2", "checkpoint.every=1", after=3)
    (folder,) = (path.parent for path in tmp_path.rglob("savepoints"))
    for path in (folder / "savepoints").glob("*/sha256.json"):
        path.unlink()
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), f"resume={folder}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "savepoints is whole" in done.stderr


@pytest.mark.slow
def test_killed_at_any_time(tmp_path):
    """SIGKILL up to twenty times, also within a save: it always goes on, and comes to the same end."""
    arguments = [*SHORT, "train.iterations=60", "checkpoint.every=1", "evaluation.every=7"]
    (whole,) = start(tmp_path / "whole", "peach", *arguments, plots=False)
    folder, draws, kills = tmp_path / "run", random.Random(0), 0
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), *arguments, "resume=auto", f"hydra.run.dir={folder}"]
    while kills < 20:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before, until = number_of(folder), time.monotonic() + 60
        while number_of(folder) == before and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)  # until it works, so that all kills are within the training
        time.sleep(draws.random())
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    if kills == 20:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and kills >= 10, errors
    assert_same(whole, folder)


def number_of(folder):
    """Of the latest savepoint."""
    return max((path.name for path in (folder / "savepoints").glob("savepoint-*")), default="")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"savepoint": 1}, "is of format 1, this version reads 2; go on with the"),
        ({"tasks": "0123"}, "is of other tasks, fingerprint 0123; those of this"),
    ],
)
def test_a_savepoint_of_another_version_or_of_other_tasks(stopped, tmp_path, capsys, facts, said):
    from peach_trl.utils.savepoints import seal

    folder = copied(stopped, tmp_path)
    for savepoint in (folder / "savepoints").glob("savepoint-*"):
        manifest = json.loads((savepoint / "manifest.json").read_text())
        assert manifest["metadata"].keys() == {"savepoint", "tasks", "config"}
        manifest["metadata"].update(facts)
        (savepoint / "manifest.json").write_text(json.dumps(manifest))
        (savepoint / "sha256.json").unlink()
        seal(savepoint)
    before = everything(folder)
    assert said in refused(capsys, folder, f"resume={folder}")[-1]
    assert everything(folder) == before


def test_a_flipped_digit_in_the_configuration(stopped, tmp_path, capsys):
    folder = copied(stopped, tmp_path)
    path = folder / "savepoints" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("hindsight_goals: 3", "hindsight_goals: 2"))
    line = refused(capsys, folder, f"resume={folder}")[-1]
    assert "savepoints/config.yaml cannot be read (it is not what the run wrote: wrong checksum" in line
    assert path.read_text() != text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: b"\x00\xff\xfe garbage", "metrics.csv: begins with "),
        (lambda text: text[:-1].replace(b"\n", b"\nx", 1), "metrics.csv: row 1 is not what the run wrote"),
        (lambda text: text.replace(b"\n", b"\n1,", 1), "metrics.csv: row 1 is not what the run wrote"),
        (lambda text: text.split(b"\n")[0] + b"\n", "metrics.csv: has 0 rows of the 4 there were"),
    ],
)
def test_damaged_metrics_are_a_sentence(stopped, tmp_path, capsys, change, said):
    folder = copied(stopped, tmp_path)
    path = folder / "metrics.csv"
    path.write_bytes(change(path.read_bytes()))
    before = everything(folder)
    assert said in refused(capsys, folder, f"resume={folder}")[-1]
    assert everything(folder) == before


def test_what_stands_behind_the_rows_of_a_savepoint_is_cut(stopped, tmp_path):
    """A machine that went down may leave anything there."""
    folder = copied(stopped, tmp_path)
    with open(folder / "metrics.csv", "ab") as file:
        file.write(b"\x00\xff\x00" * 50)
    resumed(folder)
    assert [int(row["step"]) for row in rows_of(folder)] == [120 * number for number in range(1, 7)]


@pytest.mark.parametrize("name", ["locked", "write_config"])
def test_a_folder_that_cannot_be_written_to_is_a_sentence(stopped, tmp_path, capsys, name):
    folder = copied(stopped, tmp_path)
    denied = PermissionError(13, "Permission denied", str(folder / "savepoints"))
    given = [f"hydra.run.dir={tmp_path / 'new'}", *SHORT] if name == "write_config" else [f"resume={folder}"]
    with mock.patch.object(peach_trl.runs, name, side_effect=denied):
        (line,) = [line for line in refused(capsys, folder, *given) if line.startswith("Configuration error")]
    assert f"{given[0].split('=')[0]} = " in line and "Permission denied" in line


def test_weights_of_another_shape_are_not_broadcast():
    agent = tiny_agent(tiny_config())
    state, before = agent.training_state(), {name: value.clone() for name, value in agent.state_dict().items()}
    changed = {name: value + 1 if value.is_floating_point() else value for name, value in before.items()}
    last = [name for name in changed if name.startswith("top.") and changed[name].ndim == 2][-1]
    for wrong in (changed[last][:1], changed[last].double(), None):
        with pytest.raises(ValueError, match=f"other networks: {re.escape(last)} is .* there and .* here"):
            agent.load_training_state({**state, "weights": {**changed, last: wrong}})
    with pytest.raises(ValueError, match=f"other networks: {re.escape(last)} is .* there and .* here"):
        agent.load_seeds([{**changed, last: changed[last].double()}])
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    level = agent.levels[0].training_state()
    moments = {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1), "step": torch.zeros(())}
    level["optimiser"]["state"] = {0: moments}
    with pytest.raises(ValueError, match="other networks: moments of shape .* for parameter 0"):
        agent.levels[0].load_training_state(level)
