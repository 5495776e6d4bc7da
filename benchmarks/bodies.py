"""What an ant costs by how it is simulated: CPU microseconds of an environment step, and speed against real time.

    python benchmarks/bodies.py                          # configs/body, and what each of their options does alone
    python benchmarks/bodies.py rows=8 rounds=3 steps=20

Uniform actions, one thread, rows that are reset together. The bodies take turns, ``steps`` steps at a time, over
``rounds`` rounds; medians. The rows between ``gymnasium`` and ``fast`` change one or two options of the first, which
shows what makes the difference. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from peach_trl.envs import FAMILIES
from peach_trl.envs.families.body_options import FAST, GYMNASIUM

BODIES = {
    "`gymnasium`": GYMNASIUM,
    "- no contact forces": replace(GYMNASIUM, contact_forces=False),
    "- Euler": replace(GYMNASIUM, integrator="euler"),
    "- a fifth of the torque": replace(GYMNASIUM, torque=FAST.torque),
    "- ten substeps": replace(GYMNASIUM, substeps=FAST.substeps),
    "- no contact forces, Euler": replace(GYMNASIUM, contact_forces=False, integrator="euler"),
    "`fast`": FAST,
}
DEFAULTS = {"rows": 128, "rounds": 7, "steps": 50}


def environment(rows: int, body: Any) -> Any:
    """An ant that was reset and has moved, so that it touches the ground."""
    env: Any = FAMILIES["AntGoal"](num_envs=rows, split="train", seed=0, body=body)
    env.reset()
    return env


def move(env: Any, actions: np.ndarray) -> float:
    """CPU seconds of steps under actions [T, N, A]."""
    start = time.process_time()
    for action in actions:
        env.advance(action)
    return time.process_time() - start


def main() -> None:
    """Prints a row for each body."""
    chosen = dict(DEFAULTS)
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name not in DEFAULTS or not value.isdigit() or not int(value):
            raise SystemExit(f"{word}: unknown; use {', '.join(f'{name}=a number' for name in DEFAULTS)}")
        chosen[name] = int(value)
    torch.set_num_threads(1)
    rows, rounds, steps = chosen.values()
    envs = {name: environment(rows, body) for name, body in BODIES.items()}
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in envs}
    for turn in range(rounds + 1):
        actions = random.uniform(-1, 1, (steps, rows, 8)).astype(np.float32)
        for name, env in envs.items():
            env.reset()
            spent = move(env, actions) / (rows * steps)
            if turn:  # the first one warms up
                found[name].append(spent)
    print("| body | us a step | us a second of simulation | times real time | a second, gymnasium = 1 |")
    print("|---|---|---|---|---|")
    base = statistics.median(found["`gymnasium`"]) / envs["`gymnasium`"].dt
    for name, env in envs.items():
        step = statistics.median(found[name])
        second = step / env.dt
        print(f"| {name} | {1e6 * step:.0f} | {1e6 * second:.0f} | {1 / second:.0f} | {second / base:.2f} |")


if __name__ == "__main__":
    main()
