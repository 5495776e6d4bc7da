"""The package as pip installs it: recipes and configs go along, and run in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from tiny import ROOT, TINY

import peach_trl
from peach_trl.utils.installed import recipes

SECONDS = 240


def run(arguments, folder, package, check=True):
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=check)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The content of a wheel, built from the content of an sdist, as on an index."""
    folder = tmp_path_factory.mktemp("dist")
    build = "from hatchling import build; import sys; print(build.{}(sys.argv[1]))"
    run(["-c", build.format("build_sdist"), str(folder)], ROOT, "")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    source = archive.with_name(archive.name.removesuffix(".tar.gz"))
    assert {path.name for path in source.iterdir()} >= {"recipes", "configs", "tests", "docs", "Makefile", "README.md"}
    run(["-c", build.format("build_wheel"), str(folder)], source, "")
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.processes
def test_a_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    assert not (wheel / "recipes").exists() and (wheel / "peach_trl" / "configs" / "env" / "Wind.yaml").is_file()
    said = run(["-m", "peach_trl", "pearl", *TINY, "hydra.run.dir=run"], tmp_path, wheel).stdout
    assert "trajectory 2" in said and (tmp_path / "run" / "checkpoints" / "final.pt").is_file()
    said = run(
        ["-m", "peach_trl", "evaluate", "checkpoint=run/checkpoints/final.pt", "trajectories=2", "rollouts=1"],
        *(tmp_path, wheel),
    ).stdout
    assert "trajectory 2" in said
    said = run(["-m", "peach_trl", "evaluate", "trajectories=1", "split=validation"], tmp_path, wheel).stdout
    assert "meta-test on the validation tasks, 60 rollouts" in said  # of the agent that goes along
    code = (
        "from peach_trl import PeachConfig, load_config; import peach_trl;"
        "print(load_config(PeachConfig, 'peach').hierarchy.depth, peach_trl.__file__)"
    )
    depth, place = run(["-c", code], tmp_path, wheel).stdout.split()
    assert depth == "2" and place.startswith(str(wheel))


def test_the_command_says_what_there_is(tmp_path):
    said = run(["-m", "peach_trl"], tmp_path, ROOT).stdout
    assert all(f"  {name} " in said for name in recipes()) and {"peach", "pearl", "hac", "video"} <= set(recipes())
    wrong = run(["-m", "peach_trl", "paech"], tmp_path, ROOT, check=False)
    assert wrong.returncode == 2 and wrong.stderr == "peach-trl paech: no such recipe; did you mean peach?\n"
    key = run(["-m", "peach_trl", "peach", "hierarchy.dept=3"], tmp_path, ROOT, check=False)
    assert key.returncode == 2 and "did you mean hierarchy.depth" in key.stderr
    assert run(["-m", "peach_trl", "--version"], tmp_path, ROOT).stdout.strip() == peach_trl.__version__
    assert not list(tmp_path.iterdir())


def test_names_at_the_top():
    for name in peach_trl.__all__:
        assert getattr(peach_trl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        peach_trl.Agnet  # noqa: B018
    assert {*peach_trl.__all__, "envs", "__version__"} <= {*dir(peach_trl)}
    code = "import peach_trl, sys; peach_trl.__version__; print('torch' in sys.modules)"
    assert run(["-c", code], ROOT, ROOT).stdout.strip() == "False"
