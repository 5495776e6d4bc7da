"""Run folders, plots, and the command line of a recipe."""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from peach_trl.config import ConfigError
from peach_trl.envs.renderers import LEVEL_COLOURS
from peach_trl.utils import Run, load_checkpoint, plot_curves, plot_posterior, plot_trajectories, plots
from peach_trl.utils.checkpoints import save_tensors
from peach_trl.utils.files import write_whole
from peach_trl.utils.loggers import LoggingConfig
from peach_trl.utils.plots import _ellipse, _project, plot_by_trajectory
from peach_trl.utils.savepoints import Savepoints

ROOT = Path(__file__).parent.parent


def logging_with(*loggers):
    return LoggingConfig(loggers=loggers, project="tests", online=False, videos=False)


def rows(run):
    with open(run.folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_manifest_and_config(tmp_path):
    with Run(tmp_path / "run", {"seed": 3, "eval": {"seeds": [1, 2]}, "lr": 1e-3}) as run:
        before = manifest(run.folder)
        sum(range(3_000_000))
        run.finish(env_steps=10)
    after = manifest(run.folder)
    assert before["finished"] is False
    assert after["finished"] is True
    assert after["env_steps"] == 10
    assert after["seeds"] == {"seed": 3, "eval.seeds": [1, 2]}
    assert after["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert after["torch_threads"] == torch.get_num_threads()
    assert after["command"] == sys.argv
    assert 0 < after["wall_seconds"] < 60
    assert 0 < after["cpu_seconds"] < 60
    assert OmegaConf.load(run.folder / "config.yaml") == {"seed": 3, "eval": {"seeds": [1, 2]}, "lr": 1e-3}


def test_an_error_is_noted(tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {}):
        _ = 1 / 0
    assert manifest(tmp_path)["finished"] is False
    assert manifest(tmp_path)["error"].startswith("ZeroDivisionError")


def test_runs_are_never_overwritten(tmp_path):
    with Run(tmp_path, {"seed": 1}) as run:
        run.log(0, a=1)
    with pytest.raises(FileExistsError, match="never overwritten; give another folder"):
        Run(tmp_path, {"seed": 2})
    assert manifest(tmp_path)["seeds"] == {"seed": 1}
    assert rows(run) == [{"step": "0", "a": "1"}]


def test_late_columns_and_rows_on_disk_before_the_end(tmp_path):
    run = Run(tmp_path, {})
    run.log(1, {"loss/critic": 0.1})
    run.log(2, {"return/1": torch.tensor(2.0)}, speed=np.float32(0.5))
    run.log(3, {"loss/critic": 1 / 3, "speed": True})
    # Not closed: this is what a killed run leaves.
    assert rows(run) == [
        {"step": "1", "loss/critic": "0.1", "return/1": "", "speed": ""},
        {"step": "2", "loss/critic": "", "return/1": "2.0", "speed": "0.5"},
        {"step": "3", "loss/critic": repr(1 / 3), "return/1": "", "speed": "1"},
    ]
    run.finish()


@pytest.mark.parametrize("value", [torch.zeros(2), "1", None, [1.0]])
def test_metrics_must_be_numbers(tmp_path, value):
    with Run(tmp_path, {}) as run, pytest.raises(ValueError, match="metric a = "):
        run.log(0, a=value)


def test_tensorboard_has_the_same_numbers(tmp_path):
    run = Run(tmp_path, {"seed": 0, "top": {"cells": [64, 64]}}, logging_with("tensorboard"))
    run.log(1, {"loss/critic": 0.5})
    run.log(2, {"loss/critic": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic")] == [(1, 0.5), (2, 0.25)]
    run.finish()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_loggers_have_the_same_numbers(tmp_path, monkeypatch, name):
    """Without a network: what they keep in the run's folder, or in their own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    monkeypatch.setenv("WANDB_SILENT", "true")
    pytest.importorskip(name)
    run = Run(tmp_path / "run", {"seed": 7, "top": {"tau": 0.25}}, logging_with(name))
    run.log(100, {"train/loss_kl/top": 0.5, "eval/return/trajectory_1": 0.125})
    run.log(200, {"train/loss_kl/top": 0.0625})
    run.finish()
    assert [row["train/loss_kl/top"] for row in rows(run)] == ["0.5", "0.0625"]
    if name == "wandb":
        parts, until, kept = (b"train/loss_kl/top", b"0.0625", b"top.tau"), time.monotonic() + 20, b""
        while time.monotonic() < until and not all(part in kept for part in parts):  # another process writes it
            time.sleep(0.1)
            kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("run-*.wandb"))
        assert all(part in kept for part in parts)
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
        (logged,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
        values = [(m.step, m.value) for m in client.get_metric_history(logged.info.run_id, "train/loss_kl/top")]
        assert values == [(100, 0.5), (200, 0.0625)] and logged.data.params["top.tau"] == "0.25"
        assert logged.info.status == "FINISHED"
    if name == "trackio":
        assert any((tmp_path / "trackio").rglob("*.db"))


def test_csv_is_there_anyway(tmp_path):
    with Run(tmp_path, {"seed": 7}, logging_with("csv")) as run:
        assert run.loggers == []
        run.log(1, {"loss": 0.5})
        run.finish()
    assert [row["loss"] for row in rows(run)] == ["0.5"] and not (tmp_path / "tensorboard").exists()


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("peach_trl.utils.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="loggers = wandb: the package wandb is not installed; pip install wandb"):
        logging_with("wandb").check()
    logging_with("tensorboard").check()


def test_checkpoints(tmp_path):
    with Run(tmp_path, {}) as run:
        path = run.checkpoint("last", {"weights": torch.arange(1000.0), "step": 3})
        with pytest.raises(FileExistsError, match="use another name"):
            run.checkpoint("last", {"step": 4})
        with pytest.raises(TypeError, match="checkpoint odd: only tensors"):
            run.checkpoint("odd", {"path": tmp_path})
    state = load_checkpoint(path)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(1000.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint; .*last.pt"):
        load_checkpoint(tmp_path / "checkpoints" / "best.pt")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path):
    happened = []

    def noted(name):
        real = getattr(os, name)

        def call(*arguments):
            happened.append(name)
            return real(*arguments)

        return mock.patch.object(os, name, call)

    with Run(tmp_path, {}) as run, noted("fsync"), noted("replace"):
        run.checkpoint("one", {"x": torch.zeros(1)})
        assert happened == ["fsync", "replace"]
        happened.clear()
        write_whole(tmp_path / "text", "one")
        assert happened == ["fsync", "replace"]
        happened.clear()
        Savepoints(tmp_path / "savepoints", keep=1, layer=torch.nn.Linear(1, 1)).save(1)
        assert happened.index("fsync") < happened.index("replace") and happened[-1] == "fsync"  # the folder's, too


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"config": {}, "agent": {}, "more": Trap(tmp_path / "trap")}, tmp_path / "final.pt")
    with pytest.raises(ValueError, match=r"final.pt: not a whole checkpoint"):
        load_checkpoint(tmp_path / "final.pt")
    assert not (tmp_path / "trap").exists()
    torch.load(tmp_path / "final.pt", weights_only=False)
    assert (tmp_path / "trap").exists()  # it would have been


def test_a_full_disk_is_told_by_its_name():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        save_tensors({"x": torch.zeros(100000)}, Path("/dev/full"))


def test_a_manifest_of_nothing_claims_no_folder(tmp_path):
    (tmp_path / "manifest.json").touch()
    with Run(tmp_path, {"seed": 3}):
        assert json.loads((tmp_path / "manifest.json").read_text())["seeds"] == {"seed": 3}
    with pytest.raises(FileExistsError, match="already holds a run"):
        Run(tmp_path, {})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    with Run(tmp_path, {}) as run:
        path = run.checkpoint("last", {"weights": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    data[at] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(path)


def is_picture(png):
    pdf = png.with_suffix(".pdf").read_bytes()
    return png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 3000 and pdf[:5] == b"%PDF-"


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, instead of their files."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    return drawn


def lines(axes):
    """The lines of a panel: [n, 2] by label."""
    return {line.get_label(): np.array(line.get_data(orig=False), dtype=float).T for line in axes.get_lines()}


def test_pictures_are_written_as_png_and_pdf(tmp_path):
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    plots.save(figure, tmp_path / "a.png")
    assert is_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.jpg: the name of a picture must end in .png"):
        plots.save(figure, tmp_path / "a.jpg")


def test_plot_curves(tmp_path, figures):
    with Run(tmp_path, {}) as run:
        with pytest.raises(ValueError, match="no metrics"):
            plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
        for step in range(3):
            run.log(step, {"kl": 1.0, "eval/return/trajectory_1": step, "eval/return/trajectory_2": step**2})
        run.log(3, kl=2.0)
    references = {"oracle": 0.88, "search": [0.66, 0.77, 0.89]}
    plot_curves(
        tmp_path / "metrics.csv",
        tmp_path / "curves.png",
        references,
        {"eval/return/trajectory_2": 5.0, "eval/success/1": 1},
    )
    (figure,) = figures
    returns, kl, found = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["eval: return", "kl", "eval: success"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"environment steps"}
    assert [axes.get_ylabel() for axes in figure.axes] == ["return / horizon", "no unit", "share of episodes"]
    drawn = lines(returns)
    assert drawn["trajectory 1"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert drawn["trajectory 2"].tolist() == [[0, 0], [1, 1], [2, 4]]
    assert set(drawn["oracle: 0.88"][:, 1]) == {0.88} and set(drawn["search, trajectory 3: 0.89"][:, 1]) == {0.89}
    colors = {line.get_label(): line.get_color() for line in returns.get_lines()}
    assert colors["trajectory 2"] != colors["trajectory 1"]
    stars = [[line for line in axes.get_lines() if line.get_marker() == "*"][0] for axes in (returns, found)]
    assert [star.get_xydata().tolist() for star in stars] == [[[3, 5]], [[3, 1]]]
    assert stars[0].get_color() == colors["trajectory 2"]
    assert len(lines(kl)) == 1  # no references, no star


@pytest.fixture
def paths():
    """Positions [2, 3, 9, 2] of 2 tasks with 3 trajectories, one of which ends after 5 steps."""
    paths = torch.randn(2, 3, 9, 2, generator=torch.Generator().manual_seed(0)).cumsum(2)
    paths[0, 1, 5:] = torch.nan
    return paths


def test_plot_trajectories(paths, figures):
    subgoals = torch.zeros(2, 3, 9, 2, 3)  # of 2 levels, in a space of 3 entries
    subgoals[..., 0, 0] = torch.arange(9) // 3  # the lower level's change every 3 steps
    subgoals[..., 1, 1] = 7
    found, walls = [[False, True, True], [False, False, False]], np.array([[-20, -1, 20, 0], [3, 3, 4, 30]])
    candidates = torch.tensor([[5.0, 5.0, 0.0], [6.0, 5.0, 0.0]])
    options = {"subgoals": subgoals, "found": found, "walls": walls, "candidates": candidates, "names": ["a", "b"]}
    plot_trajectories("", paths, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.5, **options)
    (figure,) = figures
    *panels, bar = figure.axes
    results = ["not found", "found", "found", "not found", "not found", "not found"]
    names = [f"{task}, trajectory {k}" for task in "ab" for k in (1, 2, 3)]
    assert [axes.get_title() for axes in panels] == [
        f"{name}: {word}" for name, word in zip(names, results, strict=True)
    ]
    frames = [axes.spines["left"].get_edgecolor() for axes in panels]
    assert frames[1] == frames[2] == to_rgba(plots.GOAL_COLOR) and len(set(frames)) == 2
    assert [axes.get_xlabel() for axes in panels] == [""] * 3 + ["x, metres"] * 3
    assert [axes.get_ylabel() for axes in panels] == [
        "y, metres",
        "",
        "",
    ] * 2 and bar.get_ylabel() == "environment steps"
    for i, axes in enumerate(panels):
        (goal,) = (patch for patch in axes.patches if isinstance(patch, Circle))
        assert (goal.center, goal.radius) == ([(1, 2), (3, 4)][i // 3], 0.5)
        drawn = [patch.get_bbox().extents.tolist() for patch in axes.patches if isinstance(patch, Rectangle)]
        assert drawn == walls.tolist()
        assert axes.get_xlim()[0] < -20 and axes.get_xlim()[1] > 20 and axes.get_ylim()[1] > 30
        marks = {marks.get_label(): marks for marks in axes.collections}
        assert marks["subgoals, level 0"].get_offsets().tolist() == [[0, 0], [1, 0], [2, 0]]
        assert marks["subgoals, level 1"].get_offsets().tolist() == [[0, 7]]
        assert marks["possible goals"].get_offsets().tolist() == candidates[:, :2].tolist()
        for level in (0, 1):
            color = marks[f"subgoals, level {level}"].get_facecolor()[0, :3]
            np.testing.assert_allclose(color, LEVEL_COLOURS[level][:3], atol=1 / 255)
        (path,) = (marks for marks in axes.collections if hasattr(marks, "get_segments"))
        np.testing.assert_allclose(np.stack(path.get_segments())[:, 1], paths[i // 3, i % 3, 1 : 5 if i == 1 else 9])
        brightness = path.get_colors()[:, 0]
        assert (np.diff(brightness) < 0).all()  # from light to dark
        assert brightness[0] == panels[1].collections[-3].get_colors()[0, 0]  # one scale of time for all panels


def test_plot_trajectories_without_extras(paths, tmp_path, figures):
    plot_trajectories("", paths[:1, :1], [[1.0, 2.0]], 0.5)
    panel, _ = figures[0].axes
    assert panel.get_title() == "task 1, trajectory 1"
    (path,) = panel.collections
    assert path.get_colors()[0].tolist() != path.get_colors()[-1].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.zeros(3, 9, 2)}, r"positions \(3, 9, 2\): must be \[any, any, any, 2\]"),
        ({"goals": torch.zeros(3, 2)}, r"goals \(3, 2\): must be \[2, 2\] or more"),
        ({"subgoals": torch.zeros(2, 3, 9, 2)}, r"subgoals .*: must be \[2, 3, 9, any, 2\]"),
        ({"found": [True, False]}, r"found \(2,\): must be \[2, 3\]$"),
        ({"walls": torch.zeros(1, 2)}, r"walls \(1, 2\): must be \[any, 4\]$"),
        ({"candidates": torch.zeros(2)}, r"candidates \(2,\): must be \[any, 2\]"),
    ],
)
def test_plot_trajectories_names_wrong_shapes(paths, change, message):
    with pytest.raises(ValueError, match=message):
        plot_trajectories("", **{"positions": paths, "goals": torch.ones(2, 2), "tolerance": 1.0, **change})


def test_plot_by_trajectory(figures):
    methods = {"PEACH": [[0.2, 0.4, 0.5], [0.1, 0.3, 0.3], [0.3, 0.5, 0.6]], "one seed": [0.2, 0.2, 0.1]}
    plot_by_trajectory("", methods, {"oracle": 0.88, "search": [0.6, 0.7, 0.8]}, "success, share")
    (axes,) = figures[0].axes
    drawn = lines(axes)
    assert drawn["PEACH"][:, 1].tolist() == [0.2, 0.4, 0.5] and drawn["one seed"][:, 1].tolist() == [0.2, 0.2, 0.1]
    assert drawn["search"].tolist() == [[1, 0.6], [2, 0.7], [3, 0.8]] and drawn["oracle: 0.88"][0, 1] == 0.88
    (intervals,) = axes.collections
    ends = [[(drawn["PEACH"][k, 0], methods["PEACH"][i][k]) for i in (1, 2)] for k in range(3)]
    np.testing.assert_allclose(intervals.get_segments(), ends)
    assert np.abs(drawn["PEACH"][:, 0] - [1, 2, 3]).max() < 0.1  # moved aside a little
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trajectory number", "success, share")
    for wrong in ({}, {"a": [[1, 2], [1, 2]]}, {"a": [1, 2], "b": [1, 2, 3]}):
        with pytest.raises(ValueError, match="with the same K >= 1"):
            plot_by_trajectory("", wrong)
    with pytest.raises(ValueError, match=r"reference search = \[1, 2\]: give one number, or one for each of 3"):
        plot_by_trajectory("", methods, {"search": [1, 2]})


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_plot_posterior(tmp_path, size):
    loc = torch.randn(6, size, generator=torch.Generator().manual_seed(0))
    png = tmp_path / "posterior.png"
    assert plot_posterior(png, loc, torch.ones(6, size), torch.arange(6), "direction (rad)") is (size > 0)
    assert png.exists() is (size > 0)
    assert size == 0 or is_picture(png)


def test_posterior_projection_keeps_distances_of_planar_means():
    # Means in a plane of 4 dimensions: their distances survive, and so does an isotropic deviation.
    generator = np.random.default_rng(0)
    plane = np.linalg.qr(generator.normal(size=(4, 2)))[0]
    flat = generator.normal(size=(7, 2))
    centre, covariance = _project(flat @ plane.T, np.full((7, 4), 0.5))
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, centre)]
    np.testing.assert_allclose(*distances)
    np.testing.assert_allclose(covariance, np.broadcast_to(0.25 * np.eye(2), (7, 2, 2)), atol=1e-12)


def test_ellipse_has_one_sigma_half_axes_along_the_right_directions():
    ellipse = _ellipse(np.zeros(2), np.diag([9.0, 4.0]), "k")
    outline = ellipse.get_patch_transform().transform(ellipse.get_path().vertices)
    np.testing.assert_allclose(np.abs(outline).max(axis=0), [3.0, 2.0], atol=1e-6)


RECIPE = """
import dataclasses
from pathlib import Path
from peach_trl.config import ConfigError, option
from peach_trl.utils import Run, recipe

@dataclasses.dataclass(frozen=True)
class Level:
    depth: int = option(low=1, help="number of levels")
    gamma: float = option(above=0, below=1, help="discount")
    sizes: tuple[int, ...] = option(low=1, help="hidden sizes")

@dataclasses.dataclass(frozen=True)
class Tiny:
    seed: int = option(low=0, help="seed of the run")
    lr: float = option(above=0, help="learning rate")
    level: Level

    def check(self):
        if self.seed == 13 and self.level.depth == 2:
            raise ConfigError("seed = 13: must not be 13 with level.depth = 2; change seed")

@recipe(Tiny, config_name="tiny")
def main(config: Tiny, run_dir: Path) -> None:
    if config.seed == 99:
        raise ConfigError("seed = 99: found bad by the body; change seed")
    with Run(run_dir, config) as run:
        run.log(0, depth=config.level.depth)

if __name__ == "__main__":
    main()
"""
YAML = """
defaults:
  - base
  - _self_
seed: 0
lr: 1e-3
level:
  depth: 1
  gamma: 0.9
  sizes: [8]
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Starts a small recipe with some arguments, in a folder of its own."""
    for name in ("recipes", "configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipes" / "tiny.py").write_text(RECIPE)
    (tmp_path / "configs" / "tiny.yaml").write_text(YAML)
    shutil.copy(ROOT / "configs" / "base.yaml", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def start(*arguments):
        command = [sys.executable, "recipes/tiny.py", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def ended(process):
    """The exit code and stderr of a process."""
    _, errors = process.communicate(timeout=100)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["level.dept=1"], ["level.dept = 1: unknown key", "did you mean level.depth?"]),
        (["+extra=1"], ["extra = 1: unknown key"]),
        (["level.depth=0"], ["level.depth = 0: must be >= 1", "set level.depth"]),
        (["level.gamma=1.5"], ["level.gamma = 1.5: must be < 1", "set level.gamma"]),
        (["level.sizes=[8,-1]"], ["level.sizes[1] = -1: must be >= 1", "hidden sizes"]),
        (["-m", "level.depth=1,2", "seed=0,13"], ["seed = 13: must not be 13"]),
    ],
)
def test_bad_command_lines_end_before_anything_runs(tiny, tmp_path, monkeypatch, capsys, arguments, parts):
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("recipes/tiny.py", run_name="__main__")
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert [part for part in parts if part not in errors] == []
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_error_of_the_body_leaves_no_files(tiny, tmp_path):
    code, errors = ended(tiny("seed=99"))
    assert (code, errors) == (2, "Configuration error: seed = 99: found bad by the body; change seed\n")
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


@pytest.mark.processes
def test_two_runs_have_two_folders(tiny, tmp_path):
    for process in [tiny("seed=5"), tiny("seed=5")]:
        code, errors = ended(process)
        assert code == 0, errors
    folders = list((tmp_path / "runs" / "tiny").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert {p.name for p in folder.iterdir()} == {"config.yaml", "manifest.json", "metrics.csv"}
        assert manifest(folder)["seeds"] == {"seed": 5}
        assert OmegaConf.load(folder / "config.yaml").lr == 0.001


@pytest.mark.processes
def test_sweep(tiny, tmp_path):
    code, errors = ended(tiny("-m", "level.depth=1,2", "seed=1,2", "hydra.job.chdir=false"))
    assert code == 0, errors
    folders = sorted(p.parent for p in tmp_path.glob("runs/tiny/sweep_*/*/manifest.json"))
    configs = [OmegaConf.load(folder / "config.yaml") for folder in folders]
    assert [(c.level.depth, c.seed) for c in configs] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert folders[0].name == "0_depth-1_seed-1"
    assert all(manifest(folder)["finished"] for folder in folders)
