"""Novelty: a reward for what was seldom seen, early in training.

Where the way to the rewards leads over a place that brings nothing by itself, a top level that follows rewards never
learns to go there: the top of a mountain that shows where the treasure is costs more than it brings until the treasure
is fetched. So the top level is also rewarded for states that are new to it, less and less, until it lives on the task's
rewards alone. HyperX (Zintgraf et al. 2021, arXiv 2010.01062) does the same for VariBAD.

A trajectory is paid once, for the newest state that it comes to: each decision gets by how much its state is newer than
all before it. So nothing is gained by staying where it is new, nor by coming back; what to do from there is up to the
task's rewards. NovelD (Zhang et al. 2021, NeurIPS) pays for the difference between two successive states, with the same
intent.

How new a state is says random network distillation (Burda et al. 2018, arXiv 1810.12894): one network is random and
stays so, another learns to put out the same, and errs where it has seldom been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import TensorSpec

from peach_trl.config import option
from peach_trl.levels.adam import FusedAdam
from peach_trl.modules.networks import FeatureNet, Features
from peach_trl.seeding import named_generator


@dataclass(frozen=True)
class NoveltyConfig:
    """A reward for new states; see ``configs/`` for values and comments."""

    weight: float = option(
        low=0, help="what a newest state of average novelty is worth, in perfect episodes; 0: nothing"
    )
    until: float = option(above=0, high=1, help="share of training after which novelty is worth nothing")


class Novelty(nn.Module):
    """Adds to the rewards of decisions by how much they lead to newer states, and learns these states.

    How new a state is says the error of the second network, relative to its mean over what is replayed: 1 on average,
    and at most ``most``. The bonuses of a trajectory's decisions sum up to ``weight`` times that of its newest state.
    The belief does not read them: in tests there are none.

    Args:
        observation_spec: spec of s, [..., D].
        weight: of the bonus, in scaled reward; 0: there is none.
        until: share of training after which nothing is left of it; it falls linearly.
        features: outputs of the two networks.
        cells: their hidden layers.
        learning_rate: of the second network.
        rows: states of a gradient step, a batch's are more.
        every: batches between gradient steps: what is new is to stay so until the agent has learnt what comes of it.
        most: times the mean that a state's novelty may be.
        seeds: with a number S, of S agents at once, each with one of S equal parts of a batch.
        seed: of the networks and of all draws.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> novelty = Novelty(Bounded(-1, 1, shape=(2,)), weight=0.5, every=1, seed=0)
        >>> def decisions(x, y):
        ...     after = {"observation": torch.tensor([x, y]).expand(8, 30, 2), "reward": torch.zeros(8, 30, 1)}
        ...     return TensorDict({"next": after}, [8, 30])
        >>> for _ in range(500):
        ...     known = novelty(decisions(0.5, 0.5), progress=0.0)["next", "reward"].mean()
        >>> new = novelty(decisions(-0.8, 0.1), progress=0.0)["next", "reward"].mean()
        >>> bool(new > 5 * known), novelty(decisions(-0.8, 0.1), progress=0.6)["next", "reward"].sum().item()
        (True, 0.0)
    """

    mean: Tensor

    def __init__(
        self,
        observation_spec: TensorSpec,
        weight: float = 0.6,
        until: float = 0.5,
        *,
        features: int = 32,
        cells: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        rows: int = 256,
        every: int = 5,
        most: float = 20.0,
        seeds: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < until <= 1:
            raise ValueError(f"until = {until}: must be a share of training, above 0 and at most 1; 0 is weight = 0")
        self.weight, self.until, self.most, self.seeds = weight, until, most, seeds
        self.rows, self.every, self._calls = rows, every, 0
        self._generator = named_generator("novelty", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self._generator)))
            read = Features(observation_spec)
            self.random, self.learnt = (FeatureNet(read, 0, features, cells, seeds=seeds) for _ in range(2))
            _roughen(self.random, 2.0)
            _roughen(self.learnt, 1.4)
        self.random.requires_grad_(False)
        self.optimiser = FusedAdam(list(self.learnt.parameters()), lr=learning_rate)
        self.register_buffer("mean", torch.zeros(seeds or 1))

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        self.optimiser.forget()
        return self

    def error(self, state: Tensor) -> Tensor:
        """How far the second network is off, of states [S n, D]: [S, n]."""
        state = state.to(self.mean.device)
        difference = self.learnt(state) - self.random(state)
        return difference.square().mean(-1).view(self.seeds or 1, -1)

    def forward(self, sequences: TensorDictBase, progress: float, tasks: Tensor | None = None) -> TensorDictBase:
        """Adds the bonus to the rewards of sequences [B, L], in place, and learns some of their states.

        Args:
            sequences: decisions with ``("next", "observation" | "reward")``; beliefs go on reading the task's reward.
                ``part`` int64 [B, L] numbers the trajectories of each; without it there is one. ``mask`` bool [B, L]
                says which are decisions; without it all are.
            progress: through training, in [0, 1].
            tasks: on which there is a bonus, bool by task id, those whose rewards are not met, say; ``None``: on all.
        """
        if sequences.ndim != 2:
            raise ValueError(f"sequences of shape {tuple(sequences.shape)}: must be [B, L]; unsqueeze or reshape them")
        weight = self.weight * max(0.0, 1 - progress / self.until) if self.weight else 0.0
        if weight == 0 or (tasks is not None and not tasks.any()):
            return sequences
        after = cast(TensorDictBase, sequences.get("next"))
        state, reward = cast(Tensor, after.get("observation")), cast(Tensor, after.get("reward"))
        with torch.no_grad():
            error = self.error(state.flatten(0, -2))
            valid = self._valid(sequences, error.shape)
            now = error.mean(1) if valid is None else (error * valid).sum(1) / valid.sum(1)
            self.mean.copy_(torch.where(self.mean == 0, now, self.mean.lerp(now, 0.01)))
            new = (error / self.mean.unsqueeze(1)).clamp(max=self.most).view_as(reward).to(reward.device)
            bonus = _increase(new, sequences.get("part", None), self.most)
            if tasks is not None:
                bonus = bonus * tasks[sequences["task_id"]]
        self._calls += 1
        if self._calls % self.every == 0:
            self.learn(sequences)
        if after.get("evidence", None) is None:
            after.set("evidence", reward)
        after.set("reward", reward + weight * bonus)
        return sequences

    def training_state(self) -> dict[str, Any]:
        """Weights, optimiser, generator and count of the calls: all that an exact resume needs."""
        return {
            "weights": self.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "calls": self._calls,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`training_state` gave."""
        self.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        self._calls = state["calls"]

    def _valid(self, sequences: TensorDictBase, shape: torch.Size) -> Tensor | None:
        """Which rows [S, n] are decisions, 0 or 1; ``None`` if all are: behind a ``mask`` one row is repeated."""
        mask = cast("Tensor | None", sequences.get("mask", None))
        return None if mask is None or bool(mask.all()) else mask.reshape(shape).to(self.mean.device, torch.float)

    def learn(self, sequences: TensorDictBase) -> None:
        """A gradient step on some of the states that sequences lead to: they are less new from now on."""
        if self.weight == 0:
            return
        states = cast(Tensor, sequences.get(("next", "observation")))
        states = states.reshape(self.seeds or 1, -1, states.shape[-1])
        valid = self._valid(sequences, states.shape[:2])
        if valid is None:
            drawn = torch.randint(states.shape[1], (self.rows,), generator=self._generator).expand(len(states), -1)
        else:
            drawn = valid.cpu().multinomial(self.rows, replacement=True, generator=self._generator)
        drawn = drawn.unsqueeze(-1).expand(-1, -1, states.shape[-1]).to(states.device)
        self.error(states.gather(1, drawn).flatten(0, 1)).mean(1).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def _increase(new: Tensor, part: Tensor | None, most: float) -> Tensor:
    """By how much each of [B, L, 1], from 0 to ``most``, exceeds all before it in its part, int64 [B, L].

    Examples:
        >>> new = torch.tensor([[[1.0], [3.0], [2.0], [4.0], [2.0], [5.0]]])
        >>> _increase(new, torch.tensor([[0, 0, 0, 0, 1, 1]]), most=9.0).flatten()
        tensor([1., 2., 0., 1., 2., 3.])
    """
    floor = torch.zeros_like(new) if part is None else (most + 1) * part.unsqueeze(-1)  # later parts lie above
    before = torch.cat([floor[:, :1], (new + floor).cummax(1).values[:, :-1]], 1)
    return (new + floor - before.maximum(floor)).clamp(min=0)


@torch.no_grad()
def _roughen(net: nn.Module, gain: float) -> None:
    """Larger weights than networks usually start with, so that what they put out differs from place to place."""
    for name, parameter in net.named_parameters():
        weights = name.endswith("weight")
        parameter.normal_(0, gain / parameter.shape[-1] ** 0.5 if weights else 0.3)
