"""A belief of one's own, here a gated recurrent unit cell, learnt and acted with as the package's own are.

    python examples/own_belief.py

A belief has a state [..., S], zeros where nothing is known, and says how one transition changes it, what all beginnings
of a sequence make of it, and which Gaussian over z it stands for. Tracker, top level and meta-test ask for no more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl import PeachConfig, load_config, make_agent, make_env, make_library, meta_test
from peach_trl.collectors import rollout
from peach_trl.context import Belief, ContextEncoder, Transition
from peach_trl.experiment import make_sequence_sampler, make_task_buffer, make_transitions


class GRUBelief(Belief):
    """A GRU over what an encoder says of each transition; a linear layer makes mean and log deviation of its state."""

    def __init__(self, encoder: nn.Module, features: int, latent_dim: int, units: int = 32) -> None:
        super().__init__(encoder, latent_dim)
        self.state_dim = units
        self.cell, self.head = nn.GRUCell(features, units), nn.Linear(units, 2 * latent_dim)

    def update(self, state: Tensor, transition: Transition) -> Tensor:
        """[..., S] and one more transition to [..., S]."""
        x = self.encoder(*transition)
        return self.cell(x.flatten(0, -2), state.reshape(-1, self.state_dim)).view(state.shape)

    def scan(self, transitions: Transition, mask: Tensor | None = None) -> Tensor:
        """Transitions [B, L, ...] to the states before, between and after them, [B, L + 1, S]."""
        x, states = self.encoder(*transitions), [self.initial(len(transitions.evidence))]
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], states[-1])
            states.append(state if mask is None else torch.where(mask[:, t, None], state, states[-1]))
        return torch.stack(states, 1)

    def posterior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of q(z | c), [..., Z] each; N(0, I) where nothing is known."""
        known = (state != 0).any(-1, keepdim=True)
        loc, log_scale = (self.head(state) * known).chunk(2, -1)
        return loc, log_scale.clamp(-5, 1).exp()


def train(passes: int, updates: int = 50, overrides: tuple[str, ...] = ()) -> list[float]:
    """Some passes of recipes/peach.py with this belief; the mean return of a meta-test, by trajectory."""
    config = load_config(PeachConfig, "peach", overrides=list(overrides))
    library = make_library(config)
    env = make_env(config, library, library.split("train"))
    proposal = 2  # what the top level puts out: a subgoal (x, y)
    encoder = ContextEncoder(env.observation_spec["observation"], proposal, out_features=32, evidence_dim=2 + 4)
    agent = make_agent(config, library, belief=GRUBelief(encoder, 32, config.context.latent_dim))
    policy, (lower, top) = agent.make_policy(trajectories=3), (agent.levels[0], agent.top)
    B, transitions = make_task_buffer(config, library), make_transitions(config, library, agent)
    sequences = make_sequence_sampler(config, B)
    env = make_env(config, library, library.split("train"), policy)
    for number in range(passes):
        policy.explore(warmup=number < passes // 2, at_random=number < passes // 2)
        with set_exploration_type(ExplorationType.RANDOM):
            rows_lower, rows_top = transitions(rollout(env, policy, 3 * config.env.horizon))
        B.extend(rows_top)
        for _ in range(updates):
            lower.update(rows_lower[torch.randint(len(rows_lower), (256,))])
            top.update(sequences(B.draw_tasks(library.split("train"), 4)))
    result = meta_test(policy, make_env(config, library, library.split("validation")), trajectories=3)
    return result.returns.mean(0).tolist()


if __name__ == "__main__":
    torch.manual_seed(0)
    print(train(passes=20))
