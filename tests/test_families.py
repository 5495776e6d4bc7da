"""What holds for every task family: its configuration, its registration, and recipes that run on it."""

import copy
import csv
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_recipes import start
from tiny import ROOT

import peach_trl.envs  # noqa: F401  registers the families
from peach_trl.config import ConfigError
from peach_trl.envs import FAMILIES, FamilyConfig, PointConfig
from peach_trl.envs.families import AntDir, AntGoal, register_family
from peach_trl.experiment import HacConfig, PeachConfig, SourceConfig, make_agent, make_env, make_library
from peach_trl.utils import load_config

SMALL = [
    *("env.horizon=20", "env.train_tasks=3", "env.validation_tasks=1", "env.test_tasks=1", "hierarchy.depth=3"),
    *("hierarchy.decision_steps=8", "train.iterations=1", "train.warmup=1", "train.prefill=1", "top.batch=8"),
    "train.prefill_met=0",
    *("train.envs_per_task=1", "train.trajectories=2", "train.warmup_updates=1", "train.lower_updates=1"),
    *("train.top_updates=2", "train.meta_batch=2", "evaluation.every=1", "evaluation.rollouts=1"),
    "evaluation.trajectories=2",
]


SCHEMAS = {"peach": PeachConfig, "hac": HacConfig, "source": SourceConfig, "pearl": SourceConfig}


#: name, best reward of a step, trajectories of a meta-test
SEARCH_TASKS = [
    *(("HalfCircleV", 1.0, 3), ("HalfCircleB", 1.0, 2), ("FullCircle", 1.0, 3), ("SquareArena", 1.0, 3)),
    *(("SparsePointRobot", 1.0, 5), ("PointRobot", 1.0, 3), ("Wind", 1.0, 1), ("TreasureHunt", 10.0, 1)),
]


def config_of(name, *overrides, recipe="peach"):
    return load_config(SCHEMAS[recipe], recipe, ROOT / "configs", [f"env={name}", *overrides])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_yaml_of_a_family_holds_the_published_values(name):
    env = config_of(name).env
    assert isinstance(env, FamilyConfig) and env.family == name
    assert (env.train_tasks, env.validation_tasks, env.test_tasks) == FAMILIES[name].counts
    assert env.horizon == FAMILIES[name].episode_steps
    assert env.make_library().fingerprint() == FAMILIES[name].make_library().fingerprint()
    for recipe in ("source", "pearl", "hac"):
        assert config_of(name, recipe=recipe).env == env


def test_there_is_a_yaml_for_each_family_and_no_other():
    files = {path.stem for path in (ROOT / "configs" / "env").glob("*.yaml")}
    others = {
        "gymnasium",
        "functions",
        "registered",
        "MetaWorldML1",
        "MetaWorldML10",
        "robotics_maze",
        "ogbench_maze",
    }  # see tests/test_made.py
    assert files == {*FAMILIES, "point", "HalfCircleV", "FullCircle", "SquareArena", *others}
    assert OmegaConf.load(ROOT / "configs" / "env" / "point.yaml").arena == 10.0
    assert isinstance(load_config(PeachConfig, "peach", ROOT / "configs").env, PointConfig)


def test_half_circle_v_is_the_sparse_point_robot_for_longer():
    config = config_of("HalfCircleV")
    assert (config.env.family, config.env.horizon, config.hierarchy.top_steps) == ("SparsePointRobot", 100, 5)
    assert config.transitions.reward_scale == 40 / 100 and config.top.test_penalty == 0.1 * 5 * 0.4
    assert config.top.gamma**5 == pytest.approx(1 - 1 / 20, abs=1e-4)


def test_values_of_a_search_task_follow_from_its_horizon():
    """40 / horizon and the best reward; a third of a meta-episode ahead; 10 % of a perfect decision."""
    for name, best, trajectories in SEARCH_TASKS:
        config = config_of(name)
        steps, scale = config.hierarchy.top_steps, config.transitions.reward_scale
        assert scale == pytest.approx(40 / (config.env.horizon * best), abs=1e-4)
        ahead = max(10, trajectories * config.env.horizon / steps / 3)
        assert config.top.gamma**steps == pytest.approx(1 - 1 / ahead, abs=1e-4)
        assert config.context.reward_factor == pytest.approx(config.env.horizon / steps / 10, abs=1e-4)
        assert config.top.test_penalty == pytest.approx(0.1 * steps * scale * best, abs=1e-4)
        assert config.train.trajectories == config.evaluation.trajectories == trajectories
        assert config.sequences.episodes == trajectories and 10 <= config.env.horizon / steps <= 20


@pytest.mark.parametrize(("name", "goals", "radius"), [("FullCircle", "circle", 8.0), ("SquareArena", "square", 5.0)])
def test_goals_elsewhere_are_all_that_differs_from_the_default_task(name, goals, radius):
    default, config = load_config(PeachConfig, "peach", ROOT / "configs"), config_of(name)
    assert replace(default, env=config.env) == config
    assert replace(default.env, goals=goals, radius=radius) == config.env


def test_a_recipes_own_values_stand_over_those_of_the_task():
    assert config_of("AntGoal", recipe="pearl").hierarchy.depth == 1
    assert config_of("AntGoal").hierarchy.decision_steps == 20
    assert config_of("AntGoal", "hierarchy.decision_steps=7").hierarchy.decision_steps == 7
    assert config_of("AntGoal", "env.horizon=70").env.horizon == 70


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.family=AntJump", "env.family = 'AntJump': must be one of HalfCheetahVel"),
        ("env.arena=3", "env"),
        ("env.not_finite=ignore", "env.not_finite = 'ignore'"),
        ("env.radius_of_goals=3", "unknown key"),
    ],
)
def test_wrong_values_name_the_key(override, message):
    with pytest.raises(Exception, match=message):
        config_of("AntGoal", override)


def test_a_task_that_is_no_state_to_reach_cannot_be_a_observe_goal():
    config = config_of("AntDir", "top.observe_goal=true", "context.latent_dim=0", recipe="hac")
    with pytest.raises(ConfigError, match="top.observe_goal = True"):
        make_agent(config, make_library(config))


def test_environments_follow_the_configuration():
    config = config_of(
        "AntGoal", "env.horizon=3", "env.train_tasks=2", "env.not_finite=raise", "top.observe_goal=true",
        "train.meta_batch=2", "hierarchy.decision_steps=3", "context.latent_dim=0", "replay.episodes=1008",
    )  # fmt: skip
    library = make_library(config)
    env = make_env(config, library, library.split("test")[:2])
    assert isinstance(env, AntGoal) and env.not_finite == "raise"
    rollout = env.rollout(9, break_when_any_done=False)
    assert rollout["next", "truncated"][0, :, 0].tolist() == [False, False, True] * 3
    assert torch.equal(rollout["goal"][:, 0], library.parameters[library.split("test")[:2]])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_rows_go_on_where_they_were_saved(name):
    """In the middle of episodes, and of rows that are reset before they step again."""
    here, there = (FAMILIES[name](num_envs=3, seed=seed, not_finite="truncate") for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    shape = 30, 3, here.action_spec.shape[-1]
    actions = (2 * torch.rand(shape, generator=generator) - 1).numpy()

    def play(env, part):
        played = []
        for action in part:
            result, _ = env.advance(action)
            played += [value.copy() for value in result.values()]
            if result["done"].any():
                played += [value.numpy() for value in env.restart(torch.from_numpy(result["done"])).values()]
        return played

    here.restart(), there.restart()
    play(here, actions[:13])
    there.load_process_state(copy.deepcopy(here.process_state()))
    again = torch.tensor([True, False, False])
    starts = [[value[again] for value in env.restart(again).values()] for env in (here, there)]
    assert all(torch.equal(*pair) for pair in zip(*starts, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(play(here, actions[13:]), play(there, actions[13:]), strict=True))


def test_every_family_is_registered_with_gymnasium():
    names = {f"peach_trl/{name}-v{family.version}" for name, family in FAMILIES.items()}
    assert names <= set(gymnasium.registry)
    env = gymnasium.make("peach_trl/AntDir-v1", split="test")
    assert env.unwrapped.batched.tasks.tolist() == AntDir.make_library().split("test").tolist()
    env.close()


@pytest.mark.parametrize(
    ("recipe", "name", "overrides"),
    [
        ("peach", "HalfCheetahVel", []),
        ("hac", "AntFourRooms", ["top.observe_goal=true", "top.objective=goal"]),
        ("peach", "AntHalfCircle", ["lower.freeze_after=0", "views.top=body"]),
        ("peach", "AntUMaze", ["body=fast", "train.meta_batch=2", "env.train_tasks=2"]),
        ("peach", "point", ["env.subgoals=state", "transitions.goal_reward=dense"]),
    ],
)
def test_recipes_run_on_families(recipe, name, overrides, tmp_path, capsys):
    states = "env.subgoals=state" in overrides  # whose positions are drawn nonetheless
    (folder,) = start(tmp_path, recipe, f"env={name}", *SMALL, *overrides, plots=states)
    assert (folder / "trajectories.png").is_file() == states
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    assert math.isfinite(float(rows[-1]["eval/return/trajectory_2"]))
    assert "trajectory 2:" in capsys.readouterr().out
    assert (folder / "checkpoints" / "final.pt").exists()


def test_a_family_of_another_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_families.py").write_text(
        "from peach_trl.envs.families import Wind, register_family\n"
        "@register_family\n"
        "class Breeze(Wind):\n"
        "    'As Wind, with an argument.'\n"
        "    def __init__(self, *args, strength, **options):\n"
        "        self.strength = strength\n"
        "        super().__init__(*args, **options)\n"
    )
    own = ["env.family=Breeze", "env.package=my_families", "+env.arguments.strength=3"]
    try:
        with pytest.raises(
            ConfigError, match=r"env.family = 'Breeze': must be one of .* register_family and env.package"
        ):
            config_of("Wind", "env.family=Breeze")
        config = config_of("registered", *own)
        env = make_env(config, make_library(config), torch.arange(2))
        assert config_of("registered", own[0], own[2]).env.package is None  # where an entry point has imported it
        assert env.strength == 3 and type(env).__name__ == "Breeze"
        with pytest.raises(ValueError, match="family Breeze: my_families has one of this name"):
            register_family(type("Breeze", (FAMILIES["Wind"],), {}))
        with pytest.raises(ConfigError, match=r"env.package = 'nowhere': No module named 'nowhere'"):
            config_of("registered", "env.family=Wind", "env.package=nowhere")
        with pytest.raises(ConfigError, match=r"did you mean Breeze\?"):
            config_of("registered", *own[1:], "env.family=Breze")
    finally:
        FAMILIES.pop("Breeze", None)
