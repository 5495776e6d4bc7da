"""Soft actor-critic that reads a belief about the task: `sac.py` with 20 other lines; compare them with diff.

    python examples/sac_with_context.py

Tasks here are goals that the robot is not told. An actor that knows nothing of them can do no better than to stay in
the middle, at -0.77 a step on average.
"""

from __future__ import annotations

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SoftUpdate, ValueEstimators

from peach_trl.context import ContextEncoder, ContextSampler, FlatBeliefTracker, GaussianProduct, Transition, reading
from peach_trl.data import TaskReplayBuffer
from peach_trl.envs.families import PointRobot
from peach_trl.objectives import ContextSACLoss, KLLoss


class Concat(MLP):
    """A perceptron over several inputs, one after the other."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., D] each to [..., out]."""
        return super().forward(torch.cat(inputs, -1))


def train(env: EnvBase, frames: int, batch: int = 256, updates: int = 100) -> list[float]:
    """Trains; returns the mean reward a step of each batch that was collected."""
    observed, acted = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    keys, size, tasks = ["observation", "belief"], observed + 10, env.tasks
    spec = env.observation_spec["observation"]
    belief = GaussianProduct(ContextEncoder(spec, acted, out_features=10), latent_dim=5)
    net = TensorDictModule(Concat(size, 2 * acted, num_cells=[64, 64]), keys, ["parameters"])
    actor = ProbabilisticActor(
        TensorDictSequential(net, TensorDictModule(NormalParamExtractor(), ["parameters"], ["loc", "scale"])),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critics = [ValueOperator(Concat(size + acted, 1, num_cells=[64, 64]), [*keys, "action"]) for _ in range(2)]
    policy = TensorDictSequential(FlatBeliefTracker(belief, spec, env.action_spec, trajectories=3), actor)
    loss = ContextSACLoss(actor, critics, alpha_init=0.1, target_entropy=-float(acted))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    targets = SoftUpdate(loss, tau=0.01)
    optimiser = torch.optim.Adam([*loss.parameters(), *belief.parameters()], lr=1e-3)
    buffer = TaskReplayBuffer(len(tasks), capacity=100_000 // len(tasks), episodes=20)
    contexts = ContextSampler(buffer)
    steps = env.batch_size[0] * 20
    collector = Collector(
        env, policy, frames_per_batch=steps, total_frames=frames, auto_register_policy_transforms=True
    )
    rewards = []
    for data in collector:
        rewards.append(data["next", "reward"].mean().item())
        buffer.extend(data.reshape(-1))
        for _ in range(updates):
            some = buffer.draw_tasks(tasks, 16)
            rows, context = buffer.sample_tasks(some, batch // 16), contexts(some)
            loc, scale = belief(Transition.of(context), context["mask"])
            rows["belief"] = rows["next", "belief"] = reading(loc, scale).unsqueeze(1).expand(*rows.shape, -1)
            losses = loss(rows)
            total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"] + 0.1 * KLLoss()(loc, scale)
            total.backward()
            optimiser.step()
            optimiser.zero_grad()
            targets.step()
    return rewards


if __name__ == "__main__":
    torch.manual_seed(0)
    for number, reward in enumerate(train(PointRobot(num_envs=80, split="train", seed=0), frames=192_000)):
        print(f"batch {number}: reward a step {reward:.3f}")
