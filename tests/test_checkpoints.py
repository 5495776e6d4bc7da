"""What a checkpoint promises: whatever does not fit is refused with one line that names the cause."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from tiny import TINY, tiny_agent, tiny_config

from peach_trl import PeachConfig, load_config, make_agent, make_env, meta_test
from peach_trl.config import ConfigError
from peach_trl.experiment import HacConfig, checkpoint_of, load_agent, load_levels, make_library


@pytest.fixture(scope="module")
def state():
    config = tiny_config()
    return checkpoint_of(config, make_library(config), tiny_agent(config).state_dict())


def written(path, state):
    torch.save(state, path)
    return str(path)


def test_it_is_read_as_it_was_written(tmp_path, state):
    config, _, agent = load_agent(written(tmp_path / "final.pt", state))
    assert config.top == tiny_config().top and config.env == tiny_config().env
    assert all(torch.equal(value, state["agent"][name]) for name, value in agent.state_dict().items())


def other_tasks(state):
    state["tasks"]["fingerprint"] = "0123"


def newer(state):
    state["format"] = 2


def not_a_number(state):
    name = next(name for name in state["agent"] if name.startswith("top."))
    state["agent"][name] = torch.full_like(state["agent"][name], torch.nan)


def other_depth(state):
    state["config"]["hierarchy"]["depth"] = 3


def other_z(state):
    state["config"]["context"]["latent_dim"] = 7


def other_key(state):
    state["config"]["top"]["colour"] = "red"


def no_agent(state):
    del state["agent"]


def a_list(state):
    return [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_tasks, "it was trained on other tasks, .*fingerprint 0123; those of this version"),
        (newer, "its format is 2, this version reads 1; use the version of peach_trl"),
        (not_a_number, r"top\..* is not finite"),
        (other_depth, r"checkpoint = .*levels\.1\..* is missing there and \[.*in an agent of its configuration"),
        (other_z, r"checkpoint = .* is \[.*\] float32 there and \[.*\] float32 in an agent of its configuration"),
        (other_key, "top.colour = 'red': unknown key"),
        (no_agent, "no agent is in it; give final.pt or levels.pt"),
        (a_list, "no agent is in it"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, state, change, said):
    changed = copy.deepcopy(state)
    changed = change(changed) or changed
    path = written(tmp_path / "final.pt", changed)
    with pytest.raises(ConfigError, match=said) as refusal:
        load_agent(path)
    assert "\n" not in str(refusal.value)
    if change in (newer, no_agent, a_list):
        with pytest.raises(ConfigError, match=said):
            load_levels(path)


EXTRAS = ("MetaWorldML1", "MetaWorldML10", "ogbench_maze", "robotics_maze")
ENVS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "env").glob("*.yaml"))


@pytest.mark.parametrize("env", [name for name in ENVS if name not in ("registered", "functions", *EXTRAS)])
def test_agents_of_every_environment_can_be_loaded(env):
    """Weights that lie elsewhere are written into them: subgoals that are absolute shared a buffer among critics."""
    config = load_config(PeachConfig, "peach", overrides=[f"env={env}"])
    library = make_library(config)
    agent, other = make_agent(config, library), make_agent(config, library)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    state = agent.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_levels_of_another_run(tmp_path, state):
    """They are no agent, and what they were asked for there is compared."""
    levels = {name: value for name, value in state["agent"].items() if name.startswith("levels.")}
    path = written(tmp_path / "levels.pt", {**state, "agent": levels})
    with pytest.raises(ConfigError, match=r"it holds goal-reaching levels alone; give the run's final.pt"):
        load_agent(path)
    config = tiny_config(lower__checkpoint=path)
    with warnings.catch_warnings(action="error"):
        tiny_agent(config)
    with pytest.raises(ConfigError, match=r"trained with hierarchy.subgoal = relative; set hierarchy.subgoal=relative"):
        tiny_agent(tiny_config(lower__checkpoint=path, hierarchy__subgoal="absolute"))
    reach = config.hierarchy.subgoal_reach
    with pytest.warns(UserWarning, match=rf"hierarchy.subgoal_reach = {reach} there and 0.01 here"):
        tiny_agent(tiny_config(lower__checkpoint=path, hierarchy__subgoal_reach=0.01))
    with pytest.warns(UserWarning, match="transitions.goal_reward = sparse there and dense here"):
        tiny_agent(tiny_config(lower__checkpoint=path, transitions__goal_reward="dense"))


def test_checkpoints_of_before_some_keys(tmp_path, state):
    """What they lack is as it was done then."""
    config = copy.deepcopy(state["config"])
    del config["transitions"]["goal_reward"], config["env"]["subgoals"]
    found, _, agent = load_agent(written(tmp_path / "old.pt", {**state, "config": config}))
    assert found.transitions.goal_reward == "sparse" and found.env.subgoals == "place"
    assert all(torch.equal(value, state["agent"][name]) for name, value in agent.state_dict().items())


def test_the_agent_that_goes_with_the_package():
    """It is of this version's tasks and networks, and searches: as good as the README says of the default task."""
    config, library, agent = load_agent("pretrained")
    assert config.env == load_config(PeachConfig, "peach").env
    env = make_env(config, library, library.split("test"), policy := agent.make_policy(3, average=True, seed=0))
    returns = meta_test(policy, env, trajectories=3).returns.mean(0)
    assert returns[0] > 0.5 and returns[1:].min() > 0.8


def test_a_checkpoint_of_another_machine(tmp_path, state):
    """It acts where it is loaded: on the CPU, whatever trained it, with none of training's memory and workers."""
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    changed = copy.deepcopy(state)
    changed["config"]["device"] = "cuda"
    changed["config"]["replay"]["lower_capacity"] = 10**12
    changed["config"]["collector"].update(engine="ray", workers=2)
    path = tmp_path / "final.pt"
    written(path, changed)
    assert load_agent(path)[0].device == "cpu" and len(load_levels(path)[1]) == 1


def test_levels_of_another_run_have_the_values_of_this_one(tmp_path, state):
    """Discount and entropy coefficient stand among the tensors, and are no weights."""
    changed = copy.deepcopy(state)
    changed["config"]["logging"]["loggers"] = ["no such logger"]  # which nothing needs any more
    for name in changed["agent"]:
        if name.endswith("_value_estimator.gamma"):
            changed["agent"][name] = changed["agent"][name] * 0.5
    path = written(tmp_path / "levels.pt", changed)
    level = tiny_agent(tiny_config(lower__checkpoint=path, lower__gamma=0.77)).levels[0]
    assert level.loss.value_estimator.gamma.item() == pytest.approx(0.77)
    weights = [value for name, value in changed["agent"].items() if name.startswith("levels.0.actor")]
    assert all(torch.equal(*pair) for pair in zip(weights, level.actor.state_dict().values(), strict=True))


def test_levels_of_another_objective(tmp_path):
    """The top level of HAC reaches for the tasks' goals, and no shape says so."""
    hac = load_config(HacConfig, "hac", overrides=[*TINY, "top.observe_goal=true", "top.objective=goal"])
    library = make_library(hac)
    path = written(tmp_path / "levels.pt", checkpoint_of(hac, library, make_agent(hac, library).state_dict()))
    with pytest.raises(ConfigError, match=r"it is of top.objective = goal, whose levels reach for other goals"):
        tiny_agent(tiny_config(hierarchy__depth=3, lower__checkpoint=path))


def test_statistics_of_loaded_levels_stay(tmp_path):
    """Also where several seeds start from those of one, which has seen fewer observations than all of them would."""

    def config(*changes):
        body = ["env=HopperRandParams", "env.train_tasks=4", "train.meta_batch=2", "views.normalise=100"]
        return load_config(PeachConfig, "peach", overrides=[*body, *changes])

    def saved(number):
        one = config(f"seed={number}")
        agent = make_agent(one, library := make_library(one))
        agent.see(torch.randn(100, agent.observation_spec.shape[-1]) * 3 + number)
        assert agent.settled
        folder = tmp_path / f"seed_{number}"
        folder.mkdir()
        return written(folder / "levels.pt", checkpoint_of(one, library, agent.state_dict()))

    paths = [saved(number) for number in range(2)]
    two = config("seeds=2", f"lower.checkpoint={paths[0]}")
    agent = make_agent(two, make_library(two))
    before = {name: value.clone() for name, value in agent.levels.state_dict().items()}
    agent.see(torch.randn(150, agent.observation_spec.shape[-1]))
    assert all(torch.equal(value, before[name]) for name, value in agent.levels.state_dict().items())
    assert not agent.settled  # the top level's own
    each = config("seeds=2", f"lower.checkpoint='{tmp_path}/seed_{{seed}}/levels.pt'")
    with pytest.raises(ConfigError, match=r"differs among the seeds, which have it in common.*set seeds=1"):
        make_agent(each, make_library(each))


def test_a_folder_of_several_seeds_is_no_agent(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"seed_{seed}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "final.pt").touch()
    with pytest.raises(ConfigError, match=r"a run of 2 seeds; give the folder of one, of .*seed_0, .*seed_1"):
        load_agent(tmp_path)
