"""Run folders, plots, and the command line of a recipe."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from peach_trl.utils import Run, load_checkpoint, plot_curves, plot_posterior, plot_trajectories
from peach_trl.utils.plots import _ellipse, _project

ROOT = Path(__file__).parent.parent


def rows(run):
    with open(run.folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_manifest_and_config(tmp_path):
    with Run(tmp_path / "run", {"seed": 3, "eval": {"seeds": [1, 2]}, "lr": 1e-3}, tensorboard=False) as run:
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
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {}, tensorboard=False):
        _ = 1 / 0
    assert manifest(tmp_path)["finished"] is False
    assert manifest(tmp_path)["error"].startswith("ZeroDivisionError")


def test_runs_are_never_overwritten(tmp_path):
    with Run(tmp_path, {"seed": 1}, tensorboard=False) as run:
        run.log(0, a=1)
    with pytest.raises(FileExistsError, match="never overwritten; give another folder"):
        Run(tmp_path, {"seed": 2}, tensorboard=False)
    assert manifest(tmp_path)["seeds"] == {"seed": 1}
    assert rows(run) == [{"step": "0", "a": "1"}]


def test_late_columns_and_rows_on_disk_before_the_end(tmp_path):
    run = Run(tmp_path, {}, tensorboard=False)
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
    with Run(tmp_path, {}, tensorboard=False) as run, pytest.raises(ValueError, match="metric a = "):
        run.log(0, a=value)


def test_tensorboard_has_the_same_numbers(tmp_path):
    run = Run(tmp_path, {})
    run.log(1, {"loss/critic": 0.5})
    run.log(2, {"loss/critic": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic")] == [(1, 0.5), (2, 0.25)]
    run.finish()


def test_checkpoints(tmp_path):
    with Run(tmp_path, {}, tensorboard=False) as run:
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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    with Run(tmp_path, {}, tensorboard=False) as run:
        path = run.checkpoint("last", {"weights": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    data[at] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(path)


def is_picture(png):
    return png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 3000


def test_plot_curves(tmp_path):
    with Run(tmp_path, {}, tensorboard=False) as run:
        with pytest.raises(ValueError, match="no metrics"):
            plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
        for step in range(3):
            run.log(step, {"return/1": step, "return/2": step**2, "kl": 1.0})
        run.log(3, late=2.0)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")


def test_plot_trajectories(tmp_path):
    paths = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    paths[1, 5:] = torch.nan
    subgoals = paths[:, :1].expand_as(paths).clone()
    png = tmp_path / "paths.png"
    plot_trajectories(png, paths, torch.ones(4, 2), 1.0, subgoals, arena=5.0, titles=list("abcd"), columns=2)
    assert is_picture(png)
    with pytest.raises(ValueError, match="subgoals"):
        plot_trajectories(png, paths, torch.ones(4, 2), 1.0, subgoals[:2])
    with pytest.raises(ValueError, match="goals"):
        plot_trajectories(png, paths, torch.ones(3, 2), 1.0)


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
    with Run(run_dir, config, tensorboard=False) as run:
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


def test_sweep(tiny, tmp_path):
    code, errors = ended(tiny("-m", "level.depth=1,2", "seed=1,2", "hydra.job.chdir=false"))
    assert code == 0, errors
    folders = sorted(p.parent for p in tmp_path.glob("runs/tiny/sweep_*/*/manifest.json"))
    configs = [OmegaConf.load(folder / "config.yaml") for folder in folders]
    assert [(c.level.depth, c.seed) for c in configs] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert folders[0].name == "0_level.depth=1,seed=1"
    assert all(manifest(folder)["finished"] for folder in folders)
