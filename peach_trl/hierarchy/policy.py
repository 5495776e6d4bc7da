"""The hierarchy as a policy: all environments in lock-step, its goals and clocks carried in the TensorDict.

Three TensorDictModules make one policy, each usable alone: :class:`HierarchyClock`,
:class:`~peach_trl.context.tracker.BeliefTracker` and :class:`HierarchyActor`; :class:`HierarchyPolicy` is the sequence
of them. The clock says which levels act, the tracker (PEACH and PEARL only) hands the top level what is known of the
task, and the actor lets the acting levels propose, from the top down. Nothing is recursive: one call is one environment
step of every row. What happens at every step is computed on arrays, see :mod:`peach_trl.modules.carried`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from peach_trl.distributions import UnitTanhNormal
from peach_trl.hierarchy.acting import Draws, Greedy, Sample, network_of, outputs_of
from peach_trl.hierarchy.elsewhere import CANDIDATES, Elsewhere
from peach_trl.hierarchy.structure import NO_LIMIT, Hierarchy
from peach_trl.modules.carried import CarriedState, Frame, StepModule
from peach_trl.seeding import ProcessGenerator

if TYPE_CHECKING:
    from peach_trl.context.tracker import BeliefTracker

START, ACTS, ATTEMPTS = ("hierarchy", "start"), ("hierarchy", "acts"), ("hierarchy", "attempts")
GOAL, TESTED, PROPOSAL, HELD = (("hierarchy", name) for name in ("goal", "tested", "proposal", "held"))
UNSTARTED = -1  # what the primer writes into ``attempts`` at a reset


class HierarchyClock(StepModule):
    """Advances the clocks with the step that was just made, and says which levels act on this one.

    Reads ``observation`` [N, D], ``("hierarchy", "attempts" | "goal")`` (and ``goal`` [N, G] where the end goal is
    known); writes ``("hierarchy", "start")`` bool [N, 1], the first step of an episode; ``("hierarchy", "acts")`` bool
    [N, L]; ``("hierarchy", "attempts")`` int64 [N, L], the decisions that each level has used on its goal before this
    step. A reset is recognised by the value that :meth:`make_tensordict_primer` writes.

    Args:
        hierarchy: levels, spaces and the rule that ends attempts.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.in_keys = ["observation", ATTEMPTS]
        if hierarchy.depth > 1:
            self.in_keys.append(GOAL)
        if hierarchy.goal_space is not None:
            self.in_keys.append("goal")
        self.out_keys = [START, ACTS, ATTEMPTS]
        self._known: dict[Any, tuple[np.ndarray, ...]] = {}  # by the attempts before, for the clock ``time``

    def advance(self, frame: Frame) -> None:
        """Writes which levels act; see the class."""
        arrays = frame.arrays
        before = arrays[ATTEMPTS]
        if self.hierarchy.config.clock == "time":  # which ends attempts whatever was achieved
            key = before.shape, before.tobytes()
            if key not in self._known:
                if len(self._known) >= 1024:
                    self._known.clear()
                self._known[key] = self._ticked(before, None)
            arrays[START], arrays[ACTS], arrays[ATTEMPTS] = self._known[key]
            return
        achieved = self.hierarchy.achieved(frame.get("observation"), frame.get(GOAL), frame.get("goal"))
        arrays[START], arrays[ACTS], arrays[ATTEMPTS] = self._ticked(before, achieved.numpy())

    def _ticked(self, before: np.ndarray, achieved: np.ndarray | None) -> tuple[np.ndarray, ...]:
        start = before[..., :1] == UNSTARTED
        end, acts, used = self.hierarchy.attempt_ends(achieved, before, start)
        return start, acts, used * ~end

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the clocks to an environment; collectors append it by themselves."""
        attempts = Bounded(UNSTARTED, NO_LIMIT, shape=self.hierarchy.depth, dtype=torch.int64)
        primers = Composite({"hierarchy": Composite({"attempts": attempts})})
        return TensorDictPrimer(primers, default_value=float(UNSTARTED), expand_specs=True)


class HierarchyActor(StepModule):
    """Lets the acting levels propose, from the top down, and writes the environment's action.

    Reads ``observation`` [N, D], ``("hierarchy", "acts" | "goal" | "tested")`` and what the top actor reads
    (``belief``, ``z``, ``goal``); writes ``action`` [N, A], ``("hierarchy", "goal")`` [N, h, G] (the subgoals in force,
    in the units of the subgoal space), ``("hierarchy", "tested")`` bool [N, L] and ``("hierarchy", "proposal")``
    [N, P], the top level's proposal in force. Goals and proposals stay when a row is reset, until the levels propose
    anew.

    Under ``ExplorationType.RANDOM`` levels explore: actors with a distribution sample from it, deterministic ones get
    Gaussian noise, and a share of proposals is uniform; with probability lambda a proposal is tested, and everything
    below it then acts without noise (HAC, section 4.3). Under any other exploration type there is neither noise nor
    testing. Where :meth:`explore` names tasks, it also reads ``task_id`` [N, 1] of their rows.

    Args:
        hierarchy: levels, spaces and exploration.
        actors: one module a level, bottom up; each writes ``action`` [N, P_i] in [-1, 1] from ``observation`` and,
            below the top, ``goal`` [N, G].
    """

    random_share: Tensor
    noise: Tensor
    hold: Tensor
    task_share: Tensor
    task_since: Tensor
    elsewhere: Tensor
    afresh: Tensor

    def __init__(self, hierarchy: Hierarchy, actors: Sequence[TensorDictModuleBase]) -> None:
        super().__init__()
        if len(actors) != hierarchy.depth:
            raise ValueError(
                f"{len(actors)} actors for depth {hierarchy.depth}: hand over one actor a level, bottom up"
            )
        self.hierarchy, config = hierarchy, hierarchy.config
        self.actors = torch.nn.ModuleList(actors)
        self.register_buffer("random_share", torch.zeros(hierarchy.depth))
        self.register_buffer("noise", torch.zeros(()))
        self.register_buffer("hold", torch.ones((), dtype=torch.int64))
        self.register_buffer("task_share", torch.zeros(0))
        self.register_buffer("task_since", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("elsewhere", torch.zeros(0))
        self.register_buffer("afresh", torch.ones((), dtype=torch.bool))
        self.explore()
        self._been = Elsewhere(hierarchy, config.top_random_hold) if hierarchy.depth > 1 else None
        self._generator = ProcessGenerator("exploration")
        self._draws = Draws(self._generator)
        self._networks = [network_of(actor) for actor in actors]
        self._dims, self._holds = hierarchy.proposal_dims, config.top_random_hold > 1
        held, state = [HELD] * self._holds, [GOAL, TESTED] * (hierarchy.depth > 1)
        known = [key for key in actors[-1].in_keys if key != "observation"]
        clock = [START, ACTS, ATTEMPTS]
        self.in_keys = ["observation", *clock, PROPOSAL, *held, *known, *state, "task_id"]
        self.out_keys = ["action", PROPOSAL, *held, *state]

    def explore(
        self,
        *,
        warmup: bool = False,
        at_random: bool = False,
        tasks: Tensor | None = None,
        since: Tensor | None = None,
        elsewhere: Tensor | None = None,
        afresh: bool = True,
    ) -> None:
        """Sets how levels explore from now on; see :meth:`HierarchyPolicy.explore`."""
        config = self.hierarchy.config
        self.random_share.fill_(config.warmup_random_share if warmup else config.random_share)
        self.random_share[-1] = 1.0 if at_random else config.top_random_share
        self.noise.fill_(config.warmup_noise if warmup else config.noise)
        # In the warm-up subgoals are not held: that leaves a lower level little to learn from.
        self.hold.fill_(1 if warmup else config.top_random_hold)
        self.afresh.fill_(afresh)
        elsewhere = None if at_random else elsewhere  # else it would not show what chance meets
        for name, value in (("task_share", tasks), ("task_since", since), ("elsewhere", elsewhere)):
            buffer = self.get_buffer(name)
            if value is None:
                buffer.zero_()
            elif value.shape == buffer.shape:
                buffer.copy_(value)
            else:
                setattr(self, name, value.clone())

    def advance(self, frame: Frame) -> None:
        """Writes the action and the subgoals in force; see the class."""
        hierarchy, explore = self.hierarchy, exploration_type() == ExplorationType.RANDOM
        arrays, acts, observation = frame.arrays, frame.arrays[ACTS], frame.arrays["observation"]
        for level in reversed(range(hierarchy.depth)):
            rows = acts[..., level]
            if level > 0 and not rows.any():
                continue
            proposal = self._propose(level, frame, explore)
            if level == hierarchy.top:
                every = level == 0  # which always acts
                arrays[PROPOSAL] = proposal if every else np.where(rows[..., None], proposal, arrays[PROPOSAL])
            target = hierarchy.decode(level, observation, proposal)
            if level == 0:
                arrays["action"] = target
                break
            goals, tested = arrays[GOAL].copy(), arrays[TESTED].copy()  # the step before keeps its own
            np.copyto(goals[..., level - 1, :], target, where=rows[..., None])
            tests = tested[..., level] | np.asarray(self._coins(level, frame)) if explore else np.zeros_like(rows)
            np.copyto(tested[..., level - 1], tests, where=rows)
            arrays[GOAL], arrays[TESTED] = goals, tested

    def _propose(self, level: int, frame: Frame, explore: bool) -> np.ndarray:
        arrays, top = frame.arrays, level == self.hierarchy.top
        greedy, sample = self._outputs(level, frame)
        if not explore:
            return greedy()
        share, shape = self.random_share.numpy()[level], (*frame.batch_size, self._dims[level])
        normal, uniform, coin = self._draws(level, shape, share)
        noisy = self._add_noise(greedy(), normal) if sample is None else sample(normal)
        holds = top and self._holds
        if top and self._been is not None and self.elsewhere.numpy().any():
            self._see(self._been, frame)
        if top and (of_tasks := self.task_share.numpy()).any():
            explores = self._explores(frame, of_tasks)
            share, coin = 1, coin | explores
            if self._been is not None and self.elsewhere.numpy().any() and explores.any():
                uniform = self._lead_elsewhere(self._been, frame, explores, uniform)
        if share or holds:
            noisy = np.where(coin, uniform, noisy)
        if holds:
            return self._hold(frame, coin, noisy)
        return noisy if top else np.where(arrays[TESTED][..., level, None], greedy(), noisy)

    def _explores(self, frame: Frame, of_tasks: np.ndarray) -> np.ndarray:
        """Which rows explore because of their task, bool [N, 1]."""
        task = frame.arrays.get("task_id")
        if task is None:
            raise KeyError("no task_id beside the observation: explore by task needs it; call explore(tasks=None)")
        draws = torch.rand(*frame.batch_size, 1, generator=self._generator.get()).numpy()
        explores = draws < of_tasks[task]
        if (since := self.task_since.numpy()).any():
            explores &= frame.arrays[ATTEMPTS][..., -1:] >= since[task]
        return explores

    def _see(self, been: Elsewhere, frame: Frame) -> None:
        """Remembers where rows are whose top level decides."""
        observation, fresh = frame.arrays["observation"], frame.arrays[START] & self.afresh.numpy()
        acts = frame.arrays[ACTS][..., -1]
        been.see(observation.reshape(-1, observation.shape[-1]), acts.reshape(-1), fresh.reshape(-1))

    def _lead_elsewhere(self, been: Elsewhere, frame: Frame, explores: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Uniform proposals [N, P], a share of which lead where rows that explore have not been."""
        generator, observation = self._generator.get(), frame.arrays["observation"]
        share = self.elsewhere.numpy()[frame.arrays["task_id"]]
        more = torch.rand(CANDIDATES, *uniform.shape, generator=generator).mul_(2).sub_(1).numpy()
        leads = explores & (torch.rand(explores.shape, generator=generator).numpy() < share)
        proposals = np.concatenate([uniform[None], more]).reshape(1 + CANDIDATES, -1, uniform.shape[-1])
        chosen = been.pick(observation.reshape(-1, observation.shape[-1]), leads.reshape(-1), proposals)
        return chosen.reshape(uniform.shape)

    def _outputs(self, level: int, frame: Frame) -> tuple[Greedy, Sample | None]:
        """What a level proposes without noise, and what draws from its distribution; ``None`` if it has none."""
        read, network = frame.arrays, self._networks[level]
        if level < self.hierarchy.top:
            read = {"observation": read["observation"], "goal": read[GOAL][..., level, :]}
        if network is None:
            actor: Any = self.actors[level]
            return outputs_of(actor, {key: torch.from_numpy(read[key]) for key in actor.in_keys}, frame.batch_size)
        out = network(*[read[key] for key in network.in_keys])
        if not network.draws:
            return lambda: out, None
        loc, scale = out
        return lambda: UnitTanhNormal.squash(loc), lambda normal: UnitTanhNormal.squash(loc + scale * normal)

    def _add_noise(self, proposal: np.ndarray, normal: np.ndarray) -> np.ndarray:
        noisy = normal * self.noise.numpy()
        noisy += proposal
        return np.minimum(np.maximum(noisy, -1, out=noisy), 1, out=noisy)

    def _hold(self, frame: Frame, coin: np.ndarray, proposal: np.ndarray) -> np.ndarray:
        """Holds the top level's uniform proposals for some decisions (Dabney et al. 2021, arXiv 2006.01782)."""
        arrays = frame.arrays
        left, acts = arrays[HELD], arrays[ACTS][..., -1:]
        goes_on = (left > 0) & ~arrays[START]
        fresh = coin * (self.hold.numpy() - 1)
        arrays[HELD] = np.where(acts, np.where(goes_on, left - 1, fresh), left)
        return np.where(goes_on, arrays[PROPOSAL], proposal)

    def _coins(self, level: int, frame: Frame) -> Any:
        """Which rows' proposals of ``level`` are to be tested, bool [N]."""
        draws = torch.rand(frame.batch_size, generator=self._generator.get())
        return draws < self.hierarchy.config.test_probability

    def process_state(self) -> dict[str, Any]:
        """What goes on from step to step besides weights and carried state: draws, and where rows have been."""
        return {"draws": self._draws.state_dict(), "been": None if self._been is None else self._been.state_dict()}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` gave, in a process of the same seed."""
        self._draws.load_state_dict(state["draws"])
        if self._been is not None:
            self._been.load_state_dict(state["been"])

    def make_tensordict_primer(self) -> CarriedState:
        """The transform that adds goals, tests and the top's proposal to an environment; zero at first."""
        hierarchy, space = self.hierarchy, self.hierarchy.subgoal_space
        state: dict[str, TensorSpec] = {"proposal": Unbounded(shape=hierarchy.proposal_dims[-1])}
        if self._holds:
            state["held"] = Unbounded(shape=1, dtype=torch.int64)
        if hierarchy.depth > 1:
            state["goal"] = Unbounded(shape=torch.Size([hierarchy.depth - 1, space.dim]))
            state["tested"] = Binary(hierarchy.depth, dtype=torch.bool)
        return CarriedState(Composite({"hierarchy": Composite(state)}), default_value=0.0, expand_specs=True)


class HierarchyPolicy(TensorDictSequential):
    """The whole policy pi_h, ..., pi_0: clock, tracker (if there is a context variable) and actor, in sequence.

    Args:
        clock: says which levels act.
        actor: lets them propose.
        tracker: hands the top level its belief; ``None`` without a context variable.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> short = ["env.horizon=40", "hierarchy.decision_steps=20"]
        >>> config = load_config(PeachConfig, "peach", overrides=short)
        >>> library = make_library(config)
        >>> policy = make_agent(config, library).make_policy()
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(40, policy)
        >>> batch["hierarchy", "acts"][0, :, 1].nonzero().flatten().tolist()  # when the top level of row 0 decides
        [0, 20]
        >>> batch["hierarchy", "goal"].shape, batch["belief"].shape
        (torch.Size([3, 40, 1, 2]), torch.Size([3, 40, 24]))
    """

    def __init__(self, clock: HierarchyClock, actor: HierarchyActor, tracker: BeliefTracker | None = None) -> None:
        modules = [clock, actor] if tracker is None else [clock, tracker, actor]
        super().__init__(*modules)
        self._modules_in_order = modules

    @property
    def actor(self) -> HierarchyActor:
        """The actor of all levels."""
        return cast(HierarchyActor, self.module[-1])

    @property
    def tracker(self) -> BeliefTracker | None:
        """The belief of every row, or ``None`` without a context variable."""
        return cast("BeliefTracker", self.module[1]) if len(self.module) == 3 else None

    def explore(
        self,
        *,
        warmup: bool = False,
        at_random: bool = False,
        tasks: Tensor | None = None,
        since: Tensor | None = None,
        elsewhere: Tensor | None = None,
        afresh: bool = True,
    ) -> None:
        """Sets how levels explore from now on.

        Args:
            warmup: whether goal-reaching levels explore as in their warm-up: they are to see much, while later their
                noise would blur what the levels above learn from.
            at_random: whether all proposals of the top level are uniform.
            tasks: the share of them that are, beyond ``hierarchy.top_random_share``, for each task id, see
                :class:`~peach_trl.hierarchy.exploration.Exploration`; ``None`` for none.
            since: from which decision of the trajectory on they are, int64 for each task id; ``None``: from the first.
            elsewhere: the share of those that lead where the row has not been, for each task id, see
                :class:`~peach_trl.hierarchy.elsewhere.Elsewhere`; with ``at_random`` there are none.
            afresh: whether an episode that starts is the first of a meta-episode, so that a row has been nowhere.
        """
        self.actor.explore(
            warmup=warmup, at_random=at_random, tasks=tasks, since=since, elsewhere=elsewhere, afresh=afresh
        )

    def process_state(self) -> dict[str, Any]:
        """The generators of this process, and what else goes on from step to step; weights are not among it."""
        tracker = self.tracker
        return {
            "actor": self.actor.process_state(),
            "latent": None if tracker is None else tracker.generator.state_dict(),
        }

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` gave, in a process of the same seed."""
        self.actor.load_process_state(state["actor"])
        if (tracker := self.tracker) is not None:
            tracker.generator.load_state_dict(state["latent"])

    def advance(self, frame: Frame) -> None:
        """One step on arrays, without a TensorDict; see :class:`~peach_trl.collectors.Lockstep`."""
        for module in self._modules_in_order:
            module.advance(frame)
