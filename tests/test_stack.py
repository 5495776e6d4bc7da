"""The libraries below fit together: what TorchRL would otherwise do without in silence."""

import importlib

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer


def test_torchrls_compiled_part_imports():
    """With a torch that it was not built for, prioritised replay would be gone without a word."""
    assert importlib.import_module("torchrl._torchrl").SumSegmentTreeFp32


def test_prioritised_replay_draws_by_priority():
    buffer = TensorDictPrioritizedReplayBuffer(alpha=1.0, beta=1.0, storage=LazyTensorStorage(4), batch_size=400)
    index = buffer.extend(TensorDict({"x": torch.arange(4)}, [4]))
    buffer.update_priority(index, torch.tensor([0.0, 0.0, 1.0, 3.0]))
    share = buffer.sample()["x"].bincount(minlength=4) / 400
    assert share[:2].sum() < 0.05 and 0.6 < share[3] < 0.9
