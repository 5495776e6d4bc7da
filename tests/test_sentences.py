"""Mistakes of those who use a component alone are answered with a sentence that names the remedy."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Unbounded
from torchrl.envs import DoubleToFloat, GymEnv, RenameTransform, TransformedEnv

from peach_trl.agent import Agent
from peach_trl.collectors import rollout
from peach_trl.config import ConfigError
from peach_trl.context import ContextEncoder, FlatBeliefTracker, GaussianProduct, Transition
from peach_trl.data import TaskReplayBuffer
from peach_trl.envs import GoalSpace
from peach_trl.envs.families import PointRobot
from peach_trl.experiment import PeachConfig, make_agent, make_library
from peach_trl.hierarchy import LevelTransitions
from peach_trl.utils import load_config

ACTION, OBSERVATION = Unbounded((2,)), Unbounded((2,))


def agent():
    config = load_config(PeachConfig, "peach")
    return make_agent(config, make_library(config))


def some(n=3, **more):
    after = TensorDict({"reward": torch.zeros(n, 1), "done": torch.zeros(n, 1, dtype=torch.bool)}, [n])
    return TensorDict({"observation": torch.zeros(n, 4), "next": after, **more}, [n])


def test_state_that_is_not_in_the_environment():
    tracker = FlatBeliefTracker(GaussianProduct(ContextEncoder(OBSERVATION, 2, 10), 5), OBSERVATION, ACTION)
    state = PointRobot(num_envs=3, split="train").reset()
    with pytest.raises(ValueError, match=r"FlatBeliefTracker reads \('context', 'starts'\).*get_primers_from_module"):
        tracker(state)
    with pytest.raises(ValueError, match=r"HierarchyClock reads \('hierarchy', 'attempts'\).*auto_register"):
        agent().make_policy()(state)


def test_what_has_another_name():
    tracker = FlatBeliefTracker(GaussianProduct(ContextEncoder(OBSERVATION, 2, 10), 5), OBSERVATION, ACTION)
    state = TransformedEnv(PointRobot(num_envs=3, split="train"), tracker.make_tensordict_primer()).reset()
    state.rename_key_("observation", "obs")
    with pytest.raises(ValueError, match=r"reads 'observation', which is not there: torchrl.envs.RenameTransform"):
        tracker(state)
    with pytest.raises(
        ValueError, match=r"a belief reads \['observation', 'action', \('next', 'observation'\)\], which"
    ):
        Transition.of(some().rename_key_("observation", "obs"))


def test_batches_of_others():
    whole = agent()
    with pytest.raises(ValueError, match="not recorded by a HierarchyPolicy"):
        LevelTransitions(whole.hierarchy)(PointRobot(num_envs=3, split="train").rollout(5))
    missing = r"no \['action', 'mask', 'part', 'steps_to_next_obs', "
    missing += r"'next.evidence', 'next.observation', 'next.terminated'\]: draw"
    with pytest.raises(ValueError, match=missing):
        whole.top.update(some().unsqueeze(0))
    with pytest.raises(ValueError, match=r"no \['goal', 'action'\], which GoalTD3Loss reads; it has \['next', 'obs"):
        whole.levels[0].update(some())
    with pytest.raises(ValueError, match=r"no \['belief', 'action'\], which ContextSACLoss reads"):
        whole.top.loss(some())


def test_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"out_features = 7 of the encoder: .* latent_dim = 5 needs 10"):
        GaussianProduct(ContextEncoder(OBSERVATION, 2, 7), 5)
    buffer = TaskReplayBuffer(2, 10)
    with pytest.raises(ValueError, match=r"task_id of shape \[3, 2\]: one for each of the 3 rows"):
        buffer.extend(some(task_id=torch.zeros(3, 2, dtype=torch.int64)))
    buffer.extend(some(task_id=torch.zeros(3, 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"tasks of type torch.float32: ids are whole numbers"):
        buffer.sample_tasks(torch.tensor([0.0]), 2)


def test_observations_that_no_level_can_read():
    space = GoalSpace([0, 1], -1.0, 1.0, 0.1)
    renamed = TransformedEnv(PointRobot(num_envs=3, split="train"), RenameTransform(["observation"], ["seen"]))
    with pytest.raises(ConfigError, match="shows .*seen.*, and no 'observation': transform it with .*RenameTransform"):
        Agent(renamed)
    double = GymEnv("InvertedPendulum-v5")
    double.subgoal_space = space
    with pytest.raises(ConfigError, match=r"observations of type torch.float64, .* torchrl.envs.DoubleToFloat\(\)"):
        Agent(double)
    single = TransformedEnv(double, DoubleToFloat())
    assert rollout(single, Agent(single).make_policy(), 5)["observation"].dtype == torch.float32
