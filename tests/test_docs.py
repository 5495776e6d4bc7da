"""The Python examples of the documents run as they stand."""

import json
import re

import pytest
from tiny import ROOT

BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    except RuntimeError as error:
        if "MuJoCo cannot draw here" in str(error):
            pytest.skip(str(error))
        raise


def test_there_are_examples():
    assert len(BLOCKS) >= 5


NAMED = re.findall(r"`([\w/]+\.py)` `([^`]+)`", (ROOT / "docs" / "algorithm.md").read_text())


@pytest.mark.parametrize(("path", "code"), NAMED, ids=[f"{path}: {code[:30]}" for path, code in NAMED])
def test_lines_that_are_named_are_there(path, code):
    lines = [line for line in (ROOT / path).read_text().splitlines() if code in line]
    assert len(lines) == 1, f"docs/algorithm.md: `{code}` stands {len(lines)} times in {path}"


def test_lines_are_named():
    assert len(NAMED) >= 30


def test_the_reference_has_all_modules():
    text = (ROOT / "docs" / "conf.py").read_text()
    pages = re.search(r"^PAGES = \{.*?^\}", text, re.DOTALL | re.MULTILINE)[0]
    named = set(re.findall(r'"(\w+)"', pages))
    package = {
        path.stem for path in (ROOT / "peach_trl").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert package - named == {"__init__", "__main__"}


def test_notebooks_are_kept_without_outputs():
    """The site's build carries them out."""
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells), path
