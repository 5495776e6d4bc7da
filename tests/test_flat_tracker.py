"""A belief for flat policies, in TorchRL's own loops."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, GymEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import RandomPolicy

from peach_trl.collectors import rollout
from peach_trl.context import Attention, ContextEncoder, FlatBeliefTracker, GaussianProduct, Recurrent, Transition
from peach_trl.envs import GoalSpace
from peach_trl.envs.families import PointRobot
from peach_trl.evaluation import meta_test


def belief_of(kind, observation, action, features=8):
    size = 2 * 3 if kind is GaussianProduct else features
    encoder = ContextEncoder(Unbounded(observation), action, size, cells=(16,))
    return kind(encoder, 3) if kind is GaussianProduct else kind(encoder, 3, features=features)


def policy_of(tracker, key="belief"):
    act = lambda observation, read: (observation[..., :1] + read.sum(-1, keepdim=True)).tanh()  # noqa: E731
    actor = TensorDictModule(
        lambda s, b: act(s, b).expand(*s.shape[:-1], tracker.action_dim), ["observation", key], ["action"]
    )
    return TensorDictSequential(tracker, actor)


def played(kind, trajectories, episodes):
    """A belief, its tracker, and three rows of episodes of 4 steps."""
    torch.manual_seed(0)
    env = PointRobot(num_envs=3, split="train", horizon=4, seed=0)
    belief = belief_of(kind, 2, 2)
    specs = env.observation_spec["observation"], env.action_spec
    tracker = FlatBeliefTracker(belief, *specs, trajectories=trajectories)
    return belief, tracker, rollout(env, policy_of(tracker), 4 * episodes)


def check(batch, belief, lengths, trajectories):
    """What was read is what a scan over each meta-episode's transitions gives, [T] steps of episodes of ``lengths``."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    starts = [0, *ends][::trajectories]
    for start, end in zip(starts, [*starts[1:], len(batch)], strict=True):
        part = batch[start:end].unsqueeze(0)
        transitions = Transition(
            part["observation"], part["action"], part["next", "reward"], part["next", "observation"]
        )
        assert torch.allclose(belief.read(belief.scan(transitions))[0, :-1], part[0]["belief"], atol=1e-4)


@pytest.mark.parametrize("kind", [GaussianProduct, Attention, Recurrent])
def test_what_is_read_is_what_a_scan_gives(kind):
    belief, _, batch = played(kind, trajectories=2, episodes=5)
    assert batch.shape == (3, 20) and batch["context", "meta_episode"][0, ::8, 0].tolist() == [0, 1, 2]
    for row in batch:
        check(row, belief, [4] * 5, 2)


class Drift(EnvBase):
    """A place that moves by its action, under keys of the caller's choice; episodes of 4 steps."""

    def __init__(self, observation, action, reward):
        super().__init__()
        self.names = observation, action, reward
        number = Unbounded(1)
        self.observation_spec = Composite()
        self.observation_spec[observation], self.observation_spec["time"] = number, Unbounded(1, dtype=torch.int64)
        actions = Composite()
        actions[action] = Bounded(-1, 1, 1)
        self.full_action_spec, self.full_reward_spec = actions, Composite({reward: number.clone()})

    def _reset(self, tensordict=None):
        empty = TensorDict(time=torch.zeros(1, dtype=torch.int64), done=torch.zeros(1, dtype=torch.bool))
        return empty.set("terminated", empty["done"].clone()).set(self.names[0], torch.zeros(1))

    def _step(self, tensordict):
        observation, action, reward = self.names
        place, time = tensordict[observation] + tensordict[action], tensordict["time"] + 1
        done = time == 4
        following = TensorDict(time=time, done=done, terminated=done.clone())
        return following.set(observation, place).set(reward, -place.abs())

    def _set_seed(self, seed):
        pass


def test_an_environment_with_keys_of_its_own():
    """Nested ones too; what is believed is the same as with the usual names."""
    belief = belief_of(GaussianProduct, 1, 1)

    def play(observation, action, reward):
        env = Drift(observation, action, reward)
        check_env_specs(env)
        names = {"observation_key": observation, "action_key": action, "reward_key": reward}
        specs = env.observation_spec[observation], env.full_action_spec[action]
        tracker = FlatBeliefTracker(belief, *specs, trajectories=2, **names)
        act = lambda s, b: (s + b.sum(-1, keepdim=True) + 0.3).tanh()  # noqa: E731
        actor = TensorDictModule(act, [observation, "belief"], [action])
        return rollout(env, TensorDictSequential(tracker, actor), 16)

    batch, same = play(("agent", "place"), ("agent", "push"), "cost"), play("observation", "action", "reward")
    assert {"observation", "action", "reward"}.isdisjoint(batch.keys()) and batch["belief"][-1].any()
    assert torch.equal(batch["belief"], same["belief"])


def test_a_meta_test_under_keys_of_its_own():
    policy = TensorDictModule(lambda place: -place / 2 + 0.4, [("agent", "place")], [("agent", "push")])
    keys = {"observation_key": ("agent", "place"), "reward_key": "cost"}
    result = meta_test(policy, Drift(("agent", "place"), ("agent", "push"), "cost"), 2, horizon=4, **keys)
    places = torch.tensor([0.4, 0.6, 0.7, 0.75])
    torch.testing.assert_close(result.positions[0, :, :, 0], places.expand(2, 4))
    torch.testing.assert_close(result.returns[0], -places.mean().expand(2))


def test_rows_that_end_at_different_times():
    """Each row's own resets tell it that a trajectory begins, in TorchRL's collector as well."""
    torch.manual_seed(0)
    make = lambda steps: lambda: TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=steps))  # noqa: E731
    env = SerialEnv(2, [make(3), make(5)])
    belief = belief_of(GaussianProduct, 3, 1)
    single = env.action_spec.shape[-1:]
    tracker = FlatBeliefTracker(belief, env.observation_spec["observation"], Unbounded(single), trajectories=2)
    options = {"frames_per_batch": 30, "total_frames": 60, "auto_register_policy_transforms": True}
    collector = Collector(env, policy_of(tracker), **options)
    batch = torch.cat([data.cpu() for data in collector], -1)
    collector.shutdown()
    assert batch.shape == (2, 30)
    check(batch[0], belief, [3] * 10, 2)
    check(batch[1], belief, [5] * 6, 2)


@pytest.mark.parametrize("kind", [GaussianProduct, Attention, Recurrent])
def test_the_belief_after_the_last_step(kind):
    """What it did in that step is no longer what is carried, but what was recorded."""
    belief, tracker, batch = played(kind, trajectories=3, episodes=3)
    expected = belief.scan(Transition.of(batch))[:, -1]
    torch.testing.assert_close(tracker.after(batch[:, -1]), expected, rtol=1e-4, atol=1e-5)


def test_a_sample_holds_for_a_trajectory():
    env = PointRobot(num_envs=3, split="train", horizon=4, seed=0)
    belief = belief_of(GaussianProduct, 2, 2)
    specs = env.observation_spec["observation"], env.action_spec
    tracker = FlatBeliefTracker(belief, *specs, trajectories=3, read="sample", update="trajectory", seed=0)
    z = rollout(env, policy_of(tracker, "z"), 12)["z"].view(3, 3, 4, 3)
    assert (z == z[:, :, :1]).all()
    assert len(z[:, :, 0].reshape(9, 3).unique(dim=0)) == 9


def test_a_meta_test_of_a_flat_policy():
    def env():
        return PointRobot(num_envs=20, split="validation", horizon=5, seed=0)

    torch.manual_seed(0)
    specs = env().observation_spec["observation"], env().action_spec
    tracker = FlatBeliefTracker(belief_of(GaussianProduct, 2, 2), *specs, trajectories=3)
    result = meta_test(policy_of(tracker), env(), trajectories=3)
    assert result.returns.shape == (20, 3) and result.positions.shape == (20, 3, 5, 2) and result.subgoals is None
    assert (result.loc.abs().sum(-1) > 0).all() and (result.scale < 1).all()
    with pytest.raises(ValueError, match="forgets the task after 3"):
        meta_test(policy_of(tracker), env(), trajectories=4)


def test_a_meta_test_of_no_module_and_of_goals_that_are_not_known():
    def env():
        made = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=5))
        made.goal_space = GoalSpace([0, 1], -1.0, 1.0, 0.1)
        return made

    result = meta_test(RandomPolicy(env().action_spec), env(), trajectories=2, horizon=5)
    assert result.returns.shape == (1, 2) and not result.success.any()  # rewards are costs; no goal is known
