"""A long run takes no more memory, and leaves no more files, than it did early on."""

import os
import subprocess
import sys
import time

import pytest
from tiny import ROOT, TINY

MINUTES = float(os.environ.get("PEACH_TRL_SOAK_MINUTES", "30"))
CHANGES = {  # of TINY: a body that falls, so that sequences are of many lengths
    "env": "HopperRandParams",
    "env.horizon": "60",
    "train.iterations": "1000000",
    "train.top_updates": "20",
    "evaluation.every": "5",
    "checkpoint.every": "3",
}
GONE = ("env.radius", "env.goal_tolerance", "hierarchy.decision_steps")


def resident(pid):
    """Megabytes of memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the memory")
def test_memory_and_files_stay_as_they_are(tmp_path):
    """``PEACH_TRL_SOAK_MINUTES`` says how long, 30 by default."""
    kept = [argument for argument in TINY if argument.split("=")[0] not in (*CHANGES, *GONE)]
    arguments = [f"{key}={value}" for key, value in CHANGES.items()]
    command = [sys.executable, str(ROOT / "recipes" / "peach.py"), *arguments, *kept, "hierarchy.decision_steps=4"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [*command, f"hydra.run.dir={tmp_path / 'run'}"], cwd=tmp_path, stdout=said, stderr=said
        )
    samples, until = [], time.monotonic() + 60 * MINUTES
    try:
        while time.monotonic() < until:
            time.sleep(2)
            assert process.poll() is None, (tmp_path / "said").read_text()[-2000:]
            files = sum(len(names) for *_, names in os.walk(tmp_path / "run"))  # some vanish while it looks
            samples.append((resident(process.pid), files))
    finally:
        process.kill()
        process.wait()
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    most = [max(memory for memory, _ in part) for part in (middle, last)]
    assert most[1] < 1.02 * most[0] + 20, f"{most[0]:.0f} MB, then {most[1]:.0f} MB"
    assert max(files for _, files in last) <= max(files for _, files in middle)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 20 * MINUTES
