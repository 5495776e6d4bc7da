"""A video of a checkpoint's meta-test on held-out tasks, with the goals and the subgoals in force drawn in.

    python recipes/video.py checkpoint=runs/peach/.../checkpoints/final.pt
    python recipes/video.py checkpoint=... path=meta_test.mp4 split=validation tasks=5 trajectories=2

Tasks are side by side, their trajectories one after the other. The goal is green, and drawn although it is hidden from
the policy; the subgoals for level 0 are blue, for level 1 orange, for level 2 purple. Works without a display.

Values and their meaning: configs/video.yaml. Results: the run's folder under runs/video/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # isort: skip  # first: it checks keys before torch is imported
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.config import ConfigError, option
from peach_trl.envs.video import Video
from peach_trl.experiment import load_agent, make_env
from peach_trl.utils.cli import recipe
from peach_trl.utils.run import Run


@dataclass(frozen=True)
class VideoConfig:
    """What to show, and how large; see ``configs/video.yaml``."""

    checkpoint: str = option(help="a run's folder, or its checkpoints/final.pt; pretrained: this package's agent")
    path: str = option(help="the video: .gif, or with imageio-ffmpeg .mp4; relative to the run's folder")
    split: str = option(choices=("train", "validation", "test"), help="tasks to show")
    tasks: int = option(low=1, high=100, help="number of tasks, side by side")
    trajectories: int = option(low=1, high=10**4, help="trajectories of each task")
    width: int = option(low=16, high=10**4, help="of a task's picture, in pixels")
    height: int = option(low=16, high=10**4, help="likewise")
    camera: str | None = option(help="name of one of the model's cameras; null shows all of it, or follows the body")
    seed: int = option(low=0, high=2**62, help="of the draws of z")


@recipe(VideoConfig, config_name="video")
def main(config: VideoConfig, run_dir: Path) -> None:
    """Loads an agent with the configuration that it was trained with, and films a meta-test."""
    trained, library, agent = load_agent(config.checkpoint)

    split = library.split(config.split)
    tasks = split[torch.linspace(0, len(split) - 1, min(config.tasks, len(split))).round().long()]
    policy = agent.make_policy(config.trajectories, average=True, seed=config.seed).to("cpu")  # where policies act
    env = make_env(trained, library, tasks, policy)
    size = {"width": config.width, "height": config.height, "camera": config.camera}
    try:
        video = Video(env, run_dir / config.path, rows=range(len(tasks)), **size)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(str(error)) from None
    steps = config.trajectories * trained.env.horizon
    with video, Run(run_dir, config) as run:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            env.rollout(steps, video.watch(policy), break_when_any_done=False)
        run.finish(tasks=tasks.tolist(), frames=video.frames)
    print(f"{video.path}: tasks {tasks.tolist()}, {video.frames} frames")
    print(f"run folder: {run_dir}")


if __name__ == "__main__":
    main()
