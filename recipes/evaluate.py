"""Meta-test of a checkpoint, by trajectory, on held-out tasks.

    python recipes/evaluate.py checkpoint=runs/peach/.../checkpoints/final.pt
    python recipes/evaluate.py checkpoint=... split=validation rollouts=10 trajectories=5

Values and their meaning: configs/evaluate.yaml. Results: the run's folder under runs/evaluate/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # first: it checks keys before torch is imported
from peach_trl.config import option
from peach_trl.experiment import load_agent, stored_config
from peach_trl.meta_tests import bounds_of, print_meta_test, run_meta_test, save_meta_test
from peach_trl.utils.cli import recipe
from peach_trl.utils.files import checkpoint_file
from peach_trl.utils.run import Run


@dataclass(frozen=True)
class EvaluateConfig:
    """What to test, and how often; see ``configs/evaluate.yaml``."""

    checkpoint: str = option(help="a run's folder, or its checkpoints/final.pt; pretrained: this package's agent")
    split: str = option(choices=("train", "validation", "test"), help="tasks to test on")
    rollouts: int = option(low=1, high=10**4, help="independent meta-tests of each task")
    trajectories: int = option(low=1, high=10**4, help="trajectories of a meta-test")
    seed: int = option(low=0, high=2**62, help="of the draws of z")


@recipe(EvaluateConfig, config_name="evaluate")
def main(config: EvaluateConfig, run_dir: Path) -> None:
    """Loads an agent with the configuration that it was trained with, and tests it."""
    trained, library, agent = load_agent(config.checkpoint)
    evaluation = replace(trained.evaluation, rollouts=config.rollouts, trajectories=config.trajectories)
    trained = replace(trained, evaluation=evaluation)

    with Run(run_dir, config) as run:
        result = run_meta_test(agent, trained, library, config.split, config.seed)
        save_meta_test(run, trained, library, result, config.split)
        bounds = bounds_of(trained, library, config.split)
        run.log(0, result.metrics("eval/"))
        facts, stored = training_facts(config.checkpoint), stored_config(config.checkpoint)
        trained_run = {"seed": trained.seed, **facts, "config": stored}
        run.finish(**result.metrics(), references=bounds, tasks=library.identity(), trained=trained_run)
    print_meta_test(result, config.split, bounds)
    print(f"run folder: {run_dir}")


def training_facts(checkpoint: str) -> dict[str, float]:
    """How long the training took, as the manifest beside the checkpoint has it; nothing where there is none."""
    path = checkpoint_file(checkpoint).parent.parent / "manifest.json"
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    return {name: manifest[name] for name in ("wall_seconds", "env_steps", "seeds_at_once") if name in manifest}


if __name__ == "__main__":
    main()
