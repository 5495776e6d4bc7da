"""The recipes from their command lines to the files of their runs, and experience from worker processes."""

import contextlib
import csv
import functools
import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, TINY, tiny_agent, tiny_config
from torchrl.collectors import Collector

from peach_trl.collecting import make_collector
from peach_trl.config import ConfigError, _dotted, require_key
from peach_trl.context import BeliefTracker
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs import PointEnv
from peach_trl.experiment import HacConfig, PeachConfig, SourceConfig, make_env, make_library
from peach_trl.levels import GoalLevel, TopLevel
from peach_trl.report import Report
from peach_trl.utils import load_checkpoint, load_config
from peach_trl.utils.cli import _files_of, _require_in_files, _stands_in, check_keys_of
from peach_trl.utils.tables import read_run

sys.path.insert(0, str(ROOT / "recipes"))  # as for a script: recipes/pearl.py imports its neighbour
SECONDS = 240  # after which a run or a collector hangs


@contextlib.contextmanager
def time_limit(seconds=SECONDS):
    """Raises in a test that hangs."""

    def stop(*_):
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def main_of(recipe):
    """The main function of a script; it reads ``sys.argv``."""
    name = f"recipe_{recipe}"
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{recipe}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def runs_in(folder):
    return sorted(path.parent for path in folder.glob("runs/**/manifest.json"))


def start(folder, recipe, *arguments, plots=True, seconds=SECONDS):
    """Runs a recipe's command line in this process, with ``folder`` as the working directory; its new run folders."""
    folder.mkdir(exist_ok=True)
    before = set(runs_in(folder))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.object(sys, "argv", [f"recipes/{recipe}.py", *arguments]))
        stack.enter_context(time_limit(seconds))
        for name, value in (("handlers", list(logging.root.handlers)), ("level", logging.root.level)):
            stack.enter_context(mock.patch.object(logging.root, name, value))  # Hydra configures logging for good
        # Hydra takes the tracer of a coverage measurement for a debugger, and then ends no program.
        stack.enter_context(mock.patch("hydra._internal.utils.is_under_debugger", return_value=False))
        if not plots:  # they take longer than all the rest
            for name in ("report.plot_curves", "meta_tests.plot_trajectories", "meta_tests.plot_posterior"):
                stack.enter_context(mock.patch(f"peach_trl.{name}"))
        main_of(recipe)()
    return [run for run in runs_in(folder) if run not in before]


def start_process(folder, recipe, *arguments):
    """The same in a process of its own."""
    before, command = set(runs_in(folder)), [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [run for run in runs_in(folder) if run not in before], done.stdout


@contextlib.contextmanager
def events():
    """The calls that make up Algorithm 1, in order, with what they were given."""
    log = []

    def spy(stack, owner, name, note):
        original = getattr(owner, name)

        def called(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            noted = note(self, *args)
            log.extend([] if noted is None else [noted])
            return result

        stack.enter_context(mock.patch.object(owner, name, called))

    with contextlib.ExitStack() as stack:
        spy(stack, BeliefTracker, "reset", lambda tracker, tasks: ("reset", tasks.tolist(), tracker.table.clone()))
        spy(
            stack,
            BeliefTracker,
            "condition",
            lambda tracker, tasks, context: ("condition", tasks.tolist(), tracker.table.clone(), context),
        )
        spy(stack, Report, "collected", lambda report, batch, number: ("collected", batch, number))
        # Of the top level's replay only, which tracks episodes.
        spy(
            stack, TaskReplayBuffer, "extend", lambda buffer, rows: ("extend", rows) if buffer.writer.episodes else None
        )
        spy(stack, TaskReplayBuffer, "empty", lambda buffer: ("empty",))
        spy(stack, GoalLevel, "update", lambda level, batch: ("level", batch))
        spy(stack, TopLevel, "believe", lambda top, b: ("believe", b))
        spy(stack, TopLevel, "infer", lambda top, b, c: ("infer", b, c))
        spy(stack, TopLevel, "step", lambda top: ("step",))
        yield log


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_speed(run):
    return [{name: cell for name, cell in row.items() if not name.startswith("time/seconds")} for row in rows_of(run)]


def manifest_of(run):
    return json.loads((run / "manifest.json").read_text())


def tensors_of(run):
    return load_checkpoint(run / "checkpoints" / "final.pt")["agent"]


def same_tensors(run, other):
    a, b = tensors_of(run), tensors_of(other)
    assert a.keys() == b.keys() and len(a) > 20
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def is_picture(png):
    return png.is_file() and png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 3000


def check_run(run, iterations, with_z, with_levels, top_updates, plots=True):
    """What every run of the tiny configuration leaves behind; returns the columns of its metrics that have values."""
    names = {"config.yaml", "manifest.json", "metrics.csv", "meta_test.csv", "tensorboard", "checkpoints"}
    pictures = ["curves", "trajectories"] + ["posterior"] * with_z
    pictures = {f"{name}.{kind}" for name in pictures for kind in ("png", "pdf")}
    assert {path.name for path in run.iterdir()} == names | (pictures if plots else set())
    assert all(is_picture(png) for png in run.glob("*.png"))
    config, manifest = OmegaConf.load(run / "config.yaml"), manifest_of(run)
    assert config.env.horizon == 20 and config.train.top_updates == 2
    assert manifest["finished"] is True and manifest["seeds"] == {"seed": config.seed, "seeds": 1}
    assert manifest["env_steps"] == 120 * iterations and manifest["top_updates"] == top_updates
    assert set(manifest["test"]) == {f"{name}/trajectory_{k}" for name in ("return", "success") for k in (1, 2)}

    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [120 * (i + 1) for i in range(iterations)]  # 3 tasks, 2 x 20 steps
    filled = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    columns = {"time/seconds/iteration", "train/return/trajectory_1", "train/return/trajectory_2"}
    assert columns <= set(filled) and all(len(filled[name]) == iterations for name in columns)
    assert min(filled["time/seconds/iteration"]) > 0
    for k in (1, 2):  # every second iteration
        evaluated = [bool(row[f"eval/return/trajectory_{k}"]) for row in rows]
        assert evaluated == [i % 2 == 1 for i in range(iterations)]
    shares = [name for name in filled if set(name.split("/")) & {"return", "success", "tested"}]
    assert all(0 <= value <= 1 for name in shares for value in filled[name])
    assert max(filled["train/return/trajectory_1"] + filled["train/return/trajectory_2"]) > 0  # rewards were met
    assert ("train/tested/level_0" in filled) == ("train/success/level_0" in filled) == with_levels
    if top_updates:
        assert (max(filled["train/loss_kl/top"]) > 0) == with_z
    with open(run / "meta_test.csv", newline="") as file:
        tested = list(csv.DictReader(file))
    assert [(row["split"], int(row["task"]), int(row["rollout"]), int(row["trajectory"])) for row in tested] == [
        ("test", task, 0, k) for task in (5, 6) for k in (1, 2)
    ]
    for k in (1, 2):
        mean = sum(float(row["return"]) for row in tested if int(row["trajectory"]) == k) / 2
        assert mean == pytest.approx(manifest["test"][f"return/trajectory_{k}"], abs=1e-5)
    assert len(filled.get("train/loss_qvalue/top", [])) == (2 if top_updates else 0)

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(filled) - {"step"}
    for name in ("time/updates/top", "eval/return/trajectory_2"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(filled[name])
    checkpoint = load_checkpoint(run / "checkpoints" / "final.pt")
    assert OmegaConf.create(checkpoint["config"]) == config
    assert any(name.startswith("top.belief.") for name in checkpoint["agent"]) == with_z
    return filled


@pytest.fixture(scope="module")
def peach(tmp_path_factory):
    """A run of PEACH, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        (run,) = start(tmp_path_factory.mktemp("peach"), "peach", *TINY)
    return run, output.getvalue()


def test_peach(peach):
    run, output = peach
    filled = check_run(run, iterations=4, with_z=True, with_levels=True, top_updates=4)
    assert {f"train/{name}" for name in ("loss_actor/level_0", "loss_qvalue/level_0", "entropy/top")} <= set(filled)
    assert run.parent.parent.name == "runs" and run.parent.name == "peach"
    assert "meta-test on the test tasks, 2 rollouts" in output
    returned = manifest_of(run)["test"]["return/trajectory_2"]
    assert f"trajectory 2: {returned:.3f}" in output
    said = [line for line in output.splitlines() if line.startswith("run folder: ")]
    assert said == [f"run folder: {run}"] * 2 and output.splitlines()[-1] == said[1]


def names_of(log):
    return [event[0] for event in log]


def test_peach_follows_algorithm_1(tmp_path):
    with events() as log:
        start(
            tmp_path, "peach", *TINY, "train.iterations=1", "train.warmup_updates=2", "train.lower_updates=6",
            plots=False,
        )  # fmt: skip

    def iteration(lower, top):
        trajectory = ["extend", "collected", *["level"] * lower]
        return [*2 * trajectory, *["believe", "step"] * top]

    assert names_of(log) == iteration(1, 0) + ["empty"] + iteration(3, 0) + iteration(3, 2)
    number = 0
    for event in log:
        if event[0] == "level":
            assert event[1].shape == (8,) and "goal" in event[1].keys()
        if event[0] == "collected":  # every row keeps its own belief over the trajectories of an iteration
            assert (event[1]["context", "trajectory"] == event[2]).all()
            assert (event[1]["context", "meta_episode"] == number // 2).all()
            assert (event[1]["belief"][:, 0] == 0).all() == (event[2] == 0)
            number += 1
        if event[0] == "believe":
            tasks = event[1]["task_id"][::2, 0, 0]
            assert event[1].shape[0] == 4 and len(tasks.unique()) == 2  # 2 tasks, 2 sequences of each
            assert (event[1]["task_id"][..., 0] == tasks.repeat_interleave(2).unsqueeze(-1)).all()
    assert number == 6


def check_source(log):
    """Each trajectory's z comes from what the replay knew of its task by then; meta-batches are of the same tasks."""
    table = None
    for event in log:
        if event[0] in ("reset", "condition"):
            assert event[1] == [0, 1, 2]
            table = event[2]
        if event[0] == "collected":
            first = event[1][:, 0]
            assert torch.equal(first["context", "state"], table[first["task_id"].squeeze(-1)])
            assert torch.equal(event[1]["z"], first["z"].unsqueeze(1).expand_as(event[1]["z"]))
        if event[0] == "infer":
            _, b, c = event
            assert b.shape == (2, 64) and c.shape[:1] == (2,)
            tasks = c["task_id"][:, 0, 0]
            assert len(tasks.unique()) == 2 and (b["task_id"][..., 0] == tasks.unsqueeze(-1)).all()
            assert (c["task_id"][..., 0] == tasks.unsqueeze(-1))[c["mask"]].all()
    assert table[:3].abs().sum(-1).min() > 0  # contexts were not empty


def source_tiny():
    """The tiny configuration of the source's variant."""
    return [*(argument for argument in TINY if "evaluation.rollouts" not in argument), "evaluation.rollouts=1"]


def test_source(tmp_path):
    with events() as log:
        (run,) = start(tmp_path, "source", *source_tiny(), "source.empty_probability=0", plots=False)
    trajectories = 2 * ["extend", "collected", "level", "level", "condition"]
    iteration = ["reset", *trajectories]
    assert names_of(log) == iteration + ["empty"] + iteration + 2 * [*iteration, *2 * ["infer", "step"]]
    check_source(log)
    check_run(run, iterations=4, with_z=True, with_levels=True, top_updates=4, plots=False)


def test_pearl(tmp_path):
    with events() as log:
        (run,) = start(tmp_path, "pearl", *source_tiny(), "source.empty_probability=0", plots=False)
    trajectories = 2 * ["extend", "collected", "condition"]
    meta_training = ["reset", *trajectories, *2 * ["infer", "step"]]
    assert names_of(log) == ["empty", "reset", *trajectories, *2 * meta_training]  # no warm-up: nothing below the top
    check_source(log)
    filled = check_run(run, iterations=3, with_z=True, with_levels=False, top_updates=4, plots=False)
    assert not any("level" in name for name in filled)


@pytest.mark.parametrize(
    ("overrides", "updates", "goal_levels", "plots"),
    [
        ([], 4, 1, False),
        (["top.observe_goal=true"], 4, 1, False),
        (["top.observe_goal=true", "top.objective=goal"], 0, 2, True),
    ],
)
def test_hac(tmp_path, overrides, updates, goal_levels, plots):
    with events() as log:
        (run,) = start(tmp_path, "hac", *TINY, *overrides, plots=plots)
    levels = ["level"] * 2 * goal_levels
    trajectories = 2 * ["collected", *(["extend"] if updates else []), *levels]
    expected = [*trajectories, "empty", *trajectories, *2 * [*trajectories, *["believe", "step"] * (updates // 2)]]
    assert names_of(log) == expected
    filled = check_run(run, iterations=4, with_z=False, with_levels=True, top_updates=updates, plots=plots)
    learning = {name for name in filled if name.startswith("train/loss_qvalue/level")}
    assert learning == {f"train/loss_qvalue/level_{level}" for level in range(goal_levels)}
    assert ("train/success/level_1" in filled) == (goal_levels == 2)


ABLATIONS = [
    "context.read=sample", "context.next=same", "context.update=trajectory", "context.bootstrap=false",
    "context.belief=attention", "context.belief=recurrent", "context.decisions=3", "context.slow=1",
    "hierarchy.depth=1", "hierarchy.depth=3", "hierarchy.depth=3", "context.latent_dim=0", "context.latent_dim=64",
    "top.average=1", "sequences.consecutive=1",
]  # fmt: skip


@pytest.mark.parametrize("key", ABLATIONS)
def test_ablations_are_one_key_each(key, tmp_path):
    shorter = {"train.iterations": "1", "train.warmup": "0", "evaluation.every": "9"}
    arguments = [argument for argument in TINY if argument.split("=")[0] not in {*shorter, key.split("=")[0]}]
    (run,) = start(tmp_path, "peach", *arguments, *(f"{k}={v}" for k, v in shorter.items()), key, plots=False)
    assert manifest_of(run)["finished"] is True and manifest_of(run)["top_updates"] == 2


def test_the_flat_policy_with_a_belief(tmp_path):
    overrides = [argument for argument in TINY if not argument.startswith("train.prefill")]
    (run,) = start(tmp_path, "peach", "--config-name", "flat", *overrides, "train.prefill=1", plots=False)
    config = OmegaConf.load(run / "config.yaml")
    assert run.parent.name == "flat" and config.hierarchy.depth == 1 and config.hierarchy.top_random_hold == 20
    assert not any(name.startswith("levels.") for name in tensors_of(run))


def test_an_encoder_of_ones_own_by_its_name(tmp_path, monkeypatch):
    """In recipe, rollout, meta-test and checkpoint, without touching the package."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    own = "context.encoder=own_encoder:OwnEncoder"
    (run,) = start(tmp_path, "peach", *TINY, own, plots=False)
    names = {name for name in tensors_of(run) if name.startswith("top.belief.encoder.")}
    assert names and not any("net.0" in name for name in names)
    (test,) = start(
        tmp_path, "evaluate", f"checkpoint={run / 'checkpoints' / 'final.pt'}", "trajectories=2", plots=False
    )
    expected, found = manifest_of(run)["test"], manifest_of(test)
    assert {name: found[name] for name in expected} == expected


def test_evaluate_repeats_the_final_meta_test(peach, tmp_path):
    trained, _ = peach
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'final.pt'}"
    (run,) = start(tmp_path, "evaluate", checkpoint, "rollouts=1", "trajectories=2")
    names = {"config.yaml", "manifest.json", "metrics.csv", "meta_test.csv"}
    pictures = {f"{name}.{kind}" for name in ("trajectories", "posterior") for kind in ("png", "pdf")}
    assert {path.name for path in run.iterdir()} == names | pictures
    assert (run / "meta_test.csv").read_text() == (trained / "meta_test.csv").read_text()
    one, other = read_run(run), read_run(trained)  # comparable: the seed, tasks and minutes are the training's
    assert (one.seed, one.fingerprint, one.minutes) == (other.seed, other.fingerprint, other.minutes)
    expected, found = manifest_of(trained)["test"], manifest_of(run)
    assert found["finished"] is True and {name: found[name] for name in expected} == expected
    logged = {name.removeprefix("eval/"): float(cell) for name, cell in rows_of(run)[0].items() if name != "step"}
    assert logged == pytest.approx(expected)


def test_evaluate_other_tasks_more_often(peach, tmp_path):
    trained, _ = peach
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'final.pt'}"
    (run,) = start(
        tmp_path, "evaluate", checkpoint, "split=train", "rollouts=2", "trajectories=3", "seed=5", plots=False
    )
    assert OmegaConf.load(run / "config.yaml").split == "train"
    assert {f"eval/return/trajectory_{k}" for k in (1, 2, 3)} <= set(rows_of(run)[0])
    assert manifest_of(run)["seeds"] == {"seed": 5}


# Determinism.


def test_the_same_seed_gives_the_same_run(peach, tmp_path):
    """Bit for bit, also after other runs, without pictures, and however often it is evaluated."""
    run, _ = peach
    (again,) = start(tmp_path, "peach", *TINY, "evaluation.every=1", plots=False)
    expected, found = without_speed(run), without_speed(again)
    assert [bool(row["eval/return/trajectory_1"]) for row in expected] == [False, True, False, True]
    assert [bool(row["eval/return/trajectory_1"]) for row in found] == [True] * 4
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        assert {name: row[name] for name, cell in other.items() if cell} == {n: c for n, c in other.items() if c}
    assert same_tensors(again, run)
    assert manifest_of(again)["test"] == manifest_of(run)["test"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_in_another_process(peach, tmp_path):
    run, output = peach
    (again,), printed = start_process(tmp_path, "peach", *TINY)
    assert without_speed(again) == without_speed(run)
    assert same_tensors(again, run)
    said, before = printed.splitlines(), output.splitlines()
    assert said[-4:-1] == before[-4:-1] and said[-1].startswith("run folder: ")


def test_another_seed_gives_another_run(peach, tmp_path):
    run, _ = peach
    (other,) = start(tmp_path, "peach", *TINY, "seed=1", plots=False)
    assert not same_tensors(other, run)
    assert without_speed(other) != without_speed(run)
    weights = [tensors_of(folder)["top.belief.encoder.net.0.weight"] for folder in (run, other)]
    assert (weights[0] - weights[1]).abs().mean() > 0.05  # further than a few updates go: it started elsewhere


@pytest.mark.processes
def test_sweep(tmp_path):
    tinier = ["train.iterations=1", "train.warmup=0", "train.prefill=0", "train.trajectories=1", "evaluation.every=9"]
    tinier += ["evaluation.trajectories=1"]
    short = [argument for argument in TINY if argument.split("=")[0] not in {other.split("=")[0] for other in tinier}]
    sweep = ["hierarchy.depth=1,2,3", "context.latent_dim=0,2"]
    runs = start(tmp_path, "peach", "-m", *short, *tinier, *sweep, plots=False)
    assert len(runs) == 6 and len({run.parent for run in runs}) == 1
    found = {}
    for run in runs:
        config, tensors = OmegaConf.load(run / "config.yaml"), tensors_of(run)
        levels = {name.split(".")[1] for name in tensors if name.startswith("levels.")}
        has_z = any(name.startswith("top.belief.") for name in tensors)
        found[config.hierarchy.depth, config.context.latent_dim] = len(levels), has_z
        assert manifest_of(run)["finished"] is True
        assert (float(rows_of(run)[-1]["train/loss_kl/top"]) > 0) == has_z
        assert "train/loss_qvalue/top" in rows_of(run)[0]
    assert found == {(depth, z): (depth - 1, z > 0) for depth in (1, 2, 3) for z in (0, 2)}


def test_workers_of_ray_are_as_those_of_processes(tmp_path, monkeypatch):
    """A local Ray of two workers: the same metrics, bit for bit, as with two processes."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    short = [argument for argument in TINY if not argument.startswith("env.train_tasks")]
    short += ["env.train_tasks=4", "collector.workers=2"]
    runs = [
        start(tmp_path / engine, "peach", *short, f"collector.engine={engine}", plots=False)[0]
        for engine in ("processes", "ray")
    ]
    assert without_speed(runs[0]) == without_speed(runs[1])


@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own(tmp_path):
    """Hydra's joblib launcher: the same folders as one after the other, named by what differs."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    tinier = ["train.iterations=0", "train.warmup=1", "train.prefill=0", "train.trajectories=1", "evaluation.every=9"]
    short = [argument for argument in TINY if argument.split("=")[0] not in {other.split("=")[0] for other in tinier}]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), "-m", *short, *tinier, *launcher, "seed=3,5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.glob("runs/peach/sweep_*/*/manifest.json"))
    assert [run.name for run in runs] == ["0_seed-3", "1_seed-5"]
    assert all(manifest_of(run)["finished"] for run in runs)


# Bad values.


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["hierarchy.depth=0"], ["hierarchy.depth = 0: must be >= 1", "set hierarchy.depth"]),
        (["top.gamma=1.5"], ["top.gamma = 1.5: must be <= 1", "set top.gamma"]),
        (["lower.gamma=-0.1"], ["lower.gamma = -0.1: must be >= 0", "set lower.gamma"]),
        (["env.horizon=-20"], ["env.horizon = -20: must be >= 1", "set env.horizon"]),
        (
            ["evaluation.agent=best", "evaluation.split=test"],
            ["evaluation.split = 'test': the best agent", "set it to validation"],
        ),
        (["lower.algorithm=sac", "lower.alpha=0"], ["lower.alpha = 0.0: SAC", "set lower.alpha"]),
        (["top.batch=-1"], ["top.batch = -1: must be >= 1", "set top.batch"]),
        (["context.latent_dim=65"], ["context.latent_dim = 65: must be <= 64", "set context.latent_dim"]),
        (["context.belief=gru"], ["context.belief = 'gru': must be one of product, attention, recurrent"]),
        (["context.encoder=nowhere:Encoder"], ["context.encoder = 'nowhere:Encoder'", "write module:name"]),
        (["sequences.per_task=3"], ["sequences.consecutive = 0.5: of per_task = 3 sequences", "change one of them"]),
        (["train.trajectories=5", "sequences.episodes=3"], ["sequences.episodes = 3", "raise sequences.episodes"]),
        (["context.belief=recurrent", "context.decisions=3"], ["context.decisions = 3", "set it to null"]),
        (["replay.top_capacity=0"], ["replay.top_capacity = 0: must be >= 1", "set replay.top_capacity"]),
        (["top.actor_cells=[64,-64]"], ["top.actor_cells[1] = -64: must be >= 1", "set top.actor_cells"]),
        (["context.latent_dim=-1"], ["context.latent_dim = -1: must be >= 0", "set context.latent_dim"]),
        (["hierarchy.clock=mine"], ["hierarchy.clock = 'mine': must be one of higher_goal, own_goal, time"]),
        (["collector.engine=threads"], ["collector.engine = 'threads': must be one of processes, ray"]),
        (
            ["hierarchy.decision_steps=300"],
            ["hierarchy.decision_steps = 300: a decision of the top level takes up to 300", "200"],
        ),
        (
            ["replay.top_capacity=29"],
            ["replay.top_capacity = 29: a pass brings train.envs_per_task = 1 meta-episodes of 30 decisions"],
        ),
        (["train.envs_per_task=134"], ["train.envs_per_task = 134 meta-episodes of 30", "raise it"]),
        (["hierarchy.depth=6"], ["hierarchy.depth = 6: within decision_steps = 20", "raise decision_steps to 32"]),
        (["replay.lower_capacity=1e13"], ["replay.lower_capacity = 10000000000000: this run would take 600,000 GB"]),
        (["top.critic_cells=[1000000,1000000]"], ["top.critic_cells = (1000000, 1000000): this run would take 32,000"]),
        (["env.train_tasks=1e9"], ["replay.top_capacity = 4000: this run would take", "env.train_tasks = 1000000000"]),
        (["replay.lower_capacity=23999"], ["replay.lower_capacity = 23999: one", "brings 24000", "raise it"]),
        (["replay.episodes=1e12"], ["replay.episodes = 1000000000000: this run would take 1,920,000 GB"]),
        (["evaluation.rollouts=1e9"], ["evaluation.rollouts = 1000000000: must be <= 1000000"]),
        (["evaluation.rollouts=1e6"], ["evaluation.rollouts = 1000000: this run would take 2,160 GB"]),
        (["env.test_tasks=1e8"], ["env.test_tasks = 100000000: this run would take"]),
        (["context.decisions=1e6"], ["context.decisions = 1000000: this run would take"]),
        (["context.belief=recurrent", "context.features=1e6"], ["context.features = 1000000: this run would take"]),
        (["train.iterations=1e30"], ["train.iterations = 1000000000000000019884624838656: must be <= 1000000000"]),
        (["hierarchy.depth=1e9"], ["hierarchy.depth = 1000000000: must be <= 16"]),
        (["hierarchy.decision_steps=1e12"], ["hierarchy.decision_steps = 1000000000000: must be <= 1000000"]),
        (["top.actor_cells=[1e9]"], ["top.actor_cells[0] = 1000000000: must be <= 1000000"]),
        (["env.threads=1e9"], ["env.threads = 1000000000: must be <= 1024"]),
        (["seeds=2000"], ["seeds = 2000: must be <= 1000"]),
        (["seed=9223372036854775807"], ["seed = 9223372036854775807: must be <= 4611686018427387904"]),
        (["env=Wnd"], ["env = Wnd: no such file in env/; did you mean env=Wind?"]),
        (["-m", "env=point,Wnd"], ["env = Wnd: no such file in env/; did you mean env=Wind?"]),
        (["--config-dir", str(ROOT / "docs"), "env=Wnd"], ["env = Wnd: no such file in env/; did you mean"]),
        (["--config-name", "flatt"], ["--config-name = flatt: no such file in configs/; did you mean"]),
        (["+top.colour=red"], ["top.colour = 'red': unknown key"]),
        (["env=xyz"], ["env = xyz: no such file in env/; there are AntDir, "]),
        (["hierarchy.dept=2"], ["hierarchy.dept = 2: unknown key", "did you mean hierarchy.depth?"]),
        (["collector.workers=61"], ["collector.workers = 61", "lower it to env.train_tasks = 60"]),
        (["env.radius=9.9"], ["env.radius = 9.9", "lower radius"]),
        (["top.objective=goal", "context.latent_dim=0"], ["top.objective = 'goal'", "set top.observe_goal=true"]),
        (
            ["context.latent_dim=0", "top.observe_goal=true", "top.objective=goal"],
            ["top.objective = 'goal'", "use recipes/hac.py"],
        ),
        (["top.observe_goal=true"], ["context.latent_dim = 12", "set context.latent_dim=0"]),
        (["-m", "hierarchy.depth=1,2,0"], ["hierarchy.depth = 0: must be >= 1"]),
    ],
)
def test_bad_values_end_before_anything_runs(tmp_path, capsys, overrides, parts):
    with pytest.raises(SystemExit) as end:
        start(tmp_path, "peach", *overrides)
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert [part for part in parts if part not in errors] == []
    assert len(errors.splitlines()) == 1 and errors.startswith("Configuration error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "overrides", "parts"),
    [
        ("pearl", ["context.latent_dim=0"], ["context.latent_dim", "hac.py"]),
        ("source", ["context.update=decision"], ["context.update = 'decision'", "use recipes/peach.py"]),
        ("source", ["context.next=after"], ["context.next = 'after'", "use recipes/peach.py"]),
        ("source", ["context.bootstrap=true"], ["context.bootstrap = True", "set false and null"]),
        ("source", ["top.batch=960"], ["top.batch = 960", "use recipes/peach.py"]),
        ("source", ["source.recent=200"], ["source.recent = 200", "replay.episodes = 100", "lower source.recent"]),
        ("source", ["source.transitions=2"], ["source.transitions = 2", "raise transitions"]),
        ("hac", ["context.latent_dim=5"], ["context.latent_dim = 5", "use recipes/peach.py"]),
        ("peach", ["env=AntUMaze", "env.validation_tasks=2"], ["env: validation = 2: AntUMaze has 6 cells for goals"]),
        ("evaluate", ["checkpoint=???"], ["checkpoint = ???: missing; set checkpoint="]),
    ],
)
def test_recipes_refuse_what_they_are_not_for(tmp_path, capsys, recipe, overrides, parts):
    with pytest.raises(SystemExit) as end:
        start(tmp_path, recipe, *overrides)
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert [part for part in parts if part not in errors] == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.glob("runs/*/*")) == []


SCHEMAS = {"peach": PeachConfig, "hac": HacConfig, "source": SourceConfig, "pearl": SourceConfig}


@pytest.mark.parametrize("recipe", [*SCHEMAS, "evaluate", "video"])
def test_unknown_keys_are_refused_before_torch_is_imported(tmp_path, recipe):
    code = """if __name__ == "__main__":
        import runpy, sys
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            print("torch" in sys.modules)"""
    code = code.replace("sys.argv[0]", repr(str(ROOT / "recipes" / f"{recipe}.py")))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'recipes'}"}
    command = [sys.executable, "-c", code, "-m", "sed=1,2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=SECONDS, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr == "Configuration error: sed = '1,2': unknown key; did you mean seed?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", SCHEMAS)
def test_the_yaml_files_have_the_keys_of_the_schema(recipe):
    """So that the check before torch is imported refuses no key that the schema has, and says what the schema would."""
    files = list(_files_of(ROOT / "configs", recipe))
    keys = _dotted(SCHEMAS[recipe])
    assert len(keys) > 60 and [key for key in keys if not any(_stands_in(values, key) for values in files)] == []
    for key in ("hierarchy.dept", "gamma", "horizon", "env.horizn", "top.betas", "train.trajectory"):
        with pytest.raises(ConfigError) as early:
            _require_in_files(ROOT / "configs", recipe, key, 3)
        with pytest.raises(ConfigError) as late:
            require_key(SCHEMAS[recipe], key, 3)
        assert str(early.value) == str(late.value)


def test_the_check_of_keys_leaves_other_command_lines_alone(monkeypatch, capsys):
    for arguments in (
        ["hierarchy.depth=1,2", "-m"],
        ["env=HalfCheetahVel", "env.family=HalfCheetahDir", "env.radius=1", "hydra.job.chdir=false"],
        ["--help", "hierarchy.dept=2"],
        ["--cfg", "job", "hierarchy.dept=2"],
        ["--config-dir", "mine", "my_key=2"],
        ["--config-name", "flat", "hierarchy.depth=1"],
        ["--config-name", "nowhere", "hierarchy.dept=1"],
        ["env=gymnasium", "+env.options.observation_keys=[achieved_goal]"],
        ["depth=[1"],
    ):
        monkeypatch.setattr(sys, "argv", ["peach.py", *arguments])
        check_keys_of(ROOT / "recipes" / "peach.py")
    monkeypatch.setattr(sys, "argv", ["pytest", "-c", "hierarchy.dept=2"])
    check_keys_of(ROOT / "recipes" / "no_recipe.py")
    assert capsys.readouterr() == ("", "")


def in_python(code):
    """Runs code in a process of its own."""
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_plots_and_logs_are_imported_when_they_are_used():
    in_python(
        """
import sys, peach_trl.utils.startup
assert {"peach_trl.experiment", "peach_trl.report"} <= set(sys.modules)
late = {"matplotlib", "tensorboard", "imageio", "scipy"} & set(sys.modules)
assert not late, late
"""
    )


@pytest.mark.processes
def test_the_compiler_is_imported_when_it_is_used():
    in_python(
        """
import gc, sys
import peach_trl.utils.startup, torch, tensordict.base, torchrl.data
assert gc.isenabled() and "sympy" not in sys.modules and "torch._dynamo.eval_frame" not in sys.modules
stand_in = sys.modules["torch._dynamo"]

@torch.compiler.disable
def outside(x):
    return x + 1

@torch.compiler.disable(recursive=False)
def twice(x):
    return 2 * outside(x)

marked = torch.compiler.assume_constant_result(lambda: 3)
adam = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
adam.zero_grad()
assert twice(torch.ones(1)) == 4 and twice.__name__ == "twice" and marked() == 3
assert "torch._dynamo.eval_frame" not in sys.modules
assert torch.compile(lambda x: 3 * outside(x), backend="eager")(torch.ones(1)) == 6
assert torch._dynamo is sys.modules["torch._dynamo"] is not stand_in and torch._dynamo.eval_frame
assert stand_in.disable is torch._dynamo.disable and stand_in.config is torch._dynamo.config
from torch._dynamo import trace_rules
assert trace_rules.is_callable_allowed(tensordict.base._foreach_copy_)
"""
    )


def test_a_missing_checkpoint_is_a_bad_value(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        start(tmp_path, "evaluate", "checkpoint=nowhere/final.pt")
    errors = capsys.readouterr().err
    assert "nowhere/final.pt: no such checkpoint" in errors
    assert end.value.code == 2 and errors.startswith("Configuration error: checkpoint = ")
    assert list(tmp_path.glob("runs/*/*")) == []


# Collectors.


@pytest.mark.processes
def test_workers_follow_the_learner():
    """Two processes: every task is played; beliefs, weights and exploration of the next batch are the new ones."""
    overrides = [*source_tiny(), "collector.workers=2", "train.envs_per_task=2"]
    overrides.remove("train.envs_per_task=1")
    config = load_config(SourceConfig, "source", ROOT / "configs", overrides)
    library = make_library(config)
    agent = tiny_agent(config)
    policy = agent.make_policy(num_tasks=library.num_tasks)
    with time_limit():
        collector = make_collector(config, library, policy)
        try:
            batches = iter(collector)
            first = next(batches).clone()
            with torch.no_grad():
                policy.tracker.table[1, :5], policy.tracker.table[1, 5:] = 1e6, 3e6
                last = agent.top.actor[0].module.net.net[-1]
                last.weight.zero_()
                last.bias[:2], last.bias[2:] = 4.0, -20.0  # loc, scale: the proposal is 1
            second = next(batches).clone()
            policy.explore(at_random=True)
            third = next(batches).clone()
        finally:
            collector.shutdown()
    tasks = first["task_id"][:, 0, 0]
    assert first.shape == (6, 20) and tasks.tolist() == [0, 0, 1, 1, 2, 2]
    for batch in (first, second, third):
        assert torch.equal(batch["task_id"][..., 0], tasks.unsqueeze(-1).expand(6, 20))
        assert batch["hierarchy", "start"][:, 0].all() and batch["next", "done"][:, -1].all()
    start = [batch["z"][:, 0] for batch in (first, second, third)]
    assert len(torch.cat(start).unique(dim=0)) == 18  # the workers draw apart
    assert (start[0] - 3).abs().min() > 0.01 and start[0].abs().max() < 5
    for z in start[1:]:
        assert (z[tasks == 1] - 3).abs().max() < 0.1
        assert z[tasks != 1].std() > 0.5
    top = [batch["hierarchy", "proposal"][batch["hierarchy", "acts"][..., -1]] for batch in (first, second, third)]
    assert top[0].mean() < 0.9 and top[0].std() > 0.2
    assert top[1].min() > 0.99
    assert top[2].mean().abs() < 0.3 and top[2].min() < -0.8 and abs(top[2].std() - 3**-0.5) < 0.1  # uniform


@pytest.mark.processes
def test_an_error_with_workers_ends_the_run(tmp_path):
    """TorchRL's workers are no daemons: without a shutdown this process would wait for them for ever."""
    code = """if __name__ == "__main__":
        import runpy, sys, peach_trl.report as report
        def fail(*_):
            raise ArithmeticError("in the parent")
        report.Report.collected = fail
        runpy.run_path(sys.argv[0], run_name="__main__")"""
    script = tmp_path / "script.py"
    script.write_text(code.replace("sys.argv[0]", repr(str(ROOT / "recipes" / "peach.py"))))
    command = [sys.executable, str(script), *TINY, "collector.workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=90, capture_output=True, text=True)
    assert done.returncode != 0 and "in the parent" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def with_workers(tmp_path_factory):
    """Two runs of the same seed, each with two workers."""
    folder = tmp_path_factory.mktemp("workers")
    return [start_process(folder, "peach", *TINY, "collector.workers=2")[0][0] for _ in range(2)]


@pytest.mark.slow
def test_the_recipe_with_workers(with_workers):
    check_run(with_workers[0], iterations=4, with_z=True, with_levels=True, top_updates=4)


@pytest.mark.slow
def test_the_same_seed_with_workers_gives_the_same_run(with_workers):
    assert same_tensors(*with_workers)
    assert without_speed(with_workers[0]) == without_speed(with_workers[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"context__read": "sample"},
        {"context__update": "trajectory", "hierarchy__depth": 1},
        {"context__latent_dim": 0, "hierarchy__depth": 3},
    ],
)
def test_collectors_add_the_primers_themselves(changes):
    """As users of TorchRL do it: an environment that knows nothing of the policy, and ``Collector``."""
    config = tiny_config(env__horizon=6, **changes)
    library = make_library(config)
    policy = tiny_agent(config).make_policy(trajectories=3, seed=0)
    env = PointEnv(config.env, num_envs=3, library=library, seed=0)
    collector = Collector(env, policy, frames_per_batch=18, total_frames=36, auto_register_policy_transforms=True)
    batches = [batch.clone() for batch in collector]
    assert len(batches) == 2
    own = make_env(config, library, library.split("train"), policy).rollout(6, policy)
    for batch in batches:
        assert batch.shape == (3, 6) and batch["hierarchy", "start"][:, 0].all()
        assert batch["hierarchy", "start"].sum() == 3
        assert set(own.keys(True, True)) <= set(batch.keys(True, True))
    assert not torch.equal(batches[0]["action"], batches[1]["action"])
    if config.context.latent_dim:
        key = policy.tracker.key
        assert not torch.equal(batches[0][key][:, 0], batches[1][key][:, 0])
