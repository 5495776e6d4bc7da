"""Replay partitioned by task, against a plain Python model of it, and the contexts drawn from it."""

import copy
import re
from itertools import groupby, permutations

import pytest
import torch
from tensordict import TensorDict

from peach_trl.config import ConfigError, build
from peach_trl.context import SequenceSampler
from peach_trl.context.contexts import ContextConfig, ContextSampler
from peach_trl.data import TaskReplayBuffer


def make_rows(task, episode, kind, reward, uid=None):
    """Rows from lists; each row's observation holds its uid, by which tests recognise it."""
    column = lambda values: torch.tensor(values, dtype=torch.int64).view(-1, 1)  # noqa: E731
    uid = torch.arange(len(task)) if uid is None else torch.as_tensor(uid)
    size = [len(task)]
    following = {
        "observation": uid.view(-1, 1).double() + 0.5,
        "reward": torch.as_tensor(reward, dtype=torch.float32).view(-1, 1),
        "done": torch.zeros(*size, 1, dtype=torch.bool),
    }
    keys = {"task_id": column(task), "episode": column(episode), "transition_type": column(kind)}
    return TensorDict({**keys, "observation": uid.view(-1, 1).double(), "next": TensorDict(following, size)}, size)


def episodes_of(task, lengths, returns, penalties=0, uid=0):
    """Rows of episodes of one task; an episode's return comes with its last real row, penalties count -100 each."""
    episode, kind, reward = [], [], []
    for number, (length, total) in enumerate(zip(lengths, returns, strict=True)):
        episode += [number] * (length + penalties)
        kind += [0] * length + [2] * penalties
        reward += [0.0] * (length - 1) + [total] + [-100.0] * penalties
    return make_rows([task] * len(episode), episode, kind, reward, torch.arange(len(episode)) + uid)


def uids(batch):
    return batch["observation"].squeeze(-1).long()


def config(**changes):
    values = {
        "transitions": 12, "episodes": 3, "recent": 5, "best_probability": 0.0, "best_of": 4,
        "empty_probability": 0.0, "source": "episodes",
    }  # fmt: skip
    return build(ContextConfig, {**values, **changes})


class Reference:
    """What the buffer should hold, in lists and loops."""

    def __init__(self, num_tasks, capacity, episodes):
        self.capacity, self.remembered = capacity, episodes
        self.rows = [[] for _ in range(num_tasks)]
        self.table = [[] for _ in range(num_tasks)]

    def extend(self, rows):
        data = list(
            zip(*(rows[k].flatten().tolist() for k in ("task_id", "episode", "transition_type")), uids(rows).tolist(),
                rows["next", "reward"].flatten().tolist(), strict=True)
        )  # fmt: skip
        for task in range(len(self.rows)):
            for number in sorted({d[1] for d in data if d[0] == task}):
                mine = [d for d in data if d[:2] == (task, number)]
                real = [d for d in mine if d[2] == 0]
                if real:
                    entry = (len(self.rows[task]), [d[3] for d in real], sum(d[4] for d in real))
                    self.table[task].append(entry)
                self.rows[task] += [d[3] for d in real] + [d[3] for d in mine if d[2] != 0]

    def held(self, task):
        return self.rows[task][-self.capacity :]

    def usable(self, task):
        oldest = len(self.rows[task]) - self.capacity
        return [e for e in self.table[task][-self.remembered :] if e[0] >= oldest][::-1]


def random_rows(generator, num_tasks, uid):
    """A call with a random number of episodes of random lengths for random tasks, their rows interleaved."""
    pick = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    plan = []
    for number in range(pick(1, 8)):
        task, real, penalties = pick(0, num_tasks), pick(0, 9), pick(0, 4)
        plan += [(task, 7 * number % 5 + 10 * number, 0)] * real + [(task, 7 * number % 5 + 10 * number, 2)] * penalties
    plan = plan or [(0, 0, 0)]
    plan = [plan[i] for i in torch.randperm(len(plan), generator=generator).tolist()]
    reward = torch.randint(-5, 6, (len(plan),), generator=generator)
    task, episode, kind = zip(*plan, strict=True)
    return make_rows(task, episode, kind, reward, torch.arange(len(plan)) + uid)


@pytest.fixture(params=range(4))
def pair(request):
    """A buffer and its model after many random calls; small enough for rings and the table to turn many times."""
    generator = torch.Generator().manual_seed(request.param)
    buffer, model, uid = TaskReplayBuffer(4, 20, episodes=3, seed=request.param), Reference(4, 20, 3), 0
    for _ in range(40):
        rows = random_rows(generator, 3, uid)  # task 3 stays without data
        uid += len(rows)
        model.extend(rows)
        index = buffer.extend(rows)
        kept = index >= 0
        assert torch.equal(uids(buffer.storage.read(index[kept])), uids(rows[kept]))
    return buffer, model


def test_rows_and_cursors_follow_the_model(pair):
    buffer, model = pair
    assert buffer.count().tolist() == [len(model.held(task)) for task in range(4)]
    assert len(buffer) == sum(len(model.held(task)) for task in range(4))
    for task in range(3):
        rows = buffer.storage.read(torch.arange(task * 20, task * 20 + len(model.held(task))))
        assert sorted(uids(rows).tolist()) == sorted(model.held(task))
        assert (rows["task_id"] == task).all()


def test_episode_table_follows_the_model(pair):
    buffer, model = pair
    checked = 0
    for task in range(4):
        tasks, expected = torch.tensor([task]), model.usable(task)
        assert int(buffer.writer.available(tasks)) == len(expected)
        for back, (start, rows, total) in enumerate(expected):
            back = torch.tensor([[back]])
            found, length = buffer.writer.look_up(tasks, back)
            assert (found.item(), length.item()) == (start, len(rows))
            assert buffer.writer.returns(tasks, back).item() == total
            place = buffer.writer.locate(tasks, torch.arange(start, start + len(rows)))
            assert uids(buffer.storage.read(place)).tolist() == rows
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("source", ["episodes", "uniform"])
def test_contexts_hold_usable_rows_only(pair, source):
    buffer, model = pair
    chosen = config(recent=3, source=source, best_probability=0.5)
    sampler = ContextSampler(buffer, chosen, torch.Generator().manual_seed(0))
    tasks = torch.tensor([2, 0, 3, 1])
    drawn = {int(task): 0 for task in tasks}
    for _ in range(50):
        context = sampler(tasks)
        assert context.shape == (4, 12) and not context["mask"][2].any() and context["observation"].isfinite().all()
        for task, row in zip(tasks.tolist(), context, strict=True):
            mask, got = row["mask"], uids(row)
            assert (mask[:-1] >= mask[1:]).all(), "the context comes first"
            usable = model.usable(task)
            allowed = {uid for _, rows, _ in usable for uid in (rows if source == "uniform" else rows[:4])}
            assert set(got[mask].tolist()) <= allowed
            assert (row["transition_type"][mask] == 0).all() and (row["task_id"][mask] == task).all()
            assert mask.sum() <= sum(len(rows) for _, rows, _ in usable)
            drawn[task] += int(mask.sum())
            if task != 3 and not mask.all():  # the others repeat the first row of the task's partition
                assert (got[~mask] == uids(buffer.storage.read(torch.tensor([task * 20])))).all()
    assert all(count > 0 for task, count in drawn.items() if task != 3 and model.usable(task))


def test_batches_stay_in_their_partition_and_cover_it():
    buffer = TaskReplayBuffer(3, 8, episodes=2, seed=0)
    buffer.extend(episodes_of(2, [3], [1.0], penalties=2, uid=200))
    buffer.extend(episodes_of(0, [4], [1.0], uid=100))
    batch = buffer.sample_tasks(torch.tensor([2, 0, 2]), 200)
    assert batch.shape == (3, 200)
    assert set(uids(batch[0]).tolist()) == set(uids(batch[2]).tolist()) == set(range(200, 205))  # with the penalties
    assert set(uids(batch[1]).tolist()) == set(range(100, 104))
    assert not torch.equal(batch["observation"][0], batch["observation"][2])
    assert torch.equal(batch["next", "observation"], batch["observation"] + 0.5)


def test_rings_turn_for_each_task_alone():
    buffer = TaskReplayBuffer(2, 4, seed=0)
    buffer.extend(make_rows([1], [0], [0], [0.0], [50]))
    for uid in range(6):
        buffer.extend(make_rows([0], [0], [0], [0.0], [uid]))
    assert buffer.count().tolist() == [4, 1] and buffer.write_count == 7
    assert uids(buffer.storage.read(torch.arange(5))).tolist() == [4, 5, 2, 3, 50]


def test_a_call_beyond_capacity_keeps_the_last_rows():
    buffer = TaskReplayBuffer(2, 4, episodes=3, seed=0)
    index = buffer.extend(episodes_of(1, [6, 3], [1.0, 2.0]))
    assert (index[:5] == -1).all() and (index[5:] >= 4).all()
    assert sorted(uids(buffer.storage.read(torch.arange(4, 8))).tolist()) == [5, 6, 7, 8]
    one = torch.tensor([1])
    assert buffer.writer.available(one).tolist() == [1]  # the first lost its beginning
    assert buffer.writer.returns(one, torch.tensor([[0]])).item() == 2.0
    buffer.extend(episodes_of(1, [5], [9.0]))
    assert buffer.writer.available(one).tolist() == [0]
    assert buffer.sample_tasks(one, 10, best_fraction=1.0).shape == (1, 10)  # falls back to uniform rows
    assert not ContextSampler(buffer, config(recent=3))(one)["mask"].any()


def test_the_best_episodes_raise_the_mean_return():
    buffer = TaskReplayBuffer(2, 100, episodes=10, seed=0)
    for task in (0, 1):
        buffer.extend(episodes_of(task, [5] * 10, [float(i) for i in range(10)], penalties=1))
    tasks = torch.tensor([1, 0])

    def mean_episode(**options):
        batch = buffer.sample_tasks(tasks, 2000, **options)
        assert not options or (batch["transition_type"] == 0).all()
        return batch["episode"].double().mean().item()

    assert mean_episode() == pytest.approx(4.5, abs=0.2)
    assert mean_episode(best_fraction=1.0, best_of=1) == pytest.approx(4.5, abs=0.2)
    expected = sum(1 - (k / 10) ** 4 for k in range(1, 10))  # mean of the maximum of four draws
    assert mean_episode(best_fraction=1.0, best_of=4) == pytest.approx(expected, abs=0.2)
    assert mean_episode(best_fraction=1.0, best_of=1, recent=2) == pytest.approx(8.5, abs=0.1)
    batch = buffer.sample_tasks(tasks, 1000, best_fraction=0.3, best_of=50)
    assert (batch["episode"][:, :300] >= 8).double().mean() > 0.95
    assert batch["episode"][:, 300:].double().mean() == pytest.approx(4.5, abs=0.3)


def test_a_meta_batch_is_drawn_without_replacement():
    buffer, tasks = TaskReplayBuffer(20, 4, seed=1), torch.tensor([3, 5, 8, 13, 19])
    draws = torch.stack([buffer.draw_tasks(tasks, 3) for _ in range(300)])
    assert all(len(set(draw.tolist())) == 3 for draw in draws)
    share = torch.tensor([(draws == task).sum() for task in tasks]) / 300
    assert torch.allclose(share, torch.tensor(0.6), atol=0.1)
    with pytest.raises(ValueError, match="cannot draw 6 of 5 tasks"):
        buffer.draw_tasks(tasks, 6)


def test_context_prefix_order_and_quota():
    buffer = TaskReplayBuffer(1, 100, episodes=10, seed=0)
    buffer.extend(episodes_of(0, [2, 6, 6, 6], [0.0, 1.0, 2.0, 3.0], penalties=1))
    sampler = ContextSampler(buffer, config(recent=4, empty_probability=0.2), torch.Generator().manual_seed(0))
    lengths, orders = [], set()
    context = sampler(torch.zeros(2000, dtype=torch.int64))
    columns = context["mask"].tolist(), context["episode"].squeeze(-1).tolist(), uids(context).tolist()
    for mask, episode, got in zip(*columns, strict=True):
        taken = [(e, uid) for m, e, uid in zip(mask, episode, got, strict=True) if m]
        lengths.append(len(taken))
        numbers = [number for number, _ in groupby(e for e, _ in taken)]
        assert len(numbers) == len(set(numbers)) <= 3, "each episode once, in one piece"
        for number in numbers:
            rows, first = [uid for e, uid in taken if e == number], [0, 3, 10, 17][number]
            most = 2 if number == 0 else 4
            assert rows == list(range(first, first + len(rows))) and len(rows) <= most
            assert len(rows) == most or number == numbers[-1], "only the last one is cut"
        orders.add(tuple(numbers))
    lengths = torch.tensor(lengths)
    assert (lengths == 0).double().mean() == pytest.approx(0.2, abs=0.03)
    assert {order for order in orders if len(order) == 3} == set(permutations(range(4), 3))
    # The total is 12 in one case of four (without the short episode), else 10; prefixes are uniform on 1 .. total.
    for length in (1, 5, 10):
        expected = 0.8 * (0.25 / 12 + 0.75 / 10)
        assert (lengths == length).double().mean() == pytest.approx(expected, abs=0.025)
    assert (lengths == 12).double().mean() == pytest.approx(0.8 * 0.25 / 12, abs=0.012)


def test_best_probability_brings_the_best_episode_into_contexts():
    buffer = TaskReplayBuffer(2, 200, episodes=20, seed=0)
    for task in (0, 1):
        buffer.extend(episodes_of(task, [2] * 20, [float(i) for i in range(20)]))

    def share_of_best(**options):
        values = {"transitions": 2, "episodes": 1, "recent": 20, "best_of": 200, **options}
        sampler = ContextSampler(buffer, config(**values), torch.Generator().manual_seed(1))
        context = sampler(torch.arange(2).repeat(500))
        return (context["episode"][:, 0] == 19).double().mean().item()

    assert share_of_best() == pytest.approx(0.05, abs=0.03)
    assert share_of_best(best_probability=0.6) == pytest.approx(0.62, abs=0.06)
    assert share_of_best(best_probability=1.0) > 0.99
    third = share_of_best(transitions=6, episodes=3, best_probability=1.0)  # at a random place among the three
    assert third == pytest.approx(1 / 3, abs=0.06)


def test_uniform_contexts_come_from_recent_real_rows():
    buffer = TaskReplayBuffer(1, 100, episodes=10, seed=0)
    buffer.extend(episodes_of(0, [4] * 5, [0.0] * 5, penalties=3))
    chosen = config(source="uniform", recent=2, transitions=30)
    sampler = ContextSampler(buffer, chosen, torch.Generator().manual_seed(0))
    context = sampler(torch.zeros(400, dtype=torch.int64))
    taken = context[context["mask"]]
    assert context["mask"].sum(1).max() == 8, "as many as there are real rows"
    share = torch.bincount(uids(taken), minlength=35) / len(taken)
    allowed = [21, 22, 23, 24, 28, 29, 30, 31]
    assert uids(taken).unique().tolist() == allowed
    assert torch.allclose(share[allowed], torch.tensor(1 / 8), atol=0.03)


def filled(seed):
    buffer = TaskReplayBuffer(2, 12, episodes=4, seed=seed, batch_size=8)
    for step in range(5):
        buffer.extend(episodes_of(step % 2, [3, 4], [1.0 * step, 2.0], penalties=1, uid=100 * step))
    return buffer


def draws(buffer):
    tasks = torch.tensor([1, 0])
    contexts = ContextSampler(buffer, config(recent=4, best_probability=0.5), torch.Generator().manual_seed(0))
    batch = buffer.sample_tasks(tasks, 16, best_fraction=0.5, best_of=3)
    return [uids(batch), uids(buffer.sample()), buffer.draw_tasks(tasks, 2), uids(contexts(tasks))]


def test_draws_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = draws(filled(3)), draws(filled(3)), draws(filled(4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("way", ["files", "state_dict"])
def test_a_saved_buffer_goes_on_as_if_never_interrupted(tmp_path, way, fresh):
    buffer = filled(0)
    buffer.sample_tasks(torch.tensor([0]), 5)  # so that the generator has moved
    other = TaskReplayBuffer(2, 12, episodes=4, seed=9, batch_size=8) if fresh else filled(9)
    buffer.sampler.tasks = torch.tensor([1])
    if way == "files":
        buffer.dumps(tmp_path / "replay")
        other.loads(tmp_path / "replay")
    else:
        other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    more = episodes_of(1, [2, 5], [3.0, 4.0], uid=1000)
    for _ in range(2):
        assert other.count().tolist() == buffer.count().tolist() and other.write_count == buffer.write_count
        assert other.sampler.tasks.tolist() == [1]
        assert all(torch.equal(a, b) for a, b in zip(draws(buffer), draws(other), strict=True))
        assert torch.equal(buffer.extend(more), other.extend(more))


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 12\), but this buffer has \(2, 4, 6\)"):
        TaskReplayBuffer(2, 6, episodes=4).writer.load_state_dict(filled(0).writer.state_dict())


def test_plain_sampling_follows_the_list_of_tasks():
    buffer = filled(0)
    buffer.sampler.tasks = torch.tensor([1, 0])
    batch = buffer.sample()
    assert batch["task_id"].flatten().tolist() == [1] * 4 + [0] * 4
    assert torch.equal(uids(buffer.storage.read(batch["index"].reshape(-1))), uids(batch))
    assert buffer.can_sample() and not buffer.can_sample(3)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="batch_size = 7: must be a multiple of the number of tasks, 2"),
    ):
        buffer.sample(7)


def test_emptying_clears_rows_cursors_and_episodes():
    buffer = filled(0)
    buffer.empty()
    assert len(buffer) == 0 and buffer.write_count == 0 and not buffer.can_sample()
    assert not ContextSampler(buffer, config(recent=4))(torch.tensor([0, 1]))["mask"].any()
    index = buffer.extend(episodes_of(1, [2], [5.0], uid=7))
    assert index.tolist() == [12, 13] and buffer.writer.available(torch.tensor([0, 1])).tolist() == [0, 1]


def test_one_partition_shared_by_all_tasks():
    buffer = TaskReplayBuffer(1, 5, seed=0)
    with_ids = make_rows([4, 0, 9], [0, 0, 0], [0, 1, 2], [0.0] * 3)
    assert buffer.extend(with_ids).tolist() == [0, 1, 2]
    plain = TaskReplayBuffer(1, 5, seed=0)
    plain.extend(with_ids.exclude("task_id", "episode", "transition_type"))
    assert set(uids(plain.sample_tasks(torch.tensor([0]), 100)).unique().tolist()) == {0, 1, 2}
    assert "index" not in with_ids.keys(), "the rows given stay as they were"


def test_errors_name_the_cause():
    rows = episodes_of(1, [3], [1.0])
    buffer, blank = TaskReplayBuffer(3, 8, episodes=2), TaskReplayBuffer(3, 8, episodes=2)
    buffer.extend(rows)
    with pytest.raises(ValueError, match="task 2 holds no rows: collect"):
        buffer.sample_tasks(torch.tensor([1, 2]), 4)
    for tasks in ([3], [-1]):
        with pytest.raises(IndexError, match=rf"task id {tasks[0]}: must lie in 0 \.\. 2"):
            buffer.sample_tasks(torch.tensor(tasks), 4)
    with pytest.raises(IndexError, match="task id 5"):
        buffer.extend(episodes_of(5, [1], [0.0]))
    with pytest.raises(ValueError, match="task_id"):
        TaskReplayBuffer(3, 8).extend(rows.exclude("task_id"))
    with pytest.raises(ValueError, match=r"lack the keys \['episode'\] and bring the unknown keys \['extra'\]"):
        buffer.extend(rows.exclude("episode").set("extra", torch.zeros(3)))
    with pytest.raises(ValueError, match="must be flat"):
        buffer.extend(rows.view(1, 1, -1))
    with pytest.raises(ValueError, match=r"recent = 3: must lie in 1 \.\. 2"):
        ContextSampler(buffer, config(recent=3))
    with pytest.raises(ValueError, match="keeps no episodes"):
        ContextSampler(TaskReplayBuffer(3, 8), config())
    with pytest.raises(ValueError, match="best_fraction = 2"):
        buffer.sample_tasks(torch.tensor([1]), 4, best_fraction=2.0)
    with pytest.raises(RuntimeError, match="nothing was ever written"):
        ContextSampler(blank, config(recent=2))(torch.tensor([0]))
    with pytest.raises(ConfigError, match="transitions = 2 with episodes = 3"):
        config(transitions=2)
    with pytest.raises(ValueError, match="global generator"):
        TaskReplayBuffer(3, 8, generator=torch.default_generator)
    assert buffer.count().tolist() == [0, 3, 0], "a refused call leaves the buffer as it was"


def task_rows(**changes):
    zeros = torch.zeros(4, 1, dtype=torch.int64)
    rows = {"task_id": zeros, "episode": zeros, "transition_type": zeros, "x": torch.ones(4, 2)}
    return TensorDict({**rows, "next": TensorDict({"reward": torch.ones(4, 1)}, [4]), **changes}, [4])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_id": torch.zeros(4, 2, dtype=torch.int64)}, r"task_id is \[2\] torch.int64 .* and \[1\] torch.int64"),
        ({"task_id": torch.zeros(4, 1)}, r"task_id is \[1\] torch.float32 in these rows and \[1\] torch.int64"),
        ({"episode": torch.zeros(4, 2, dtype=torch.int64)}, r"episode is \[2\]"),
        (
            {"x": torch.ones(4, 1)},
            r"x is \[1\] torch.float32 in these rows and \[2\] torch.float32 .*; make them alike",
        ),
        ({"x": torch.ones(4, 2).double()}, r"x is \[2\] torch.float64"),
        (
            {"x": torch.tensor([[1.0, 1.0], [1.0, torch.nan], [torch.inf, 1.0], [1.0, 1.0]])},
            "2 of 4 rows, the first of",
        ),
        ({"next": TensorDict({"reward": torch.full((4, 1), torch.nan)}, [4])}, r"'next', 'reward'.* not finite in 4"),
        ({"next": TensorDict({"reward": torch.ones(4)}, [4])}, r"'next', 'reward'.* is \[\] torch.float32"),
        ({"transition_type": torch.full((4, 1), 9)}, "transition_type: 9 to 9 in these rows; must be 0, 1 or 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_not_written(changes, said):
    buffer = TaskReplayBuffer(2, 20, episodes=4, seed=0)
    buffer.extend(task_rows())
    before = copy.deepcopy(buffer.writer.state_dict())
    with pytest.raises(ValueError, match=said):
        buffer.extend(task_rows(**changes))
    assert len(buffer) == 4 and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(before[name]))
        for name, value in buffer.writer.state_dict().items()
    )
    buffer.extend(task_rows())
    assert len(buffer) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_id": torch.zeros(4, 2, dtype=torch.int64)}, r"task_id of shape \[4, 2\]: one for each of the 4 rows"),
        ({"task_id": torch.zeros(4, 1, dtype=torch.bool)}, r"task_id of type torch.bool: must be whole numbers, int64"),
        ({"episode": torch.zeros(4, 2, dtype=torch.int64)}, r"episode of shape \[4, 2\]: .* is needed, \[R, 1\]"),
        ({"episode": torch.zeros(4, 1)}, r"episode of type torch.float32: must be whole numbers"),
        ({"transition_type": torch.zeros(4, dtype=torch.int64)}, r"transition_type of shape \[4\]: one for each"),
        ({"meta_episode": torch.zeros(4, 1)}, r"meta_episode of type torch.float32"),
        ({"next": TensorDict({"reward": torch.ones(4)}, [4])}, r"'next', 'reward'\) of shape \[4\]: one for each"),
        ({"next": TensorDict({"reward": torch.ones(4, 2)}, [4])}, r"'reward'\) of shape \[4, 2\]: one for each"),
        (
            {"next": TensorDict({"reward": torch.ones(4, 1), "x": torch.ones(4, 1)}, [4])},
            r"\('next', 'x'\) of shape \[4, 1\] and x of shape \[4, 2\]: before and after a step .* one shape",
        ),
    ],
)
def test_first_rows_are_checked_too(changes, said):
    buffer = TaskReplayBuffer(2, 20, episodes=4, seed=0)
    with pytest.raises(ValueError, match=said):
        buffer.extend(task_rows(**changes))
    assert len(buffer) == 0 and not buffer.storage.initialized and buffer.writer.written.sum() == 0
    buffer.extend(task_rows())
    assert len(buffer) == 4


@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (2, 1), ()])
def test_ids_that_are_no_list(shape):
    buffer = TaskReplayBuffer(2, 20, episodes=4, seed=0)
    buffer.extend(task_rows())
    sequences, contexts = SequenceSampler(buffer, per_task=2, episodes=1), ContextSampler(buffer)
    ids = torch.zeros(shape, dtype=torch.int64)
    draws = [sequences, contexts, buffer.count, lambda tasks: buffer.sample_tasks(tasks, 2)]
    draws += [lambda tasks: buffer.draw_tasks(tasks, 1), lambda tasks: next(sequences.batches(tasks, 1, 2))]
    for draw in draws:
        with pytest.raises(ValueError, match=re.escape(f"tasks of shape {list(shape)}: give a list of ids, [M]")):
            draw(ids)
        with pytest.raises(IndexError, match=r"task id 7: must lie in 0 .. 1, the tasks of this buffer"):
            draw(torch.tensor([7]))
    buffer.sampler.tasks = ids
    with pytest.raises(ValueError, match="give a list of ids"):
        buffer.sample(4)


def test_rare_tasks_are_named_by_id():
    buffer = TaskReplayBuffer(2, 20, episodes=4, seed=0)
    buffer.extend(task_rows(task_id=torch.ones(4, 1, dtype=torch.int64)))
    sampler = SequenceSampler(buffer, per_task=2, episodes=1)
    for rare in (torch.tensor([True]), torch.ones(2, 1, dtype=torch.bool), torch.ones(2)):
        with pytest.raises(ValueError, match=r"rare of shape .*: must be bool by task id, \[2\] at least"):
            sampler(torch.tensor([1]), rare)
    with pytest.raises(ValueError, match="for one task at least"):
        sampler(torch.zeros(0, dtype=torch.int64))
