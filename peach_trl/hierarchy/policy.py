"""The hierarchy as a policy: all environments in lock-step, its goals and clocks carried in the TensorDict.

Three TensorDictModules make one policy, each usable alone: :class:`HierarchyClock`,
:class:`~peach_trl.context.tracker.BeliefTracker` and :class:`HierarchyActor`; :class:`HierarchyPolicy` is the sequence
of them. The clock says which levels act, the tracker (PEACH and PEARL only) hands the top level what is known of the
task, and the actor lets the acting levels propose, from the top down. Nothing is recursive: one call is one environment
step of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import ProbabilisticActor

from peach_trl.distributions import UnitTanhNormal
from peach_trl.hierarchy.structure import NO_LIMIT, Hierarchy
from peach_trl.modules.carried import CarriedState
from peach_trl.seeding import ProcessGenerator

if TYPE_CHECKING:
    from peach_trl.context.tracker import BeliefTracker

UNSTARTED = -1  # what the primer writes into ``attempts`` at a reset


class HierarchyClock(TensorDictModuleBase):
    """Advances the clocks with the step that was just made, and says which levels act on this one.

    Reads ``observation`` [N, D], ``("hierarchy", "attempts" | "goal")`` (and ``goal`` [N, G] where the end goal is
    known); writes ``("hierarchy", "start")`` bool [N, 1], the first step of an episode; ``("hierarchy", "acts")`` bool
    [N, L]; ``("hierarchy", "attempts")`` int64 [N, L], the decisions that each level has used on its goal before this
    step. A reset is recognised by the value that :meth:`make_tensordict_primer` writes.

    Args:
        hierarchy: levels, spaces and the rule that ends attempts.
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self.in_keys = ["observation", ("hierarchy", "attempts")]
        if hierarchy.depth > 1:
            self.in_keys.append(("hierarchy", "goal"))
        if hierarchy.goal_space is not None:
            self.in_keys.append("goal")
        self.out_keys = [("hierarchy", "start"), ("hierarchy", "acts"), ("hierarchy", "attempts")]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes which levels act; see the class."""
        observation, before = tensordict.get("observation"), tensordict.get(("hierarchy", "attempts"))
        start = before[..., :1] == UNSTARTED
        achieved = None
        if self.hierarchy.config.clock != "time":  # which ends attempts whatever was achieved
            goals, end_goal = tensordict.get(("hierarchy", "goal"), None), tensordict.get("goal", None)
            achieved = self.hierarchy.achieved(observation, goals, end_goal)
        end, acts, used = self.hierarchy.attempt_ends(achieved, before, start)
        tensordict.set(("hierarchy", "start"), start)
        tensordict.set(("hierarchy", "acts"), acts)
        return tensordict.set(("hierarchy", "attempts"), used.masked_fill(end, 0))

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the clocks to an environment; collectors append it by themselves."""
        attempts = Bounded(UNSTARTED, NO_LIMIT, shape=self.hierarchy.depth, dtype=torch.int64)
        primers = Composite({"hierarchy": Composite({"attempts": attempts})})
        return TensorDictPrimer(primers, default_value=float(UNSTARTED), expand_specs=True)


class HierarchyActor(TensorDictModuleBase):
    """Lets the acting levels propose, from the top down, and writes the environment's action.

    Reads ``observation`` [N, D], ``("hierarchy", "acts" | "goal" | "tested")`` and what the top actor reads
    (``belief``, ``z``, ``goal``); writes ``action`` [N, A], ``("hierarchy", "goal")`` [N, h, G] (the subgoals in force,
    in the units of the subgoal space), ``("hierarchy", "tested")`` bool [N, L] and ``("hierarchy", "proposal")``
    [N, P], the top level's proposal in force. Goals and proposals stay when a row is reset, until the levels propose
    anew.

    Under ``ExplorationType.RANDOM`` levels explore: actors with a distribution sample from it, deterministic ones get
    Gaussian noise, and a share of proposals is uniform; with probability lambda a proposal is tested, and everything
    below it then acts without noise (HAC, section 4.3). Under any other exploration type there is neither noise nor
    testing.

    Args:
        hierarchy: levels, spaces and exploration.
        actors: one module a level, bottom up; each writes ``action`` [N, P_i] in [-1, 1] from ``observation`` and,
            below the top, ``goal`` [N, G].
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]
    random_share: Tensor

    def __init__(self, hierarchy: Hierarchy, actors: Sequence[TensorDictModuleBase]) -> None:
        super().__init__()
        if len(actors) != hierarchy.depth:
            raise ValueError(
                f"{len(actors)} actors for depth {hierarchy.depth}: hand over one actor a level, bottom up"
            )
        self.hierarchy, config = hierarchy, hierarchy.config
        self.actors = torch.nn.ModuleList(actors)
        shares = torch.full((hierarchy.depth,), config.random_share)
        shares[-1] = config.top_random_share
        self.register_buffer("random_share", shares)
        self._generator = ProcessGenerator("exploration")
        self._holds = config.top_random_hold > 1
        self.in_keys = [
            "observation",
            ("hierarchy", "acts"),
            ("hierarchy", "proposal"),
            *([("hierarchy", "start"), ("hierarchy", "held")] * self._holds),
            *(key for key in actors[-1].in_keys if key != "observation"),
        ]
        self.out_keys = ["action", ("hierarchy", "proposal"), *([("hierarchy", "held")] * self._holds)]
        if hierarchy.depth > 1:
            state: list[NestedKey] = [("hierarchy", "goal"), ("hierarchy", "tested")]
            self.in_keys, self.out_keys = self.in_keys + state, self.out_keys + state

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action and the subgoals in force; see the class."""
        hierarchy, explore = self.hierarchy, exploration_type() == ExplorationType.RANDOM
        observation, acts = tensordict.get("observation"), tensordict.get(("hierarchy", "acts"))
        goals, tested = tensordict.get(("hierarchy", "goal"), None), tensordict.get(("hierarchy", "tested"), None)
        for level in reversed(range(hierarchy.depth)):
            rows = acts[..., level]
            if level > 0 and not rows.any():
                continue
            proposal = self._propose(level, tensordict, goals, tested, explore)
            if level == hierarchy.top:
                before = tensordict.get(("hierarchy", "proposal"))
                tensordict.set(("hierarchy", "proposal"), torch.where(rows.unsqueeze(-1), proposal, before))
            target = hierarchy.decode(level, observation, proposal)
            if level == 0:
                tensordict.set("action", target)
                break
            goals, tested = cast(Tensor, goals).clone(), cast(Tensor, tested).clone()  # the step before keeps its own
            goals[..., level - 1, :] = torch.where(rows.unsqueeze(-1), target, goals[..., level - 1, :])
            tests = tested[..., level] | self._coins(level, tensordict) if explore else torch.zeros_like(rows)
            tested[..., level - 1] = torch.where(rows, tests, tested[..., level - 1])
        if hierarchy.depth > 1:
            tensordict.set(("hierarchy", "goal"), goals)
            tensordict.set(("hierarchy", "tested"), tested)
        return tensordict

    def _propose(
        self, level: int, tensordict: TensorDictBase, goals: Tensor | None, tested: Tensor | None, explore: bool
    ) -> Tensor:
        actor = self.actors[level]
        if level == self.hierarchy.top:
            inputs = {key: tensordict.get(key) for key in cast(Any, actor).in_keys}
        else:
            assert goals is not None
            inputs = {"observation": tensordict.get("observation"), "goal": goals[..., level, :]}
        greedy, sample = _outputs_of(actor, inputs, tensordict.batch_size)
        if not explore:
            return greedy()
        noisy = self._add_noise(greedy()) if sample is None else sample()
        generator = self._generator.get()
        uniform = torch.empty_like(noisy).uniform_(-1, 1, generator=generator)
        coin = torch.rand((*noisy.shape[:-1], 1), generator=generator) < self.random_share[level]
        if level == self.hierarchy.top and self._holds:
            return self._hold(tensordict, coin, torch.where(coin, uniform, noisy))
        noisy = torch.where(coin, uniform, noisy)
        if level == self.hierarchy.top or tested is None:  # nothing tests the top
            return noisy
        return torch.where(tested[..., level, None], greedy(), noisy)

    def _hold(self, tensordict: TensorDictBase, coin: Tensor, proposal: Tensor) -> Tensor:
        """Holds the top level's uniform proposals for some decisions (Dabney et al. 2021, arXiv 2006.01782)."""
        left, acts = tensordict.get(("hierarchy", "held")), tensordict.get(("hierarchy", "acts"))[..., -1:]
        goes_on = (left > 0) & ~tensordict.get(("hierarchy", "start"))
        fresh = torch.where(coin, self.hierarchy.config.top_random_hold - 1, 0)
        tensordict.set(("hierarchy", "held"), torch.where(acts, torch.where(goes_on, left - 1, fresh), left))
        return torch.where(goes_on, tensordict.get(("hierarchy", "proposal")), proposal)

    def _add_noise(self, proposal: Tensor) -> Tensor:
        noise = torch.randn(proposal.shape, generator=self._generator.get())
        return noise.mul_(self.hierarchy.config.noise).add_(proposal).clamp_(-1, 1)

    def _coins(self, level: int, tensordict: TensorDictBase) -> Tensor:
        """Which rows' proposals of ``level`` are to be tested, bool [N]."""
        return (
            torch.rand(tensordict.batch_size, generator=self._generator.get()) < self.hierarchy.config.test_probability
        )

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


def _outputs_of(
    actor: Any, inputs: dict[Any, Tensor], batch_size: torch.Size
) -> tuple[Callable[[], Tensor], Callable[[], Tensor] | None]:
    """What an actor proposes without noise, and what draws from its distribution; ``None`` if it has none.

    The actors that :mod:`peach_trl.modules.networks` builds are called without a TensorDict or a distribution around
    them, which would cost more than the network.
    """
    if type(actor) is TensorDictModule and actor.out_keys == ["action"]:
        proposal = actor.module(*(inputs[key] for key in actor.in_keys))
        return lambda: proposal, None
    first, last = actor.module if isinstance(actor, ProbabilisticActor) and len(actor.module) == 2 else (None, None)
    if type(first) is TensorDictModule and cast(Any, last).distribution_class is UnitTanhNormal:
        loc, scale = first.module(*(inputs[key] for key in first.in_keys))
        return lambda: UnitTanhNormal.centre(loc), lambda: UnitTanhNormal.draw(loc, scale)
    tensordict = TensorDict(inputs, batch_size)
    if not hasattr(actor, "get_dist"):
        proposal = actor(tensordict)["action"]
        return lambda: proposal, None
    distribution: Any = actor.get_dist(tensordict)
    return lambda: distribution.deterministic_sample, distribution.sample


class HierarchyPolicy(TensorDictSequential):
    """The whole policy pi_h, ..., pi_0: clock, tracker (if there is a context variable) and actor, in sequence.

    Args:
        clock: says which levels act.
        actor: lets them propose.
        tracker: hands the top level its belief; ``None`` without a context variable.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", "configs", ["env.horizon=40"])
        >>> library = make_library(config)
        >>> policy = make_agent(config, library).make_policy()
        >>> batch = make_env(config, library, torch.arange(3), policy).rollout(40, policy)
        >>> batch["hierarchy", "acts"][0, :, 1].nonzero().flatten().tolist()  # when the top level of row 0 decides
        [0, 20]
        >>> batch["hierarchy", "goal"].shape, batch["belief"].shape
        (torch.Size([3, 40, 1, 2]), torch.Size([3, 40, 10]))
    """

    def __init__(self, clock: HierarchyClock, actor: HierarchyActor, tracker: BeliefTracker | None = None) -> None:
        super().__init__(*([clock, actor] if tracker is None else [clock, tracker, actor]))

    @property
    def actor(self) -> HierarchyActor:
        """The actor of all levels."""
        return cast(HierarchyActor, self.module[-1])

    @property
    def tracker(self) -> BeliefTracker | None:
        """The belief of every row, or ``None`` without a context variable."""
        return cast("BeliefTracker", self.module[1]) if len(self.module) == 3 else None

    def set_top_random(self, share: float) -> None:
        """Sets the share of uniform proposals of the top level: 1 in a warm-up."""
        self.actor.random_share[-1] = share

    def advance(self, frame: Any) -> None:
        """One step on anything with the ``get``, ``set`` and ``batch_size`` of a TensorDict; see :class:`Lockstep`."""
        for module in self.module:
            module.forward(frame)
