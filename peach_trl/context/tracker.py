"""The belief as state of the policy: every environment row has one of its own, over a whole meta-episode.

A meta-episode is L trajectories of one task. Within it, whatever a decision of the top level shows is taken into the
row's belief, and carried over from one trajectory to the next; then the row starts again with the prior. Collection and
meta-test are the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded

from peach_trl.context.belief import Belief, GaussianProduct
from peach_trl.context.encoder import ContextEncoder, Transition
from peach_trl.hierarchy.evidence import NONE_YET, Evidence, higher
from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.modules.carried import ArrayPerceptron, CarriedState, Frame, StepModule
from peach_trl.seeding import ProcessGenerator

READINGS, UPDATES = ("belief", "sample"), ("decision", "trajectory")
_STATE = ("state", "observation", "reward", "reached", "trajectory", "meta_episode")
_PEAK = ("peak", "peak_observation")
KEYS: dict[str, NestedKey] = {name: ("context", name) for name in (*_STATE, *_PEAK)}


def context_key(read: str) -> str:
    """Where the top level finds the context: ``"belief"``, the parameters of q, or ``"z"``, a sample of it."""
    return "z" if read == "sample" else "belief"


class BeliefTracker(StepModule):
    """Keeps the belief of every row, and hands the top level its reading of it.

    Reads ``observation`` [N, D], ``("hierarchy", "start" | "acts")``, the subgoal or proposal in force, and its own
    state under ``"context"``; writes ``belief`` [N, 2 Z] or ``z`` [N, Z], and its state: ``state`` [N, S] of the
    belief, ``observation`` where the decision in force began, ``reward`` since then, ``reached`` by the last step, the
    number of the ``trajectory`` within the meta-episode and the number of the ``meta_episode``, from 0; and if the
    evidence has peaks, the highest reward ``peak`` of a step of the decision in force and its ``peak_observation``.

    Args:
        belief: what is kept.
        hierarchy: for what the top level did with its last decision; flat policies have a
            :class:`~peach_trl.context.flat.FlatBeliefTracker`.
        observation_dim: D.
        trajectories: L, after which a row starts with the prior again.
        read: ``"belief"``: the parameters of q; ``"sample"``: a draw z ~ q.
        update: ``"decision"``: read anew at every decision of the top level; ``"trajectory"``: at the first one of each
            trajectory only.
        evidence: what the belief reads of a decision's rewards, the same as in the recorded transitions; ``None``:
            their sum.
        num_tasks: with a number, trajectories start from a table with a belief for each task instead, which
            :meth:`condition` sets: Algorithm 1 as the source has it.
        seed: of the draws of z; ``None`` for this process's seed.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["env.horizon=40"])
        >>> library = make_library(config)
        >>> policy = make_agent(config, library).make_policy(trajectories=2)
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(160, policy, break_when_any_done=False)
        >>> batch["context", "trajectory"][0, ::40, 0].tolist(), batch["context", "meta_episode"][0, ::40, 0].tolist()
        ([0, 1, 0, 1], [0, 0, 1, 1])
        >>> batch["belief"][0, ::40].abs().sum(-1) == 0  # the prior at the start of each meta-episode
        tensor([ True, False,  True, False])
    """

    table: Tensor | None

    def __init__(
        self,
        belief: Belief,
        hierarchy: Hierarchy | None,
        observation_dim: int,
        *,
        trajectories: int = 1,
        read: str = "belief",
        update: str = "decision",
        evidence: Evidence | None = None,
        num_tasks: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("read", read, READINGS), ("update", update, UPDATES)):
            if value not in known:
                raise ValueError(f"{name} = {value!r}: use one of {', '.join(known)}")
        if trajectories < 1:
            raise ValueError(f"trajectories = {trajectories}: a meta-episode has at least 1")
        self.belief, self.hierarchy, self.observation_dim = belief, hierarchy, observation_dim
        self.trajectories, self.read, self.update_at = trajectories, read, update
        self.evidence = evidence = Evidence() if evidence is None else evidence
        self.register_buffer("table", None if num_tasks is None else belief.initial(num_tasks))
        self.generator = ProcessGenerator("latent", seed)
        self._product = _Product.of(belief)
        self._deep = hierarchy is not None and hierarchy.depth > 1
        self._did = self._where_it_did()
        self.key = context_key(read)
        peaks = _PEAK if evidence.peak else ()
        self._keys = {name: KEYS[name] for name in (*_STATE, *peaks)}
        self._rewards = [KEYS[name] for name in ("reward", *peaks)]
        own: list[NestedKey] = [self.key, *self._keys.values()]
        self.in_keys = [self._read_of["observation"], *self._told, self._did, *own]
        self.in_keys += ["task_id"] * (num_tasks is not None)
        self.out_keys = own

    _told: tuple[NestedKey, ...] = (("hierarchy", "start"), ("hierarchy", "acts"))  # what tells when it is its turn
    _read_of: Mapping[str, NestedKey] = {"observation": "observation", "reward": "reward"}  # an environment's own names

    def _where_it_did(self) -> NestedKey:
        return ("hierarchy", "goal" if self._deep else "proposal")

    def _turns(self, arrays: dict[Any, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Which rows decide now, and for which a trajectory begins, bool [N, 1] each."""
        return arrays["hierarchy", "acts"][..., -1:], arrays["hierarchy", "start"]

    def advance(self, frame: Frame) -> None:
        """Takes in the decisions that just ended, and writes what the next ones read; see the class."""
        arrays = frame.arrays
        decides, start = self._turns(arrays)
        deciding = np.count_nonzero(decides)
        if not deciding:
            return
        kept, every = {name: arrays[key] for name, key in self._keys.items()}, deciding == decides.size
        state = self._taken_in(frame)
        state = state if every else np.where(decides, state, kept["state"])
        trajectory = kept["trajectory"]
        if np.count_nonzero(start):
            trajectory = np.where(start, (trajectory + 1) % self.trajectories, trajectory)
            fresh = start & (trajectory == 0)
            if self.table is not None:
                state = np.where(start, self.table.numpy()[arrays["task_id"][..., 0]], state)
            else:
                state = np.where(fresh, np.float32(0), state)
            arrays[KEYS["meta_episode"]] = kept["meta_episode"] + fresh
            arrays[KEYS["trajectory"]] = trajectory
        arrays[KEYS["state"]] = state
        reads = decides if self.update_at == "decision" else start
        new = {self.key: self._reading(state), KEYS["observation"]: arrays[self._read_of["observation"]]}
        new[KEYS["reward"]] = np.zeros_like(kept["reward"])
        if self.evidence.peak:
            new[KEYS["peak"]] = np.full_like(kept["peak"], NONE_YET)
        for key, value in new.items():
            where = reads if key == self.key else decides
            full = every if where is decides else where.all()
            arrays[key] = value if full else np.where(where, value, arrays[key])

    def after(self, recorded: TensorDictBase) -> Tensor:
        """The belief's state [N, S] after recorded steps [N], the last ones of their decisions."""
        state = recorded.copy()
        for key, value in noted(recorded, recorded.get("next"), **self._read_of).items():
            state.set(key, value)
        return self.taken_in(state)

    def _taken_in(self, frame: Frame) -> np.ndarray:
        """The same as an array."""
        arrays, product = frame.arrays, self._product
        if product is None or not product.encoder.is_quick(frame.batch_size.numel()):
            return self.taken_in(frame).numpy()
        observation, reached, action = arrays[KEYS["observation"]], arrays[KEYS["reached"]], arrays[self._did]
        if self.hierarchy is not None and self._deep:
            parts = (torch.from_numpy(part) for part in (observation, action[..., -1, :], reached))
            action = self.hierarchy.hindsight_action(self.hierarchy.top, *parts).numpy()
        evidence = self.evidence.of(*(arrays[key] for key in self._rewards))
        added = product.statistics(observation, action, evidence, reached)
        return arrays[KEYS["state"]] + added * (arrays[KEYS["trajectory"]] >= 0)

    @torch.no_grad()
    def taken_in(self, tensordict: TensorDictBase | Frame) -> Tensor:
        """The belief's state [N, S] once the decision in force has ended, where the last step left it."""
        observation, reached = tensordict.get(KEYS["observation"]), tensordict.get(KEYS["reached"])
        action = tensordict.get(self._did)
        if self.hierarchy is not None and self._deep:  # the same as LevelTransitions makes of it
            action = self.hierarchy.hindsight_action(self.hierarchy.top, observation, action[..., -1, :], reached)
        evidence = self.evidence.of(*(tensordict.get(key) for key in self._rewards))
        transition = Transition(observation, action, evidence, reached)
        state = tensordict.get(KEYS["state"])
        begun = tensordict.get(KEYS["trajectory"]) >= 0
        return torch.where(begun, self.belief.update(state, transition), state)

    def _reading(self, values: np.ndarray) -> np.ndarray:
        if self.read == "belief" and self._product is not None:
            return self._product.read(values)
        return self._read(values)

    @torch.no_grad()
    def _read(self, values: np.ndarray) -> np.ndarray:
        if self.read == "belief":
            return self.belief.read(torch.from_numpy(values)).numpy()
        state = torch.from_numpy(values)
        noise = torch.randn(*state.shape[:-1], self.belief.latent_dim, generator=self.generator.get())
        return self.belief.read(state, noise).numpy()  # z ~ q(z | c)

    # With a table.

    def reset(self, tasks: Tensor) -> None:
        """Forgets the contexts of task ids [M], c^i = {}."""
        self._table()[tasks] = 0.0

    @torch.no_grad()
    def condition(self, tasks: Tensor, context: TensorDictBase) -> None:
        """Sets the beliefs of task ids [M] to what contexts [M, C] with a ``mask`` say."""
        table = self._table()
        context = context.to(table.device)
        table[tasks] = self.belief.scan(Transition.of(context), context.get("mask"))[:, -1]

    def _table(self) -> Tensor:
        if self.table is None:
            raise ValueError(
                "this tracker keeps a belief of each row's own: make it with num_tasks for a table of tasks"
            )
        return self.table

    def make_tensordict_primer(self) -> CarriedState:
        """The transform that adds the tracker's state to an environment, kept when rows are reset."""
        return TrackerState(self.belief, self.observation_dim, self.key, self.evidence, self._read_of)


_ONE, _HALF, _LOW, _HIGH = np.float32(1), np.float32(-0.5), np.float32(-8), np.float32(10)


class _Product:
    """A :class:`GaussianProduct` on arrays: what a transition adds to its state, and what is read of it.

    Args:
        belief: without a window, with the precision ``"exponential"`` and a :class:`ContextEncoder`.
    """

    def __init__(self, belief: GaussianProduct) -> None:
        self.encoder, self._whole = ArrayPerceptron(cast(Any, belief.encoder.net)), cast(ContextEncoder, belief.encoder)

    @classmethod
    def of(cls, belief: Belief) -> _Product | None:
        """That of a belief, or ``None`` for other kinds."""
        if type(belief) is not GaussianProduct or type(belief.encoder) is not ContextEncoder:
            return None
        known = belief.window is None and belief.precision == "exponential" and not belief.encoder.net.bf16
        return cls(belief) if known else None

    def statistics(self, *transition: np.ndarray) -> np.ndarray:
        """See :meth:`GaussianProduct.statistics`."""
        out = self.encoder(self._features(*transition))
        size = out.shape[-1] // 2
        mu, x = out[..., :size], out[..., size:]
        precision = x - _ONE
        np.maximum(precision, _LOW, out=precision)
        np.minimum(precision, _HIGH, out=precision)
        np.exp(precision, out=precision)
        return np.concatenate([precision, precision * mu], -1)

    def _features(
        self, observation: np.ndarray, action: np.ndarray, evidence: np.ndarray, reached: np.ndarray
    ) -> np.ndarray:
        """See :meth:`ContextEncoder.features`."""
        read = self._whole.read
        if read.view is not None or read.normalises:
            parts = map(torch.from_numpy, (observation, action, evidence, reached))
            return self._whole.features(*parts).numpy()
        self._whole.check(observation, action, evidence, reached)
        scale, state = read.scale.numpy(), evidence.shape[-1] - self._whole.rewards
        parts = [observation * scale, action, evidence]
        if state < 0:  # a reward alone
            parts[2:] = [evidence, evidence, reached * scale]
        elif state:
            parts[2:] = [evidence[..., :-state], evidence[..., -state:] * scale]
        return np.concatenate([*parts, reached * scale], -1)

    def read(self, total: np.ndarray) -> np.ndarray:
        """See :meth:`GaussianProduct.conclude` and :func:`~peach_trl.context.belief.reading`."""
        size = total.shape[-1] // 2
        read, precision = np.empty_like(total), total[..., :size] + _ONE
        np.divide(total[..., size:], precision, out=read[..., :size])
        np.multiply(np.log(precision), _HALF, out=read[..., size:])
        return read


class TrackerState(CarriedState):
    """The state of a tracker; notes what a step reached, and the rewards since the decision in force began."""

    def __init__(
        self,
        belief: Belief,
        observation_dim: int,
        key: str,
        evidence: Evidence,
        read_of: Mapping[str, NestedKey],
        **more: Any,
    ) -> None:
        observation, number = Unbounded(observation_dim), Unbounded(1, dtype=torch.int64)
        context: dict[str, Any] = {
            "state": Unbounded(belief.state_dim),
            **{"observation": observation, "reached": observation.clone(), "reward": Unbounded(1)},
            **{"trajectory": number, "meta_episode": number.clone()},
            **more,
        }
        if evidence.peak:
            context |= {"peak": Unbounded(1), "peak_observation": observation.clone()}
        read = Unbounded(2 * belief.latent_dim if key == "belief" else belief.latent_dim)
        values: dict[Any, float] = {
            ("context", name): -1.0 if name in ("trajectory", "meta_episode") else 0.0 for name in context
        }
        primers = Composite({key: read, "context": Composite(context)})
        super().__init__(primers, default_value={key: 0.0, **values}, expand_specs=True)
        self._read_of = read_of

    def carry(self, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[NestedKey, Tensor]:
        """See :meth:`CarriedState.carry`."""
        return noted(before, after, **self._read_of)


def noted(
    before: Any, after: Any, observation: NestedKey = "observation", reward: NestedKey = "reward"
) -> dict[NestedKey, Tensor]:
    """What is kept of a step: where it led, and of the rewards since the decision in force began."""
    got, reached, peak = after.get(reward), after.get(observation), before.get(KEYS["peak"], None)
    known: dict[NestedKey, Any] = {KEYS["reached"]: reached, KEYS["reward"]: before.get(KEYS["reward"]) + got}
    if peak is not None:
        peaks = higher(got, peak, before.get(KEYS["peak_observation"]), reached)
        known[KEYS["peak"]], known[KEYS["peak_observation"]] = peaks
    return known
