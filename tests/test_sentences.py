"""Mistakes of those who use a component alone are answered with a sentence that names the remedy."""

import pytest
import torch
from tensordict import TensorDict
from tiny import record, tiny_agent, tiny_config
from torchrl.data import Binary, Bounded, Categorical, OneHot, Unbounded
from torchrl.envs import DoubleToFloat, GymEnv, RenameTransform, TransformedEnv
from torchrl.modules import RandomPolicy

from peach_trl.agent import Agent
from peach_trl.collectors import rollout
from peach_trl.config import ConfigError
from peach_trl.context import ContextEncoder, FlatBeliefTracker, GaussianProduct, Transition
from peach_trl.data import TaskReplayBuffer
from peach_trl.defaults import default
from peach_trl.envs import GoalSpace, MadeConfig, PointConfig, PointEnv
from peach_trl.envs.families import PointRobot
from peach_trl.evaluation import meta_test
from peach_trl.experiment import PeachConfig, make_agent, make_library
from peach_trl.hierarchy import Hierarchy, LevelTransitions
from peach_trl.modules import Perceptron
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


def test_one_number_does_not_go_for_all():
    """An observation, goal, proposal or state of [..., 1] would be broadcast."""
    R, whole = torch.randn, agent()
    belief, hierarchy = whole.top.belief, whole.hierarchy
    sizes = {"observation": 4, "action": 2, "evidence": 6, "next_observation": 4}
    fits = {name: R(3, 7, size) for name, size in sizes.items()}
    states = belief.scan(Transition(**fits))
    for name, size in sizes.items():
        wrong = 1 if name != "evidence" else 5
        with pytest.raises(
            ValueError, match=rf"{name} of shape \[3, 7, {wrong}\]: this encoder reads \[3, 7, {size}\]"
        ):
            belief.scan(Transition(**{**fits, name: R(3, 7, wrong)}))
    with pytest.raises(ValueError, match=r"mask of shape \[3, 7, 1\] torch.bool: must be bool of shape \[3, 7\]"):
        belief.scan(Transition(**fits), torch.ones(3, 7, 1, dtype=torch.bool))
    one = Transition(*(part[:, 0] for part in fits.values()))
    for given in (lambda state: belief.update(state, one), belief.posterior):
        with pytest.raises(ValueError, match=r"state of shape \[3, 1\]: one of this belief has 24 numbers"):
            given(states[:, -1, :1])
    actor = whole.levels[0].actor
    with pytest.raises(ValueError, match=r"observation of shape \[3, 1\]: this network reads 4 numbers of it"):
        actor(TensorDict({"observation": R(3, 1), "goal": R(3, 2)}, [3]))
    with pytest.raises(ValueError, match=r"goal of shape \[3, 1\]: this network reads 2 numbers of it"):
        actor(TensorDict({"observation": R(3, 4), "goal": R(3, 1)}, [3]))
    for given in (hierarchy.decode, hierarchy.encode):
        with pytest.raises(ValueError, match=r"of shape \[3, 1\]: level 1 proposes 2 numbers"):
            given(1, R(3, 4), R(3, 1))
    with pytest.raises(ValueError, match=r"goal of shape \(3, 1\): this goal space has 2 numbers"):
        hierarchy.subgoal_space.achieved(R(3, 4), R(3, 1))
    with pytest.raises(ValueError, match=r"observation of shape \[3, 1\]: levels read 4 numbers of it"):
        whole.see(R(3, 1))


def recorded(steps):
    """What a policy recorded in four rows of the tiny task, whose episodes have 20 steps, two a meta-episode."""
    config = tiny_config()
    policy = tiny_agent(config).make_policy(2)
    batch = record(config, policy, [0, 1, 2, 0], steps)
    return LevelTransitions(policy.actor.hierarchy, config.transitions, seed=0), batch


@pytest.mark.parametrize(
    ("cut", "change", "said"),
    [
        (10, lambda batch: batch[:, 3:], "row 0 of 4 begins where the step before did not lead: a batch is missing"),
        (20, lambda batch: batch[:, 3:], "row 0 of 4 begins where the step before did not lead"),
        (10, lambda batch: batch[[1, 0, 2, 3]], "row 0 of 4 begins where the step before did not lead"),
        (10, lambda batch: batch[:3], "3 rows go on, and there were 4"),
        (10, lambda batch: batch.set("task_id", batch["task_id"] + 1), "row 0 of 4 goes on with another task_id"),
        (
            20,
            lambda batch: batch.set("task_id", batch["task_id"] + 1),
            "row 0 of 4 has a meta-episode of several tasks",
        ),
        (
            20,
            lambda batch: batch.set(("context", "trajectory"), batch["context", "trajectory"] + 1),
            "row 0 of 4 has a meta-episode with a trajectory missing",
        ),
    ],
)
def test_only_what_follows_in_time_is_joined(cut, change, said):
    convert, batch = recorded(40)
    whole = convert(batch)
    convert, batch = recorded(40)
    first = convert(batch[:, :cut])
    with pytest.raises(ValueError, match=f"{said}.*; call reset"):
        convert(change(batch[:, cut:].clone()))
    rest = convert(batch[:, cut:])  # nothing of the other was taken in
    for part, *parts in zip(whole, first, rest, strict=True):
        real = [rows["transition_type"] == 0 for rows in (part, *parts)]
        assert sum(int(rows.sum()) for rows in real[1:]) == int(real[0].sum())
    convert.reset()
    convert(batch[:, :cut])


def test_rows_that_start_anew_are_another_meta_episode():
    convert, batch = recorded(20)
    numbers = [set(convert(batch)[-1]["meta_episode"].flatten().tolist()) for _ in range(3)]
    assert [len(found) for found in numbers] == [4, 4, 4] and len(set.union(*numbers)) == 12


@pytest.mark.parametrize("spec", [Categorical(4), OneHot(4), Binary(3), Unbounded((2,)), Bounded(-1, 1, shape=())])
def test_actions_that_no_level_can_propose(spec):
    space = GoalSpace([0, 1], -1.0, 1.0, 0.1)
    said = rf"action spec {type(spec).__name__} of shape .* (no finite bounds|no numbers)"
    with pytest.raises(ValueError, match=said):
        Hierarchy(action_spec=spec, subgoal_space=space)
    belief = GaussianProduct(ContextEncoder(OBSERVATION, 4, 10), 5)
    if spec.shape:
        FlatBeliefTracker(belief, OBSERVATION, spec)
    else:
        with pytest.raises(ValueError, match=r"of shape \[\]: an encoder reads actions \[..., A\]; make .* one-hot"):
            FlatBeliefTracker(belief, OBSERVATION, spec)


def test_an_agent_of_discrete_actions():
    env = GymEnv("CartPole-v1")
    env.subgoal_space = GoalSpace([0, 1], -1.0, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"spec OneHot of shape \[2\] has no finite bounds, .*FlatBeliefTracker"):
        Agent(env)


@pytest.mark.parametrize("number", [0, -1, 1.5, None, True])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_nothing_to_play(number, hierarchical):
    env = PointRobot(num_envs=3, split="train")
    policy = Agent(env).make_policy(2) if hierarchical else RandomPolicy(env.action_spec)
    with pytest.raises(ValueError, match=f"steps = {number}: must be a whole number, 1 or more"):
        rollout(env, policy, number)
    with pytest.raises(ValueError, match=f"trajectories = {number}: must be a whole number, 1 or more"):
        meta_test(policy, env, trajectories=number)
    if number is not None:
        with pytest.raises(ValueError, match=f"horizon = {number}: must be a whole number, 1 or more"):
            meta_test(policy, env, trajectories=1, horizon=number)


def test_components_have_what_ships():
    space = GoalSpace([0, 1], -10.0, 10.0, 0.5)
    hierarchy = Hierarchy(action_spec=Bounded(-1, 1, shape=(2,)), subgoal_space=space)
    assert hierarchy.config == load_config(PeachConfig, "peach").hierarchy
    with pytest.raises(ValueError, match="action_spec, subgoal_space: both are needed"):
        Hierarchy(subgoal_space=space)
    assert PointEnv().config == default(PointConfig) == load_config(PeachConfig, "peach").env
    assert [tuple(part.shape) for part in Perceptron(3, 2).parameters()][::2] == [(64, 3), (64, 64), (2, 64)]
    with pytest.raises(TypeError, match="MadeConfig is no part of PeachConfig"):
        default(MadeConfig)


def test_a_subgoal_space_of_entries_that_are_not_there():
    env = PointRobot(num_envs=3, split="train")
    env.subgoal_space = GoalSpace([0, 7], -1.0, 1.0, 0.1)
    with pytest.raises(ConfigError, match=r"GoalSpace\(indices=\[0, 7\].*observations have 2 entries, 0 to 1"):
        Agent(env)
