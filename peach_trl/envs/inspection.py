"""What random play shows of an environment, and which values of a hierarchy follow from it.

What a level can ask for depends on how far the body gets, which nobody knows of an environment that is new. So actions
that are held for a decision's length are played, and measured: ranges of the observation, how far the subgoal space's
entries move in a decision, rewards and episodes. It says what to set, and warns of what will not work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from peach_trl.declared import declared
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.rules import PERFECT

FAR = 0.95  # quantile of the ways that count as what a decision can reach
NEAR = 0.2  # share of that within which a subgoal is achieved


class HeldActions(TensorDictModuleBase):
    """Uniform actions, each held for some steps; writes ``action`` [N, A].

    Args:
        env: whose actions they are; the bounds of its action spec are finite.
        steps: that an action is held for.
        seed: of the draws.
    """

    def __init__(self, env: EnvBase, steps: int, seed: int = 0) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]
        space: Any = env.action_spec.space
        self.low, self.high, self.steps, self._step = space.low, space.high, steps, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._action = self.low

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws anew after ``steps`` calls."""
        if self._step % self.steps == 0:
            draws = torch.rand(self.low.shape, generator=self._generator)
            self._action = self.low + draws * (self.high - self.low)
        self._step += 1
        return tensordict.set("action", self._action)


@dataclass(frozen=True)
class Inspection:
    """What was measured in episodes of N rows.

    Attributes:
        low: of the observation, [D].
        high: likewise.
        moved: how far each entry of the subgoal space gets in a decision, mostly, [G]; empty without such a space.
        reward: lowest and highest of a step.
        usual: share of the steps that have the most frequent reward.
        length: mean steps of an episode.
        ended: share of the episodes that terminated before the horizon.
        proposals: values to set, by key.
        warnings: what will not work, or may not.
    """

    low: Tensor
    high: Tensor
    moved: Tensor
    reward: tuple[float, float]
    usual: float
    length: float
    ended: float
    proposals: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The same, to be read."""
        yield "observation, entry by entry: lowest and highest"
        ranges = zip(self.low.tolist(), self.high.tolist(), strict=True)
        yield from (f"  {i:3d}  {low:10.4g} {high:10.4g}" for i, (low, high) in enumerate(ranges))
        yield f"reward of a step: {self.reward[0]:.4g} to {self.reward[1]:.4g}, {self.usual:.1%} of them the same"
        yield f"episodes: {self.length:.1f} steps, {self.ended:.0%} terminated"
        if len(self.moved):
            yield f"a decision moves subgoal entries by {_listed(self.moved)} (95 % of them by less)"
        yield "to set, if you know no better (a body that has to learn to move gets farther than random play):"
        yield from (f"  {key}: {value}" for key, value in self.proposals.items())
        yield from (f"warning: {warning}" for warning in self.warnings)


@torch.no_grad()
def inspect(
    env: EnvBase,
    decision_steps: int,
    horizon: int,
    episodes: int = 3,
    seed: int = 0,
    *,
    subgoal_reach: float | None = None,
) -> Inspection:
    """Plays held uniform actions in all rows of an environment, and says what that shows.

    Args:
        env: of batch size ``[N]`` or none, with ``observation`` [N, D], and ``subgoal_space`` where it has one.
        decision_steps: steps of a decision of the top level.
        horizon: steps of an episode, at most.
        episodes: of each row.
        seed: of the actions.
        subgoal_reach: how far a relative subgoal may lie, per step; ``None`` where subgoals are absolute.

    Examples:
        >>> from peach_trl.envs import FAMILIES
        >>> found = inspect(FAMILIES["SparsePointRobot"](8, seed=0), decision_steps=5, horizon=20)
        >>> found.length, found.ended, list(found.proposals)[:2]
        (20.0, 0.0, ['hierarchy.subgoal_reach', 'subgoal tolerance'])
        >>> [round(way, 1) for way in found.moved.tolist()]  # of five steps of 0.1 m at most
        [0.5, 0.5]
    """
    batch = env.rollout(episodes * horizon, HeldActions(env, decision_steps, seed), break_when_any_done=False)
    batch = batch if batch.ndim > 1 else batch.unsqueeze(0)
    observation, reward = batch["next", "observation"], batch["next", "reward"].flatten()
    done, ended = batch["next", "done"][..., 0], batch["next", "terminated"][..., 0]
    space: GoalSpace | None = declared(env, "subgoal_space")
    moved = torch.zeros(0) if space is None else _moved(space, batch, decision_steps)
    same = reward == reward.mode().values
    found = Inspection(
        low=observation.flatten(0, 1).amin(0),
        high=observation.flatten(0, 1).amax(0),
        moved=moved,
        reward=(reward.min().item(), reward.max().item()),
        usual=same.float().mean().item(),
        length=done.numel() / max(int(done.sum()), 1),
        ended=(int(ended.sum()) / max(int(done.sum()), 1)),
    )
    _propose(found, space, decision_steps, horizon)
    _warn(found, space, batch, decision_steps, horizon)
    if space is not None and subgoal_reach is not None:
        _warn_of_reach(found, space, decision_steps * subgoal_reach)
    return found


def _moved(space: GoalSpace, batch: TensorDictBase, steps: int) -> Tensor:
    """How far entries get in a decision within an episode: a high quantile, [G]."""
    start, end = batch["observation"][:, :-steps:steps], batch["next", "observation"][:, steps - 1 :: steps]
    over = batch["next", "done"][..., 0].long().cumsum(1) - batch["next", "done"][..., 0].long()
    first, last = over[:, :-steps:steps], over[:, steps - 1 :: steps]
    count = min(start.shape[1], end.shape[1])
    way = (space.project(end[:, :count]) - space.project(start[:, :count])).abs()
    within = way[first[:, :count] == last[:, :count]]
    return torch.quantile(within, FAR, 0) if len(within) else torch.zeros(space.dim)


def _propose(found: Inspection, space: GoalSpace | None, steps: int, horizon: int) -> None:
    proposals = found.proposals
    if space is not None:
        indices = list(space.indices)
        low, high = found.low[indices], found.high[indices]
        margin = 0.1 * (high - low)
        proposals["hierarchy.subgoal_reach"] = float(f"{found.moved.max().item() / steps:.3g}")
        proposals["subgoal tolerance"] = _listed(NEAR * found.moved)
        proposals["subgoal low"], proposals["subgoal high"] = _listed(low - margin), _listed(high + margin)
    best = max(abs(bound) for bound in found.reward)
    if best > 0:
        proposals["transitions.reward_scale"] = float(f"{PERFECT / (horizon * best):.3g}")


def _warn(found: Inspection, space: GoalSpace | None, batch: TensorDictBase, steps: int, horizon: int) -> None:
    warn = found.warnings.append
    if steps > horizon:
        warn(f"decision_steps = {steps} is more than the horizon, {horizon}: the top level decides once")
    elif found.length < 2 * steps:
        warn(
            f"episodes have {found.length:.3g} steps, a decision decision_steps = {steps}: the top level decides once "
            "or twice; set fewer"
        )
    if not batch["next", "done"].any():
        warn(f"no episode ended within {batch.shape[1]} steps: episodes must end by horizon = {horizon}")
    if found.usual == 1.0:
        warn(
            f"no reward but {found.reward[0]:.4g} was met: the task shows itself to those only who find it; see "
            "exploration and train.prefill_met"
        )
    large = [i for i, bound in enumerate(torch.maximum(found.low.abs(), found.high.abs()).tolist()) if bound > 100]
    if large:
        warn(f"entries {large} of the observation pass 100: let networks normalise them (views.normalise=50000)")
    still = [i for i in range(len(found.low)) if found.low[i] == found.high[i]]
    if still:
        warn(f"entries {still} of the observation never change: leave them out")
    if space is None:
        warn("there is no subgoal_space: only flat policies (hierarchy.depth=1) can be trained once it has one")
        return
    _warn_of_subgoals(found, space)


def _warn_of_subgoals(found: Inspection, space: GoalSpace) -> None:
    warn, indices = found.warnings.append, list(space.indices)
    outside = (found.low[indices] < space.low) | (found.high[indices] > space.high)
    if outside.any():
        warn(
            f"entries {_named(indices, outside)} pass the subgoal space's bounds: what lies outside is never asked for"
        )
    tolerance = space.tolerance.expand(space.dim)
    if (found.moved < tolerance).all():
        warn("a decision moves less than the tolerance of subgoals: every subgoal nearby is achieved where it is set")
    unused = found.moved == 0
    if unused.any():
        warn(f"entries {_named(indices, unused)} of the subgoal space do not move by actions: leave them out")


def _warn_of_reach(found: Inspection, space: GoalSpace, reach: float) -> None:
    tolerance = space.tolerance.expand(space.dim)
    if (tolerance >= reach).all():
        found.warnings.append(
            f"no subgoal lies farther than {reach:.3g} from the state (hierarchy.subgoal_reach x decision_steps), "
            f"which is within the tolerance, {_listed(tolerance)}: every one is achieved where it is set"
        )


def _named(indices: list[int], which: Tensor) -> list[int]:
    return [index for index, chosen in zip(indices, which.tolist(), strict=True) if chosen]


def _listed(values: Tensor) -> list[float]:
    return [float(f"{value:.3g}") for value in values.tolist()]
