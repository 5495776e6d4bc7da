"""What a belief knows of its task: a linear probe, decision by decision, beside an ideal observer of the same path.

A linear map from the belief to the parameters of the task (a goal, a velocity, a wind) is fitted to meta-tests on the
training tasks, and asked on tasks that neither it nor the agent has seen (Alain & Bengio 2016, arXiv 1610.01644). Its
error falls as the belief learns about the task. Where goals are hidden places, the mean of the exact posterior along
the same path says how small it could be (:func:`~peach_trl.references.ideal_estimates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.agent import Agent
from peach_trl.declared import declared
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.evaluation import played, tasks_of
from peach_trl.experiment import Config, make_env
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.meta_tests import policy_for_meta_test
from peach_trl.references import ideal_estimates

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbe:
    """A linear map from features to targets, by ridge regression on standardised features.

    Args:
        features: [M, F].
        targets: [M, P].
        ridge: weight of the squared coefficients, beside the mean squared error.

    Examples:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> probe = LinearProbe(x, x @ torch.tensor([[1.0], [0.0], [-2.0]]) + 5, ridge=1e-6)
        >>> probe(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])).round(decimals=2).flatten().tolist()
        [4.0, 5.0]
    """

    def __init__(self, features: Tensor, targets: Tensor, ridge: float) -> None:
        x, y = features.double(), targets.double()
        self._mean, self._scale, self._offset = x.mean(0), x.std(0, correction=0).clamp(min=1e-6), y.mean(0)
        x = (x - self._mean) / self._scale
        penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype)
        self._weights = torch.linalg.solve(x.mT @ x / len(x) + penalty, x.mT @ (y - self._offset) / len(x))

    def __call__(self, features: Tensor) -> Tensor:
        """The targets that it says, [..., P]."""
        return (((features.double() - self._mean) / self._scale) @ self._weights + self._offset).float()


@dataclass(frozen=True)
class Seen:
    """What beliefs were before, between and after the N decisions of R meta-tests, and what they could have been.

    Attributes:
        beliefs: mean and log deviation of q(z | c), [R, N + 1, 2 Z].
        parameters: of the tasks, [R, P].
        ideal: the ideal observer's estimates at the same times, [R, N + 1, P]; ``None`` where it is not known.
    """

    beliefs: Tensor
    parameters: Tensor
    ideal: Tensor | None


@torch.no_grad()
def see(policy: HierarchyPolicy, env: EnvBase, trajectories: int, decision_steps: int, observed: bool = False) -> Seen:
    """Plays meta-tests on the rows of an environment, each with its task, and notes the belief at every decision.

    Where an episode ends early, what was believed then counts for the decisions that it had left.

    Args:
        policy: with a belief, whose decisions take ``decision_steps`` environment steps, or one at depth 1.
        env: with a library of tasks, and a horizon; it is closed in the end.
        trajectories: of a meta-test.
        decision_steps: environment steps between two looks at the belief; episodes begin with one.
        observed: whether an ideal observer looks on.

    Raises:
        ValueError: if the policy keeps no belief, or decides at other times; if tasks have no parameters; and as
            :func:`~peach_trl.evaluation.meta_test` does.
    """
    tracker = policy.tracker
    if tracker is None:
        raise ValueError("policy: it keeps no belief that could be asked; give one with context.latent_dim above 0")
    batch, steps, length, _ = played(policy, env, trajectories)
    _, parameters = tasks_of(env, batch)
    if not parameters.shape[1]:
        raise ValueError(f"{type(env).__name__}: its tasks have no parameters that could be told; give it a library")
    looks, rows = steps[:, :, ::decision_steps].flatten(1), torch.arange(len(steps)).unsqueeze(1)  # [R, N]
    begun = torch.arange(steps.shape[-1])[::decision_steps] < length.unsqueeze(-1)
    if not bool(batch["hierarchy", "acts"][rows, looks][..., -1][begun.flatten(1)].all()):
        raise ValueError(
            f"decision_steps = {decision_steps}: decisions begin at other steps, as with hierarchy.clock=own_goal; "
            "only those of one length can be compared"
        )
    last = steps[:, -1, -1]
    after = tracker.after(batch[rows[:, 0], last]).unsqueeze(1)
    states = torch.cat([batch["context", "state"][rows, looks], after], 1)
    beliefs = tracker.belief.read(states)
    ideal, space = None, declared(env, "goal_space")
    if observed and space is not None and space.dim == 2:
        positions, rewards = space.project(batch["next", "observation"]), batch["next", "reward"].squeeze(-1)
        estimates = ideal_estimates(env, positions, rewards)
        ideal = None if estimates is None else estimates[rows, torch.cat([looks, last.unsqueeze(1) + 1], 1)]
    return Seen(beliefs, parameters, ideal)


@dataclass(frozen=True)
class Probed:
    """Errors of an agent's belief by decision: distances of R test tasks' parameters from what is said of them.

    Attributes:
        belief: of the linear probe, [R, N + 1], in the units of the parameters.
        prior: of the mean of the training tasks, [R]: nothing is known.
        ideal: of the ideal observer of the same paths, [R, N + 1], or ``None``.
        ridge: of the probe, by the error on the validation tasks.
    """

    belief: Tensor
    prior: Tensor
    ideal: Tensor | None
    ridge: float

    def curves(self) -> dict[str, Tensor]:
        """Root mean squares over tasks, as shares of the prior's: 1: nothing is known, 0: all is; [N + 1] each."""
        found = {"belief": self.belief} | ({} if self.ideal is None else {"ideal observer": self.ideal})
        return {name: _rms(errors) / _rms(self.prior) for name, errors in found.items()}


def probe(
    agent: Agent, config: Config, library: TaskLibrary, *, split: str = "test", ridges: Sequence[float] = RIDGES
) -> Probed:
    """Fits a linear probe on the training tasks, and asks it on ``split``.

    The probe is one map for all decisions. It is fitted to two meta-tests of each training task, one of which explores
    as in collection, so that it sees more paths; its ``ridge`` is the one of ``ridges`` with the smallest error on the
    validation tasks. All others are without noise, once a task. Parameters of different units count as they are.

    Args:
        agent: what was learnt, of one seed.
        config: of the run, with a context variable.
        library: its tasks.
        split: ``"test"``; ``"validation"`` is what ``ridge`` was chosen on.
        ridges: to choose from.

    Raises:
        ValueError: for an agent without a belief, or of several seeds; and see :func:`see`.
    """
    if config.seeds > 1:
        raise ValueError(f"seeds = {config.seeds}: each has a belief of its own; load one of them, by its folder")

    def seen(name: str, noisy: bool = False, observed: bool = False) -> Seen:
        policy = policy_for_meta_test(agent, config, seed=0)
        with set_exploration_type(ExplorationType.RANDOM if noisy else ExplorationType.DETERMINISTIC):
            env = make_env(config, library, library.split(name))
            return see(policy, env, config.evaluation.trajectories, config.hierarchy.top_steps, observed)

    with torch.random.fork_rng(devices=[]):  # nothing here moves the generators of training
        torch.manual_seed(config.seed)
        train, noisy, validation = seen("train"), seen("train", noisy=True), seen("validation")
    features = torch.cat([train.beliefs, noisy.beliefs])
    targets = train.parameters.repeat(2, 1).unsqueeze(1).expand(-1, features.shape[1], -1)

    def error(fitted: LinearProbe, on: Seen) -> Tensor:
        return torch.linalg.vector_norm(fitted(on.beliefs) - on.parameters.unsqueeze(1), dim=-1)

    fits = {ridge: LinearProbe(features.flatten(0, 1), targets.flatten(0, 1), ridge) for ridge in ridges}
    ridge = min(fits, key=lambda ridge: float(_rms(error(fits[ridge], validation).flatten())))
    test = seen(split, observed=True)
    truth = test.parameters.unsqueeze(1)
    return Probed(
        belief=error(fits[ridge], test),
        prior=torch.linalg.vector_norm(test.parameters - train.parameters.mean(0), dim=-1),
        ideal=None if test.ideal is None else torch.linalg.vector_norm(test.ideal - truth, dim=-1),
        ridge=ridge,
    )


def _rms(errors: Tensor) -> Tensor:
    return errors.square().mean(0).sqrt()
