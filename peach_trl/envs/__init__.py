"""Environments: batched MuJoCo simulation, task libraries and goal spaces."""

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv, EnvOptions
from peach_trl.envs.errors import NotFiniteError
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.point import PointConfig, PointEnv
from peach_trl.envs.tasks import TaskLibrary, draw_library, half_circle_tasks

__all__ = [
    "BatchedMujocoEnv",
    "EnvOptions",
    "GoalSpace",
    "NotFiniteError",
    "PointConfig",
    "PointEnv",
    "TaskLibrary",
    "draw_library",
    "half_circle_tasks",
]
