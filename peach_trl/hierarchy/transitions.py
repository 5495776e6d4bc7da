"""From recorded steps to each level's transitions: hindsight actions, hindsight goals and subgoal tests.

The recording is a batch [N, T] of what :class:`~peach_trl.hierarchy.policy.HierarchyActor` and the environment wrote.
All of it is converted at once, with no loop over time: where a level acts, one of its decisions starts; where its
child's attempt ends, that decision ends; both lists in order give the pairs. Source: HAC (Levy et al. 2019, arXiv
1712.00948, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from peach_trl.config import option
from peach_trl.defaults import default
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.continuity import Continuity
from peach_trl.hierarchy.evidence import Evidence
from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.seeding import named_generator

#: Values of a transition's ``transition_type``.
HINDSIGHT_ACTION, HINDSIGHT_GOAL, SUBGOAL_TEST = 0, 1, 2
REWARDS = ("task", "dense")
GOAL_REWARDS = ("sparse", "dense")
#: A reward that is there while training only: of observations after a step [N, T, D] and task ids [N, T, 1], [N, T].
DenseReward: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TransitionsConfig:
    """Hindsight and rewards of the conversion; see ``configs/`` for values and comments."""

    hindsight_goals: int = option(
        low=0, high=1000, help="hindsight goals per attempt; the last state reached is always one"
    )
    goal_terminates: bool = option(help="a goal that is achieved ends an attempt's value; false: it is to be held")
    goal_reward: str = option(
        choices=GOAL_REWARDS, help="of goal-reaching levels: -1 and 0, or minus the distance left"
    )
    reward: str = option(choices=REWARDS, help="what the top level learns from: the task's reward, or its dense form")
    reward_scale: float = option(above=0, auto=True, help="factor on the task's rewards, summed over a top decision")


_Columns: TypeAlias = dict[str | tuple[str, str], Tensor]  # [M, ...] each
_Copies: TypeAlias = tuple[Tensor, _Columns]  # which rows [K], and the columns [K, ...] that differ from theirs


@dataclass
class _Decisions:
    """The M decisions of one level, in order of row and time."""

    start: Tensor  # [M] index into the flattened [N * T] steps
    end: Tensor  # [M] likewise; the last step of the decision
    closes: Tensor  # [M] bool: the level's own attempt ends with this decision


class LevelTransitions:
    """Converts the whole episodes in batches of recorded steps, and carries the unfinished ones to the next batch.

    Calling it with a batch [N, T] gives a list of L TensorDicts, bottom up, each a flat batch of transitions with
    ``observation``, ``action`` (a proposal in [-1, 1]), ``task_id``, ``episode`` (numbers the episodes within the
    call), ``transition_type`` and ``("next", "observation" | "reward" | "done" | "terminated")``. Levels that reach
    for a goal also have ``goal`` and ``("next", "goal")``; rewards are 0 and terminated where the goal is achieved,
    else -1; using up the attempts is not terminal. With ``goal_terminates=False`` it goes on at the goal, which is to
    be held: where attempts last for their k decisions, whatever was achieved, a level else learns nothing of what to
    do once it is there. With ``goal_reward="dense"`` they are minus the distance left instead of -1, as a share of the
    furthest subgoal (:meth:`Hierarchy.left`). Where the environment says under ``("next", "failed")`` that the body has
    failed, the reward is -H and terminal, the least that any value is, so that no level is better off by it; without
    that key nothing fails.
    Hindsight goals and missed subgoal tests are rows of their own, by ``transition_type``.

    A top level whose objective is the task's reward has one row a decision: the scaled sum of the task's rewards, the
    ``goal`` only if the environment shows it, ``steps_to_next_obs``, the environment steps of the decision, from which
    TorchRL's value estimators discount per step, and above a lower level ``proposal`` [M, P] and ``missed`` bool
    [M, 1]: it was tested, and missed with the attempts used up. ``meta_episode`` [M, 1] numbers the meta-episodes of
    all rows, if the policy tracks a belief. With ``evidence``, ``("next", "evidence")`` [M, E] is what beliefs read of
    the task's rewards. With ``dense`` its reward is that one's; beliefs still read the task's own: they will have no
    other when it is tested.

    Args:
        hierarchy: the hierarchy that recorded the batches.
        config: hindsight goals and reward scale; ``None`` for :func:`~peach_trl.defaults.default`.
        seed: for drawing hindsight goals.
        dense: a reward to learn from in place of the task's, as PEARL has for its sparse point robot.
        evidence: what beliefs read of a decision's rewards; ``None``: their sum, as the top level learns from it.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> short = ["env.horizon=40", "hierarchy.decision_steps=20"]
        >>> config = load_config(PeachConfig, "peach", overrides=short)
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> policy = agent.make_policy()
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(40, policy)  # 3 rows, 40 steps
        >>> level_0, top = LevelTransitions(agent.hierarchy, config.transitions, seed=0)(batch)
        >>> top["observation"].shape, top["action"].shape, top["steps_to_next_obs"].flatten().tolist()
        (torch.Size([6, 4]), torch.Size([6, 2]), [20, 20, 20, 20, 20, 20])
        >>> int((level_0["transition_type"] == HINDSIGHT_ACTION).sum())
        120
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        config: TransitionsConfig | None = None,
        seed: int | None = None,
        dense: DenseReward | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        config = default(TransitionsConfig) if config is None else config
        if dense is not None and evidence is None:
            evidence = Evidence(scale=config.reward_scale)
        self.hierarchy, self.config, self.dense = hierarchy, config, dense
        self._learnt = Evidence(scale=config.reward_scale)
        self.evidence = None if evidence == self._learnt and dense is None else evidence
        self._generator = named_generator("hindsight", seed)
        self._meta_episodes = self._offset = 0
        self._continuity = Continuity()
        self.reset()

    def reset(self) -> None:
        """Forgets the steps that were carried over; numbers of meta-episodes go on where they were."""
        self._offset = self._meta_episodes
        self._continuity.reset()
        self._tail: TensorDictBase | None = None
        self._tail_start: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """The steps that were carried over, the number of meta-episodes so far, and the state of the generator."""
        return {
            "generator": self._generator.get_state(),
            "meta_episodes": (self._meta_episodes, self._offset),
            "tail": None if self._tail is None else self._tail.to_dict(),
            "tail_start": self._tail_start,
            "continuity": self._continuity.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._generator.set_state(state_dict["generator"])
        self._meta_episodes, self._offset = state_dict["meta_episodes"]
        tail = state_dict["tail"]
        self._tail = None if tail is None else TensorDict(tail, tail["done"].shape)
        self._tail_start = state_dict["tail_start"]
        self._continuity.load_state_dict(state_dict["continuity"])

    def __call__(self, batch: TensorDictBase) -> list[TensorDict]:
        """Converts what is finished; see the class.

        Args:
            batch: recorded steps [N, T], or [T] of an environment without batch size; rows go on where they stopped
                in the batch before, or start anew, and what they had begun is lost. Without ``task_id`` all is task 0.

        Raises:
            ValueError: if the batch is neither, or was not recorded by a hierarchy; and if rows go on elsewhere, see
                :class:`~peach_trl.hierarchy.continuity.Continuity`. Nothing is converted then.
        """
        if batch.ndim == 1:
            batch = batch.unsqueeze(0)
        if batch.ndim != 2:
            raise ValueError(f"a recorded batch must be [environments, time] or [time], got {list(batch.shape)}")
        if batch.get(("hierarchy", "attempts"), None) is None:
            raise ValueError("the batch has no ('hierarchy', 'attempts'): it was not recorded by a HierarchyPolicy")
        if self._continuity.check(batch):  # rows start anew, and count meta-episodes from 0 again
            self._offset = self._meta_episodes
        steps = self._recorded(batch)
        first = torch.zeros(steps.shape[0], 1, dtype=torch.int64)  # where each row's unconverted steps begin
        if self._tail is not None and self._tail_start is not None:
            width, started = self._tail.shape[1], steps["start"][:, :1]
            first = torch.where(started, width, self._tail_start)  # rows that start anew left their last steps behind
            steps = _cat([self._tail, steps], 1)
        time = torch.arange(1, steps.shape[1] + 1)
        stop = torch.maximum((time * steps["done"]).amax(1, keepdim=True), first)  # whole episodes end here
        width = int((steps.shape[1] - stop).max())
        self._tail = steps[:, steps.shape[1] - width :].clone() if width else None
        self._tail_start = stop - (steps.shape[1] - width)
        valid = (time > first) & (time <= stop)
        flat = steps.reshape(-1)
        return [self._level(level, flat, steps, valid) for level in range(self.hierarchy.depth)]

    def _recorded(self, batch: TensorDictBase) -> TensorDict:
        """The keys that the conversion needs, with what ends after each step."""
        achieved, end, used = self.hierarchy.recorded_ends(batch)
        goals, end_goal = batch.get(("hierarchy", "goal"), None), batch.get("goal", None)
        steps = {
            "observation": batch["observation"],
            "reached": batch["next", "observation"],
            "acts": batch["hierarchy", "acts"],
            "start": batch["hierarchy", "start"].squeeze(-1),
            "reward": batch["next", "reward"].squeeze(-1),
            "terminated": batch["next", "terminated"].squeeze(-1),
            "task_id": _task_of(batch),
            "action": self.hierarchy.encode(0, batch["observation"], batch["action"]),
            "draw": batch.get("hindsight_draw", None),
            **{"done": batch["next", "done"].squeeze(-1), "achieved": achieved, "end": end, "used": used},
        }
        failed = batch.get(("next", "failed"), None)
        steps["failed"] = torch.zeros_like(steps["done"]) if failed is None else failed.squeeze(-1)
        if self.dense is not None:
            steps["learnt"] = self.dense(batch["next", "observation"], steps["task_id"])
        number = batch.get(("context", "meta_episode"), None)
        if number is not None:  # one number for each row's meta-episodes
            steps["meta_episode"] = (self._offset + number) * len(number) + torch.arange(len(number)).view(-1, 1, 1)
            self._meta_episodes = max(self._meta_episodes, self._offset + int(number.max()) + 1)
        if steps["draw"] is None:
            shape = (*batch.shape, max(self.config.hindsight_goals - 1, 0))
            steps["draw"] = torch.rand(shape, generator=self._generator)
        if goals is not None:
            steps["subgoals"], steps["tested"] = goals, batch["hierarchy", "tested"]
        if end_goal is not None:
            steps["end_goal"] = end_goal
        return TensorDict(steps, batch.shape)

    def _level(self, level: int, flat: TensorDictBase, steps: TensorDictBase, valid: Tensor) -> TensorDict:
        decisions = self._decisions(level, steps, valid)
        rows = self._rows(level, flat, steps, decisions)
        copies = []
        space = self.hierarchy.space_of(level)
        if space is not None:
            copies += self._hindsight_goal(level, space, flat, decisions, rows)
        if level > 0:
            missed = self._missed(level, flat, decisions)
            proposal = self.hierarchy.encode(level, rows["observation"], flat["subgoals"][decisions.start, level - 1])
            if space is None:
                rows["missed"], rows["proposal"] = missed.unsqueeze(-1), proposal
            else:
                copies.append(self._subgoal_test(level, missed, proposal))
        return _with_copies(rows, copies)

    def _decisions(self, level: int, steps: TensorDictBase, valid: Tensor) -> _Decisions:
        decided = valid if level == 0 else valid & steps["end"][..., level - 1]
        start = (valid & steps["acts"][..., level]).flatten().nonzero().squeeze(-1)
        end = decided.flatten().nonzero().squeeze(-1)
        if start.shape != end.shape or bool((end < start).any()):
            raise RuntimeError(
                f"level {level} has {len(start)} starts and {len(end)} ends of decisions: the batch was not recorded "
                "by this hierarchy, or rows do not go on where they stopped (call reset() when collection starts anew)"
            )
        return _Decisions(start, end, steps["end"][..., level].reshape(-1)[end])

    def _rows(self, level: int, flat: TensorDictBase, steps: TensorDictBase, decisions: _Decisions) -> _Columns:
        hierarchy, start, end = self.hierarchy, decisions.start, decisions.end
        observation, reached = flat["observation"].index_select(0, start), flat["reached"].index_select(0, end)
        if level == 0:
            action = flat["action"].index_select(0, start)
        else:
            action = hierarchy.hindsight_action(level, observation, flat["subgoals"][start, level - 1], reached)
        rows: _Columns = {
            "observation": observation,
            "action": action,
            "task_id": flat["task_id"][start],
            "episode": _episodes(steps["done"])[start].unsqueeze(-1),
            "transition_type": torch.full((len(start), 1), HINDSIGHT_ACTION),
            ("next", "observation"): reached,
            ("next", "done"): flat["done"][end].unsqueeze(-1),
        }
        if level < hierarchy.top:
            rows["goal"] = rows["next", "goal"] = flat["subgoals"][start, level]
        elif "end_goal" in flat.keys():  # known, be it reached for, or only read by a top that follows the reward
            rows["goal"] = rows["next", "goal"] = flat["end_goal"][start]
        if hierarchy.space_of(level) is None:
            rewards = flat["reward" if self.dense is None else "learnt"]
            rows["next", "reward"] = self._learnt.of_decisions(rewards, flat["reached"], start, end)
            if self.evidence is not None:
                rows["next", "evidence"] = self.evidence.of_decisions(flat["reward"], flat["reached"], start, end)
            rows["steps_to_next_obs"] = (end - start + 1).unsqueeze(-1)
            rows["next", "terminated"] = flat["terminated"][end].unsqueeze(-1)
        else:
            achieved, done, failed = flat["achieved"][end, level], flat["done"][end], flat["failed"][end]
            rows.update(self._goal_reward(level, reached, rows["goal"], achieved, done, failed))
        if level == hierarchy.top and "meta_episode" in flat.keys():
            rows["meta_episode"] = flat["meta_episode"][start]
        return rows

    def _hindsight_goal(
        self, level: int, space: GoalSpace, flat: TensorDictBase, decisions: _Decisions, rows: _Columns
    ) -> list[_Copies]:
        """Copies of the rows whose goal is a state reached by this or a later decision of the same attempt."""
        number = torch.arange(len(decisions.start))
        last = decisions.closes.nonzero().squeeze(-1)
        attempt = decisions.closes.cumsum(0) - decisions.closes.long()
        last_of = torch.full((int(attempt.max()) + 1 if len(number) else 0,), len(number) - 1)
        last_of[: len(last)] = last
        first_of = torch.cat([last_of.new_zeros(1), last_of[:-1] + 1])[: len(last_of)]
        length = last_of - first_of + 1
        draws = flat["draw"][decisions.start[first_of]]  # [attempts, goals - 1]
        reached, ends = space.project(rows["next", "observation"]), decisions.end
        done, failed = flat["done"][ends], flat["failed"][ends]
        copies: list[_Copies] = []
        for j in range(self.config.hindsight_goals):
            # Attempts that are shorter than the number of hindsight goals get fewer of them.
            picked = last_of if j == 0 else first_of + (draws[:, j - 1] * length).long()
            picked = torch.where(j < length, picked, -1)[attempt]
            keep = (number <= picked).nonzero().squeeze(-1)
            goal, state = reached.index_select(0, picked[keep]), rows["next", "observation"].index_select(0, keep)
            achieved = space.achieved(state, goal)
            reward = self._goal_reward(level, state, goal, achieved, done[keep], failed[keep])
            changes: _Columns = {"goal": goal, **reward}
            copies.append((keep, changes | {"transition_type": torch.full((len(keep), 1), HINDSIGHT_GOAL)}))
        return copies

    def _goal_reward(
        self, level: int, state: Tensor, goal: Tensor, achieved: Tensor, done: Tensor, failed: Tensor
    ) -> _Columns:
        """Reward 0 at the goal, -H where the body failed, else -1 or minus what is left; [M] to [M, 1] each."""
        achieved, done, failed = (part.unsqueeze(-1) for part in (achieved, done, failed))
        over, reward = achieved & self.config.goal_terminates, achieved.float() - 1
        if self.config.goal_reward == "dense":
            reward = reward * self.hierarchy.left(level, state, goal).unsqueeze(-1)
        return {
            ("next", "reward"): torch.where(failed, -self.hierarchy.lowest(level), reward),
            ("next", "terminated"): over | failed,
            ("next", "done"): over | done,
        }

    def _missed(self, level: int, flat: TensorDictBase, decisions: _Decisions) -> Tensor:
        """Which proposals were tested, and missed by the child with its attempts used up, bool [M]."""
        start, end, child = decisions.start, decisions.end, level - 1
        missed = flat["tested"][start, child] & ~flat["achieved"][end, child]
        return missed & (flat["used"][end, child] >= self.hierarchy.horizons[child])

    def _subgoal_test(self, level: int, missed: Tensor, proposal: Tensor) -> _Copies:
        """Rows (s, p, r = -H, terminated) for missed tests."""
        keep = missed.nonzero().squeeze(-1)
        over = torch.ones(len(keep), 1, dtype=torch.bool)
        return keep, {
            "transition_type": torch.full((len(keep), 1), SUBGOAL_TEST),
            "action": proposal[keep],
            ("next", "reward"): torch.full((len(keep), 1), -self.hierarchy.penalty(level)),
            ("next", "terminated"): over,
            ("next", "done"): over,
        }


def _task_of(batch: TensorDictBase) -> Tensor:
    known = batch.get("task_id", None)
    return torch.zeros(*batch.shape, 1, dtype=torch.int64) if known is None else known


def _with_copies(rows: _Columns, copies: list[_Copies]) -> TensorDict:
    """The rows, and behind them copies of some of them in which some columns differ; each column is copied once."""
    every = torch.cat([torch.arange(len(rows["observation"])), *(keep for keep, _ in copies)])
    whole: _Columns = {}
    for key, column in rows.items():
        if key == ("next", "goal"):
            whole[key] = whole["goal"]
        elif any(key in changes for _, changes in copies):
            parts = (changes[key] if key in changes else column.index_select(0, keep) for keep, changes in copies)
            whole[key] = torch.cat([column, *parts])
        else:
            whole[key] = column.index_select(0, every)
    after = {key[1]: column for key, column in whole.items() if isinstance(key, tuple)}
    columns = {key: column for key, column in whole.items() if isinstance(key, str)}
    return TensorDict({**columns, "next": TensorDict(after, every.shape)}, every.shape)


def _cat(parts: Sequence[TensorDictBase], dim: int = 0) -> TensorDict:
    """``torch.cat``, whose stub knows tensors only."""
    return torch.cat(list(parts), dim)  # type: ignore[arg-type, return-value]


def _episodes(done: Tensor) -> Tensor:
    """A number for the episode of each step, flat [N * T], distinct between rows."""
    before = done.flatten().cumsum(0) - done.flatten().long()
    return before + torch.arange(done.shape[0]).repeat_interleave(done.shape[1])
