"""Soft actor-critic with TorchRL alone; `sac_with_context.py` is this script with a belief about the task.

    python examples/sac.py

Tasks here are goals that the robot is not told. An actor that knows nothing of them can do no better than to stay in
the middle, at -0.77 a step on average.
"""

from __future__ import annotations

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from peach_trl.envs.families import PointRobot


class Concat(MLP):
    """A perceptron over several inputs, one after the other."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., D] each to [..., out]."""
        return super().forward(torch.cat(inputs, -1))


def train(env: EnvBase, frames: int, batch: int = 256, updates: int = 100) -> list[float]:
    """Trains; returns the mean reward a step of each batch that was collected."""
    observed, acted = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    keys, size = ["observation"], observed
    net = TensorDictModule(Concat(size, 2 * acted, num_cells=[64, 64]), keys, ["parameters"])
    actor = ProbabilisticActor(
        TensorDictSequential(net, TensorDictModule(NormalParamExtractor(), ["parameters"], ["loc", "scale"])),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critics = [ValueOperator(Concat(size + acted, 1, num_cells=[64, 64]), [*keys, "action"]) for _ in range(2)]
    policy = actor
    loss = SACLoss(actor, critics, alpha_init=0.1, target_entropy=-float(acted))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    targets = SoftUpdate(loss, tau=0.01)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-3)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100_000), batch_size=batch)
    steps = env.batch_size[0] * 20
    collector = Collector(
        env, policy, frames_per_batch=steps, total_frames=frames, auto_register_policy_transforms=True
    )
    rewards = []
    for data in collector:
        rewards.append(data["next", "reward"].mean().item())
        buffer.extend(data.reshape(-1))
        for _ in range(updates):
            rows = buffer.sample()
            losses = loss(rows)
            total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
            total.backward()
            optimiser.step()
            optimiser.zero_grad()
            targets.step()
    return rewards


if __name__ == "__main__":
    torch.manual_seed(0)
    for number, reward in enumerate(train(PointRobot(num_envs=80, split="train", seed=0), frames=192_000)):
        print(f"batch {number}: reward a step {reward:.3f}")
