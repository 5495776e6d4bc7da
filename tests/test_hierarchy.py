"""The lock-step hierarchy and its conversion against a recursive reference, as multisets of transitions."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from reference_hac import PENALTY, ReferenceHAC, ToyDynamics
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import get_primers_from_module

from peach_trl import default
from peach_trl.config import ConfigError
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.evidence import Evidence, higher
from peach_trl.hierarchy.policy import HierarchyActor, HierarchyClock, HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy, HierarchyConfig
from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION, SUBGOAL_TEST, LevelTransitions, TransitionsConfig

N, HORIZON, LIMIT = 4, 23, 6.0


class ToyEnv(EnvBase):
    """N rows of the reference's dynamics, with its own code."""

    def __init__(self, end_goal: torch.Tensor) -> None:
        super().__init__(batch_size=torch.Size([N]))
        self.observation_spec = Composite(
            observation=Unbounded((N, 4)), task_id=Categorical(N, (N, 1)), goal=Unbounded((N, 2)), shape=(N,)
        )
        self.action_spec = Bounded(-1, 1, (N, 2))
        self.reward_spec = Unbounded((N, 1))
        done = Binary(1, (N, 1), dtype=torch.bool)
        self.full_done_spec = Composite(done=done, terminated=done.clone(), truncated=done.clone(), shape=(N,))
        self.x, self.steps, self.clock = torch.zeros(N, 2), torch.zeros(N, 1), torch.zeros(N, 1)
        self.end_goal = end_goal.expand(N, 2)

    def _observed(self) -> dict:
        rows = torch.arange(N).unsqueeze(-1)
        observation = torch.cat([self.x, rows.float(), self.clock], -1)
        return {"observation": observation, "task_id": rows.clone(), "goal": self.end_goal.clone()}

    def _reset(self, tensordict=None, **kwargs):
        mask = torch.ones(N, 1, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict.keys():
            mask = tensordict["_reset"]
        self.x, self.steps = torch.where(mask, 0.0, self.x), torch.where(mask, 0.0, self.steps)
        false = torch.zeros(N, 1, dtype=torch.bool)
        done = {"done": false, "terminated": false.clone(), "truncated": false.clone()}
        return TensorDict({**self._observed(), **done}, [N])

    def _step(self, tensordict):
        self.x, self.steps, self.clock = self.x + tensordict["action"], self.steps + 1, self.clock + 1
        terminated = self.x.abs().amax(1, keepdim=True) > LIMIT
        truncated = self.steps >= HORIZON
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict({**self._observed(), "reward": self.x.sum(1, keepdim=True), **ends}, [N])

    def _set_seed(self, seed):
        pass


class TableActor(torch.nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table  # [N, T, P]

    def forward(self, observation):
        row, clock = observation[..., 2].long(), observation[..., 3].long()
        return self.table[row, clock.clamp(max=self.table.shape[1] - 1)]


class CoinActor(HierarchyActor):
    """Takes its coins from a table [L, N, T]."""

    def _coins(self, level, tensordict):
        observation = tensordict["observation"]
        clock = observation[..., 3].long().clamp(max=self.coins.shape[-1] - 1)
        return self.coins[level, observation[..., 2].long(), clock]


def hierarchy_config(**changes) -> HierarchyConfig:
    values = dict(
        depth=2, decision_steps=4, steps=None, clock="own_goal", subgoal="relative", subgoal_reach=0.5, failure=5.0,
        test_probability=0.3,
        random_share=0.0, warmup_random_share=0.0, noise=0.0, warmup_noise=0.0, top_action="hindsight",
        top_random_share=0.0, top_random_hold=1,
    )  # fmt: skip
    return HierarchyConfig(**{**values, **changes})


SPACE = GoalSpace([0, 1], low=[-8.0, -8.0], high=[8.0, 8.0], tolerance=[0.75, 0.75], metric="box")
END_SPACE = GoalSpace([0, 1], low=[-8.0, -8.0], high=[8.0, 8.0], tolerance=1.5, metric="euclidean")
TRANSITIONS = TransitionsConfig(
    hindsight_goals=3, goal_terminates=True, goal_reward="sparse", reward="task", reward_scale=0.5
)


def record(hierarchy: Hierarchy, steps: int, seed: int):
    """Proposals, coins and draws from tables; the recorded batch [N, T] of the lock-step policy."""
    generator = torch.Generator().manual_seed(seed)
    proposals = torch.randint(-8, 9, (hierarchy.depth, N, steps, 2), generator=generator) / 8
    coins = torch.rand(hierarchy.depth, N, steps, generator=generator) < 0.4
    draws = torch.rand(N, steps, TRANSITIONS.hindsight_goals - 1, generator=generator)
    end_goal = torch.tensor([1.0, -1.0])
    actors = [TensorDictModule(TableActor(table), ["observation"], ["action"]) for table in proposals]
    actor = CoinActor(hierarchy, actors)
    actor.coins = coins
    policy = HierarchyPolicy(HierarchyClock(hierarchy), actor)
    env = TransformedEnv(ToyEnv(end_goal), get_primers_from_module(policy))
    with set_exploration_type(ExplorationType.RANDOM):
        batch = env.rollout(steps, policy, break_when_any_done=False)
    batch["hindsight_draw"] = draws
    return batch, proposals, coins, draws, end_goal


def reference(hierarchy, steps, proposals, coins, draws, end_goal) -> list[Counter]:
    counters = [Counter() for _ in range(hierarchy.depth)]
    goal = end_goal if hierarchy.goal_space is not None else None
    for n in range(N):
        env = ToyDynamics(n, HORIZON, LIMIT)
        rows = ReferenceHAC(hierarchy, TRANSITIONS, env, proposals[:, n], coins[:, n], draws[n], goal, steps).rows
        for counter, level in zip(counters, rows, strict=True):
            counter.update(level)
    if goal is None:  # a top level that follows the reward still carries the goal that the environment shows
        counters[-1] = Counter({(*row, *end_goal.tolist()): number for row, number in counters[-1].items()})
    return counters


def multiset(rows: TensorDict) -> Counter:
    """Rows as tuples; a missed test that stands in its decision's own row counts as a row of its own."""
    if "missed" in rows.keys():
        tests = rows[rows["missed"].squeeze(-1)].clone()
        tests["action"], tests["transition_type"] = (
            tests["proposal"],
            torch.full_like(tests["transition_type"], SUBGOAL_TEST),
        )
        tests["next", "reward"] = torch.full_like(tests["next", "reward"], -PENALTY)
        tests["next", "terminated"] = torch.ones_like(tests["next", "terminated"])
        rows = torch.cat([rows, tests])
    after = rows["next"]
    columns = [rows["observation"], rows["action"], after["observation"], after["reward"], after["terminated"]]
    columns += [rows["transition_type"]] + ([rows["goal"]] if "goal" in rows.keys() else [])
    return Counter(map(tuple, torch.cat([column.double() for column in columns], -1).tolist()))


CASES = [
    (depth, clock, k, subgoal, known)
    for depth in (1, 2, 3, 4)
    for clock in ("higher_goal", "own_goal", "time")
    for k, subgoal, known in (
        (2, "relative", False),
        (3, "relative", False),
        (2, "relative", True),
        (2, "absolute", False),
    )
]


@pytest.mark.parametrize(("depth", "clock", "k", "subgoal", "known"), CASES)
def test_lock_step_equals_recursion(depth, clock, k, subgoal, known):
    config = hierarchy_config(depth=depth, clock=clock, decision_steps=k ** max(depth - 1, 1), subgoal=subgoal)
    assert_as_recursion(Hierarchy(config, Bounded(-1, 1, (2,)), SPACE, END_SPACE if known else None), seed=k)


@pytest.mark.parametrize("clock", ["higher_goal", "own_goal", "time"])
@pytest.mark.parametrize(("depth", "each"), [(2, (3,)), (3, (4, 2)), (3, (1, 3)), (4, (2, 3, 1))])
def test_levels_may_have_numbers_of_decisions_of_their_own(depth, each, clock):
    config = hierarchy_config(depth=depth, clock=clock, steps=each)
    hierarchy = Hierarchy(config, Bounded(-1, 1, (2,)), SPACE)
    assert config.top_steps == math.prod(each) and hierarchy.horizons[:-1].tolist() == list(each)
    assert hierarchy.reach[1:, 0].tolist() == [0.5 * math.prod(each[: i + 1]) for i in range(depth - 1)]
    assert [hierarchy.lowest(level) for level in range(depth - 1)] == list(each)
    assert_as_recursion(hierarchy, seed=sum(each))
    with pytest.raises(ConfigError, match=r"steps = \[2, 2, 2, 2\]: depth = "):
        hierarchy_config(depth=depth, steps=(2, 2, 2, 2)).check()


def assert_as_recursion(hierarchy: Hierarchy, seed: int) -> None:
    """The same transitions, of a batch as a whole and cut anywhere."""
    steps, depth = 70, hierarchy.depth
    batch, *tables = record(hierarchy, steps, seed=depth)
    expected = reference(hierarchy, steps, *tables)

    whole = LevelTransitions(hierarchy, TRANSITIONS)(batch)
    for rows, counter in zip(whole, expected, strict=True):
        assert sum(counter.values()) > 0
        assert multiset(rows) == counter

    cuts = torch.randint(1, steps, (6,), generator=torch.Generator().manual_seed(seed)).unique().tolist()
    convert, found = LevelTransitions(hierarchy, TRANSITIONS), [Counter() for _ in range(depth)]
    for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
        state, convert = convert.state_dict(), LevelTransitions(hierarchy, TRANSITIONS)
        convert.load_state_dict(state)  # as another process goes on
        for counter, rows in zip(found, convert(batch[:, start:stop]), strict=True):
            counter.update(multiset(rows))
    assert found == expected


def test_the_reference_covers_every_kind_of_transition():
    """Guards the test above: penalties, early ends and terminations do occur in what it compares."""
    hierarchy = Hierarchy(hierarchy_config(depth=3, decision_steps=9), Bounded(-1, 1, (2,)), SPACE)
    batch, *_ = record(hierarchy, 70, seed=3)
    assert batch["next", "terminated"].any() and batch["next", "truncated"].any()
    *lower, top = LevelTransitions(hierarchy, TRANSITIONS)(batch)
    assert {0} == set(top["transition_type"].flatten().tolist()) and 0 < top["missed"].float().mean() < 1
    assert {0, 1, 2} == set(lower[1]["transition_type"].flatten().tolist())
    for rows in lower:
        first = rows[(rows["transition_type"] == HINDSIGHT_ACTION).squeeze(-1)]
        assert 0 < first["next", "terminated"].float().mean() < 1


@pytest.mark.parametrize("subgoal", ["relative", "absolute"])
def test_dense_rewards_are_the_share_of_the_way_that_is_left(subgoal):
    config = hierarchy_config(depth=3, decision_steps=4, subgoal=subgoal)
    hierarchy = Hierarchy(config, Bounded(-1, 1, (2,)), SPACE, END_SPACE)
    batch, *_ = record(hierarchy, 70, seed=3)
    dense = dataclasses.replace(TRANSITIONS, goal_reward="dense")
    by_kind = [LevelTransitions(hierarchy, kind)(batch) for kind in (TRANSITIONS, dense)]
    for level, (sparse, found) in enumerate(zip(*by_kind, strict=True)):
        reach = 0.5 * 2 ** (level + 1)  # metres that the level above may ask for, along an axis
        furthest = reach if subgoal == "relative" and level < 2 else 16.0
        way = (found["next", "observation"][:, :2] - found["goal"]).abs().amax(-1, keepdim=True) / furthest
        expected = torch.where(sparse["next", "reward"] == -1, -way.clamp(max=1), sparse["next", "reward"])
        torch.testing.assert_close(found["next", "reward"], expected)
        assert 0 < (found["next", "reward"] > sparse["next", "reward"]).float().mean() < 1
        for key in found.keys(True, True):
            assert key == ("next", "reward") or torch.equal(found[key], sparse[key])


# Evidence.


def test_subgoals_of_a_level_with_little_time_are_not_reached_by_standing_still():
    """At depth 3 an ant's lowest level may be asked for .3 m, and .4 m count as there."""
    space = GoalSpace([0, 1], -5.0, 5.0, 0.4, "euclidean")
    options = {"subgoal": "relative", "subgoal_reach": 0.06, "decision_steps": 20}

    def made(depth, **more):
        return Hierarchy(default(HierarchyConfig, depth=depth, **{**options, **more}), Bounded(-1, 1, (2,)), space)

    assert made(2).space_of(0) is space and made(3, subgoal="absolute").space_of(0) is space
    deep = made(3)
    assert deep.space_of(0).tolerance == pytest.approx(0.15) and deep.space_of(1) is space
    observation, goals = torch.zeros(1, 2), torch.tensor([[[0.2, 0.0], [0.2, 0.0]]])
    assert deep.achieved(observation, goals).tolist() == [[False, True, False]]
    missed = deep.hindsight_action(1, observation, goals[:, 0], torch.zeros(1, 2))
    assert missed.tolist() == [[0.0, 0.0]]  # what was reached instead of the subgoal
    box = GoalSpace([0, 1], -5.0, 5.0, [0.4, 0.1])
    narrow = Hierarchy(default(HierarchyConfig, depth=3, **options), Bounded(-1, 1, (2,)), box).space_of(0)
    torch.testing.assert_close(narrow.tolerance, torch.tensor([0.15, 0.1]))


@pytest.mark.parametrize("peak", [False, True])
def test_evidence_of_decisions_is_what_a_loop_over_steps_notes(peak):
    evidence = Evidence(peak=peak, scale=0.5, steps=4)
    generator = torch.Generator().manual_seed(0)
    reward = torch.randint(-1, 2, (40,), generator=generator).float()
    states = torch.randn(40, 3, generator=generator)
    ends = torch.tensor([3, 4, 9, 17, 30, 39])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
    found = evidence.of_decisions(reward, states, starts, ends)
    assert found.shape == (6, evidence.dim(3)) and found.dtype == torch.float32
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        total, best, place = torch.zeros(1), torch.full((1,), -torch.inf), torch.zeros(3)
        for t in range(start, end + 1):
            total, (best, place) = total + reward[t], higher(reward[t].view(1), best, place, states[t])
        torch.testing.assert_close(found[row], evidence.of(total, best, place))
        if peak:
            first = start + int(reward[start : end + 1].argmax())
            assert torch.equal(found[row, 2:], states[first])
            assert found[row, 1] == 0.5 * 4 * reward[start : end + 1].max()
    empty = torch.zeros(0, dtype=torch.int64)
    assert evidence.of_decisions(reward, states, empty, empty).shape == (0, evidence.dim(3))


def test_proposals_are_decoded_into_the_actions_own_bounds():
    spec = Bounded(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 8.0]))
    hierarchy = Hierarchy(hierarchy_config(depth=3), spec, SPACE)
    proposals = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 0.5]])
    wanted = torch.tensor([[-1.0, 2.0], [1.0, 5.0], [3.0, 6.5]])
    observation = torch.zeros(3, 4)
    assert torch.equal(hierarchy.decode(0, observation, proposals), wanted)
    assert (hierarchy.decode(0, observation.numpy(), proposals.numpy()) == wanted.numpy()).all()
    assert hierarchy.proposal_dims == [2, 2, 2]


@pytest.mark.parametrize("subgoal", ["relative", "absolute"])
def test_places_beyond_what_can_be_asked_for_are_encoded_as_the_furthest(subgoal):
    hierarchy = Hierarchy(hierarchy_config(subgoal=subgoal), Bounded(-1, 1, (2,)), SPACE)
    goals = torch.tensor([[9.0, -9.0], [1.0, -1.0]])
    encoded = hierarchy.encode(1, torch.zeros(2, 4), goals)
    assert encoded.tolist() == [[1.0, -1.0], [0.5, -0.5] if subgoal == "relative" else [0.125, -0.125]]


@pytest.mark.parametrize("fails, worst", [(False, 1.0), (True, 5.0)])
def test_what_failing_costs(fails, worst):
    """Only where bodies can fail is it more than what a goal costs that is never reached."""
    hierarchy = Hierarchy(hierarchy_config(failure=5.0), Bounded(-1, 1, (2,)), SPACE, fails=fails)
    assert hierarchy.penalty(0) == 4.0 and hierarchy.lowest(0) == 4.0 * worst


def test_a_round_tolerance_is_narrowed_by_the_entry_that_may_lie_nearest():
    """Entries of a narrow arena lie nearer than the reach: here .4 m, so that half of it counts as there."""
    space = GoalSpace([0, 1], low=[-8.0, -0.2], high=[8.0, 0.2], tolerance=1.5, metric="euclidean")
    hierarchy = Hierarchy(hierarchy_config(), Bounded(-1, 1, (2,)), space)
    narrowed = hierarchy.space_of(0)
    assert narrowed is not None and narrowed.tolerance.item() == pytest.approx(0.2)


def test_a_top_level_may_keep_what_it_proposed():
    """Only one that follows the reward; levels that reach for goals have hindsight actions always."""
    config = hierarchy_config(depth=3, decision_steps=4, top_action="proposal")
    space = GoalSpace([0, 1], low=[-10.0, -10.0], high=[10.0, 10.0], tolerance=0.1, metric="euclidean")
    observation, goal, reached = torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, 0.1]])
    for known, top_keeps in ((None, True), (space, False)):
        hierarchy = Hierarchy(config, Bounded(-1, 1, shape=(2,)), space, known)
        for level in (1, 2):
            kept = goal if level == 2 and top_keeps else reached
            done = hierarchy.hindsight_action(level, observation, goal, reached)
            torch.testing.assert_close(hierarchy.decode(level, observation, done), kept)
