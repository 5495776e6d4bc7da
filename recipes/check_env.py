"""Whether an environment suits a hierarchy, and which values to start from: random play, measured.

    python recipes/check_env.py env=gymnasium
    python recipes/check_env.py env=gymnasium env.options.env_id=my_module:MyEnv-v0 hierarchy.decision_steps=10

Values and their meaning: configs/check_env.yaml. What it prints is also in check.txt, in the run's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # first: it checks keys before torch is imported
from peach_trl.config import option
from peach_trl.envs.inspection import inspect
from peach_trl.experiment import PeachConfig, make_env, make_library, seed_everything
from peach_trl.utils.cli import recipe


@dataclass(frozen=True)
class CheckConfig(PeachConfig):
    """What is played; see ``configs/check_env.yaml``."""

    rows: int = option(low=1, high=10**4, help="training tasks that are played")
    episodes: int = option(low=1, high=10**4, help="of each of them")


@recipe(CheckConfig, config_name="check_env")
def main(config: CheckConfig, run_dir: Path) -> None:
    """Plays, and prints what that shows."""
    seed_everything(config)
    library = make_library(config)
    tasks = library.split("train")[: config.rows]
    env = make_env(config, library, tasks)
    print(library)
    print(f"{type(env).__name__}: {len(tasks)} rows, actions {list(env.action_spec.shape)[1:]}")
    try:
        reach = config.hierarchy.subgoal_reach if config.hierarchy.subgoal == "relative" else None
        length = config.hierarchy.top_steps, config.env.horizon
        found = inspect(env, *length, config.episodes, config.seed, subgoal_reach=reach)
    finally:
        env.close()
    text = "\n".join(found.lines())
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "check.txt").write_text(text + "\n")
    print(text)
    print(f"run folder: {run_dir}")


if __name__ == "__main__":
    main()
