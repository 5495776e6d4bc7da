"""The top level: actor, critics and belief, their losses, targets and optimiser behind one ``update``.

One gradient step of Algorithm 1 is :meth:`TopLevel.update`: what was believed at each decision, L_critic, L_actor and
L_KL of it, and a step with the three learning rates. ``recipes/peach.py`` writes the same out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn.functional import pad
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ValueEstimators

from peach_trl.config import MANY, ConfigError, option
from peach_trl.context.belief import Belief, BeliefConfig, reading
from peach_trl.context.encoder import Transition
from peach_trl.context.kinds import BeliefOfSeeds, make_belief
from peach_trl.context.tracker import READINGS, UPDATES, context_key
from peach_trl.context.trial import try_belief
from peach_trl.defaults import default
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.levels.adam import FusedAdam
from peach_trl.levels.multi_step import link, multi_step
from peach_trl.levels.targets import Level, Targets, leaves, normalisers, on_device
from peach_trl.levels.top_networks import make_top_networks
from peach_trl.modules.execution import TracedKinds
from peach_trl.modules.networks import NetworkConfig
from peach_trl.modules.slow_copy import SlowCopy
from peach_trl.modules.views import View
from peach_trl.objectives.context import ContextSACLoss
from peach_trl.objectives.kl import KLLoss
from peach_trl.objectives.sac import make_sac
from peach_trl.rules import PERFECT
from peach_trl.seeding import named_generator

LOSSES = ("loss_qvalue", "loss_actor", "loss_test", "loss_kl")


@dataclass(frozen=True)
class TopConfig(NetworkConfig):
    """The top level: networks, SAC and the learning rates of Algorithm 1; see ``configs/`` for values."""

    objective: str = option(choices=("reward", "goal"), help="the task's reward, or the known goal as HAC's top level")
    observe_goal: bool = option(help="whether the top level is told the task's goal (the oracle, and HAC)")
    gamma: float = option(low=0, high=1, auto=True, help="discount per environment step")
    n_step: int = option(low=1, high=10**6, help="decisions whose rewards a target adds up before it bootstraps")
    alpha: float = option(above=0, help="SAC's entropy coefficient, where the best episode was worth 40, scaled")
    alpha_least: float = option(
        above=0, high=1, help="share of it where episodes are worth nothing yet; 1: it is fixed"
    )
    tau: float = option(above=0, high=1, help="rate of the target networks")
    alpha_1: float = option(above=0, high=10, help="learning rate of the encoder")
    alpha_2: float = option(above=0, high=10, help="learning rate of the top actor")
    alpha_3: float = option(above=0, high=10, help="learning rate of the top critics")
    lr_end: float = option(above=0, high=1, help="share of the learning rates left at the end; they fall linearly")
    average: float = option(above=0, high=1, auto=True, help="rate of the averaged weights of tests; 1: the last ones")
    batch: int | None = option(low=1, high=MANY, help="most decisions in a gradient step, drawn at random; null: all")
    test_penalty: float = option(low=0, auto=True, help="what a missed subgoal test costs, in scaled reward")
    loss_qvalue: float = option(low=0, help="coefficient of loss_qvalue, L_critic")
    loss_actor: float = option(low=0, help="coefficient of loss_actor, L_actor")
    loss_test: float = option(low=0, help="coefficient of loss_test, missed subgoal tests")
    loss_kl: float = option(low=0, help="coefficient of loss_kl, beta")


@dataclass(frozen=True)
class ReadingConfig(BeliefConfig):
    """How the top level reads its belief; see ``configs/`` for values and comments."""

    read: str = option(choices=READINGS, help="the parameters of q(z | c), or a sample z of it")
    next: str = option(
        choices=("after", "same"), help="what a target reads: the belief after the decision, or the same"
    )
    update: str = option(choices=UPDATES, help="the belief is read anew at every decision, or once a trajectory")
    slow: float = option(above=0, high=1, help="rate of the slow encoder behind targets; 1: they see the current one")
    bootstrap: bool = option(help="values go on from a trajectory's last decision to the next trajectory's first")


class TopLevel(Level):
    """The top level pi_h(s, b) that follows the task's reward, with two critics Q(s, b, a), and q_phi behind b.

    Args:
        hierarchy: the hierarchy whose top it is.
        observation_spec: spec of s, [..., D].
        config: networks, SAC and rates; ``None`` for what ships (:func:`~peach_trl.defaults.default`).
        context: the belief, and how it is read; likewise.
        goal: the space of a known goal that the top reads (the oracle), else ``None``.
        encoder: an encoder of one's own, see :func:`~peach_trl.context.kinds.make_belief`.
        belief: a belief of one's own, encoder included, instead of the one that ``context`` names; with ``seeds``, each
            agent has a copy.
        view: what actor and critics read of the observation; ``None`` for all of it.
        context_view: what the encoder reads of it.
        loss: L_critic and L_actor; a subclass of one's own may change or add to them.
        normalise: environment steps of each agent that means and deviations of what has no bounds are of; 0: none.
        seeds: with a number S, the levels of S agents at once, which are told apart by position: the first of S equal
            parts of a batch is the first agent's, and each loss is a vector [S].

    Raises:
        ConfigError: if ``belief`` has other dimensions than ``context.latent_dim``, or does not work.

    Attributes:
        actor: pi_h, from ``observation`` and the context to ``action`` in [-1, 1].
        belief: ``None`` without a context variable.
        loss: L_critic, L_actor and the loss of missed tests.
        kl_loss: L_KL.
        coefficients: of the losses, by their names.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach")
        >>> top = make_agent(config, make_library(config)).top
        >>> shape, no = (2, 6), torch.zeros(2, 6, 1, dtype=torch.bool)  # 2 sequences of 6 decisions
        >>> sequences = TensorDict({"observation": torch.zeros(*shape, 4), "action": torch.zeros(*shape, 2),
        ...     "steps_to_next_obs": torch.full((*shape, 1), 20), "missed": no, "proposal": torch.zeros(*shape, 2),
        ...     "mask": torch.ones(shape, dtype=torch.bool), "part": torch.zeros(shape, dtype=torch.int64),
        ...     "next": {"observation": torch.zeros(*shape, 4), "reward": torch.ones(*shape, 1), "done": no,
        ...     "terminated": no, "evidence": torch.ones(*shape, 6)}}, shape)  # what the belief reads of rewards
        >>> sorted(top.update(sequences).keys())
        ['entropy', 'loss_actor', 'loss_kl', 'loss_qvalue']
    """

    belief: Belief | None
    name = "top"

    def __init__(
        self,
        hierarchy: Hierarchy,
        observation_spec: TensorSpec,
        config: TopConfig | None = None,
        context: ReadingConfig | None = None,
        goal: GoalSpace | None = None,
        encoder: nn.Module | None = None,
        belief: Belief | None = None,
        view: View | None = None,
        context_view: View | None = None,
        *,
        loss: type[ContextSACLoss] = ContextSACLoss,
        normalise: int = 0,
        seeds: int | None = None,
    ) -> None:
        super().__init__()
        self.seeds = seeds
        config = default(TopConfig) if config is None else config
        context = default(ReadingConfig) if context is None else context
        if belief is not None and encoder is not None:
            raise ValueError("encoder and belief are both given: a belief brings its encoder; hand over one of them")
        if belief is not None and belief.latent_dim != context.latent_dim:
            raise ConfigError(
                f"context.latent_dim = {context.latent_dim}: the belief that was handed over has {belief.latent_dim}; "
                f"set context.latent_dim={belief.latent_dim}"
            )
        self.config, self.context, action_dim = config, context, hierarchy.proposal_dims[-1]
        self._steps = hierarchy.config.top_steps
        reads = view, normalise > 0
        self.actor, critics = make_top_networks(action_dim, observation_spec, context, goal, config, seeds, *reads)
        self.loss = make_sac(loss, self.actor, critics, config.alpha, test_penalty=config.test_penalty)
        self.loss.set_keys(context=context_key(context.read))
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        if seeds is not None:
            self.loss.log_alpha = cast(Tensor, self.loss.log_alpha).expand(seeds).clone()
        self.kl_loss = KLLoss(seeds)
        if belief is None and context.latent_dim:
            belief = make_belief(context, observation_spec, action_dim, encoder, seeds, context_view, normalise > 0)
        elif belief is not None:
            try_belief(belief, (dim := observation_spec.shape[-1], action_dim, context.evidence_dim(dim)))
            belief = belief if seeds is None else BeliefOfSeeds(belief, seeds)
        self.belief = belief
        self.coefficients = {name: getattr(config, name) for name in LOSSES}
        self.targets = Targets(self.loss, config.tau)
        self._rates = [config.alpha_2, config.alpha_3] + [config.alpha_1] * (self.belief is not None)
        learnt = [leaves(self.loss.actor_network_params), leaves(self.loss.qvalue_network_params)]
        learnt += [] if self.belief is None else [list(self.belief.parameters())]
        groups = [{"params": params, "lr": rate} for params, rate in zip(learnt, self._rates, strict=True)]
        self.optimiser = FusedAdam(groups)
        self._seed = torch.initial_seed()
        self._noise = named_generator("update latent", self._seed)
        self._key = context_key(context.read)
        paths = [key if isinstance(key, str) else key[-1] for key in self.loss.in_keys or []]
        self._read = {*paths, "steps_to_next_obs", *(["missed", "proposal"] if config.loss_test else [])}
        self.normalisers = normalisers(
            nn.ModuleList([self.actor, *([] if belief is None else [belief])]), normalise, seeds
        )
        self._acting = nn.ModuleDict({"actor": self.actor} | ({} if belief is None else {"belief": belief}))
        self.slow: SlowCopy | None = None
        if self.belief is not None and context.next == "after" and context.slow < 1:
            self.slow = SlowCopy(self.belief, context.slow)
        self.average = SlowCopy(self._acting, config.average) if config.average < 1 else None

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        if self._noise.device != self.device:
            self._noise = named_generator("update latent", self._seed, self.device)
        return self

    def training_state(self) -> dict[str, Any]:
        """What an exact resume needs besides the ``state_dict()``: the optimiser's state, and the generator's."""
        return {**super().training_state(), "noise": self._noise.get_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`training_state` gave."""
        super().load_training_state(state)
        self._noise.set_state(state["noise"])

    def acting(self, average: bool = False) -> tuple[ProbabilisticActor, Belief | None]:
        """Actor and belief to act with: those that learn, or with ``average`` their averaged copies."""
        modules: nn.ModuleDict = self._acting
        if average and self.average is not None:
            modules = self.average.module  # type: ignore[assignment]
        return modules["actor"], modules["belief"] if "belief" in modules else None  # type: ignore[return-value]

    # The gradient step of Algorithm 1, in its parts.

    def believe(self, sequences: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """What was believed before and after each decision of sequences.

        Args:
            sequences: decisions [B, L] with ``mask`` and ``part`` as :class:`SequenceSampler` gives them.

        Returns:
            ``(b, q)``: the decisions [n] with the context that actor, critics and targets read, and the Gaussians
            ``z_loc`` and ``z_scale`` [m, Z] of all beliefs, the prior included, for L_KL; Z = 0 without a context.
        """
        self._check_keys(sequences)
        self._doing = sequences, {}
        full = bool(sequences.get("mask").all())  # before they are moved: no waiting for a device
        sequences = on_device(sequences, self.device)
        mask, part, evidence = sequences.get("mask"), sequences.get("part"), Transition.of(sequences)
        now, after = self._columns(sequences), self._columns(sequences.get("next"))
        if self.context.bootstrap:
            state, end = after["observation"], after["terminated"]
            after["observation"], after["terminated"] = link(now["observation"], state, end, mask, part)
        if self.belief is None:
            self._look_ahead(now, after, mask, part)
            nothing = torch.zeros(self.seeds or 1, 0, device=mask.device)
            return self._decisions(now, after, mask, full), TensorDict(
                {"z_loc": nothing, "z_scale": nothing}, nothing.shape[:1]
            )
        loc, scale = self.belief.trace(evidence, None if full else mask)  # [B, L + 1, Z]
        noise, parts, key = self._draw(loc.shape), part if full else torch.where(mask, part, -1), self._key
        now[key], after[key] = self._around(reading(loc, scale, noise), parts)
        if self.slow is not None:
            slow: Belief = self.slow.module  # type: ignore[assignment]
            with torch.no_grad():
                after[key] = self._around(reading(*slow.trace(evidence, None if full else mask), noise), parts)[1]
        after[key] = (after[key] if self.context.next == "after" else now[key]).detach()
        self._look_ahead(now, after, mask, part)
        everywhere = None if full else self._chosen(pad(mask, (1, 0), value=True))
        q = {"z_loc": _flat(loc, everywhere), "z_scale": _flat(scale, everywhere)}
        return self._decisions(now, after, mask, full), TensorDict(q, q["z_loc"].shape[:1])

    def _check_keys(self, sequences: TensorDictBase) -> None:
        """Raises a ValueError that names what sequences lack."""
        after = _AFTER.difference(sequences.get("next", {}).keys())
        optional = {self._key, "missed", "proposal"}
        missing = (self._read - _AFTER - optional | {"observation", "mask", "part"}).difference(sequences.keys())
        if self.belief is not None and self.context.evidence == "peak" and self._steps > 1:
            after |= {"evidence"} - set(sequences.get("next", {}).keys())  # the reward alone is that of one step
        if missing or after:
            raise ValueError(
                f"sequences have no {[*sorted(missing), *(f'next.{key}' for key in sorted(after))]}: draw them with a "
                "SequenceSampler, or add what they lack; TopLevel shows in an example which shapes they have, and "
                "LevelTransitions(evidence=...) makes the evidence of a decision's rewards, as agent.evidence has it"
            )

    def _look_ahead(self, now: dict[str, Tensor], after: dict[str, Tensor], mask: Tensor, part: Tensor) -> None:
        """Makes of each decision the next ``n_step`` ones: their rewards, and the state and belief behind the last."""
        n, gamma, across = self.config.n_step, self.config.gamma, self.context.bootstrap
        if n == 1:
            return
        columns = after["reward"], now["steps_to_next_obs"], after["terminated"], mask, part

        def summed(*columns: Tensor) -> tuple[Tensor, ...]:
            return multi_step(*columns, n=n, gamma=gamma, across=across)

        traced = _KINDS.get((mask.shape, mask.device, n, gamma, across), lambda: summed)
        after["reward"], now["steps_to_next_obs"], last = traced(*columns)
        for key in after.keys() - {"reward"}:
            after[key] = after[key].gather(1, last.unsqueeze(-1).expand_as(after[key]))

    def _columns(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """The entries that the losses read."""
        return {key: column for key, column in tensordict.items() if key in self._read}

    def _decisions(self, now: dict[str, Tensor], after: dict[str, Tensor], mask: Tensor, full: bool) -> TensorDictBase:
        """The decisions [n] of sequences [B, L], at most ``batch`` of them."""
        most = self.config.batch
        capped = most is not None and most * (self.seeds or 1) < mask.numel()
        chosen = None if full and not capped else self._chosen(mask, most)
        columns = [{key: _flat(column, chosen) for key, column in part.items()} for part in (now, after)]
        shape = columns[0]["action"].shape[:1]
        return TensorDict({**columns[0], "next": TensorDict(columns[1], shape)}, shape)

    def _chosen(self, mask: Tensor, most: int | None = None) -> Tensor:
        """Which decisions of a mask [B, L] count, int64 [n] into the flattened ones: all, or some, drawn at random.

        Each of several seeds gets as many, as their batches are one tensor: the most that all of them have.
        """
        of_seeds = [part.flatten().nonzero().squeeze(-1) for part in mask.chunk(self.seeds or 1)]
        count = min(most or mask.numel(), *(part.shape[0] for part in of_seeds))
        size, chosen = mask.numel() // len(of_seeds), []
        for seed, part in enumerate(of_seeds):
            if count < part.shape[0]:
                part = part[torch.randperm(part.shape[0], generator=self._noise, device=self._noise.device)[:count]]
            chosen.append(part + seed * size)
        return torch.cat(chosen)

    def _draw(self, shape: torch.Size) -> Tensor | None:
        """The noise of samples z [..., Z], or ``None`` where the parameters of q are read."""
        return (
            torch.randn(shape, generator=self._noise, device=self._noise.device)
            if self.context.read == "sample"
            else None
        )

    def _around(self, read: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """What is read before and after each decision, [B, L, ...] each, of the readings [B, L + 1, ...]."""
        if self.context.update == "decision":
            return read[:, :-1], read[:, 1:]
        # Read at the first decision of a trajectory: until the trajectory ends, what follows is the same.
        index = torch.arange(part.shape[1] + 1, device=part.device)
        opens = torch.cat([torch.ones_like(part[:, :1]), part[:, 1:] != part[:, :-1]], 1).bool()
        first = torch.where(opens, index[:-1], 0).cummax(1).values
        closes = torch.cat([opens[:, 1:], torch.ones_like(opens[:, :1])], 1)
        following = torch.where(closes, index[1:], first)

        def at(steps: Tensor) -> Tensor:
            return read.gather(1, steps.unsqueeze(-1).expand(-1, -1, read.shape[-1]))

        return at(first), at(following)

    def infer(self, batch: TensorDictBase, context: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """The source's reading: one context c^i a task, apart from the RL batch, and one z ~ q(z | c^i).

        Args:
            batch: b^i, decisions [M, B] of M tasks.
            context: c^i, transitions [M, C] with a ``mask``.

        Returns:
            ``(b, q)`` as :meth:`believe` gives them: the batch with its context, which targets read too.
        """
        assert self.belief is not None
        self._doing = batch, {}
        batch, context = on_device(batch, self.device), on_device(context, self.device)
        loc, scale = self.belief(Transition.of(context), context.get("mask"))
        key = self.loss.tensor_keys.context
        read = reading(loc, scale, self._draw(loc.shape))
        unread = [key for key in ("missed", "proposal") if key not in self._read]
        batch = batch.exclude(*unread).set(key, read.unsqueeze(1).expand(*batch.shape, -1))
        return batch, TensorDict({"z_loc": loc, "z_scale": scale}, loc.shape[:1])

    def weigh(self, losses: TensorDictBase) -> Tensor:
        """The sum of the losses, each times its coefficient."""
        self._doing = self._doing[0], losses
        names = [name for name in self.coefficients if name in losses.keys()]
        return torch.stack([self.coefficients[name] * losses.get(name) for name in names]).sum()

    def step(self) -> None:
        """phi, theta_pi and theta_Q take a step down their gradients; then the targets and the averaged weights.

        Raises:
            NotFiniteLossError: if a gradient is not finite; weights are as they were then.
        """
        self._descend()
        self.targets.step()
        if self.slow is not None:
            self.slow.update(self.belief)  # type: ignore[arg-type]
        if self.average is not None:
            self.average.update(self._acting)

    def update(self, batch: TensorDictBase, context: TensorDictBase | None = None) -> TensorDictBase:
        """One gradient step of Algorithm 1 for encoder, actor and critics.

        Args:
            batch: sequences of decisions [B, L]; with ``context`` decisions [M, B] of M tasks.
            context: contexts c^i [M, C] of these tasks, for the source's literal algorithm.

        Returns:
            The losses by name, and ``entropy``, detached.
        """
        b, q = self.believe(batch) if context is None else self.infer(batch, context)
        kl = self.kl_loss(q).get("loss_kl")
        losses = self.loss.learn(b, self.coefficients, [self.coefficients["loss_kl"] * kl])
        losses.set("loss_kl", kl.detach())
        self._doing = self._doing[0], losses
        self.step()
        return losses.select(*LOSSES, "entropy", strict=False)

    def anneal(self, progress: float, worth: Tensor | float = PERFECT) -> None:
        """Sets the learning rates, and the entropy coefficient alpha.

        The rates alpha_1, alpha_2, alpha_3 fall linearly. alpha is chosen for values of the size that a perfect episode
        has. Where rewards are hardly ever met yet, values are far smaller, and entropy would be all that counts: so it
        grows with what the best episode so far was worth.

        Args:
            progress: through training, in [0, 1].
            worth: scaled return of the best episode so far, beyond what chance mostly brings; of several agents [S].
        """
        alpha = self.config.alpha * (torch.as_tensor(worth) / PERFECT).clamp(self.config.alpha_least, 1.0)
        cast(Tensor, self.loss.log_alpha).copy_(alpha.log().squeeze())
        self._lower_rates(self._rates, self.config.lr_end, progress)


_KINDS = TracedKinds()
_AFTER = {"observation", "reward", "done", "terminated"}  # what losses read of "next"


def _flat(column: Tensor, chosen: Tensor | None) -> Tensor:
    """The entries of [B, L, ...] as [n, ...], all of them or those that are ``chosen``."""
    flat = column.flatten(0, 1)
    return flat if chosen is None else flat.index_select(0, chosen)
