"""Environments: batched MuJoCo simulation, task libraries and goal spaces."""

from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.point import PointConfig, PointEnv
from peach_trl.envs.tasks import TaskLibrary, half_circle_tasks

__all__ = ["BatchedMujocoEnv", "GoalSpace", "PointConfig", "PointEnv", "TaskLibrary", "half_circle_tasks"]
