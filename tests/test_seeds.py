"""Several seeds as one run: each is an agent of its own, with tasks, replay and folder of its own."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from test_recipes import start
from tiny import TINY, random_sequences, random_transitions, tiny_agent, tiny_config

from peach_trl.best_agents import BestAgents
from peach_trl.data import TaskReplayBuffer
from peach_trl.experiment import (
    load_agent,
    load_levels,
    make_agent,
    make_env,
    make_exploration,
    make_level_buffer,
    make_library,
    make_novelty,
    make_sequence_sampler,
    make_task_buffer,
    make_transitions,
    of_seeds,
    seed_everything,
)
from peach_trl.meta_tests import run_meta_test
from peach_trl.modules.execution import set_execution
from peach_trl.utils import load_checkpoint

SEEDS = 3


def agents(**changes):
    """Agents at once, and each alone."""
    config = dataclasses.replace(tiny_config(**changes), seeds=SEEDS)
    together, alone = make_agent(config, make_library(config)), []
    for one in of_seeds(config):
        seed_everything(one)
        alone.append(make_agent(one, make_library(one)))
    return together, alone


class Draws:
    """Stands in for ``torch.randn_like``: hands each agent alone what it got as one of several."""

    def __init__(self):
        self.drawn, self.seed, self.next = [], None, 0

    def __call__(self, like):
        if self.seed is None:
            self.drawn.append(torch.randn(like.shape))
            return self.drawn[-1].clone()
        found = self.drawn[self.next].chunk(SEEDS)[self.seed]
        self.next += 1
        return found.clone()

    def of(self, seed):
        self.seed, self.next = seed, 0


@pytest.fixture
def draws(monkeypatch):
    found = Draws()
    monkeypatch.setattr(torch, "randn_like", found)
    return found


def assert_same(together, alone, atol=2e-5):
    for seed, agent in enumerate(alone):
        state = together.state_of(seed, agent)
        for name, value in agent.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("belief", ["product", "attention", "recurrent"])
def test_each_seed_starts_as_alone(belief):
    together, alone = agents(context__belief=belief)
    for seed, agent in enumerate(alone):
        state = together.state_of(seed, agent)
        assert state.keys() == agent.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in agent.state_dict().items())
    first, second = (agent.top.actor[0].module.net.net[0].weight for agent in alone[:2])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_goal_levels_learn_as_alone(algorithm, draws):
    together, alone = agents(lower__algorithm=algorithm)
    for step in range(4):
        batches = [
            random_transitions((16,), 10 * step + s, goal=True).exclude("steps_to_next_obs") for s in range(SEEDS)
        ]
        draws.drawn.clear()
        draws.of(None)
        losses = together.levels[0].update(torch.cat(batches))
        assert losses["loss_qvalue"].shape == (SEEDS,)
        for seed, agent in enumerate(alone):
            draws.of(seed)
            own = agent.levels[0].update(batches[seed])
            torch.testing.assert_close(losses["loss_qvalue"][seed], own["loss_qvalue"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(losses["loss_actor"][seed], own["loss_actor"], rtol=1e-4, atol=1e-5)
    assert_same(together, alone)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"context__latent_dim": 0}, {"context__belief": "attention"}])
def test_top_levels_learn_as_alone(changes, threads, draws):
    together, alone = agents(top__batch=None, **changes)
    set_execution(side_by_side=threads)
    for step in range(4):
        batches = [random_sequences(1, 9, seed=10 * step + s) for s in range(SEEDS)]  # all of them full
        draws.drawn.clear()
        draws.of(None)
        losses = together.top.update(torch.cat(batches))
        for seed, agent in enumerate(alone):
            draws.of(seed)
            own = agent.top.update(batches[seed])
            for name, value in own.items():
                if losses[name].ndim:
                    torch.testing.assert_close(losses[name][seed], value, rtol=1e-3, atol=1e-4, msg=name)
    set_execution()
    assert_same(together, alone, atol=1e-4)


def test_short_sequences_leave_each_seed_as_many_decisions():
    together, _ = agents(top__batch=None, top__n_step=1)
    rows = torch.cat([random_sequences(3, 9, seed=s) for s in range(SEEDS)])
    rows["mask"][0, 3:] = False  # the first seed has fewer
    counts = [int(mask.sum()) for mask in rows["mask"].chunk(SEEDS)]
    b, _ = together.top.believe(rows)
    assert len(set(counts)) > 1 and b.shape == (SEEDS * min(counts),)
    for seed, part in enumerate(b.chunk(SEEDS)):
        own = rows["next", "reward"].chunk(SEEDS)[seed]
        assert torch.isin(part["next", "reward"], own).all()
    assert torch.isfinite(together.top.update(rows)["loss_qvalue"]).all()


def test_each_seed_draws_from_its_own_replay():
    config = dataclasses.replace(tiny_config(), seeds=SEEDS)
    library = make_library(config)
    T, each = library.split("train"), library.single.num_tasks
    assert T.tolist() == [seed * each + task for seed in range(SEEDS) for task in range(3)]
    B, replay = make_task_buffer(config, library), make_level_buffer(config, library, 0)
    assert B.writer.num_tasks == len(T)  # tasks that are not trained on take no room
    tasks = T.repeat_interleave(5)
    rows = random_transitions((len(tasks),), seed=0)
    rows.update(
        {"task_id": tasks.unsqueeze(1), "episode": tasks.unsqueeze(1), "transition_type": 0 * tasks.unsqueeze(1)}
    )
    B.extend(rows), replay.extend(rows)
    for batch in replay.batches(7, 3):
        assert ((batch["task_id"].view(SEEDS, 7) // each) == torch.arange(SEEDS).unsqueeze(1)).all()
    for sequences in make_sequence_sampler(config, B).batches(T, 2, 3):
        owners = sequences["task_id"].view(SEEDS, 2, -1)
        assert (owners // each == torch.arange(SEEDS).view(-1, 1, 1)).all()
        assert all(len(part.unique()) == 2 for part in owners)  # without replacement
    wrong = library.split("test")[:2]
    with pytest.raises(IndexError, match=f"task id {int(wrong[0])}: this buffer holds training tasks only"):
        B.sample_tasks(torch.cat([T[:1], wrong]), 2)


def test_oracles_of_two_seeds():
    """A critic that reads a goal has bounds of it that all of its copies share."""
    config = dataclasses.replace(tiny_config(top__observe_goal=True, context__latent_dim=0), seeds=2)
    library = make_library(config)
    agent = make_agent(config, library)
    for seed, one in enumerate(of_seeds(config)):
        torch.manual_seed(one.seed)
        single = make_agent(one, library.single)
        state = agent.state_of(seed, single)
        assert all(torch.equal(state[name], value) for name, value in single.state_dict().items())


@pytest.mark.parametrize("recipe", ["peach", "source", "hac"])
def test_a_run_of_two_seeds(recipe, tmp_path):
    """Folders as of runs alone, from which each agent acts as it did at the end."""
    one, two = start(tmp_path, recipe, *TINY, "seeds=2", "seed=5", plots=False)
    assert (one.name, two.name) == ("seed_5", "seed_6")
    for number, folder in enumerate((one, two)):
        config, library, agent = load_agent(str(folder))
        assert (config.seed, config.seeds) == (5 + number, 1) and library.num_tasks == 7
        _, levels = load_levels(str(folder / "checkpoints" / "levels.pt"))
        own = agent.levels.state_dict()
        assert levels and all(torch.equal(value, own[name]) for name, value in levels.state_dict().items())
        with open(folder / "meta_test.csv") as file:
            rows = list(csv.DictReader(file))
        assert {int(row["task"]) for row in rows} == set(library.split("test").tolist())
        if recipe != "source":  # z is drawn there
            result = run_meta_test(agent, config, library, "test", seed=0)
            found = torch.tensor([float(row["return"]) for row in rows]).view(result.returns.shape)
            torch.testing.assert_close(found, result.returns, rtol=0, atol=1e-5)
    values = [(folder / "metrics.csv").read_text() for folder in (one, two)]
    assert values[0] != values[1] and values[0].splitlines()[0] == values[1].splitlines()[0]


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_best_agents_come_back(seeds):
    """Each seed's as it was when its returns were the highest, whatever the others' were."""
    config = dataclasses.replace(tiny_config(), seeds=seeds)
    library = make_library(config)
    agent, states = make_agent(config, library), []
    single = make_agent(of_seeds(config)[0], library.single)
    best = BestAgents(agent, single if seeds > 1 else None)
    for iteration, scores in enumerate([[0.2, 0.5], [0.4, 0.3], [0.4, 0.1]]):
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.add_(0.1)
            agent.top.average.started.fill_(iteration > 0)  # the first update starts the averages
        states.append([agent.state_of(seed, single) if seeds > 1 else agent.state_dict() for seed in range(seeds)])
        states[-1] = [{name: value.clone() for name, value in state.items()} for state in states[-1]]
        best.take([SimpleNamespace(returns=torch.full((3, 2), score)) for score in scores[:seeds]], iteration)
    best.restore()
    assert best.iterations == [1, 0][:seeds]
    for seed, iteration in enumerate(best.iterations):
        state = agent.state_of(seed, single) if seeds > 1 else agent.state_dict()
        for name, value in states[iteration][seed].items():
            assert torch.equal(state[name], value) or (seeds > 1 and name == "top.average.started"), name
    assert best.score == pytest.approx({1: 0.8, 2: 0.9}[seeds])


def test_a_run_keeps_its_best_agents(tmp_path):
    folders = start(tmp_path, "peach", *TINY, "evaluation.agent=best", "evaluation.every=1", "seeds=2", plots=False)
    for folder in folders:
        chosen = json.loads((folder / "manifest.json").read_text())["best_iteration"]
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        returns = [float(row["eval/return/trajectory_1"]) + float(row["eval/return/trajectory_2"]) for row in rows]
        assert len(returns) == 4 and (chosen == -1 or returns[chosen] == max(returns))
        best, final = (load_checkpoint(folder / "checkpoints" / f"{name}.pt")["agent"] for name in ("best", "final"))
        same = all(torch.equal(value, final[name]) for name, value in best.items())
        assert same == (chosen != -1)  # while it trained, or in the end


GENERATORS = {
    "replay": lambda config, library, agent: TaskReplayBuffer(2, 9, seed=config.seed).sampler,
    "a task's replay": lambda config, library, agent: make_task_buffer(config, library).sampler,
    "a level's replay": lambda config, library, agent: make_level_buffer(config, library, 0).sampler,
    "sequences": lambda config, library, agent: make_sequence_sampler(config, make_task_buffer(config, library)),
    "hindsight": lambda config, library, agent: make_transitions(config, library, agent),
    "unsolved tasks": lambda config, library, agent: make_exploration(config, library, agent),
}


@pytest.mark.parametrize("name", [*GENERATORS, "novelty", "environment"])
def test_every_generator_follows_the_seed(name):
    """The same for the same seed, another for another; named alike or not, no two are the same."""

    def state(seed):
        config = dataclasses.replace(tiny_config(), seed=seed)
        library, agent = make_library(config), tiny_agent(config)
        if name == "novelty":
            return make_novelty(config, agent).training_state()["generator"]
        if name == "environment":
            return make_env(config, library, torch.arange(2)).process_state()["generator"]
        return GENERATORS[name](config, library, agent).state_dict()["generator"]

    assert torch.equal(state(3), state(3)) and not torch.equal(state(3), state(4))


def test_no_two_generators_are_the_same():
    config = tiny_config()
    library, agent = make_library(config), tiny_agent(config)
    states = [make(config, library, agent).state_dict()["generator"] for make in GENERATORS.values()]
    states += [make_level_buffer(config, library, 1).sampler.state_dict()["generator"]]
    different = {bytes(state.numpy()) for state in states}
    assert len(different) == len(states) - 1  # the replay of a task is called as one alone
