"""Replay partitioned by task, and the contexts drawn from it."""

from peach_trl.data.context_sampler import ContextConfig, ContextSampler
from peach_trl.data.task_replay import TaskReplayBuffer, TaskSampler
from peach_trl.data.task_writer import PartitionedStorage, TaskWriter

__all__ = [
    "ContextConfig",
    "ContextSampler",
    "PartitionedStorage",
    "TaskReplayBuffer",
    "TaskSampler",
    "TaskWriter",
]
