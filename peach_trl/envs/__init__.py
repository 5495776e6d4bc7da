"""Environments: batched MuJoCo simulation, task families, goal spaces, and Gymnasium in both directions.

Importing this package registers every family for plain Gymnasium use, as ``peach_trl/<Family>-v<version>``.
"""

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv, EnvOptions
from peach_trl.envs.errors import NotFiniteError
from peach_trl.envs.families import FAMILIES, FamilyConfig, TaskFamily, register_family
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_api import FamilyGymnasiumEnv, register_families
from peach_trl.envs.gymnasium_tasks import GymnasiumTasksEnv, TasksOptions
from peach_trl.envs.made import MadeConfig
from peach_trl.envs.point import PointConfig, PointEnv
from peach_trl.envs.tasks import TaskLibrary, circle_tasks, draw_library, half_circle_tasks, square_tasks
from peach_trl.envs.video import Video, record_video, render_row

__all__ = [
    "FAMILIES",
    "BatchedMujocoEnv",
    "EnvOptions",
    "FamilyConfig",
    "FamilyGymnasiumEnv",
    "GoalSpace",
    "GymnasiumTasksEnv",
    "MadeConfig",
    "NotFiniteError",
    "PointConfig",
    "PointEnv",
    "TaskFamily",
    "TaskLibrary",
    "TasksOptions",
    "Video",
    "circle_tasks",
    "draw_library",
    "half_circle_tasks",
    "record_video",
    "register_families",
    "register_family",
    "render_row",
    "square_tasks",
]
