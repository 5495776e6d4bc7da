"""Any Gymnasium environment, with a list of tasks, as one TorchRL environment that steps N copies as a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypedDict

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from peach_trl.envs.errors import NOT_FINITE, NotFinite, NotFiniteError, broken_rows
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.gymnasium_row import TaskRow, action_box, observation_size
from peach_trl.envs.task_rows import TaskOrder, TaskRows
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.seeding import named_generator
