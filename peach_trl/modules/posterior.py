"""The posterior over each task's z, as state of the policy: drawn at resets, or anew at each decision of the top.

Gaussians multiply by adding natural parameters, so a posterior takes in one more transition without another look at
the context. A table holds one posterior a task; rows of the environment start from their task's entry.
"""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs import TensorDictPrimer

from peach_trl.hierarchy.structure import Hierarchy
from peach_trl.modules.encoder import ContextEncoder, product_of_gaussians
from peach_trl.seeding import ProcessGenerator

DRAWS = ("trajectory", "decision", "coupled")


class PosteriorState(TensorDictModuleBase):
    """Keeps q(z | c) of every task and hands each environment row its z.

    Reads ``observation``, ``task_id``, ``("hierarchy", "start" | "acts")``, and for other draws than ``"trajectory"``
    also ``episode_reward`` (TorchRL's ``RewardSum``), the last subgoal and proposal; writes ``z`` [N, Z] and, for
    ``draw="decision"``, its own state under ``"posterior"``.

    Args:
        encoder: q_phi.
        hierarchy: for what the top level did with its last decision.
        num_tasks: entries of the table.
        observation_dim: D.
        draw: ``"trajectory"`` draws z when an episode starts; ``"decision"`` also multiplies the transition of each
            decision of the top level into the posterior when it ends, and draws z anew; ``"coupled"`` does so with one
            noise for the whole episode, z = mean + noise * deviation, so that z only changes with the evidence.
        reward_scale: factor on rewards, the same as that of the recorded transitions.
        seed: of the draws of z; ``None`` for this process's seed.

    Examples:
        >>> from peach_trl.experiment import Config, make_agent, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(Config, "peach", "configs", ["env.horizon=40"])
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> posterior = agent.make_policy(library.num_tasks).posterior
        >>> tasks = torch.tensor([3, 4])
        >>> loc, scale = posterior.posterior(tasks)
        >>> loc.shape, bool((loc == 0).all() and (scale == 1).all())  # the prior
        (torch.Size([2, 5]), True)
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]
    precision: Tensor
    shift: Tensor

    def __init__(
        self,
        encoder: ContextEncoder,
        hierarchy: Hierarchy,
        num_tasks: int,
        observation_dim: int,
        draw: str,
        reward_scale: float,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if draw not in DRAWS:
            raise ValueError(f"context.draw = {draw!r}: use one of {', '.join(DRAWS)}")
        self.encoder, self.hierarchy, self.draw = encoder, hierarchy, draw
        self.observation_dim, self.reward_scale = observation_dim, reward_scale
        self.register_buffer("precision", torch.ones(num_tasks, encoder.latent_dim))
        self.register_buffer("shift", torch.zeros(num_tasks, encoder.latent_dim))
        self._generator = ProcessGenerator("latent", seed)
        self._state = ["precision", "shift"] + ["observation", "reward"]
        self.in_keys = ["observation", "task_id", ("hierarchy", "start"), ("hierarchy", "acts"), "z"]
        self.out_keys = ["z"]
        if draw == "coupled":
            self._state.append("noise")
        if draw != "trajectory":
            self.in_keys += ["episode_reward", *(("posterior", key) for key in self._state)]
            self.in_keys.append(("hierarchy", "goal") if hierarchy.depth > 1 else ("hierarchy", "proposal"))
            self.out_keys += [("posterior", key) for key in self._state]

    def reset(self, tasks: Tensor | None = None) -> None:
        """Forgets the context, c^i = {}: the prior again, for the given task ids [M] or all."""
        rows = slice(None) if tasks is None else tasks
        self.precision[rows] = 1.0
        self.shift[rows] = 0.0

    @torch.no_grad()
    def condition(self, tasks: Tensor, context: TensorDictBase) -> None:
        """Sets the posterior of tasks [M] to q(z | c) of their contexts [M, C] (see :class:`ContextEncoder`)."""
        self.precision[tasks], self.shift[tasks] = self.encoder.natural(context)

    @torch.no_grad()
    def update(self, transitions: TensorDictBase) -> None:
        """Multiplies top-level transitions [R], each with its ``task_id`` [R, 1], into their tasks' posteriors."""
        precision, shift = self.encoder.factors_of(transitions)
        tasks = transitions["task_id"].squeeze(-1)
        self.precision.index_add_(0, tasks, precision)
        self.shift.index_add_(0, tasks, shift)

    def posterior(self, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | c) for task ids [M], [M, Z] each."""
        return product_of_gaussians(self.precision[tasks], self.shift[tasks])

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes each row's z; see the class."""
        draws = start = tensordict.get(("hierarchy", "start"))
        if self.draw != "trajectory":
            draws = tensordict.get(("hierarchy", "acts"))[..., -1:]
        if not draws.any():
            return tensordict
        tasks = tensordict.get("task_id").squeeze(-1)
        precision, shift = self.precision[tasks], self.shift[tasks]
        if self.draw != "trajectory":
            precision, shift = self._multiply(tensordict, start, draws, precision, shift)
        noise = torch.randn(precision.shape, generator=self._generator.get())
        if self.draw == "coupled":
            noise = torch.where(start, noise, tensordict.get(("posterior", "noise")))
            tensordict.set(("posterior", "noise"), noise)
        loc, scale = product_of_gaussians(precision, shift)
        return tensordict.set("z", torch.where(draws, loc + scale * noise, tensordict.get("z")))

    def _multiply(
        self, tensordict: TensorDictBase, start: Tensor, ends: Tensor, precision: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the decisions that just ended into the rows' own posteriors, and remembers where the next start."""
        state = {key: tensordict.get(("posterior", key)) for key in self._state if key != "noise"}
        reached, total = tensordict.get("observation"), tensordict.get("episode_reward")
        observation = state["observation"]
        if self.hierarchy.depth > 1:
            goal = tensordict.get(("hierarchy", "goal"))[..., -1, :]
            action = self.hierarchy.hindsight_action(self.hierarchy.top, observation, goal, reached)
        else:
            action = tensordict.get(("hierarchy", "proposal"))
        reward = self.reward_scale * (total - state["reward"])
        factors = self.encoder.factors(observation, action, reward, reached)
        parameters = {"precision": precision, "shift": shift}
        for (key, initial), factor in zip(list(parameters.items()), factors, strict=True):
            old = state[key]
            parameters[key] = torch.where(start, initial, torch.where(ends, old + factor, old))
        new = {**parameters, "observation": reached, "reward": total}
        for key in ("observation", "reward"):
            new[key] = torch.where(ends, new[key], state[key])  # the top level acts at a start, too
        for key, value in new.items():
            tensordict.set(("posterior", key), value)
        return parameters["precision"], parameters["shift"]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds z and the posterior's state to an environment, zero at a reset."""
        latent = Unbounded(shape=self.encoder.latent_dim)
        specs: dict[str, TensorSpec] = {"z": latent}
        if self.draw != "trajectory":
            rest = {"observation": Unbounded(shape=self.observation_dim), "reward": Unbounded(shape=1)}
            rest |= {"noise": latent.clone()} if self.draw == "coupled" else {}
            specs["posterior"] = Composite({"precision": latent.clone(), "shift": latent.clone(), **rest})
        return TensorDictPrimer(Composite(specs), default_value=0.0, expand_specs=True)
