"""Replay partitioned by task."""

from peach_trl.data.prioritized import PrioritizedTaskSampler
from peach_trl.data.storages import Partitioned, PartitionedMemmapStorage, PartitionedStorage
from peach_trl.data.task_replay import TaskReplayBuffer, TaskSampler
from peach_trl.data.task_writer import TaskWriter

__all__ = [
    "Partitioned",
    "PartitionedMemmapStorage",
    "PartitionedStorage",
    "PrioritizedTaskSampler",
    "TaskReplayBuffer",
    "TaskSampler",
    "TaskWriter",
]
