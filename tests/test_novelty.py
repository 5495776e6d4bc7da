"""A reward for new states: where it is high, when it ends, and that beliefs do not read it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tiny import random_sequences, tiny_agent, tiny_config
from torchrl.data import Bounded

from peach_trl.context import Transition
from peach_trl.experiment import make_novelty
from peach_trl.levels import Novelty

SPEC = Bounded(-1, 1, shape=(2,))


def decisions(*places, rows=8):
    """Sequences [len(places) * rows, 30] that lead to places."""
    state = torch.tensor(places).repeat_interleave(rows, 0).unsqueeze(1).expand(-1, 30, -1)
    return TensorDict({"next": {"observation": state, "reward": torch.ones(*state.shape[:-1], 1)}}, state.shape[:-1])


def bonus(novelty, batch, progress=0.0):
    return novelty(batch, progress)["next", "reward"] - 1


def test_new_states_are_worth_more_than_known_ones_and_nothing_in_the_end():
    novelty = Novelty(SPEC, weight=0.5, until=0.5, every=1, seed=0)
    first = bonus(novelty, decisions([0.5, 0.5]))
    torch.testing.assert_close(first[:, 0], torch.full((8, 1), 0.5))  # the mean over what is replayed, and once only
    assert not first[:, 1:].any()
    for _ in range(400):
        known = bonus(novelty, decisions([0.5, 0.5], [-0.5, 0.5]))
    new = bonus(novelty, decisions([-0.2, -0.9]))
    assert new.sum() / 8 > 4 * known.sum() / 16 and new.max() <= 0.5 * novelty.most
    state = {name: value.clone() for name, value in novelty.state_dict().items()}
    for progress in (0.5, 0.75, 1.0):
        assert not bonus(novelty, decisions([-0.2, -0.9]), progress).any()
    assert all(torch.equal(value, state[name]) for name, value in novelty.state_dict().items())
    half = Novelty(SPEC, weight=0.5, until=0.5, every=1, seed=0)
    torch.testing.assert_close(bonus(half, decisions([0.5, 0.5]), progress=0.25), first / 2)


def test_only_on_the_tasks_that_are_named():
    batch = decisions([0.5, 0.5], [-0.2, -0.9])
    batch["task_id"] = torch.tensor([2, 0]).repeat_interleave(8).view(16, 1, 1).expand(16, 30, 1)
    found = Novelty(SPEC, weight=0.5, seed=0)(batch, 0.0, torch.tensor([True, True, False]))["next", "reward"] - 1
    assert not found[:8].any() and (found[8:, 0] > 0).all()


def test_a_trajectory_is_paid_once_for_its_newest_state():
    novelty, there, far = Novelty(SPEC, weight=1.0, seed=0), [0.1, 0.1], [-0.9, 0.8]
    path = [there, there, far, far, there, far, there, far]  # the last two are another trajectory
    batch = TensorDict({"next": {"observation": torch.tensor([path]), "reward": torch.zeros(1, 8, 1)}}, [1, 8])
    error = novelty.error(torch.tensor(path)).flatten()
    low, high = (error[:2] / error.mean()).unique().item(), (error[2] / error.mean()).item()
    assert low < high
    batch["part"] = torch.tensor([[0] * 6 + [1] * 2])
    found = novelty(batch.clone(), 0.0)["next", "reward"].flatten()
    torch.testing.assert_close(found, torch.tensor([low, 0, high - low, 0, 0, 0, low, high - low]))
    found = novelty(batch.exclude("part"), 0.0)["next", "reward"].flatten()
    torch.testing.assert_close(found, torch.tensor([low, 0, high - low, 0, 0, 0, 0, 0]))


def test_what_is_behind_the_mask_is_not_learnt():
    def learnt(masked):
        novelty, batch = Novelty(SPEC, weight=1.0, every=1, seed=0), decisions([0.5, 0.5], [-0.2, -0.9])
        if masked:
            batch["mask"] = (torch.arange(16) < 8).unsqueeze(1).expand(16, 30)  # the second place is no decision
        for _ in range(200):
            _ = novelty(batch.clone(), 0.0)
        return novelty.error(torch.tensor([[0.5, 0.5], [-0.2, -0.9]]))[0] / novelty.mean

    (known, also), (first, second) = learnt(False).tolist(), learnt(True).tolist()
    assert also < 0.01 and second > 1 and max(known, first) < 0.01


def test_without_weight_there_is_none():
    batch = decisions([0.5, 0.5])
    assert torch.equal(Novelty(SPEC, weight=0.0)(batch.clone(), 0.0)["next", "reward"], batch["next", "reward"])


def test_seeds_do_not_share_what_is_known():
    novelty = Novelty(SPEC, weight=1.0, every=1, seeds=2, seed=0)
    for _ in range(300):
        _ = novelty(decisions([0.5, 0.5], [-0.5, -0.5]), 0.0)
    error = novelty.error(torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.5, 0.5], [-0.5, -0.5]]))
    assert error.shape == (2, 2) and error[0, 0] < error[0, 1] and error[1, 1] < error[1, 0]
    assert novelty.mean.shape == (2,)


def test_draws_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (Novelty(SPEC, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for novelty in (a, b, c):
        for _ in range(9):
            _ = novelty(decisions([0.5, 0.5], [0.0, 0.1]), 0.0)
    for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r)


def test_a_trajectory_is_a_row():
    novelty = make_novelty(tiny_config(), tiny_agent(tiny_config()))
    for rows in (random_sequences(3, 6, seed=0)[0], random_sequences(4, 6, seed=0).reshape(2, 2, 6)):
        with pytest.raises(ValueError, match=r"must be \[B, L\]"):
            novelty(rows, 0.0)


@pytest.mark.parametrize("evidence", [False, True])
def test_beliefs_read_the_tasks_reward(evidence):
    config = tiny_config(context__evidence="peak" if evidence else "reward")
    agent = tiny_agent(config)
    novelty = make_novelty(config, agent)
    rows = random_sequences(3, 6, seed=0, evidence=evidence)
    before = Transition.of(rows).evidence.clone()
    reward = rows["next", "reward"].clone()
    after = novelty(rows, 0.0)
    assert torch.equal(Transition.of(after).evidence, before)
    assert (after["next", "reward"][:, 0] > reward[:, 0]).all() and (after["next", "reward"] >= reward).all()
    assert torch.isfinite(agent.top.update(after)["loss_qvalue"])
