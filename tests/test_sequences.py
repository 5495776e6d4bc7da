"""Sequences of decisions for a belief that is part of the state: whose they are, and in which order."""

import pytest
import torch
from tensordict import TensorDict
from tiny import record, tiny_agent, tiny_config

from peach_trl.context import SequenceSampler
from peach_trl.data import TaskReplayBuffer
from peach_trl.hierarchy.transitions import LevelTransitions

TASKS, ROWS, TRAJECTORIES = 3, 2, 3


def fill(buffer, iterations, seed=0, meta=True):
    """Iterations of TRAJECTORIES trajectories of ROWS rows a task, 1 to 4 decisions each; ``x`` tells all apart.

    Returns a dict from x to (task, meta-episode, trajectory, step).
    """
    generator = torch.Generator().manual_seed(seed)
    known, uid = {}, 0
    for iteration in range(iterations):
        for trajectory in range(TRAJECTORIES):
            rows = {name: [] for name in ("task_id", "episode", "meta_episode", "x")}
            for row in range(TASKS * ROWS):
                for step in range(int(torch.randint(1, 5, (), generator=generator))):
                    number = iteration * TASKS * ROWS + row
                    for name, value in (
                        ("task_id", row // ROWS),
                        ("episode", row),
                        ("meta_episode", number),
                        ("x", uid),
                    ):
                        rows[name].append([value])
                    known[uid] = (row // ROWS, number, trajectory, step)
                    uid += 1
            columns = {name: torch.tensor(values) for name, values in rows.items() if meta or name != "meta_episode"}
            size = [len(columns["x"])]
            columns["transition_type"] = torch.zeros(*size, 1, dtype=torch.int64)
            columns["next"] = TensorDict({"reward": torch.ones(*size, 1)}, size)
            buffer.extend(TensorDict(columns, size))
    return known


def facts(sequences, known):
    """For each sequence, what its decisions are."""
    return [[known[x] for x in row["x"][row["mask"]].flatten().tolist()] for row in sequences]


@pytest.mark.parametrize("capacity", [1000, 40])  # 40: old episodes are overwritten
def test_sequences_never_mix_tasks_or_rows(capacity):
    buffer = TaskReplayBuffer(TASKS, capacity, episodes=60, seed=0)
    known = fill(buffer, iterations=6)
    sampler = SequenceSampler(
        buffer, per_task=4, episodes=3, consecutive=0.5, generator=torch.Generator().manual_seed(0)
    )
    seen = set()
    for _ in range(30):
        sequences = sampler(torch.tensor([2, 0]))
        assert (
            sequences.shape[0] == 8 and (sequences["task_id"][:4] == 2).all() and (sequences["task_id"][4:] == 0).all()
        )
        for i, decisions in enumerate(facts(sequences, known)):
            part = sequences["part"][i][sequences["mask"][i]].tolist()
            assert {task for task, *_ in decisions} == {2 if i < 4 else 0}
            episodes = [[d for d, p in zip(decisions, part, strict=True) if p == q] for q in sorted(set(part))]
            assert sorted(set(part)) == list(range(len(episodes))) and part == sorted(part)
            for episode in episodes:  # whole, in order of time
                assert len({d[:3] for d in episode}) == 1 and [d[3] for d in episode] == list(range(len(episode)))
                whole = [d for d in known.values() if d[:3] == episode[0][:3]]
                assert len(whole) == len(episode)
            if i % 4 < 2:  # one row's trajectories, in order
                assert len({number for _, number, _, _ in decisions}) == 1
                order = [episode[0][2] for episode in episodes]
                assert order == list(range(3 - len(order), 3)) and (len(order) == 3 or capacity == 40)
            else:  # beginnings of meta-episodes: nobody knows more than the sequence shows
                order = [episode[0][1:3] for episode in episodes]
                first = [trajectory for k, (n, trajectory) in enumerate(order) if k == 0 or order[k - 1][0] != n]
                goes_on = [b == (a[0], a[1] + 1) or b[1] == 0 for a, b in zip(order, order[1:], strict=False)]
                assert len(order) == 3
                if capacity == 1000:
                    assert not any(first) and all(goes_on)
                seen.add(sum(trajectory == 0 for _, trajectory in order))
    assert capacity == 40 or seen == {2, 3}


def test_every_episode_is_drawn_and_lengths_vary():
    buffer = TaskReplayBuffer(TASKS, 1000, episodes=60, seed=0)
    known = fill(buffer, iterations=3)
    for consecutive in (0.0, 1.0):
        sampler = SequenceSampler(
            buffer, per_task=3, episodes=3, consecutive=consecutive, generator=torch.Generator().manual_seed(1)
        )
        drawn, lengths = set(), set()
        for _ in range(60):
            sequences = sampler(torch.tensor([1]))
            lengths |= set(sequences["mask"].sum(1).tolist())
            assert sequences["mask"].sum(1).max() == sequences.shape[1]  # no wider than the longest
            drawn |= {d[:3] for decisions in facts(sequences, known) for d in decisions}
        last = TRAJECTORIES - 1  # is no beginning where two meta-episodes share a sequence
        assert drawn == {d[:3] for d in known.values() if d[0] == 1 and (consecutive or d[2] < last)}
        assert len(lengths) > 3


def test_short_supply():
    """Fewer episodes than a sequence wants, and none at all."""
    buffer = TaskReplayBuffer(TASKS, 1000, episodes=60, seed=0)
    known = fill(buffer, iterations=1, meta=False)
    sampler = SequenceSampler(buffer, per_task=2, episodes=9, generator=torch.Generator().manual_seed(0))
    sequences = sampler(torch.tensor([0]))  # without meta-episodes at random, some of them again
    for decisions, part in zip(facts(sequences, known), sequences["part"], strict=True):
        assert part.max() == 8 and {d[:3] for d in decisions} <= {d[:3] for d in known.values() if d[0] == 0}
        assert len({d[:3] for d in decisions}) > 1
    other = TaskReplayBuffer(TASKS, 1000, episodes=60, seed=0)
    with pytest.raises(ValueError, match="task 0 holds no whole episode"):
        SequenceSampler(other)(torch.tensor([0]))
    with pytest.raises(ValueError, match="keeps no episodes"):
        SequenceSampler(TaskReplayBuffer(TASKS, 10))
    with pytest.raises(ValueError, match="consecutive \\* per_task a whole number"):
        SequenceSampler(other, per_task=3, consecutive=0.5)
    with pytest.raises(ValueError, match="consecutive = 2"):
        SequenceSampler(other, consecutive=2)


def test_draws_follow_the_seed():
    buffer = TaskReplayBuffer(TASKS, 1000, episodes=60, seed=0)
    fill(buffer, iterations=3)

    def draw(seed):
        torch.manual_seed(seed + 7)
        return SequenceSampler(buffer, generator=torch.Generator().manual_seed(seed))(torch.arange(3))["x"]

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1)[:, :3], draw(2)[:, :3])
    sampler = SequenceSampler(buffer, generator=torch.Generator().manual_seed(1))
    state = sampler.state_dict()
    first = sampler(torch.arange(3))
    sampler.load_state_dict(state)
    assert torch.equal(first["x"], sampler(torch.arange(3))["x"])


def test_sequences_of_collected_experience():
    """Through policy, conversion and buffer: consecutive sequences are what a row did, trajectory after trajectory."""
    config = tiny_config()
    agent = tiny_agent(config)
    batch = record(config, agent.make_policy(trajectories=2), [0, 0, 1], 4 * 20)
    convert = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)
    buffer = TaskReplayBuffer(2, 1000, episodes=60, seed=0)
    for start in range(0, 80, 20):
        buffer.extend(convert(batch[:, start : start + 20])[-1])
    sampler = SequenceSampler(
        buffer, per_task=2, episodes=2, consecutive=1.0, generator=torch.Generator().manual_seed(0)
    )
    decisions = batch["hierarchy", "acts"][..., -1]
    for _ in range(10):
        sequences = sampler(torch.tensor([0]))
        for sequence in sequences:
            row, number = int(sequence["meta_episode"][0]) % 3, int(sequence["meta_episode"][0]) // 3
            span = slice(40 * number, 40 * number + 40)
            assert torch.equal(sequence["observation"], batch["observation"][row, span][decisions[row, span]])
            b, _ = agent.top.believe(sequence.unsqueeze(0))
            torch.testing.assert_close(b["belief"], batch["belief"][row, span][decisions[row, span]])


def test_meta_episodes_are_recent_ones_or_the_best_where_rewards_are_rare():
    buffer = TaskReplayBuffer(TASKS, 1000, episodes=60, seed=0)
    for iteration in range(20):  # of one row a task; the 4th iteration was a good one of tasks 0 and 1
        for trajectory in range(2):
            number = torch.arange(TASKS).repeat_interleave(3).unsqueeze(1)
            reward = ((iteration == 3) & (number < 2) & (torch.tensor(trajectory) == 1)).float()
            zeros = torch.zeros_like(number)
            buffer.extend(
                TensorDict(
                    {
                        "task_id": number, "episode": number, "meta_episode": iteration * TASKS + number,
                        "transition_type": zeros, "iteration": zeros + iteration,
                        "next": TensorDict({"reward": reward}, [9]),
                    },
                    [9],
                )
            )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sampler = SequenceSampler(buffer, 2, 2, 0.5, recent=5, best_of=2000, generator=generator)
    rare, found = torch.tensor([True, False, True]), []
    for sequences in sampler.batches(torch.arange(TASKS), TASKS, 200, rare):
        task, iteration = sequences["task_id"][::2, 0, 0], sequences["iteration"][::2, :, 0]
        assert (iteration == iteration[:, :1]).all() and sequences["mask"].all()
        found += zip(task.tolist(), iteration[:, 0].tolist(), strict=True)
        others = sequences["iteration"][1::2]
        assert others.unique().numel() > 2
    drawn = [{iteration for task, iteration in found if task == wanted} for wanted in range(TASKS)]
    assert drawn[0] == {3}  # rare: the best
    assert drawn[1] == set(range(15, 20))  # the last five
    assert min(drawn[2]) < 15  # rare: of all, though nothing was met
    everything = SequenceSampler(buffer, 2, 2, 0.5, generator=generator)
    drawn = {everything(torch.tensor([0]))["iteration"][0, 0, 0].item() for _ in range(300)}
    assert drawn == set(range(20))
