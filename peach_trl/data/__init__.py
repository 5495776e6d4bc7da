"""Replay partitioned by task."""

from peach_trl.data.task_replay import TaskReplayBuffer, TaskSampler
from peach_trl.data.task_writer import PartitionedStorage, TaskWriter

__all__ = ["PartitionedStorage", "TaskReplayBuffer", "TaskSampler", "TaskWriter"]
