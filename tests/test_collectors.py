"""Collection: lock-step rollouts equal TorchRL's, in this process and in workers; shards of batched environments."""

import sys
from functools import partial

import gymnasium
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from tiny import Ending, tiny_agent, tiny_config
from torch import nn
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import GymEnv, ParallelEnv, RenameTransform, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import get_primers_from_module

from peach_trl.agent import Agent
from peach_trl.collectors import Lockstep, LockstepCollector, rollout
from peach_trl.collectors.rollout import with_state_of
from peach_trl.envs import GoalSpace, GymnasiumTasksEnv, NotFiniteError, PointEnv, TaskLibrary
from peach_trl.evaluation import meta_test
from peach_trl.experiment import make_env, make_library

CASES = {
    "default": {"hierarchy__noise": 0.2, "hierarchy__random_share": 0.2},
    "higher_goal, depth 3": {"hierarchy__depth": 3, "hierarchy__clock": "higher_goal"},
    "own goal, z kept": {"hierarchy__clock": "own_goal", "context__read": "sample", "context__update": "trajectory"},
    "flat, held exploration": {
        "hierarchy__depth": 1,
        "hierarchy__top_random_share": 0.3,
        "hierarchy__top_random_hold": 3,
    },
    "stochastic levels, recurrent belief": {"lower__algorithm": "sac", "context__belief": "recurrent"},
    "attention, z drawn at decisions": {"context__belief": "attention", "context__read": "sample"},
    "known goal": {"top__observe_goal": True, "context__latent_dim": 0},
    "HAC": {
        "top__observe_goal": True,
        "top__objective": "goal",
        "context__latent_dim": 0,
        "hierarchy__clock": "higher_goal",
    },
}


class LateEnding(Ending):
    limit = 0.5


def make_parts(changes):
    config = tiny_config(env__horizon=12, **changes)
    torch.manual_seed(0)
    library = make_library(config)
    policy = tiny_agent(config).make_policy(trajectories=2)
    return config, library, policy


def ending_env(config, library, tasks, policy):
    env = make_env(config, library, tasks, policy)
    base = LateEnding(config.env, len(tasks), library=library, tasks=tasks, observe_goal=config.top.observe_goal)
    return TransformedEnv(base, env.transform.clone())


def collect(cls, changes, factory=make_env, batches=3, **kwargs):
    config, library, policy = make_parts(changes)
    make = partial(factory, config, library, library.split("train"), policy)
    collector = cls(make, policy, frames_per_batch=3 * 17, total_frames=-1, **kwargs)
    collector.set_seed(0)
    result = [batch.clone() for _, batch in zip(range(batches), collector, strict=False)]
    collector.shutdown()
    return result


def assert_equal(ours, theirs):
    """Same values under all the keys that we write, and nothing left out but copies of the policy's state."""
    for key in ours.keys(True, True):
        assert torch.equal(ours[key], theirs[key]), key
    left_out = set(theirs.keys(True, True)) - set(ours.keys(True, True))
    state = {key for key in ours.keys(True, True) if key[0] != "next" and "collector" not in key}
    assert left_out <= {("next", *(key if isinstance(key, tuple) else (key,))) for key in state}


@pytest.mark.parametrize("name", CASES)
def test_same_batches_as_torchrls_collector(name):
    ours, theirs = collect(LockstepCollector, CASES[name]), collect(Collector, CASES[name])
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)
    assert torch.cat(ours, 1)["next", "done"].sum() > 3  # episodes ended within and between batches


def test_same_batches_where_rows_end_at_different_times():
    ours, theirs = (collect(cls, CASES["default"], ending_env, 6) for cls in (LockstepCollector, Collector))
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)
    done = torch.cat(ours, 1)["next", "done"].squeeze(-1)
    assert torch.cat(ours, 1)["next", "terminated"].any() and not (done == done[:1]).all()


def test_batches_are_fresh_and_learners_can_use_them():
    first, second = collect(LockstepCollector, {}, batches=2)
    assert not torch.equal(first["observation"], second["observation"])
    config, library, policy = make_parts({})
    collector = LockstepCollector(
        partial(make_env, config, library, library.split("train"), policy), policy, frames_per_batch=9, total_frames=18
    )
    kept, _ = list(collector)
    assert kept["observation"][:, 0].abs().sum() == 0  # not written over by the second batch
    nn.Linear(4, 1)(kept["observation"]).sum().backward()


def test_goes_on_where_it_stopped():
    config, library, policy = make_parts({})
    env = make_env(config, library, torch.arange(3), policy)
    whole = Lockstep(env, policy)
    torch.manual_seed(1)
    once = whole.run(20)
    torch.manual_seed(2), whole.policy.actor._generator.get()
    torch.manual_seed(1)  # all draws start anew
    whole.reset()
    assert (torch.cat([whole.run(7), whole.run(13)], 1) == once).all()


@pytest.mark.parametrize("kind", [MultiSyncCollector, pytest.param(MultiAsyncCollector, marks=pytest.mark.slow)])
def test_in_the_workers_of_multi_process_collectors(kind):
    config, library, policy = make_parts({})
    shards = library.split("train").tensor_split(2)
    collector = kind(
        [partial(make_env, config, library, shard, policy) for shard in shards],
        policy,
        frames_per_batch=[len(shard) * 12 for shard in shards] if kind is MultiSyncCollector else 24,
        total_frames=-1,
        collector_class=LockstepCollector,
        auto_register_policy_transforms=False,
        **({"cat_results": 0} if kind is MultiSyncCollector else {}),
    )
    collector.set_seed(0)
    batches = [batch.clone() for _, batch in zip(range(3), collector, strict=False)]
    collector.shutdown()
    for batch in batches:
        assert batch["next", "done"].squeeze(-1).sum(1).min() >= 1 and batch["action"].abs().sum() > 0
    tasks = torch.cat([batch["task_id"].flatten() for batch in batches]).unique()
    assert tasks.tolist() == [0, 1, 2] if kind is MultiSyncCollector else len(tasks) >= 1
    assert not torch.equal(batches[0]["action"], batches[1]["action"])


def test_parallel_shards_of_batched_envs_equal_serial_ones():
    config, library, _ = make_parts({})
    factories = [partial(PointEnv, config.env, 2, library=library, tasks=[i, i + 1], seed=i) for i in range(2)]
    rollouts = []
    for cls in (SerialEnv, ParallelEnv):
        env = cls(2, factories)
        torch.manual_seed(0)
        rollouts.append(env.rollout(15, break_when_any_done=False))
        env.close()
    assert rollouts[0].shape == (2, 2, 15) and (rollouts[0] == rollouts[1]).all()
    assert rollouts[0]["task_id"][..., 0, 0].tolist() == [[0, 1], [1, 2]]


def test_what_a_lockstep_rollout_does_not_know_is_named():
    config, library, policy = make_parts({})
    plain = PointEnv(config.env, 2, library=library)
    primers = get_primers_from_module(policy)
    with pytest.raises(ValueError, match="HierarchyPolicy"):
        Lockstep(plain, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="get_primers_from_module"):
        Lockstep(plain, policy).run(1)
    with pytest.raises(ValueError, match="StepCounter"):
        Lockstep(TransformedEnv(TransformedEnv(plain, primers), StepCounter()), policy)
    with pytest.raises(ValueError, match=r"SerialEnv.*peach_trl.collectors.rollout"):
        Lockstep(SerialEnv(1, partial(PointEnv, config.env, 2)), policy)
    with pytest.raises(ValueError, match="init_random_frames = 10"):
        LockstepCollector(plain, policy, frames_per_batch=10, total_frames=-1, init_random_frames=10)


@pytest.mark.parametrize("mode", ["raise", "truncate"])
def test_a_broken_row_is_truncated_or_raises(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs the broken simulation here
    config, library, policy = make_parts({})
    env = make_env(config, library, torch.arange(3), policy)
    base = env.base_env
    base.not_finite = mode
    lockstep = Lockstep(env, policy)
    lockstep.run(3)
    advance, steps = base.advance, iter([4, 5, 6])

    def sabotaged(action):
        if next(steps) == 5:
            base._qpos[1] = float("nan")
        return advance(action)

    monkeypatch.setattr(base, "advance", sabotaged)
    broken = r"rows \[1\], task ids \[1\], at steps \[5\]"
    if mode == "truncate":
        with pytest.warns(RuntimeWarning, match=broken):
            batch = lockstep.run(3)
        assert batch["next", "truncated"].squeeze(-1).tolist() == [[False] * 3, [False, True, False], [False] * 3]
        assert batch["observation"].isfinite().all()
        return
    with pytest.raises(NotFiniteError, match=broken) as caught:
        lockstep.run(3)
    assert caught.value.batch.shape == (3, 1) and caught.value.batch["next", "observation"].isfinite().all()
    assert caught.value.tensordict["truncated"].flatten().tolist() == [False, True, False]
    monkeypatch.setattr(base, "advance", advance)
    assert lockstep.run(2)["observation"][:, 0].abs().sum() == 0  # all rows start anew


def test_seeds_decide():
    def run(seed):
        config, library, policy = make_parts({})
        torch.manual_seed(seed)
        collector = LockstepCollector(
            partial(make_env, config, library, torch.arange(3), policy), policy, frames_per_batch=60, total_frames=60
        )
        return next(iter(collector)).exclude("collector")

    first, again, other = run(3), run(3), run(4)
    assert isinstance(first, TensorDict) and (first == again).all()
    assert not torch.equal(first["action"], other["action"])


def pendulum(rows=None, limit=12):
    """Of Gymnasium; TorchRL's wrapper of one without ``rows``, else a batch of as many with a task each."""
    space = GoalSpace([0, 1], -1.0, 1.0, 0.1)
    if rows is None:
        env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=limit))
        env.subgoal_space = space
        return env
    library = TaskLibrary(torch.tensor([[5.0], [10.0], [15.0]]), {"train": torch.arange(3)})
    make, options = partial(gymnasium.make, "Pendulum-v1"), {"num_envs": rows, "horizon": limit, "seed": 0}
    return GymnasiumTasksEnv(make, library, lambda env, task: None, subgoal_space=space, **options)


def agent_of(env, **changes):
    config = tiny_config(**changes)
    torch.manual_seed(0)
    return Agent(env, config.hierarchy, config.context, config.top, config.lower)


def test_gymnasiums_environments_advance_in_lock_step_too():
    found = []
    for cls in (LockstepCollector, Collector):
        env = pendulum(3)
        policy = agent_of(env).make_policy(trajectories=2)
        env = TransformedEnv(env, get_primers_from_module(policy))
        assert Lockstep.takes(env, policy)
        collector = cls(env, policy, frames_per_batch=3 * 17, total_frames=-1)
        collector.set_seed(0)
        found.append([batch.clone() for _, batch in zip(range(3), collector, strict=False)])
        collector.shutdown()
    for ours, theirs in zip(*found, strict=True):
        assert_equal(ours, theirs)


def test_rows_that_cannot_be_saved_start_anew_as_they_never_did():
    """Gymnasium's copies: with seeds of the resumed run's, not with those of its beginning."""

    def made():
        env = pendulum(3)
        policy = agent_of(env).make_policy(trajectories=2)
        env = TransformedEnv(env, get_primers_from_module(policy))
        collector = LockstepCollector(env, policy, frames_per_batch=3 * 17, total_frames=-1)
        collector.set_seed(0)
        return collector

    collector, found = made(), []
    first = next(iter(collector)).clone()
    for _ in range(2):
        again = made()
        again.load_state_dict(collector.state_dict())
        found.append(next(iter(again)).clone())
    assert_equal(*found)
    assert not torch.equal(found[0]["observation"][:, 0], first["observation"][:, 0])


def test_any_environment_is_collected_from_and_tested():
    """One row, without a batch size, whose steps are TorchRL's alone."""
    env = pendulum()
    policy = agent_of(env, top__observe_goal=False).make_policy(trajectories=2)
    assert not Lockstep.takes(env, policy)
    batch = rollout(env, policy, 30)
    assert batch.shape == (30,) and batch["next", "done"].sum() == 2 and batch["belief"][:12].abs().sum() > 0
    collector = LockstepCollector(with_state_of(policy, pendulum()), policy, frames_per_batch=20, total_frames=40)
    assert [part.shape for part in collector] == [(20,), (20,)]
    result = meta_test(policy, pendulum(), 2, horizon=12)
    assert result.returns.shape == (1, 2) and result.goals.shape == (1, 0) and (result.returns < 0).all()
    with pytest.raises(ValueError, match="horizon: TransformedEnv has none"):
        meta_test(policy, pendulum(), 2)
    with pytest.raises(ValueError, match="horizon = 5: an episode has 10 steps or more"):
        meta_test(policy, pendulum(), 2, horizon=5)


def test_the_same_rollout_fast_and_slow():
    config, library, policy = make_parts({})
    found = []
    for chain in ([], [StepCounter()]):
        env = make_env(config, library, torch.arange(3))
        for transform in chain:
            env = TransformedEnv(env, transform)
        torch.manual_seed(3)
        found.append(rollout(env, policy, 30))
    fast, slow = found
    for key in ("observation", "action", "belief", ("hierarchy", "goal"), ("next", "reward"), ("next", "done")):
        assert torch.equal(fast[key], slow[key]), key


class Homewards(TensorDictModuleBase):
    """Goes to the origin; a policy of somebody who has never heard of hierarchies."""

    in_keys, out_keys, steps = ["observation"], ["action"], 0

    def forward(self, tensordict):
        return tensordict.set("action", (-tensordict["observation"][..., :2]).clamp(-1, 1))

    def advance(self, frame):
        self.steps += 1
        frame.arrays["action"] = (-frame.arrays["observation"][..., :2]).clip(-1, 1)

    def process_state(self):
        return {}

    def load_process_state(self, state):
        assert state == {}


def test_a_policy_of_ones_own_takes_the_fast_way():
    config, library, _ = make_parts({})
    policy, env = Homewards(), make_env(config, library, torch.arange(3))
    fast = rollout(env, policy, 30)
    assert policy.steps == 30
    slow = rollout(TransformedEnv(make_env(config, library, torch.arange(3)), StepCounter()), policy, 30)
    assert policy.steps == 30 and all(torch.equal(fast[key], slow[key]) for key in ("observation", "action"))
    collector = LockstepCollector(
        make_env(config, library, torch.arange(3)), policy, frames_per_batch=90, total_frames=-1
    )
    assert torch.equal(next(iter(collector))["observation"], fast["observation"]) and policy.steps == 60
    collector.load_state_dict(collector.state_dict())
    collector.shutdown()


def test_generators_of_an_environment_that_steps_torchrls_way_go_on():
    """Its rows start anew, and not as where the run began."""

    def made():
        config, library, policy = make_parts({"context__read": "sample"})
        env = TransformedEnv(make_env(config, library, torch.arange(3), policy), StepCounter())
        collector = LockstepCollector(env, policy, frames_per_batch=60, total_frames=-1)
        collector.set_seed(0)
        return policy, collector

    policy, collector = made()
    first, *_ = [batch.clone() for _, batch in zip(range(3), collector, strict=False)]
    saved, generators = collector.state_dict(), policy.process_state()
    found = []
    for _ in range(2):
        policy, collector = made()
        collector.load_state_dict(saved)
        mine = policy.process_state()
        assert torch.equal(mine["latent"]["generator"], generators["latent"]["generator"])
        assert torch.equal(mine["actor"]["draws"]["generator"], generators["actor"]["draws"]["generator"])
        found.append(next(iter(collector)).clone())
    assert_equal(*found)
    assert not torch.equal(found[0]["action"], first["action"])


def test_an_environment_with_other_names_is_renamed_by_torchrl():
    """Losses have set_keys; what a policy reads of an environment has TorchRL's RenameTransform."""
    config, library, policy = make_parts({})
    found = []
    for names in (None, ("pixels", "move")):
        env = make_env(config, library, torch.arange(3))
        if names is not None:
            seen, does = names
            env = TransformedEnv(env, RenameTransform(["observation"], [seen], ["action"], [does]))
            assert seen in env.observation_spec and "observation" not in env.observation_spec
            assert does in env.action_keys
            env = TransformedEnv(env, RenameTransform([seen], ["observation"], [does], ["action"]))
        torch.manual_seed(3)
        found.append(rollout(env, policy, 30))
    for key in ("observation", "action", "belief", ("next", "observation"), ("next", "reward"), ("next", "done")):
        assert torch.equal(found[0][key], found[1][key]), key


def test_state_that_is_there_is_not_added_again():
    config, library, policy = make_parts({})
    env = make_env(config, library, torch.arange(3), policy)
    assert with_state_of(policy, env) is env and with_state_of(None, env) is env
    assert with_state_of(nn.Linear(1, 1), env) is env


def test_more_workers_than_a_ray_cluster_has_processors_are_refused(monkeypatch):
    """The last ones would be waited for without end; on this machine alone Ray is told how many there are to be."""
    from types import SimpleNamespace

    from peach_trl.collectors import workers

    started = []
    ray = SimpleNamespace(
        is_initialized=lambda: bool(started), init=lambda **_: started.append(1), cluster_resources=lambda: {"CPU": 4.0}
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = workers._ray_settings(99)
    assert settings["num_cpus"] == 99 and settings["address"] == "local" and not started
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "num_cpus" not in workers._ray_settings(4) and started
    with pytest.raises(ValueError, match=r"5 workers: the Ray cluster has 4 processors.*collector.workers=4"):
        workers._ray_settings(5)
