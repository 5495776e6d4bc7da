"""The replay with parts of TorchRL's: priorities, transforms, storages, and batches as collectors give them."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tiny import random_transitions, record, tiny_agent, tiny_config
from torch import nn
from torchrl.data import LazyTensorStorage
from torchrl.data.replay_buffers.samplers import RandomSampler
from torchrl.envs.transforms import RewardScaling

from peach_trl.context import SequenceSampler
from peach_trl.data import PartitionedMemmapStorage, PrioritizedTaskSampler, TaskReplayBuffer
from peach_trl.levels import goal_level

prioritized = partial(PrioritizedTaskSampler, alpha=1.0, beta=1.0)


def rows_of(tasks, **more):
    tasks = torch.as_tensor(tasks)
    return TensorDict({"task_id": tasks.unsqueeze(-1), "x": torch.arange(len(tasks)), **more}, [len(tasks)])


def test_draws_go_by_priority_within_each_task():
    buffer = TaskReplayBuffer(3, 50, seed=0, sampler=prioritized)
    index = buffer.extend(rows_of([0] * 4 + [2] * 4))
    priority = torch.tensor([1.0, 2, 3, 4, 4, 4, 1, 1])
    buffer.update_priority(index, priority)
    batch = buffer.sample_tasks(torch.tensor([2, 0]), 20_000)
    for row, first in ((0, 4), (1, 0)):
        share = torch.bincount(batch["x"][row], minlength=8)[first : first + 4] / 20_000
        wanted = priority[first : first + 4] / priority[first : first + 4].sum()
        assert (share - wanted).abs().max() < 0.015
    assert torch.allclose(batch["priority_weight"], 1 / priority[batch["x"]], atol=1e-5)  # of the least of each task
    weighed = (batch["priority_weight"][1] * batch["x"][1]).sum() / batch["priority_weight"][1].sum()
    assert abs(float(weighed) - 1.5) < 0.05, "weights undo the bias of the draws"


def test_new_rows_have_the_highest_priority_and_old_ones_are_overwritten():
    buffer = TaskReplayBuffer(2, 3, seed=0, sampler=prioritized)
    index = buffer.extend(rows_of([1, 1, 1]))
    buffer.update_priority(index, torch.tensor([9.0, 0.0, 0.0]))
    assert set(buffer.sample_tasks(torch.tensor([1]), 50)["x"].flatten().tolist()) == {0}
    buffer.extend(rows_of([1]).set("x", torch.tensor([7])))  # in the place of 0
    assert set(buffer.sample_tasks(torch.tensor([1]), 50)["x"].flatten().tolist()) == {7}
    with pytest.raises(ValueError, match="task 0 holds no rows"):
        buffer.sample_tasks(torch.tensor([0]), 2)
    with pytest.raises(ValueError, match=r"best_fraction = 0\.5"):
        buffer.sample_tasks(torch.tensor([1]), 2, best_fraction=0.5)


def test_priorities_of_a_batch_by_task():
    """[M, batch], as sample_tasks returns it, is no M sequences with a priority each."""
    buffer = TaskReplayBuffer(2, 10, seed=0, sampler=prioritized)
    buffer.extend(TensorDict({"x": torch.arange(20), "task_id": torch.arange(20).view(20, 1) // 10}, [20]))
    batch = buffer.sample_tasks(torch.arange(2), 200)
    batch["td_error"] = 1.0 + batch["x"]
    buffer.update_tensordict_priority(batch)
    drawn = buffer.sample_tasks(torch.arange(2), 2000)["x"]
    for task in range(2):
        wanted = 1.0 + torch.arange(10 * task, 10 * task + 10)
        found = torch.bincount(drawn[task], minlength=20)[10 * task : 10 * task + 10] / 2000
        torch.testing.assert_close(found, wanted / wanted.sum(), atol=0.03, rtol=0)


def test_a_collectors_batch_with_a_hierarchys_state_is_taken():
    """At a decision no reward was met yet: that is a number, too."""
    config = tiny_config()
    agent = tiny_agent(config)
    assert agent.evidence.peak
    batch = record(config, agent.make_policy(2), [0, 1, 2], 20)
    buffer = TaskReplayBuffer(200, 100)
    assert (buffer.extend(batch) >= 0).all() and len(buffer) == 60


def test_a_level_feeds_priorities_wherever_it_learns(monkeypatch):
    """On another device it learns from a copy of the batch, and replay looks into the batch."""
    found = []
    for moves in (False, True):
        monkeypatch.setattr(goal_level, "on_device", lambda batch, _, moves=moves: batch.clone() if moves else batch)
        torch.manual_seed(0)
        batch = random_transitions((32,), 1, goal=True).set("priority_weight", torch.ones(32))
        tiny_agent(tiny_config()).levels[0].update(batch)
        found.append(batch["td_error"])
    assert torch.equal(*found)


def test_a_loss_feeds_priorities():
    """TorchRL's loss writes td_error and weighs by priority_weight; the buffer takes it in."""
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss

    n, no = 6, torch.zeros(6, 1, dtype=torch.bool)
    ends = {"reward": torch.randn(n, 1), "done": no, "terminated": no}
    after = TensorDict({"observation": torch.randn(n, 3), **ends}, [n])
    buffer = TaskReplayBuffer(2, 10, seed=0, sampler=prioritized)
    action = nn.functional.one_hot(torch.zeros(n, dtype=torch.int64), 2)
    buffer.extend(rows_of([0, 0, 0, 1, 1, 1], observation=torch.randn(n, 3), action=action, next=after))
    actor = QValueActor(nn.Linear(3, 2), in_keys=["observation"], action_space="one-hot")
    loss = DQNLoss(actor, action_space="one-hot")
    batch = buffer.sample_tasks(torch.tensor([0, 1]), 64).reshape(-1)
    assert loss(batch)["loss"].requires_grad
    buffer.update_tensordict_priority(batch)
    drawn = buffer.sample_tasks(torch.tensor([0, 1]), 64).reshape(-1)
    loss(drawn)
    least = batch["td_error"].view(2, 64).amin(1, keepdim=True)  # each row is in the first batch, which is uniform
    assert torch.allclose(drawn["priority_weight"].view(2, 64), least / drawn["td_error"].view(2, 64), rtol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_what_is_no_priority_is_refused(bad):
    buffer = TaskReplayBuffer(2, 5, seed=0, sampler=prioritized)
    index = buffer.extend(rows_of([0, 0, 1]))
    before = buffer.sampler.state_dict()["held"]
    with pytest.raises(ValueError, match=f"priority {bad}: must be finite and at least 0"):
        buffer.update_priority(index, torch.tensor([1.0, bad, 5]))
    assert torch.equal(buffer.sampler.state_dict()["held"], before)


def test_parts_are_made_by_the_buffer():
    for name, part in (("storage", LazyTensorStorage(10)), ("sampler", RandomSampler())):
        with pytest.raises(TypeError, match=f"{name} = {type(part).__name__}: give the class, or a function"):
            TaskReplayBuffer(2, 5, **{name: part})


def test_priorities_are_saved(tmp_path):
    buffer, other = (TaskReplayBuffer(2, 5, seed=seed, sampler=prioritized) for seed in (0, 1))
    buffer.update_priority(buffer.extend(rows_of([0, 0, 1])), torch.tensor([1.0, 2, 5]))
    buffer.dumps(tmp_path)
    other.extend(rows_of([0]))
    other.loads(tmp_path)
    tasks = torch.tensor([0, 1])
    assert torch.equal(buffer.sample_tasks(tasks, 99)["x"], other.sample_tasks(tasks, 99)["x"])
    for each in (buffer, other):
        each.extend(rows_of([1]))
    weights = [each.sample_tasks(tasks, 99)["priority_weight"] for each in (buffer, other)]
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match="saved with 10 rows, but this buffer has 8"):
        TaskReplayBuffer(2, 4, seed=0, sampler=prioritized).sampler.load_state_dict(buffer.sampler.state_dict())


def test_transforms_are_in_every_draw():
    scale = RewardScaling(0.0, 10.0, in_keys=["reward"])
    buffer = TaskReplayBuffer(1, 50, episodes=5, seed=0)
    done = torch.tensor([0, 0, 1, 0, 0, 1], dtype=torch.bool).unsqueeze(-1)
    after = TensorDict({"reward": torch.ones(6, 1), "done": done}, [6])
    buffer.extend(TensorDict({"reward": torch.ones(6, 1), "next": after}, [6]))
    plain = buffer.sample_tasks(torch.tensor([0]), 4)["reward"]
    buffer.append_transform(scale)
    draws = [buffer.sample(4), buffer.sample_tasks(torch.tensor([0]), 4), *buffer.batches(4, 2)]
    draws.append(SequenceSampler(buffer, per_task=2, episodes=2)(torch.tensor([0])))
    assert (plain == 1).all() and all((draw["reward"] == 10).all() for draw in draws)


def test_storages(tmp_path):
    buffer = TaskReplayBuffer(2, 3, seed=0, storage=partial(PartitionedMemmapStorage, scratch_dir=tmp_path))
    buffer.extend(rows_of([1, 1, 0]))
    assert set(buffer.sample_tasks(torch.tensor([1]), 40)["x"].flatten().tolist()) == {0, 1}
    assert any(tmp_path.iterdir())
    with pytest.raises(TypeError, match="base class Partitioned"):
        TaskReplayBuffer(2, 3, storage=LazyTensorStorage)


@pytest.mark.parametrize("told", ["episode", "traj_ids", "done"])
def test_batches_of_collectors_need_no_keys_of_ours(told):
    """Rows [N, T] of one task: episodes are told by what there is, and none goes on from one row to the next."""
    done = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool).unsqueeze(-1)
    episode = torch.tensor([[0, 0, 0, 1], [2, 2, 3, 3]]).unsqueeze(-1)
    reward = torch.arange(8.0).view(2, 4, 1)
    batch = TensorDict({"observation": reward, "next": TensorDict({"reward": reward, "done": done}, [2, 4])}, [2, 4])
    if told == "episode":
        batch["episode"] = episode
    if told == "traj_ids":
        batch["collector"] = TensorDict({"traj_ids": episode[..., 0]}, [2, 4])
    buffer = TaskReplayBuffer(1, 50, episodes=9, seed=0)
    assert len(buffer.extend(batch)) == 8
    back = torch.arange(4).unsqueeze(0)
    assert buffer.writer.returns(torch.tensor([0]), back).tolist() == [[13.0, 9.0, 3.0, 3.0]]  # the latest first
    assert buffer.writer.look_up(torch.tensor([0]), back)[1].tolist() == [[2, 2, 1, 3]]
