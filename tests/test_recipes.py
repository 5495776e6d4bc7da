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
from torchrl.envs import RewardSum, TransformedEnv

from peach_trl.agent import Agent
from peach_trl.data.task_replay import TaskReplayBuffer
from peach_trl.envs import PointEnv
from peach_trl.experiment import make_collector, make_env, make_library
from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION
from peach_trl.modules.posterior import PosteriorState
from peach_trl.report import Report
from peach_trl.utils import load_checkpoint

SECONDS = 240  # after which a run or a collector hangs
NO_WARMUP = [argument for argument in TINY if not argument.startswith("train.warmup=")]


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


def start(folder, recipe, *arguments, plots=True):
    """Runs a recipe's command line in this process, with ``folder`` as the working directory; its new run folders."""
    folder.mkdir(exist_ok=True)
    before = set(runs_in(folder))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.object(sys, "argv", [f"recipes/{recipe}.py", *arguments]))
        stack.enter_context(time_limit())
        for name, value in (("handlers", list(logging.root.handlers)), ("level", logging.root.level)):
            stack.enter_context(mock.patch.object(logging.root, name, value))  # Hydra configures logging for good
        if not plots:  # they take longer than all the rest
            pictures = {name: mock.DEFAULT for name in ("plot_curves", "plot_trajectories", "plot_posterior")}
            stack.enter_context(mock.patch.multiple("peach_trl.report", **pictures))
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
            log.append(note(self, *args))
            return result

        stack.enter_context(mock.patch.object(owner, name, called))

    def conditioned(posterior, tasks, context):
        return "condition", tasks.tolist(), posterior.precision.clone(), context

    with contextlib.ExitStack() as stack:
        spy(
            stack,
            PosteriorState,
            "reset",
            lambda posterior, tasks: ("reset", tasks.tolist(), posterior.precision.clone()),
        )
        spy(stack, PosteriorState, "condition", conditioned)
        spy(stack, Report, "collected", lambda report, batch, number: ("collected", batch, number))
        spy(stack, TaskReplayBuffer, "extend", lambda buffer, rows: ("extend", rows))
        spy(stack, TaskReplayBuffer, "empty", lambda buffer: ("empty",))
        spy(stack, Agent, "update_level", lambda agent, level, batch: (f"level {level}", batch))
        spy(stack, Agent, "update_top", lambda agent, b, c=None: ("top", b, c))
        yield log


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_speed(run):
    return [{name: cell for name, cell in row.items() if not name.startswith("speed/")} for row in rows_of(run)]


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
    names = {"config.yaml", "manifest.json", "metrics.csv", "tensorboard", "checkpoints"}
    pictures = {"curves.png", "trajectories.png"} | ({"posterior.png"} if with_z else set())
    assert {path.name for path in run.iterdir()} == names | (pictures if plots else set())
    assert all(is_picture(png) for png in run.glob("*.png"))
    config, manifest = OmegaConf.load(run / "config.yaml"), manifest_of(run)
    assert config.env.horizon == 20 and config.train.top_updates == 2
    assert manifest["finished"] is True and manifest["seeds"] == {"seed": config.seed}
    assert manifest["env_steps"] == 120 * iterations and manifest["top_updates"] == top_updates
    assert set(manifest["test"]) == {f"{name}/trajectory_{k}" for name in ("return", "success") for k in (1, 2)}

    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [120 * (i + 1) for i in range(iterations)]  # 3 tasks, 2 x 20 steps
    filled = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    columns = {"speed/seconds_per_iteration", "train_return/trajectory_1", "train_return/trajectory_2"}
    assert columns <= set(filled) and all(len(filled[name]) == iterations for name in columns)
    assert min(filled["speed/seconds_per_iteration"]) > 0
    for k in (1, 2):  # every second iteration
        evaluated = [bool(row[f"return/trajectory_{k}"]) for row in rows]
        assert evaluated == [i % 2 == 1 for i in range(iterations)]
    shares = [name for name in filled if name.split("/")[0] in ("return", "success", "tested", "train_return")]
    assert all(0 <= value <= 1 for name in shares for value in filled[name])
    assert max(filled["train_return/trajectory_1"] + filled["train_return/trajectory_2"]) > 0  # rewards were met
    assert ("tested/level_0" in filled) == ("success/level_0" in filled) == with_levels
    assert ("loss_kl/top" in filled) == with_z
    assert len(filled.get("loss_qvalue/top", [])) == (2 if top_updates else 0)

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(filled) - {"step"}
    for name in ("top_updates", "return/trajectory_2"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(filled[name])
    checkpoint = load_checkpoint(run / "checkpoints" / "final.pt")
    assert OmegaConf.create(checkpoint["config"]) == config
    assert any(name.startswith("encoder.") for name in checkpoint["agent"]) == with_z
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
    assert {"loss_actor/level_0", "loss_qvalue/level_0", "loss_actor/top", "entropy/top"} <= set(filled)
    assert run.parent.parent.name == "runs" and run.parent.name == "peach"
    assert "meta-test on the test tasks, 2 rollouts" in output
    returned = manifest_of(run)["test"]["return/trajectory_2"]
    assert f"trajectory 2: {returned:.3f}" in output


def check_posteriors(log):
    """Each trajectory's z comes from what was known of its task by then; meta-batches are of the same tasks."""
    table = None
    for event in log:
        if event[0] in ("reset", "condition"):
            assert event[1] == [0, 1, 2]
            table = event[2]
        if event[0] == "collected":
            first = event[1][:, 0]
            if ("posterior", "precision") in first.keys(True):
                assert torch.equal(first["posterior", "precision"], table[first["task_id"].squeeze(-1)])
        if event[0] == "top":
            _, b, c = event
            assert b.shape == (2, 8) and c.shape[:1] == (2,)
            tasks = c["task_id"][:, 0, 0]
            assert len(tasks.unique()) == 2 and (b["task_id"][..., 0] == tasks.unsqueeze(-1)).all()
            assert (c["task_id"][..., 0] == tasks.unsqueeze(-1))[c["mask"]].all()
            assert (c["kind"][c["mask"]] == HINDSIGHT_ACTION).all()
    assert not torch.equal(table[:3], torch.ones_like(table[:3]))  # contexts were not empty


def test_peach_follows_algorithm_1(tmp_path):
    with events() as log:
        start(
            tmp_path, "peach", *TINY, "train.iterations=1", "train.warmup_updates=1", "train.lower_updates=3",
            "context.empty_probability=0", plots=False,
        )  # fmt: skip

    def iteration(lower, top):
        trajectory = ["extend", "collected", *["level 0"] * lower, "condition"]
        return ["reset", *2 * trajectory, *["top"] * top]

    names = [event[0] for event in log]
    assert names == iteration(1, 0) + ["empty"] + iteration(3, 0) + iteration(3, 2)  # warm-up, prefill, meta-training
    check_posteriors(log)
    for event in log:
        if event[0] == "level 0":
            assert event[1].shape == (8,) and "goal" in event[1].keys()


def test_pearl(tmp_path):
    with events() as log:
        (run,) = start(tmp_path, "pearl", *NO_WARMUP, "context.empty_probability=0")
    trajectories = 2 * ["extend", "collected", "condition"]
    meta_training = ["reset", *trajectories, "top", "top"]
    assert [event[0] for event in log] == ["reset", *trajectories, *2 * meta_training]  # prefill first
    check_posteriors(log)
    filled = check_run(run, iterations=3, with_z=True, with_levels=False, top_updates=4)
    assert not any("level" in name for name in filled)


@pytest.mark.parametrize(
    ("overrides", "updates", "goal_levels", "plots"),
    [
        ([], 4, 1, False),
        (["top.goal=known"], 4, 1, False),
        (["top.goal=known", "top.follows=goal"], 0, 2, True),
    ],
)
def test_hac(tmp_path, overrides, updates, goal_levels, plots):
    with events() as log:
        (run,) = start(tmp_path, "hac", *TINY, *overrides, plots=plots)
    levels = [f"level {level}" for level in range(goal_levels) for _ in range(2)]
    trajectories = 2 * ["collected", *(["extend"] if updates else []), *levels]
    expected = [*trajectories, "empty", *trajectories, *2 * [*trajectories, *["top"] * (updates // 2)]]
    assert [event[0] for event in log] == expected
    assert all(event[2] is None for event in log if event[0] == "top")
    filled = check_run(run, iterations=4, with_z=False, with_levels=True, top_updates=updates, plots=plots)
    learning = {name for name in filled if name.startswith("loss_qvalue/level")}
    assert learning == {f"loss_qvalue/level_{level}" for level in range(goal_levels)}
    assert ("success/level_1" in filled) == (goal_levels == 2)


def test_evaluate_repeats_the_final_meta_test(peach, tmp_path):
    trained, _ = peach
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'final.pt'}"
    (run,) = start(tmp_path, "evaluate", checkpoint, "rollouts=1", "trajectories=2")
    names = {"config.yaml", "manifest.json", "metrics.csv", "tensorboard", "trajectories.png", "posterior.png"}
    assert {path.name for path in run.iterdir()} == names
    expected, found = manifest_of(trained)["test"], manifest_of(run)
    assert found["finished"] is True and {name: found[name] for name in expected} == expected
    assert {name: float(cell) for name, cell in rows_of(run)[0].items() if name != "step"} == pytest.approx(expected)


def test_evaluate_other_tasks_more_often(peach, tmp_path):
    trained, _ = peach
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'final.pt'}"
    (run,) = start(
        tmp_path, "evaluate", checkpoint, "split=train", "rollouts=2", "trajectories=3", "seed=5", plots=False
    )
    assert OmegaConf.load(run / "config.yaml").split == "train"
    assert {f"return/trajectory_{k}" for k in (1, 2, 3)} <= set(rows_of(run)[0])
    assert manifest_of(run)["seeds"] == {"seed": 5}


# Determinism.


def test_the_same_seed_gives_the_same_run(peach, tmp_path):
    """Bit for bit, also after other runs, without pictures, and however often it is evaluated."""
    run, _ = peach
    (again,) = start(tmp_path, "peach", *TINY, "evaluation.every=1", plots=False)
    expected, found = without_speed(run), without_speed(again)
    assert [bool(row["return/trajectory_1"]) for row in expected] == [False, True, False, True]
    assert [bool(row["return/trajectory_1"]) for row in found] == [True] * 4
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
    assert printed.splitlines()[-3:] == output.splitlines()[-3:]


def test_another_seed_gives_another_run(peach, tmp_path):
    run, _ = peach
    (other,) = start(tmp_path, "peach", *TINY, "seed=1", plots=False)
    assert not same_tensors(other, run)
    assert without_speed(other) != without_speed(run)
    weights = [tensors_of(folder)["encoder.net.0.weight"] for folder in (run, other)]
    assert (weights[0] - weights[1]).abs().mean() > 0.05  # further than a few updates go: it started elsewhere


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
        has_z = any(name.startswith("encoder.") for name in tensors)
        found[config.hierarchy.depth, config.context.latent_dim] = len(levels), has_z
        assert manifest_of(run)["finished"] is True
        assert ("loss_kl/top" in rows_of(run)[0]) == has_z and "loss_qvalue/top" in rows_of(run)[0]
    assert found == {(depth, z): (depth - 1, z > 0) for depth in (1, 2, 3) for z in (0, 2)}


# Bad values.


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["hierarchy.depth=0"], ["hierarchy.depth = 0: must be >= 1", "set hierarchy.depth"]),
        (["top.gamma=1.5"], ["top.gamma = 1.5: must be <= 1", "set top.gamma"]),
        (["lower.gamma=-0.1"], ["lower.gamma = -0.1: must be >= 0", "set lower.gamma"]),
        (["env.horizon=-20"], ["env.horizon = -20: must be >= 1", "set env.horizon"]),
        (["train.batch=-1"], ["train.batch = -1: must be >= 1", "set train.batch"]),
        (["replay.top_capacity=0"], ["replay.top_capacity = 0: must be >= 1", "set replay.top_capacity"]),
        (["top.actor_cells=[64,-64]"], ["top.actor_cells[1] = -64: must be >= 1", "set top.actor_cells"]),
        (["context.latent_dim=-1"], ["context.latent_dim = -1: must be >= 0", "set context.latent_dim"]),
        (["hierarchy.clock=mine"], ["hierarchy.clock = 'mine': must be one of official, own, fixed"]),
        (["hierarchy.dept=2"], ["hierarchy.dept = 2: unknown key", "did you mean hierarchy.depth?"]),
        (["train.meta_batch=31"], ["train.meta_batch = 31", "env.train_tasks = 30", "lower train.meta_batch"]),
        (["collector.workers=31"], ["collector.workers = 31", "lower it to env.train_tasks = 30"]),
        (["env.radius=9.9"], ["env.radius = 9.9", "lower radius"]),
        (["top.follows=goal", "context.latent_dim=0"], ["top.follows = 'goal'", "set top.goal=known"]),
        (["top.goal=known"], ["context.latent_dim = 5", "set context.latent_dim=0"]),
        (["context.recent=200"], ["context.recent = 200", "replay.recent = 100", "lower context.recent"]),
        (["context.transitions=2"], ["context.transitions = 2", "raise transitions"]),
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
        ("pearl", ["hierarchy.depth=2"], ["hierarchy.depth", "use recipes/peach.py"]),
        ("pearl", ["context.latent_dim=0"], ["context.latent_dim", "hac.py"]),
        ("hac", ["context.latent_dim=5"], ["context.latent_dim = 5", "use recipes/peach.py"]),
        ("evaluate", [], ["checkpoint = ???: missing; set checkpoint="]),
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


def test_a_missing_checkpoint_is_a_bad_value(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        start(tmp_path, "evaluate", "checkpoint=nowhere/final.pt")
    errors = capsys.readouterr().err
    assert "nowhere/final.pt: no such checkpoint" in errors
    assert end.value.code == 2 and errors.startswith("Configuration error: checkpoint = ")
    assert list(tmp_path.glob("runs/*/*")) == []


# Collectors.


def test_workers_follow_the_learner():
    """Two processes: every task is played; posterior, weights and exploration of the next batch are the new ones."""
    config = tiny_config(collector__workers=2, train__rows_per_task=2)
    library = make_library(config)
    agent = tiny_agent(config)
    policy = agent.make_policy(library.num_tasks)
    with time_limit():
        collector = make_collector(config, library, policy)
        try:
            batches = iter(collector)
            first = next(batches).clone()
            with torch.no_grad():
                policy.posterior.precision[1], policy.posterior.shift[1] = 1e6, 3e6
                last = agent.top_actor[0].module.net.net[-1]
                last.weight.zero_()
                last.bias[:2], last.bias[2:] = 4.0, -20.0  # loc, scale: the proposal is 1
            second = next(batches).clone()
            policy.set_top_random(1.0)
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
        {"context__draw": "decision"},
        {"context__draw": "trajectory", "hierarchy__depth": 1},
        {"context__latent_dim": 0, "hierarchy__depth": 3},
    ],
)
def test_collectors_add_the_primers_themselves(changes):
    """As users of TorchRL do it: an environment that knows nothing of the policy, and ``Collector``."""
    config = tiny_config(env__horizon=6, **changes)
    library = make_library(config)
    policy = tiny_agent(config).make_policy(library.num_tasks, seed=0)
    env = PointEnv(config.env, num_envs=3, library=library, seed=0)
    if config.context.latent_dim and config.context.draw == "decision":
        env = TransformedEnv(env, RewardSum())
    collector = Collector(env, policy, frames_per_batch=18, total_frames=36, auto_register_policy_transforms=True)
    batches = [batch.clone() for batch in collector]
    assert len(batches) == 2
    own = make_env(config, library, library.split("train"), policy).rollout(6, policy)
    for batch in batches:
        assert batch.shape == (3, 6) and batch["hierarchy", "start"][:, 0].all()
        assert batch["hierarchy", "start"].sum() == 3
        missing = set(own.keys(True, True)) - set(batch.keys(True, True))
        assert missing <= {"episode_reward", ("next", "episode_reward")}
    assert not torch.equal(batches[0]["action"], batches[1]["action"])
    if config.context.latent_dim:
        assert not torch.equal(batches[0]["z"][:, 0], batches[1]["z"][:, 0])
