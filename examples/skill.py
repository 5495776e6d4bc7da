"""A goal-reaching level under another high level: here one that walks a square, by hand.

    python recipes/peach.py env=AntHalfCircle train.iterations=0 train.prefill=0
    python examples/skill.py runs/peach/.../checkpoints/levels.pt

The level is a TensorDictModule that reads `observation` and `goal`, a place for it to reach, and writes `action`. So
any module that writes `goal` can stand above it: a planner, an agent of TorchRL's, or a few lines of Python.
"""

from __future__ import annotations

import sys

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.envs import FAMILIES
from peach_trl.experiment import load_levels

CORNERS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])


class Square:
    """Asks for the corners of a square one after the other, each for so many steps.

    Args:
        side: of the square, in metres.
        steps: environment steps for each corner.
    """

    def __init__(self, side: float, steps: int) -> None:
        self.corners, self.steps, self.step = side * CORNERS, steps, 0

    def __call__(self, observation: Tensor) -> Tensor:
        """[N, D] to [N, 2]."""
        corner = self.corners[self.step // self.steps % len(self.corners)]
        self.step += 1
        return corner.expand(len(observation), 2)


def walk(checkpoint: str, env: EnvBase, side: float = 1.5, steps: int = 50) -> Tensor:
    """Walks around the square once; returns the distance from each corner when its time is up, [N, 4], metres."""
    hierarchy, (level, *_) = load_levels(checkpoint)
    square = TensorDictModule(Square(side, steps), in_keys=["observation"], out_keys=["goal"])
    policy = TensorDictSequential(square, level.actor)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        batch = env.rollout(4 * steps, policy, break_when_any_done=False)
    place = hierarchy.subgoal_space.project(batch["next", "observation"])[:, steps - 1 :: steps]
    return (place - side * CORNERS).norm(dim=-1)


if __name__ == "__main__":
    print(walk(sys.argv[1], FAMILIES["AntHalfCircle"](num_envs=4, seed=0)))
