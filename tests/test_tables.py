"""From run folders to the table of results."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from peach_trl.utils.statistics import interval
from peach_trl.utils.tables import find_runs, intervals, markdown, read_methods, read_run, write_csv

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results.py"
HEADER = ["split", "task", "rollout", "trajectory", "return", "success", "found"]


def write_run(folder, seed=0, split="test", tasks=(4, 10), fingerprint="a1b2", rows=None, **facts):
    """A finished run of 2 rollouts and 2 trajectories, of return seed + task / 100 + rollout / 10 + trajectory."""
    folder.mkdir(parents=True)
    manifest = {"seeds": {"seed": seed}, "finished": True, "wall_seconds": 60.0, "tasks": {"fingerprint": fingerprint}}
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))
    if rows is None:
        keys = [(task, rollout, k) for task in tasks for rollout in (0, 1) for k in (1, 2)]
        rows = [(split, t, r, k, seed + t / 100 + r / 10 + k, r == 1, 1.0) for t, r, k in keys]
    with open(folder / "meta_test.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder


def edited(folder, change):
    """The rows of a run of that folder with a change to the list of them."""
    with open(write_run(folder / "source") / "meta_test.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return change(rows)


def test_the_minutes_of_seeds_at_once_are_shared(tmp_path):
    folder = write_run(tmp_path / "a", 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seeds_at_once": 4}))
    assert read_run(folder).minutes == 0.25


def test_a_run_is_averaged_over_rollouts(tmp_path):
    shuffled = edited(tmp_path, lambda rows: rows[::-1])
    for run in (read_run(write_run(tmp_path / "a", 4)), read_run(write_run(tmp_path / "b", 4, rows=shuffled))):
        assert (run.seed, run.split, run.tasks, run.fingerprint, run.minutes) == (4, "test", ("4", "10"), "a1b2", 1.0)
        offset = 4 if run.folder.name == "a" else 0
        np.testing.assert_allclose(run.scores["return"] - offset, [[1.09, 2.09], [1.15, 2.15]])
        assert run.scores["success"].tolist() == [[0.5, 0.5]] * 2 and run.scores["found"].tolist() == [[1, 1]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "7 rows, not one for each of 2 tasks, 2 rollouts and 2 trajectories"),
        (lambda rows: [*rows[1:], rows[1]], "8 rows, not one"),
        (lambda rows: [*rows, rows[0]], "9 rows, not one"),
        (lambda rows: [[*rows[0][:4], "nan", "1", "1"], *rows[1:]], "not all values are numbers"),
        (lambda rows: [[*rows[0][:6], ""], *rows[1:]], "not all values are numbers"),
        (lambda rows: [row for row in rows if row[3] == "2"], r"trajectories \['2'\], not 1, 2"),
        (lambda rows: [["train", *rows[0][1:]], *rows[1:]], r"splits \['test', 'train'\]; keep one split"),
        (lambda rows: [], r"splits \[\]"),
    ],
)
def test_incomplete_tables_are_refused(tmp_path, change, message):
    folder = write_run(tmp_path / "a", rows=edited(tmp_path, change))
    with pytest.raises(ValueError, match=f"{folder}: meta_test.csv .*{message}"):
        read_run(folder)


def test_folders_that_hold_no_finished_run_are_refused(tmp_path):
    folder = write_run(tmp_path / "a", finished=False, error="KeyError: 'z'")
    with pytest.raises(ValueError, match=f"{folder}: the run did not finish .KeyError: 'z'.; leave it out"):
        read_run(folder)
    (write_run(tmp_path / "b") / "meta_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/b: no meta_test.csv; test its checkpoint"):
        read_run(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no manifest.json.*not one around it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fingerprint": "ffff"}, "fingerprint of tasks ffff, but .*/a has a1b2"),
        ({"split": "validation"}, "split validation, but .*/a has test"),
        ({"tasks": (4,)}, r"tasks \('4',\), but"),
        ({"rows": [("test", t, 0, 1, 1, 1, 1) for t in (4, 10)]}, "number of trajectories 1, but .*/a has 2"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, other, message):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", 1, **other)
    for folders in ({"X": [a, b]}, {"X": [a], "Y": [b]}):
        with pytest.raises(ValueError, match=f"{b}: {message}"):
            read_methods(folders)


def test_a_seed_twice_is_refused_within_a_method_only(tmp_path):
    a, b = write_run(tmp_path / "a", 5), write_run(tmp_path / "b", 5)
    with pytest.raises(ValueError, match=f"X: {a} and {b} both have seed 5; leave one of them out"):
        read_methods({"X": [a, b]})
    assert list(read_methods({"X": [a], "Y": [b]})) == ["X", "Y"]


def test_find_runs(tmp_path):
    for name in ("00", "01", "10", "seed=1,depth=2"):
        (tmp_path / name).mkdir()
    (tmp_path / "multirun.yaml").touch()

    def names(patterns):
        return [path.name for path in find_runs(patterns)]

    assert names(f"{tmp_path}/0*,{tmp_path}/10") == ["00", "01", "10"]
    assert names(f"{tmp_path}/*") == ["00", "01", "10", "seed=1,depth=2"]
    assert names(f"{tmp_path}/seed=1,depth=2") == ["seed=1,depth=2"]
    with pytest.raises(FileNotFoundError, match="2.: no such folder; give folders of runs"):
        find_runs(f"{tmp_path}/0*,{tmp_path}/2*")


@pytest.fixture
def methods(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path / "peach" / str(seed), seed, wall_seconds=60.0 * (seed + 1) ** 2)
    write_run(tmp_path / "hac", 7)
    return read_methods({"PEACH": find_runs(f"{tmp_path}/peach/*"), "HAC": [tmp_path / "hac"]})


def test_the_table(methods):
    # By hand: returns of trajectory 2 are seed + 2.09 and seed + 2.15; of the six, int(6 / 4) = 1 goes at either end.
    header, _, peach, hac = markdown(methods).splitlines()
    assert header == "| method | trajectory 1 | trajectory 2 | seed means, trajectory 2 | seeds | minutes |"
    _, name, first, second, spread, seeds, minutes, _ = map(str.strip, peach.split("|"))
    assert (name, seeds, minutes, spread) == ("PEACH", "3", "4.0", "2.12 to 4.12")
    assert first.startswith("2.12 [") and second.startswith("3.12 [")
    scores = np.array([[2.09, 2.15], [3.09, 3.15], [4.09, 4.15]])
    assert intervals(methods["PEACH"])[1] == pytest.approx(interval(scores))
    assert intervals(methods["PEACH"], over="seeds")[1] != intervals(methods["PEACH"])[1]
    assert intervals(methods["PEACH"], "success")[0] == (0.5, 0.5, 0.5)
    low, high = interval(scores)[1:]
    assert second == f"3.12 [{low:.2f}, {high:.2f}]"
    assert hac.startswith("| HAC | 8.12 [8.09, 8.15] | 9.12")


def test_the_csv(methods, tmp_path):
    write_csv(methods, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], row["trajectory"]) for row in rows] == [
        *(("PEACH", str(seed), str(k)) for seed in (0, 1, 2) for k in (1, 2)),
        *(("HAC", "7", str(k)) for k in (1, 2)),
    ]
    assert [float(row["return"]) for row in rows] == pytest.approx([1.12, 2.12, 2.12, 3.12, 3.12, 4.12, 8.12, 9.12])
    assert {(row["success"], row["found"]) for row in rows} == {("0.5", "1")}


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(RESULTS), *map(str, arguments)])
    runpy.run_path(str(RESULTS), run_name="__main__")


def test_the_script(methods, tmp_path, monkeypatch, capsys):
    more = ["--csv", tmp_path / "a.csv", "--figure", tmp_path / "a.png", "--reference", "oracle=9", "--over", "seeds"]
    run_script(monkeypatch, f"PEACH={tmp_path}/peach/*", f"HAC={tmp_path}/hac", *more)
    printed = capsys.readouterr().out
    assert printed.startswith(markdown(methods, over="seeds"))
    assert "95 % interval over seeds] on the 2 tasks of the split 'test' (fingerprint a1b2)" in printed
    assert (tmp_path / "a.csv").read_text().count("\n") == 9
    assert (tmp_path / "a.png").exists() and (tmp_path / "a.pdf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/*"], "must be NAME=VALUE"),
        (["X=runs/1", "X=runs/2"], "a name of its own each"),
        (["X=nowhere/*"], r"nowhere/\*: no such folder"),
    ],
)
def test_the_script_names_errors(monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=f"Error: .*{message}"):
        run_script(monkeypatch, *arguments)


def test_the_table_of_search_tasks(tmp_path, monkeypatch, capsys):
    facts = {"references": {"search": [1.0, 1.5]}, "env_steps": 1_530_000, "seeds_at_once": 2}
    for seed in (0, 1):
        write_run(tmp_path / f"a/{seed}", seed, **facts)
    csv_file = tmp_path / "out.csv"
    monkeypatch.setattr(sys, "argv", ["search.py", f"half circle={tmp_path}/a/*", "--csv", str(csv_file)])
    runpy.run_path(str(RESULTS.parent / "search.py"), run_name="__main__")
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|")]
    # returns of seed 0: 1.09 + 2.09 and 1.15 + 2.15, of seed 1: 2 more; the search has 2.5
    assert cells[:3] == ["half circle", "1.62 / 2.62", "1.00 / 1.50"]
    assert cells[3].startswith("1.70 [") and cells[4:] == ["1.70 (1.30)", "2", "0.5", "1.53"]
    assert csv_file.read_text().splitlines()[:2] == [
        "task,split,seed,share,return_1,return_2",
        "half circle,test,0,1.296,1.12,2.12",
    ]
    rows = ["step,train/success/level_0,train/success/level_1", *(f"{i},{i / 100},1" for i in range(20))]
    for seed in (0, 1):
        (tmp_path / f"a/{seed}/metrics.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(sys, "argv", ["search.py", f"half circle={tmp_path}/a/*", "--levels"])
    runpy.run_path(str(RESULTS.parent / "search.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert "subgoals reached" in printed[0] and printed[2].endswith("| 0.14 1.00 |")  # rows 10 to 19: .1 to .19
    write_run(tmp_path / "b/0")
    monkeypatch.setattr(sys, "argv", ["search.py", f"x={tmp_path}/b/*"])
    with pytest.raises(SystemExit, match="no searching policy"):
        runpy.run_path(str(RESULTS.parent / "search.py"), run_name="__main__")
