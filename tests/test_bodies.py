"""Bodies: views, normalisation, failure, and how a body is simulated."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tiny import record, tiny_config
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType

from peach_trl.config import ConfigError
from peach_trl.envs import FAMILIES
from peach_trl.envs.families import AntDir, AntGoal, AntHalfCircle, HalfCheetahVel, PointRobot
from peach_trl.envs.families.body_options import FAST, GYMNASIUM, turned
from peach_trl.evaluation import meta_test
from peach_trl.experiment import (
    PeachConfig,
    load_levels,
    make_agent,
    make_env,
    make_library,
    make_transitions,
)
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.modules.networks import Features
from peach_trl.modules.normaliser import Normaliser
from peach_trl.modules.views import HeadingView, View, find_view
from peach_trl.schedule import Schedule
from peach_trl.utils import load_config
from peach_trl.utils.run import Run

SHORT = [
    "env=AntHalfCircle",
    "env.horizon=40",
    "hierarchy.decision_steps=10",
    "env.train_tasks=4",
    "train.meta_batch=2",
]


def ant_config(*changes: str) -> PeachConfig:
    return load_config(PeachConfig, "peach", overrides=[*SHORT, *changes])


def states(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States of an ant [count, 15] and [count, 14], tilted a little every way."""
    draws = np.random.default_rng(seed)
    qpos, qvel = draws.normal(size=(count, 15)), draws.normal(size=(count, 14))
    qpos[:, 3:7] = [1.0, 0.0, 0.0, 0.0] + 0.4 * qpos[:, 3:7]
    return qpos, qvel


def test_the_body_feels_the_same_wherever_it_is_and_whichever_way_it_looks():
    view = AntHalfCircle(1).views["body"]
    qpos, qvel = states(20)
    angle = np.random.default_rng(1).uniform(0, 2 * math.pi, 20)
    goal = np.random.default_rng(2).normal(size=(20, 2))
    moved, faster = qpos.copy(), qvel.copy()
    turned(moved, faster, angle)
    moved[:, :2] += 7.0
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    goal_too = np.einsum("nij,nj->ni", rotation, goal)

    def seen(qpos, qvel, goal):
        observation = torch.from_numpy(np.concatenate([qpos, qvel], -1))
        return view(observation), view.goal(observation, torch.from_numpy(goal))

    for one, other in zip(seen(qpos, qvel, goal), seen(moved, faster, goal_too), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(view.goal(torch.from_numpy(np.concatenate([qpos, qvel], -1)), torch.from_numpy(goal)),
                              torch.from_numpy(goal), atol=0.1)  # fmt: skip


def test_physics_do_not_know_the_compass():
    env = AntHalfCircle(2, tasks=[0, 0], seed=0)
    env.reset()
    env._qpos[1], env._qvel[1] = env._qpos[0], env._qvel[0]
    pair = env._qpos[1:].copy(), env._qvel[1:].copy()
    turned(*pair, np.array([2.0]))
    env._qpos[1:], env._qvel[1:] = pair
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        action = (2 * torch.rand(1, 8, generator=generator) - 1).expand(2, 8)
        observation = env.advance(action)[0]["observation"]
    one, other = env.views["body"](observation)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (observation[0] - observation[1]).abs().max() > 0.1


def test_headings_at_random_and_as_they_were():
    fast, slow = (
        AntHalfCircle(40, seed=0, body=body) for body in (FAST, dataclasses.replace(FAST, random_heading=False))
    )
    for env, least, most in ((fast, 1.0, 4.0), (slow, 0.0, 0.3)):
        w, z = env.reset()["observation"][:, [3, 6]].T
        heading = 2 * torch.atan2(z, w)
        assert least <= heading.std() < most
    with pytest.raises(ValueError, match="no free body"):
        PointRobot(1, body=FAST)


@pytest.mark.parametrize("family", [AntDir, AntGoal])
def test_gymnasiums_preset_is_the_published_body(family):
    action = 2 * torch.rand(6, 3, 8, generator=torch.Generator().manual_seed(0)) - 1
    found = []
    for body in (None, GYMNASIUM):
        env = family(3, seed=0, body=body)
        env.reset()
        found.append(torch.stack([env.advance(part)[0]["observation"] for part in action]))
    assert torch.equal(*found) and found[0].shape[-1] in (105, 107)
    without = family(3, seed=0, body=dataclasses.replace(GYMNASIUM, contact_forces=False))
    without.reset()
    bare = torch.stack([without.advance(part)[0]["observation"] for part in action])
    assert torch.equal(bare, found[0][..., : bare.shape[-1]]) and bare.shape[-1] in (27, 29)


def test_a_body_that_falls_over_has_failed_and_starts_anew():
    env = AntHalfCircle(3, seed=0)
    env.reset()
    env._qpos[1, 3:7] = [0.0, 1.0, 0.0, 0.0]  # on its back
    values = env.advance(torch.zeros(3, 8))[0]
    for key in ("failed", "terminated", "done"):
        assert values[key].flatten().tolist() == [False, True, False], key
    assert not env.restart(values["done"])["failed"].any()
    assert not AntGoal(1).fails and "failed" not in AntGoal(1).observation_spec.keys()
    assert AntDir(1).fails  # as published: it terminates


def test_falling_is_never_better_than_living_on():
    """-H, the least that any target can be, whatever is reached, for the recorded and for all hindsight goals."""
    config = ant_config("transitions.hindsight_goals=3", "hierarchy.failure=7")
    library = make_library(config)
    agent = make_agent(config, library)
    policy = agent.make_policy(3)
    batch = record(config, policy, range(3), 40)
    batch["next", "failed"][1, 24] = batch["next", "terminated"][1, 24] = batch["next", "done"][1, 24] = True
    batch["hierarchy", "attempts"][1, 25:] -= 25  # what follows is a new episode
    batch["hierarchy", "goal"][1, 20:25] = batch["next", "observation"][1, 24, None, None, :2]  # just reached its goal
    batch["hierarchy", "acts"][1, 25:, 1] = torch.arange(15) % 10 == 0
    k = agent.hierarchy.k
    batch["hierarchy", "attempts"][1, 25:, 0] = torch.arange(15) % k
    rows = make_transitions(config, library, agent)(batch)[0]
    fallen = (rows["next", "observation"] == batch["next", "observation"][1, 24]).all(-1)
    assert fallen.sum() > 1  # with hindsight goals
    lowest = agent.hierarchy.lowest(0)
    assert lowest == 7 * k and agent.levels[0].loss.value_estimator.low == -lowest
    assert lowest > 1 / (1 - config.lower.gamma)  # worse than never to reach a goal
    assert (rows["next", "reward"][fallen] == -lowest).all() and rows["next", "terminated"][fallen].all()
    assert (rows["next", "reward"][~fallen] >= -1).all()
    level = agent.levels[0]
    values = level.loss.qvalue_network(rows.clone())["state_action_value"]  # of any network: bounded
    assert (values >= -lowest).all()
    metrics = level_metrics(agent.hierarchy, batch)
    assert metrics["failures"] == pytest.approx(1 / 4)


def test_levels_read_the_views_that_the_family_names():
    config = ant_config()
    agent = make_agent(config, make_library(config))
    lower, top = agent.levels[0].actor[0].module.net.features, agent.top.actor[0].module.net.features
    assert isinstance(lower.view, HeadingView) and lower.scale.shape == (26,)
    assert top.view.entries == [0, 1, 15, 16] == agent.top.belief.encoder.read.view.entries
    deep = make_agent(ant_config("hierarchy.depth=3", "hierarchy.decision_steps=4"), make_library(config))
    views = [
        level.actor[0].module.net.features.view for level in deep.levels
    ]  # those between set places, as the top does
    assert isinstance(views[0], HeadingView) and views[1].entries == [0, 1, 15, 16]
    everything = make_agent(ant_config("views.lower=all", "views.top=body"), make_library(config))
    assert everything.levels[0].actor[0].module.net.features.view is None
    with pytest.raises(ConfigError, match=r"views.lower = 'legs': this environment has all, body, place"):
        make_agent(ant_config("views.lower=legs"), make_library(config))
    assert find_view(HalfCheetahVel(1), "lower") is None
    with pytest.raises(ValueError, match="entries"):
        View(4, [0, 4])


def test_a_policy_on_arrays_reads_as_the_networks_do():
    config = ant_config("lower.algorithm=td3")
    library = make_library(config)
    agent = make_agent(config, library)
    policy = agent.make_policy(3)
    for _ in range(2):
        batch = record(config, policy, range(3), 20, ExplorationType.DETERMINISTIC)
        rows = batch.select("observation").set("goal", batch["hierarchy", "goal"][:, :, 0])
        torch.testing.assert_close(agent.levels[0].actor(rows)["action"], batch["action"], atol=1e-4, rtol=1e-4)
        agent.see(batch["observation"])  # and so once statistics are there


def test_statistics_are_those_of_all_that_was_seen_and_then_stay():
    features = Features(Unbounded((3,)), normalise=True)
    normaliser, draws = Normaliser(features, steps=70), torch.randn(9, 10, 3) * torch.tensor([1.0, 5.0, 0.1]) + 3
    for part in draws[:4]:
        assert normaliser.see(part)
    assert normaliser.see(draws[4:7].flatten(0, 1)) and not normaliser.see(draws[7])
    seen = draws[:7].flatten(0, 1)
    normaliser.write(torch.nn.ModuleDict({"features": features}))
    torch.testing.assert_close(features(seen).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(features(seen).std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert features(torch.full((3,), 1e4)).tolist() == [10.0] * 3  # outliers


def test_what_has_bounds_is_read_by_them():
    spec = Bounded(torch.tensor([-2.0, -torch.inf]), torch.tensor([2.0, torch.inf]), shape=(2,))
    assert Features(spec, normalise=True).unbounded.tolist() == [False, True]
    assert not Features(Bounded(-2.0, 2.0, shape=(2,)), normalise=True).normalises
    assert not Features(spec).normalises


@pytest.mark.parametrize("seeds", [1, 2])
def test_targets_and_averages_normalise_alike(seeds):
    config = ant_config(f"seeds={seeds}")
    agent = make_agent(config, make_library(config))
    observation = 3 * torch.randn(7, 200, 29)
    before = {name: value.clone() for name, value in agent.named_buffers()}
    agent.see(observation)
    for level in (agent.levels[0], agent.top):
        for name in ("features", "read"):
            found = [value for key, value in level.named_buffers() if f".{key}".endswith(f".{name}.scale")]
            assert len(found) != 1 and all(torch.equal(value, found[0].expand_as(value)) for value in found), name
    changed = [name for name, value in agent.named_buffers() if not torch.equal(value, before[name])]
    assert any("target_qvalue" in name for name in changed) and any("average" in name for name in changed)
    other = make_agent(config, make_library(config))
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.levels[0].normalisers[0].mean, agent.levels[0].normalisers[0].mean)


def test_levels_of_another_run_frozen(tmp_path):
    config = ant_config()
    library = make_library(config)
    agent = make_agent(config, library)
    agent.see(torch.randn(50, 29))
    run = Run(tmp_path / "one", config)
    path = run.checkpoint("final", {"config": dataclasses.asdict(config), "agent": agent.state_dict()})
    alone = {name: value for name, value in agent.state_dict().items() if name.startswith("levels.")}
    levels = run.checkpoint("levels_of_3", {"config": dataclasses.asdict(config), "agent": alone})
    run.checkpoint("levels_of_4", {"config": dataclasses.asdict(config), "agent": alone})
    for seeds, given in ((1, path), (1, levels), (2, levels.with_name("levels_of_{seed}.pt"))):
        skill = ant_config(
            f"lower.checkpoint='{given}'", "lower.freeze_after=0", "train.warmup=0", f"seeds={seeds}", "seed=3"
        )
        learner = make_agent(skill, make_library(skill))
        single = make_agent(dataclasses.replace(skill, seeds=1), library)
        for seed in range(seeds):
            state = learner.state_of(seed, single)
            for name, value in agent.state_dict().items():
                if name.startswith("levels.") and not name.endswith(".count"):  # which says that they stay
                    assert torch.equal(state[name], value), name
        assert not any(phase.lower_updates for phase in Schedule(skill, learner))
    _, (walk,) = load_levels(str(levels))
    reads = TensorDict({"observation": torch.randn(5, 29), "goal": torch.randn(5, 2)}, [5])
    with torch.no_grad():
        torch.testing.assert_close(walk.actor(reads.clone())["loc"], agent.levels[0].actor(reads)["loc"])
    late = [phase.lower_updates for phase in Schedule(ant_config("lower.freeze_after=2", "train.warmup=3"), agent)]
    assert min(late[:5]) > 0 and max(late[5:]) == 0
    with pytest.raises(ConfigError, match=r"lower.checkpoint: its levels are others"):
        make_agent(ant_config(f"lower.checkpoint={path}", "lower.actor_cells=[8]"), library)
    with pytest.raises(ConfigError, match=r"lower.checkpoint = nowhere"):
        make_agent(ant_config("lower.checkpoint=nowhere"), library)


@pytest.mark.parametrize(
    ("name", "radius", "inside", "outside", "control"),
    [
        ("AntHalfCircle", 0.75, lambda distance: 1.0, 0.0, 0.0),
        ("AntSemiCircleSparse", 0.2, lambda distance: 1.0, 0.0, 0.1),
        ("AntGoalSparse", 0.75, lambda distance: 1 - distance, -0.75, 0.01),
    ],
)
def test_rewards_of_the_sparse_ants(name, radius, inside, outside, control):
    """As published: within which distance of the goal, how much, and what actions cost."""
    env = FAMILIES[name](4, seed=0)
    env.reset()
    distances = [0.0, radius - 0.02, radius + 0.02, 5.0]
    env._qpos[:, :2] = env.library.parameters[env.task_id] + torch.tensor([[0.0, -d] for d in distances])
    reward = env._reward(torch.zeros(4, 1)).flatten()
    wanted = [inside(d) if d <= radius else outside for d in distances]
    assert reward.tolist() == pytest.approx(wanted, abs=1e-5)
    env.reset()
    env._qpos[:, :2] = env.library.parameters[env.task_id] + 20.0
    env.contact_weight = 0.0  # of forces of the ground, which differ
    still = env.advance(torch.zeros(4, 8))[0]["reward"]
    env._qpos[:, :2] = env.library.parameters[env.task_id] + 20.0
    moving = env.advance(torch.full((4, 8), 0.5))[0]["reward"]
    torch.testing.assert_close(still - moving, torch.full((4, 1), control * 8 * 0.25), rtol=0, atol=1e-5)


def test_bounded_tasks_are_read_as_before():
    config = tiny_config()
    agent = make_agent(config, make_library(config))
    assert not agent.levels[0].normalisers and not agent.top.normalisers


def test_the_gradient_of_a_belief_beside_a_view():
    """The short way and TorchRL's own give the encoder the same gradient, whatever a view leaves out."""
    config = ant_config("context.read=belief")
    found = []
    for plain in (True, False):
        torch.manual_seed(0)
        agent = make_agent(config, make_library(config))
        agent.see(torch.randn(100, 29, generator=torch.Generator().manual_seed(1)))
        loss = agent.top.loss
        batch, belief = random_batch(30), torch.randn(30, 24, generator=torch.Generator().manual_seed(2))
        batch["belief"], batch["next", "belief"] = belief.requires_grad_(), belief.detach() + 0.1
        if not plain:
            loss._fits = False
        torch.manual_seed(0)
        loss(batch)["loss_qvalue"].backward()
        found.append(belief.grad)
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def random_batch(rows: int) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    no = torch.zeros(rows, 1, dtype=torch.bool)
    observation, action = torch.randn(rows, 29, generator=generator), torch.zeros(rows, 2)
    after = {"observation": observation + 0.1, "reward": torch.ones(rows, 1), "done": no, "terminated": ~no}
    steps = torch.full((rows, 1), 10)
    return TensorDict({"observation": observation, "action": action, "steps_to_next_obs": steps, "next": after}, [rows])


def test_a_meta_test_says_who_fell():
    config = ant_config("context.latent_dim=0")
    library = make_library(config)
    result = meta_test(make_agent(config, library).make_policy(), make_env(config, library, torch.arange(3)), 2)
    assert result.failed.shape == (3, 2) and set(result.metrics()) >= {"failures/trajectory_1", "failures/trajectory_2"}
    assert len(result.of_seeds(1, library.num_tasks)) == 1


def test_a_goal_that_is_to_be_held_ends_nothing():
    config = ant_config("transitions.goal_terminates=false")
    library = make_library(config)
    agent = make_agent(config, library)
    policy = agent.make_policy(3)
    batch = record(config, policy, range(3), 40)
    rows = make_transitions(config, library, agent)(batch)[0]
    achieved = agent.hierarchy.space_of(0).achieved(rows["next", "observation"], rows["goal"])
    assert achieved.any() and torch.equal(rows["next", "reward"].squeeze(-1), achieved.float() - 1)
    assert not rows["next", "terminated"].any()  # nobody fell
