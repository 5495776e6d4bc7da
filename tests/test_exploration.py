"""Exploration of unsolved tasks: who is unsolved, and what a policy does about it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tiny import record, tiny_agent, tiny_config
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.experiment import make_env, make_exploration, make_library
from peach_trl.hierarchy import Exploration
from peach_trl.hierarchy.elsewhere import Elsewhere
from peach_trl.schedule import Schedule


def test_tasks_at_chance_are_unsolved_of_each_seed():
    tasks = torch.tensor([0, 1, 2, 5, 6, 7])  # of two seeds; 3, 4 and 8 are not trained on
    exploration = Exploration(tasks, 9, often=0.0, margin=0.2, seeds=2, seed=0)
    assert torch.equal(exploration.shares(), torch.zeros(9))  # nothing is known
    exploration.take(tasks, torch.tensor([1.0, 1.0, 11.0, -5.0, -3.0, -4.0]), at_random=True)  # chance: 1 and -4
    _ = exploration.shares()
    for _ in range(2):  # two rows a task: the higher one counts
        highest = [2.0, 4.0, 9.0, -4.0, 6.0, -4.0, 2.5, 1.0, 9.0, -4.0, 6.0, -2.5]
        exploration.take(tasks.repeat(2), torch.tensor(highest))
        assert torch.equal(exploration.shares(), torch.zeros(9))
        # thresholds: 1 + 0.2 (11 - 1) = 3, and -4 + 0.2 (6 + 4) = -2
        assert exploration.unsolved.nonzero().flatten().tolist() == [0, 5, 7]


@pytest.mark.parametrize(("met", "rare"), [(0, True), (1, True), (2, False), (5, False)])
def test_rewards_are_rare_where_chance_meets_them_in_few_meta_episodes(met, rare):
    """Five tasks play at random: less than 40 % of the meta-episodes. Only else exploration leads elsewhere."""
    exploration, tasks = Exploration(torch.arange(5), 7, often=0.0, elsewhere=0.75, seed=0), torch.arange(5)
    assert exploration.rare.all(), "nothing is known yet"
    exploration.collected(steps((tasks < met).float(), *torch.zeros(3, 5)), at_random=True)
    _ = exploration.settings()
    exploration.collected(steps((tasks < max(met, 1)).float(), *torch.zeros(3, 5)))
    settings = exploration.settings()
    assert exploration.rare[:5].tolist() == [rare] * 5 and exploration.rare[5:].all()
    assert settings["elsewhere"].tolist() == [0.0 if rare else 0.75] * 5 + [0.0] * 2
    assert not exploration.behind_costs.any()  # as nothing costs


def test_each_seed_has_its_own_chance():
    exploration = Exploration(torch.arange(8), elsewhere=0.5, seeds=2, seed=0)
    exploration.collected(steps(torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0]), *torch.zeros(3, 8)), at_random=True)
    assert exploration.settings()["elsewhere"].tolist() == [0.5] * 4 + [0.0] * 4


def test_costs_that_are_avoided_solve_nothing():
    """Where chance is costly, a policy that does nothing returns more, but meets no more."""
    exploration = Exploration(torch.arange(4), often=0.0, seed=0)
    exploration.take(torch.arange(4), torch.tensor([-5.0, -5.0, -5.0, 10.0]), at_random=True)
    _ = exploration.shares()
    exploration.take(torch.arange(4), torch.full((4,), -5.0))
    _ = exploration.shares()
    assert exploration.unsolved.all()
    exploration.take(torch.arange(4), torch.tensor([-5.0, 10.0, 10.0, 10.0]))
    _ = exploration.shares()
    assert exploration.unsolved.tolist() == [True, False, False, False]


def test_a_share_of_the_meta_episodes_explores_and_none_of_them_solves_a_task():
    exploration, everyone = Exploration(torch.arange(100), share=0.4, often=0.3, seed=0), torch.arange(100)

    def shares(solved):
        exploration.take(everyone, (everyone < solved).float())
        return exploration.shares()

    drawn = torch.stack([shares(80) for _ in range(100)])
    assert (drawn[:, :80] == 0).all() and set(drawn.flatten().tolist()) == {0.0, torch.tensor(0.4).item()}
    assert abs((drawn[:, 80:] > 0).float().mean().item() - 0.3) < 0.03
    explored = drawn[-1] > 0
    _ = shares(100)  # rewards are met everywhere, on some tasks by exploration
    assert explored.any() and torch.equal(exploration.unsolved, explored)
    again = Exploration(torch.arange(100), share=0.4, often=0.3, seed=0)
    again.take(everyone, (everyone < 80).float())
    assert torch.equal(again.shares(), drawn[0])


def test_they_explore_from_some_trajectory_on():
    everyone = torch.arange(600)
    exploration = Exploration(everyone, share=0.4, often=0.5, trajectories=3, seed=0)
    assert not exploration.shares().any()  # nothing is known
    exploration.take(everyone, (everyone < 300).float())
    explores = torch.stack([exploration.shares(trajectory) > 0 for trajectory in range(3)])
    assert not explores[:, :300].any() and (explores[0] <= explores[1]).all() and (explores[1] <= explores[2]).all()
    assert torch.equal(exploration.shares(7), exploration.shares(2))  # those that never do, never do
    share = explores[:, 300:].float().mean(1)
    assert (share - torch.tensor([2 / 8, 3 / 8, 4 / 8])).abs().max() < 0.05  # half of the tasks are unsolved
    exploration.take(everyone, torch.ones(600))
    _ = exploration.shares()
    assert torch.equal(exploration.unsolved, explores[2])


def test_in_a_single_trajectory_they_explore_from_some_decision_on():
    everyone = torch.arange(600)
    for decisions, half in ((7, 4), (8, 4), (1, 1)):
        exploration = Exploration(everyone, decisions=decisions, seed=0)
        exploration.take(everyone, (everyone < 300).float())
        shares = exploration.shares()
        assert (shares > 0).any() and not shares[:300].any()
        share = torch.bincount(exploration.since, minlength=half) / 600
        assert share.shape == (half,) and (share - 1 / half).abs().max() < 0.06
    several = Exploration(everyone, trajectories=2, decisions=4, seed=0)
    several.take(everyone, (everyone < 300).float())
    _ = several.shares()
    assert not several.since.any()


def test_what_chance_met_and_what_the_best_episode_was_worth():
    exploration = Exploration(torch.arange(3), seed=0)
    assert exploration.met == 0 and exploration.worth.tolist() == [0.0]

    def played(*rewards, at_random=False):  # a row a task, 2 steps each
        batch = TensorDict({"task_id": torch.arange(3).view(3, 1, 1).expand(3, 2, 1)}, [3, 2])
        exploration.collected(batch.set("next", {"reward": torch.tensor(rewards).unsqueeze(-1)}), at_random)
        return exploration.shares()

    _ = played([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], at_random=True)
    assert exploration.met == 0 and exploration.worth.tolist() == [0.0]  # nothing is known of rewards
    _ = played([0.0, 0.0], [0.0, 1.0], [0.0, 0.0], at_random=True)
    assert exploration.met == pytest.approx(1 / 3) and exploration.worth.tolist() == [1.0]
    _ = played([1.0, 1.0], [0.0, 1.0], [1.0, 0.0], at_random=True)  # by most now
    assert exploration.met == pytest.approx(4 / 3) and exploration.worth.tolist() == [1.0]
    _ = played([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    assert exploration.met == pytest.approx(4 / 3) and exploration.worth.tolist() == [1.0]


def steps(*rewards):
    """A recorded batch of a row a task, with the rewards [T] of each step."""
    reward = torch.stack(rewards, 1).unsqueeze(-1)
    task_id = torch.arange(len(reward)).view(-1, 1, 1).expand(-1, len(rewards), 1)
    return TensorDict({"task_id": task_id, "next": {"reward": reward}}, reward.shape[:2])


def test_as_long_as_nothing_was_met_all_tasks_are_unsolved():
    usual, first = torch.full((4,), -5.0), torch.tensor([-5.0, -7.0, -5.0, -5.0])
    exploration = Exploration(torch.arange(4), often=0.0, seed=0)
    for _ in range(3):
        exploration.collected(steps(first, usual, usual), at_random=True)
        _ = exploration.shares()
        assert exploration.unsolved.all() and exploration.met == 0 and exploration.behind_costs.all()
    exploration.collected(steps(first.clone().fill_(10.0), usual, usual), at_random=True)
    assert exploration.met == 1.0
    _ = exploration.shares()
    assert not exploration.unsolved.any()


def test_dense_rewards_need_no_exploration():
    exploration = Exploration(torch.arange(50), often=0.5, seed=0)
    torch.manual_seed(0)
    for at_random in (True, True, False, False):
        exploration.collected(steps(*-torch.rand(20, 50)), at_random)
        assert not exploration.shares().any() and not exploration.unsolved.any() and not exploration.behind_costs.any()
    assert exploration.met == 2.0  # so a prefill ends


def test_rewards_are_sparse_though_most_steps_differ_in_what_they_cost():
    exploration, costs = Exploration(torch.arange(50), often=0.0, seed=0), (-5.0 - torch.rand(8, 50)).unbind()
    exploration.collected(steps(torch.full((50,), -5.0), torch.full((50,), -5.0), *costs), at_random=True)
    _ = exploration.shares()
    assert exploration.unsolved.all() and exploration.behind_costs.all() and exploration.met == 0


def test_a_single_task():
    exploration = Exploration(torch.tensor([0]), often=0.0, seed=0)
    for found, unsolved in ((0.0, True), (0.0, True), (1.0, False), (0.0, True)):
        exploration.collected(steps(torch.tensor([found]), torch.zeros(1), torch.zeros(1)), at_random=found == 0)
        _ = exploration.shares()
        assert exploration.unsolved.tolist() == [unsolved]


@pytest.mark.parametrize(
    ("met", "lowest", "behind"),
    [([[2, 3], [0, 1]], -1.0, []), ([[3], [1]], 0.0, []), ([[3], [1]], -1.0, [0, 1, 2, 3])],
    ids=["chance meets rewards", "nothing costs", "behind costs"],
)
def test_which_rewards_lie_behind_costs(met, lowest, behind):
    tasks = torch.arange(4)
    exploration = Exploration(tasks, 6, often=0.0, seed=0)

    def played(those, at_random=False):  # a step of which may be rewarded, and another costs
        found = torch.isin(tasks, torch.tensor(those)).float()
        exploration.collected(steps(found, torch.zeros(4), torch.zeros(4), torch.full((4,), lowest)), at_random)
        _ = exploration.shares()

    for those in met:  # in two meta-episodes
        played(those, at_random=True)
    played([1, 3])
    assert exploration.unsolved.nonzero().flatten().tolist() == [0, 2]
    assert exploration.behind_costs.nonzero().flatten().tolist() == behind


def test_the_prefill_goes_on_until_rewards_are_met():
    config = tiny_config(train__prefill_met=1.0, train__prefill_most=0.3, train__iterations=9)
    agent, tasks = tiny_agent(config), torch.arange(3)

    def passes_at_random(met_at):
        exploration, found = Exploration(tasks, seed=0), []
        for phase in Schedule(config, agent, exploration):
            _ = exploration.shares()
            exploration.take(tasks, torch.tensor([0.0, float(phase.number == met_at), 0.0]), phase.by_chance)
            found.append(phase)
        assert len(found) == len(Schedule(config, agent)) == 11 and found[-1].progress < 1
        assert [phase.forgets for phase in found] == [phase.number == 1 for phase in found]
        assert all((phase.top_updates == 0) == phase.at_random for phase in found)
        return sum(phase.at_random for phase in found)

    assert passes_at_random(met_at=99) == 1 + 3  # the warm-up, and as long as it may
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, prefill_met=0.3))
    assert passes_at_random(met_at=1) == 2 and passes_at_random(met_at=2) == 3
    assert passes_at_random(met_at=0) == 4  # the warm-up does not count


def test_the_policy_explores_on_the_named_tasks_only():
    config = tiny_config(hierarchy__top_random_hold=3, hierarchy__top_random_share=0.0)
    agent, library = tiny_agent(config), make_library(config)
    for parameter in agent.top.actor.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        next(p for p in agent.top.actor[0].module.net.net[-1].parameters() if p.ndim == 1)[2:] = -20.0  # no noise
    policy, tasks = agent.make_policy(2), [0, 1, 2, 0]
    shares = torch.zeros(library.num_tasks)
    shares[0] = 1.0
    policy.explore(tasks=shares)
    proposal = record(config, policy, tasks, 40)["hierarchy", "proposal"]
    assert (proposal[[1, 2]].abs() < 0.1).all() and (proposal[[0, 3]].abs().mean() > 0.3)
    held = proposal[0, ::4]  # of each decision: held for three
    assert torch.equal(held[0], held[1]) and torch.equal(held[0], held[2]) and not torch.equal(held[2], held[3])
    greedy = record(config, policy, tasks, 40, ExplorationType.DETERMINISTIC)["hierarchy", "proposal"]
    assert (greedy.abs() < 0.1).all()
    since = torch.zeros(library.num_tasks, dtype=torch.int64)
    since[0] = 3
    policy.explore(tasks=shares, since=since)
    proposal = record(config, policy, tasks, 40)["hierarchy", "proposal"]
    assert (proposal[:, :12].abs() < 0.1).all() and (proposal[[0, 3], 12:20].abs().mean() > 0.3)  # decisions of 4 steps
    policy.explore()
    assert (record(config, policy, tasks, 40)["hierarchy", "proposal"].abs() < 0.1).all()


def test_a_policy_that_explores_by_task_says_what_it_lacks():
    config = tiny_config()
    agent, library = tiny_agent(config), make_library(config)
    policy = agent.make_policy(2)
    policy.explore(tasks=torch.ones(library.num_tasks))
    step = make_env(config, library, torch.tensor([0]), policy).reset().exclude("task_id")
    with set_exploration_type(ExplorationType.RANDOM), pytest.raises(KeyError, match="no task_id"):
        policy(step)


def test_a_recorded_batch_counts_for_its_tasks():
    config = tiny_config()
    agent, library = tiny_agent(config), make_library(config)
    exploration = make_exploration(config, library, agent)
    batch = record(config, agent.make_policy(2), [2, 0, 1], 20)
    exploration.collected(batch)
    highest = batch["next", "reward"].amax((1, 2))
    np.testing.assert_allclose(exploration._highest[[2, 0, 1]], highest)
    one = make_exploration(config, library, agent)
    one.collected(batch[0])  # [T], a trajectory
    assert one._highest[2] == batch["next", "reward"][0].max() and one._usual_return == batch["next", "reward"][0].sum()
    assert exploration.num_tasks == library.num_tasks and exploration.shares().shape == (library.num_tasks,)


def test_solved_tasks_explore_early_where_something_costs():
    """A tenth of 60 tasks met rewards by chance, and steps may cost; later all are solved."""
    tasks = torch.arange(60)
    exploration = Exploration(tasks, often=0.5, costly=0.4, seed=0)

    def play(met: int, lowest: float, at_random: bool = False) -> None:
        reward = torch.full((60, 10, 1), -1.0)
        reward[:met, 3], reward[:, 5] = 10.0, lowest
        batch = TensorDict({"task_id": tasks.view(-1, 1, 1).expand(60, 10, 1), "next": {"reward": reward}}, [60, 10])
        exploration.collected(batch, at_random)

    play(6, lowest=-5.0, at_random=True)
    for _ in range(30):  # only meta-episodes that do not explore solve a task
        _ = exploration.shares(progress=1.0)
        play(60, lowest=-1.0)
    explored = []
    for progress in (0.0, 1 / 6, 1 / 3, 1.0):
        count = 0
        for _ in range(50):
            count += int((exploration.shares(progress=progress) > 0).sum())
            assert not exploration.unsolved.any()
            missed = exploration._explored[0]  # those that explore may miss, and are solved still
            exploration.take(tasks, torch.where(missed, -1.0, 10.0))
        explored.append(count / 3000)
    assert explored == pytest.approx([0.4, 0.2, 0.0, 0.0], abs=0.05)
    exploration = free = Exploration(tasks, often=0.5, costly=0.4, seed=0)
    play(6, lowest=-1.0, at_random=True)
    for _ in range(30):
        _ = free.shares()
        play(60, lowest=-1.0)
    assert not free.shares().any()  # nothing costs


def test_distances_outlive_tensors_that_are_sent_to_workers():
    """Sharing a tensor frees the memory that it had."""
    hierarchy = tiny_agent(tiny_config()).hierarchy
    elsewhere = Elsewhere(hierarchy)
    assert not np.shares_memory(elsewhere._scale, hierarchy.reach.numpy())


def test_proposals_that_lead_elsewhere():
    """Those of exploring rows end far from where the row decided before, in this meta-episode; others are uniform."""
    config = tiny_config(hierarchy__top_random_hold=1, hierarchy__top_random_share=0.0, env__horizon=80)
    agent, library = tiny_agent(config), make_library(config)
    policy, half = agent.make_policy(2), torch.zeros(library.num_tasks)
    half[0] = 1.0
    every = torch.ones(library.num_tasks)

    def gaps(**how):
        """Distance of each subgoal from the nearest place of a decision until then, in reaches, [N, decisions]."""
        policy.explore(tasks=half, **how)
        batch = record(config, policy, [0] * 20, 80)[:, ::4]
        place, subgoal = batch["observation"][..., :2], batch["hierarchy", "goal"][..., 0, :]
        apart = torch.cdist(subgoal, place).masked_fill(~torch.ones(20, 20).tril().bool(), torch.inf)
        return apart.min(-1).values / agent.hierarchy.reach[-1].max()

    uniform, away = gaps(), gaps(elsewhere=every)
    assert away.mean() > 1.3 * uniform.mean()
    torch.testing.assert_close(gaps(elsewhere=every, at_random=True).mean(), uniform.mean(), rtol=0.1, atol=0)


def test_velocities_are_no_places():
    """Of subgoals that are whole states, positions alone say where a proposal leads."""
    memory, row = Elsewhere(tiny_agent(tiny_config(env__subgoals="state")).hierarchy), np.array([True])
    here = np.float32([[0.0, 0, 0, 0]])
    memory.see(here, row, fresh=row)
    faster, farther = np.float32([[[0.1, 0, 1, 1]], [[0.3, 0, 0, 0]]])
    assert memory.pick(here, row, np.stack([faster, farther])).tolist() == farther.tolist()


def test_where_a_row_has_been_lasts_for_its_meta_episode():
    config = tiny_config()
    hierarchy = tiny_agent(config).hierarchy
    memory, rows = Elsewhere(hierarchy), np.array([True, True])
    reach = hierarchy.reach[-1].numpy()
    here, there = (np.float32([[x, 0, 0, 0]] * 2) for x in (0.0, reach[0]))
    proposals = np.float32([[[1, 0]] * 2, [[0, 1]] * 2])  # back to where they were, first
    memory.see(there, rows, fresh=rows)
    assert memory.pick(here, rows, proposals).tolist() == [[0, 1], [0, 1]]
    assert memory.pick(here, np.array([False, True]), proposals).tolist() == [[1, 0], [0, 1]]
    memory.see(here, np.array([False, True]), fresh=np.array([True, False]))  # row 0 begins anew, and does not decide
    assert memory.pick(here, rows, proposals).tolist() == [[1, 0], [0, 1]]
    for _ in range(40):  # more than there is room for at first
        memory.see(here, rows, fresh=~rows)
    assert memory.pick(here, rows, proposals).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="depth = 1"):
        Elsewhere(tiny_agent(tiny_config(hierarchy__depth=1)).hierarchy)


@pytest.mark.parametrize("subgoal", ["relative", "absolute"])
def test_where_a_proposal_leads(subgoal):
    hierarchy = tiny_agent(tiny_config(hierarchy__subgoal=subgoal)).hierarchy
    reach, space = hierarchy.reach[-1], hierarchy.subgoal_space
    proposals = torch.rand(5, 1, 2, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).numpy()
    here = np.float32([[0.2, -0.1, 0, 0]])
    for hold in (1, 3):
        ends = torch.from_numpy(Elsewhere(hierarchy, hold)._ends(here, proposals))
        targets = (
            hierarchy.decode(1, torch.from_numpy(here), torch.from_numpy(proposals)) - torch.from_numpy(here)[:, :2]
        )
        way = hold * targets if subgoal == "relative" else targets.clamp(-hold * reach, hold * reach)
        torch.testing.assert_close(ends, space.clip(torch.from_numpy(here)[:, :2] + way))
