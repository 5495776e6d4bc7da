"""The agent: the levels of a hierarchy, and the policy made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase

from peach_trl.config import AUTO, ConfigError
from peach_trl.context.belief import Belief
from peach_trl.context.tracker import BeliefTracker
from peach_trl.declared import declared
from peach_trl.defaults import default
from peach_trl.hierarchy.evidence import Evidence
from peach_trl.hierarchy.policy import HierarchyActor, HierarchyClock, HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy, HierarchyConfig
from peach_trl.levels.goal_level import GoalLevel, LowerConfig
from peach_trl.levels.targets import Learner
from peach_trl.levels.top_level import ReadingConfig, TopConfig, TopLevel
from peach_trl.modules.views import ViewsConfig, find_view
from peach_trl.objectives.context import ContextSACLoss


class Agent(Learner):
    """A container of levels: each learns by its own ``update``, and together they make a policy.

    Args:
        env: an environment with ``observation`` and ``action`` specs, and the goal spaces that it declares.
        hierarchy: depth, clocks, exploration. Each of these four may be left out, for what ships
            (:func:`~peach_trl.defaults.default`).
        context: the belief, and how the top level reads it.
        top: the top level.
        lower: the goal-reaching levels.
        reward_scale: factor on the task's rewards, the same as in the recorded transitions.
        encoder: a context encoder of one's own, any module; see :func:`~peach_trl.context.kinds.make_belief`.
        belief: a belief of one's own, encoder included.
        loss: the top level's, a subclass of one's own.
        views: what each level reads of the observation, by the names that the environment declares; ``None``: as the
            environment says, and what has no bounds as it is.
        seeds: with a number S, S independent agents whose networks are stacked; each has one of S equal parts of the
            rows of an environment, and of each batch.

    Attributes:
        levels: the goal-reaching levels, bottom up; all of them where the top level's objective is a goal.
        top: the top level that follows the task's reward; ``None`` where its objective is a goal.
        evidence: what beliefs read of a decision's rewards.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["hierarchy.depth=3"])
        >>> agent = make_agent(config, make_library(config))
        >>> len(agent.levels), agent.hierarchy.k, agent.top.belief.latent_dim
        (2, 5, 12)
    """

    levels: Sequence[GoalLevel]
    top: TopLevel
    acts = "A policy, agent.make_policy(),"

    def __init__(
        self,
        env: EnvBase,
        hierarchy: HierarchyConfig | None = None,
        context: ReadingConfig | None = None,
        top: TopConfig | None = None,
        lower: LowerConfig | None = None,
        reward_scale: float = 1.0,
        encoder: nn.Module | None = None,
        belief: Belief | None = None,
        *,
        loss: type[ContextSACLoss] = ContextSACLoss,
        views: ViewsConfig | None = None,
        seeds: int | None = None,
    ) -> None:
        super().__init__()
        self.seeds = seeds
        hierarchy = default(HierarchyConfig) if hierarchy is None else hierarchy
        context = default(ReadingConfig) if context is None else context
        top, lower = default(TopConfig) if top is None else top, default(LowerConfig) if lower is None else lower
        peak, scale = context.evidence == "peak", reward_scale * context.reward_factor
        self.evidence = Evidence(peak=peak, scale=scale, steps=hierarchy.top_steps)
        goal_space, subgoal_space = (declared(env, f"{name}_space") for name in ("goal", "subgoal"))
        if top.observe_goal and goal_space is None:
            raise ConfigError(
                "top.observe_goal = True: the tasks of this environment are no states to reach; set it to false"
            )
        if subgoal_space is None:
            raise ConfigError(f"{type(env).__name__} has no subgoal_space: set env.subgoal_space to a GoalSpace")
        reaches = top.objective == "goal"
        self.hierarchy = Hierarchy(
            *(hierarchy, env.action_spec, subgoal_space, goal_space if reaches else None),
            fails=declared(env, "fails", False),
        )
        self.observation_spec = _observed(env)
        for space in filter(None, (goal_space, subgoal_space)):
            if max(space.indices) >= (width := self.observation_spec.shape[-1]):
                raise ConfigError(f"{space}: observations have {width} entries, 0 to {width - 1}; name others")
        number = self.hierarchy.depth if reaches else self.hierarchy.top
        spec = self.observation_spec
        names = ViewsConfig(lower=AUTO, top=AUTO, context=AUTO, normalise=0) if views is None else views
        view = {reader: find_view(env, reader, getattr(names, reader)) for reader in ("lower", "top", "context")}
        several: dict[str, Any] = {"normalise": names.normalise, "seeds": seeds}
        # Only the lowest level moves the body; subgoals of those above it are places, as the top's are.
        reads = [view["lower"] if level < min(1, self.hierarchy.top) else view["top"] for level in range(number + 1)]
        levels = [GoalLevel(self.hierarchy, level, spec, lower, reads[level], **several) for level in range(number)]
        self.levels = nn.ModuleList(levels)  # type: ignore[assignment]
        known = goal_space if top.observe_goal else None
        self.top = (
            None  # type: ignore[assignment]
            if reaches
            else TopLevel(
                *(self.hierarchy, spec, top, context, known, encoder, belief, view["top"], view["context"]),
                loss=loss,
                **several,
            )
        )

    @property
    def _every(self) -> list[GoalLevel | TopLevel]:
        """All levels, bottom up."""
        return [*self.levels, *([] if self.top is None else [self.top])]

    def see(self, observation: Tensor) -> None:
        """Takes observations [..., D] into the statistics by which levels normalise what has no bounds.

        Raises:
            FloatingPointError: for observations that are not finite; nothing is changed then.
            ValueError: for observations of another size, likewise.
        """
        if observation.shape[-1] != (dim := self.observation_spec.shape[-1]):
            raise ValueError(f"observation of shape {list(observation.shape)}: levels read {dim} numbers of it")
        if not observation.isfinite().all():
            entries = (~observation.isfinite()).flatten(0, -2).any(0).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"observation: entries {entries} are not finite somewhere; nothing was learnt of them. Look at the "
                "environment"
            )
        for level in self._every:
            level.see(observation)

    def training_state(self) -> dict[str, Any]:
        """All that an exact resume needs: weights, and what each level keeps besides."""
        return {"weights": self.state_dict(), "levels": [level.training_state() for level in self._every]}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`training_state` gave."""
        own, given = self.state_dict(), state["weights"]
        if own.keys() != given.keys():
            raise ValueError(f"other networks: {sorted(own.keys() ^ given.keys())[0]} is in one of them only")
        if len(state["levels"]) != len(self._every):
            raise ValueError(f"other levels: {len(state['levels'])} there and {len(self._every)} here")
        learnt = [(name, value, given[name]) for name, value in own.items() if not _is_setting(name)]
        _write_all(learnt)
        for level, of_level in zip(self._every, state["levels"], strict=True):
            level.load_training_state(of_level)

    def load_levels(self, state: Mapping[str, Tensor]) -> None:
        """Makes the goal-reaching levels those of another agent, alone, by its ``state_dict()``.

        Raises:
            ConfigError: if they are of other networks or views.
        """
        given = {name.removeprefix("levels."): value for name, value in state.items() if name.startswith("levels.")}
        levels = cast(nn.ModuleList, self.levels)
        own = levels.state_dict()
        for name in sorted(own.keys() | given.keys()):
            shapes = [tuple(part[name].shape) if name in part else None for part in (given, own)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"lower.checkpoint: its levels are others, {name} is {shapes[0]} there and {shapes[1]} here; set "
                    "hierarchy, lower and views as they were there"
                )
        levels.load_state_dict({name: own[name] if _is_setting(f"levels.{name}") else given[name] for name in own})
        self.settle_levels()

    def settle_levels(self) -> None:
        """Leaves the statistics that the goal-reaching levels normalise by as they are."""
        for level in self.levels:
            for normaliser in level.normalisers:
                normaliser.settle()  # type: ignore[operator]

    @property
    def settled(self) -> bool:
        """Whether the statistics that levels normalise by change no more."""
        return all(normaliser.settled for level in self._every for normaliser in level.normalisers)  # type: ignore[union-attr]

    def state_of(self, seed: int, single: Agent) -> dict[str, Tensor]:
        """The state of one of several agents, as an agent of its own has it; of one alone its own.

        Args:
            seed: its number, from 0.
            single: any agent of the same kind, alone.
        """
        state = {_name_of(name, seed): value for name, value in self.state_dict().items()}
        return {name: _one_of(state[name], name, own, seed) for name, own in single.state_dict().items()}

    def load_seeds(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Makes the agents what the states of so many single ones say.

        Raises:
            ValueError: where they differ in what all have in common here, the statistics that they normalise by.
        """
        state = self.state_dict()
        known = [single for single in states if single]
        for name, own in known[0].items() if known else ():
            shared = name in state and own.ndim == state[name].ndim and not name.endswith(".started")  # of averages
            if shared and not all(torch.equal(own, single[name]) for single in known):
                raise ValueError(f"{name} differs among the seeds, which have it in common: take one seed at a time")
        parts = []
        for seed, single in enumerate(states):
            names = {_name_of(name, seed): name for name in state}
            parts += [(name, _one_of(state[names[name]], name, own, seed), own) for name, own in single.items()]
        _write_all(parts)

    def make_policy(
        self, trajectories: int = 1, *, num_tasks: int | None = None, average: bool = False, seed: int | None = None
    ) -> HierarchyPolicy:
        """The hierarchy as a policy, with the learner's own networks.

        Args:
            trajectories: L, of a meta-episode, after which a row's belief is the prior again.
            num_tasks: with a number, trajectories start from a belief for each task; see :class:`BeliefTracker`.
            average: act with the averaged weights of actor and encoder, as in tests.
            seed: of the draws of z; ``None`` for the process's.
        """
        actors = [level.actor for level in self.levels]
        clock, tracker = HierarchyClock(self.hierarchy), None
        if self.top is not None:
            actor, belief = self.top.acting(average)
            actors.append(actor)
            if belief is not None:
                tracker = BeliefTracker(
                    belief,
                    self.hierarchy,
                    self.observation_spec.shape[-1],
                    trajectories=trajectories,
                    read=self.top.context.read,
                    update=self.top.context.update,
                    evidence=self.evidence,
                    num_tasks=num_tasks,
                    seed=seed,
                )
        return HierarchyPolicy(clock, HierarchyActor(self.hierarchy, actors), tracker)


def _observed(env: EnvBase) -> TensorSpec:
    """The spec of what all levels read.

    Raises:
        ConfigError: if there is none, or it is not of single precision.
    """
    spec = env.observation_spec.get("observation", None)
    if spec is None:
        names = ", ".join(map(str, env.observation_spec.keys(True, True)))
        raise ConfigError(
            f"{type(env).__name__} shows {names}, and no 'observation': transform it with "
            "torchrl.envs.RenameTransform, or CatTensors for several"
        )
    if spec.dtype != torch.float32:
        raise ConfigError(
            f"{type(env).__name__} has observations of type {spec.dtype}, networks are of torch.float32: transform it "
            "with torchrl.envs.DoubleToFloat()"
        )
    return spec


def _write_all(parts: Sequence[tuple[str, Tensor, Tensor]]) -> None:
    """Copies values into tensors of an agent, (name, tensor, value) each, once it is known that all of them fit.

    Raises:
        ValueError: for a value of another shape, which might be broadcast, or of another type.
    """
    for name, target, value in parts:
        if not isinstance(value, Tensor) or (target.shape, target.dtype) != (value.shape, value.dtype):
            found = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"other networks: {name} is {found} there and {list(target.shape)} {target.dtype} here")
    for _, target, value in parts:
        _write(target, value)


@torch.no_grad()
def _write(target: Tensor, value: Tensor) -> None:
    """Copies a value into a tensor of an agent; constants are one for all critics, and cannot be written into."""
    value = value.to(target.device)
    if not torch.equal(target, value):
        target.copy_(value)


def _is_setting(name: str) -> bool:
    """Whether a tensor of an agent is a value of its configuration, which learning does not change."""
    return name.endswith("_value_estimator.gamma") or (name.startswith("levels.") and name.endswith(".log_alpha"))


def _name_of(name: str, seed: int) -> str:
    """The name in an agent alone of what is called ``name`` in that of several seeds, if it is that seed's."""
    return name.replace(f".copies.{seed}.", ".")


def _one_of(value: Tensor, name: str, own: Tensor, seed: int) -> Tensor:
    """The part of a tensor of several agents that is one's, a view; of the critics, the first dimension is E."""
    if value.ndim == own.ndim:
        return value
    return value[:, seed] if "qvalue_network_params" in name else value[seed]
