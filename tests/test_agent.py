"""The agent: PEARL's update at depth 1, HAC's without z, checkpoints, and every combination that can be built."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from reference_losses import Optimiser, assert_same_parameters, copies, sac_losses, soft_update, td3_losses
from tensordict import TensorDict
from tiny import random_context, random_sequences, random_transitions, record, tiny_agent, tiny_config
from torch.nn.functional import softplus
from torchrl.data import Bounded
from torchrl.envs import GymEnv, ParallelEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType

from peach_trl import Agent, default
from peach_trl.collectors import rollout
from peach_trl.config import ConfigError
from peach_trl.context import BeliefTracker, Transition
from peach_trl.envs import GoalSpace
from peach_trl.experiment import make_agent, make_library
from peach_trl.hierarchy.structure import HierarchyConfig
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.levels import ReadingConfig, make_goal_networks, make_top_networks
from peach_trl.modules.networks import Features

TASKS, ROWS, CONTEXT, STEPS = 3, 16, 5, 3


#: the source's reading of the context, and PEARL's encoder
SOURCE = {
    "context__read": "sample", "context__next": "same", "context__update": "trajectory", "context__norm": False,
    "context__precision": "softplus", "context__bootstrap": False, "context__evidence": "reward",
}  # fmt: skip


def top_copies(agent):
    """The top level's actor, critics and target critics as plain modules."""
    top = agent.top
    action_dim = agent.hierarchy.proposal_dims[-1]
    _, critics = make_top_networks(action_dim, agent.observation_spec, top.context, None, top.config)
    return (
        copy.deepcopy(top.actor[0].module),
        copies(critics, top.loss.qvalue_network_params),
        copies(critics, top.loss.target_qvalue_network_params),
    )


def same_top(agent, actor, critics, targets):
    assert_same_parameters(agent.top.loss.actor_network_params, "module.0.module.", [actor])
    assert_same_parameters(agent.top.loss.qvalue_network_params, "module.", critics)
    assert_same_parameters(agent.top.loss.target_qvalue_network_params, "module.", targets)


@pytest.mark.parametrize("beta", [0.3, 0.0])
def test_depth_1_is_pearls_update(beta):
    """Rakelly et al. 2019, algorithm 1, in plain torch: all parameters after each of three gradient steps."""
    config = tiny_config(
        hierarchy__depth=1, top__alpha_1=3e-3, top__alpha_2=1e-3, top__alpha_3=2e-3, top__loss_kl=beta, top__gamma=0.9,
        **SOURCE,
    )  # fmt: skip
    agent = tiny_agent(config)
    actor, critics, targets = top_copies(agent)
    # The arena is 10 m, velocities go to 1.05 times the speed.
    net, scale = copy.deepcopy(agent.top.belief.encoder.net), torch.tensor([0.1, 0.1, 1 / 0.2625, 1 / 0.2625])
    encoder_step = Optimiser([net], 3e-3)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 2e-3)
    generator = torch.Generator()
    generator.set_state(agent.top._noise.get_state())
    start = {name: p.detach().clone() for name, p in agent.named_parameters()}

    for step in range(STEPS):
        batch = random_transitions((TASKS, ROWS), seed=step, horizon=1)  # a decision is a step
        c = random_context(TASKS, CONTEXT, seed=10 + step)
        torch.manual_seed(step)
        agent.top.update(batch, c)

        # z ~ q(z | c), the product of the transitions' Gaussians and N(0, 1)
        after = c["next"]
        parts = [c["observation"] * scale, c["action"], after["reward"], after["observation"] * scale]
        mean, deviation = net(torch.cat(parts, -1)).chunk(2, -1)
        precision = c["mask"].unsqueeze(-1) / (softplus(deviation) + 1e-3) ** 2
        variance = 1 / (1 + precision.sum(1))
        mu = variance * (precision * mean).sum(1)
        z = mu + variance.sqrt() * torch.randn(mu.shape, generator=generator)
        kl = 0.5 * (mu**2 + variance - 1 - variance.log()).sum(-1).mean()

        torch.manual_seed(step)
        noise = torch.randn(TASKS, ROWS, 2), torch.randn(TASKS, ROWS, 2)  # at s' and at s
        task = [z.unsqueeze(1).expand(TASKS, ROWS, 5)]
        loss_actor, loss_critic = sac_losses(actor, critics, targets, batch, task, noise, gamma=0.9, alpha=0.1)
        encoder_step.gradient(loss_critic + beta * kl)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        for optimiser in (encoder_step, actor_step, critic_step):
            optimiser.step()
        soft_update(targets, critics, config.top.tau)

        same_top(agent, actor, critics, targets)
        for found, expected in zip(agent.top.belief.encoder.net.parameters(), net.parameters(), strict=True):
            # Adam divides small gradients by their own size, and rounding with them: it differs between processors.
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    learnt = ("top.loss.actor_network_params", "top.loss.qvalue_network_params", "top.belief")
    moved = [(p - start[name]).abs().max().item() for name, p in agent.named_parameters() if name.startswith(learnt)]
    assert len(moved) > 15 and min(moved) > 1e-3


def belief_by_hand(net, scale, rows):
    """b before and after each decision of sequences [B, L], decision by decision."""
    precision, precision_mean = torch.ones(len(rows), 5), torch.zeros(len(rows), 5)
    beliefs = []
    for t in range(rows.shape[1] + 1):
        beliefs.append(torch.cat([precision_mean / precision, -0.5 * precision.log()], -1))
        if t == rows.shape[1]:
            return torch.stack(beliefs, 1)
        after = rows["next"][:, t]
        parts = [rows["observation"][:, t] * scale, rows["action"][:, t], after["reward"], after["observation"] * scale]
        mean, x = net(torch.cat(parts, -1)).chunk(2, -1)
        factor = (x - 1).clamp(-8, 10).exp() * rows["mask"][:, t : t + 1]
        precision, precision_mean = precision + factor, precision_mean + factor * mean
    raise AssertionError


def ahead_by_hand(rows, after, n, bootstrap, gamma):
    """Rows [B, L] and the beliefs behind them, whose rewards are those of the next n decisions, one after the other."""
    rows, index = rows.clone(), torch.arange(rows.shape[1]).repeat(len(rows), 1)
    source = rows.clone()
    for i in range(len(rows)):
        for t in range(rows.shape[1]):
            reward, steps, last = 0.0, 0, t
            for j in range(t, min(t + n, rows.shape[1])):
                if j > t and not bool(source["mask"][i, j]):
                    break
                if j > t and not bootstrap and source["part"][i, j] != source["part"][i, t]:
                    break
                reward += gamma**steps * source["next", "reward"][i, j, 0].item()
                steps, last = steps + int(source["steps_to_next_obs"][i, j]), j
                if source["next", "terminated"][i, j]:
                    break
            rows["next", "reward"][i, t], rows["steps_to_next_obs"][i, t], index[i, t] = reward, steps, last
            for key in ("observation", "terminated"):
                rows["next", key][i, t] = source["next", key][i, last]
    return rows, after[torch.arange(len(rows)).unsqueeze(1), index]


@pytest.mark.parametrize(
    ("following", "bootstrap", "n_step"),
    [("after", True, 1), ("after", False, 1), ("same", True, 1), ("after", True, 3), ("after", False, 3)],
)
def test_a_gradient_step_with_a_belief(following, bootstrap, n_step):
    """Actor and critics read b_t, targets b_{t+n} (or b_t), values go on in the next trajectory: by hand."""
    config = tiny_config(
        top__alpha_1=3e-3, top__alpha_2=1e-3, top__alpha_3=2e-3, top__loss_kl=0.3, top__gamma=0.9,
        top__test_penalty=0.7, context__next=following, context__bootstrap=bootstrap, context__slow=1.0,
        context__evidence="reward", top__n_step=n_step,
    )  # fmt: skip
    agent = tiny_agent(config)
    actor, critics, targets = top_copies(agent)
    net, scale = copy.deepcopy(agent.top.belief.encoder.net), torch.tensor([0.1, 0.1, 1 / 0.2625, 1 / 0.2625])
    encoder_step = Optimiser([net], 3e-3)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 2e-3)
    for step in range(STEPS):
        rows = random_sequences(TASKS, 9, seed=step, parts=3, evidence=False)
        torch.manual_seed(step)
        found = agent.top.update(rows.copy())

        mask, b = rows["mask"], belief_by_hand(net, scale, rows)
        linked = rows.clone()
        for i in range(TASKS):
            for t in range(8):
                if bootstrap and rows["mask"][i, t + 1] and rows["part"][i, t + 1] != rows["part"][i, t]:
                    linked["next", "observation"][i, t] = rows["observation"][i, t + 1]
                    linked["next", "terminated"][i, t] = False
        after = b[:, 1:] if following == "after" else b[:, :-1]
        if n_step > 1:
            linked, after = ahead_by_hand(linked, after, n_step, bootstrap, 0.9)
        batch, now, after = linked[mask], b[:, :-1][mask], after[mask].detach()
        torch.manual_seed(step)
        noise = torch.randn(len(batch), 2), torch.randn(len(batch), 2)
        arguments = (actor, critics, targets, batch, [now], noise)
        loss_actor, loss_critic = sac_losses(*arguments, gamma=0.9, alpha=0.1, task_after=[after])
        missed = batch["missed"].squeeze(-1)
        tested = [batch["observation"][missed], now[missed], batch["proposal"][missed]]
        loss_test = sum(((critic(*tested) + 0.7) ** 2).sum() for critic in critics) / len(batch)
        everywhere = torch.cat([torch.ones(TASKS, 1, dtype=torch.bool), mask], 1)
        mu, log_scale = b[everywhere].chunk(2, -1)
        kl = (0.5 * (mu**2 + (2 * log_scale).exp() - 1) - log_scale).sum(-1).mean()
        for name, value in (("qvalue", loss_critic), ("actor", loss_actor), ("test", loss_test), ("kl", kl)):
            assert found[f"loss_{name}"].item() == pytest.approx(value.item(), rel=1e-3), name
        encoder_step.gradient(loss_critic + loss_test + 0.3 * kl)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic + loss_test)
        for optimiser in (encoder_step, actor_step, critic_step):
            optimiser.step()
        soft_update(targets, critics, config.top.tau)
        same_top(agent, actor, critics, targets)
        for parameter, expected in zip(agent.top.belief.encoder.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, atol=1e-4, rtol=0)


def test_without_z_the_top_update_is_sac():
    agent = tiny_agent(
        tiny_config(
            context__latent_dim=0,
            top__alpha_2=3e-3,
            top__alpha_3=1e-3,
            top__gamma=0.9,
            context__bootstrap=False,
            top__n_step=1,
        )
    )
    assert agent.top.belief is None
    actor, critics, targets = top_copies(agent)
    actor_step, critic_step = Optimiser([actor], 3e-3), Optimiser(critics, 1e-3)
    for step in range(STEPS):
        rows = random_sequences(TASKS, ROWS, seed=step).exclude("missed", "proposal")
        torch.manual_seed(step)
        losses = agent.top.update(rows.copy())
        assert losses["loss_kl"] == 0 and "loss_test" not in losses.keys()
        batch = rows[rows["mask"]]
        torch.manual_seed(step)
        noise = torch.randn(len(batch), 2), torch.randn(len(batch), 2)
        loss_actor, loss_critic = sac_losses(actor, critics, targets, batch, [], noise, gamma=0.9, alpha=0.1)
        assert losses["loss_actor"].item() == pytest.approx(loss_actor.item(), abs=1e-4)
        assert losses["loss_qvalue"].item() == pytest.approx(loss_critic.item(), abs=1e-4)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        actor_step.step(), critic_step.step()
        soft_update(targets, critics, 0.02)
        same_top(agent, actor, critics, targets)


def test_the_recipes_gradient_step_is_update():
    """recipes/peach.py writes the step out."""
    agents = [tiny_agent(tiny_config()) for _ in range(2)]
    for step in range(3):
        rows = random_sequences(TASKS, 9, seed=step)
        torch.manual_seed(step)
        agents[0].top.update(rows.copy())
        torch.manual_seed(step)
        top = agents[1].top
        b, q = top.believe(rows.copy())
        L = top.loss(b)
        L.update(top.kl_loss(q))
        top.weigh(L).backward()
        top.step()
    for one, other in zip(agents[0].state_dict().values(), agents[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_sample_is_kept_for_a_trajectory_in_critics_and_targets():
    """context.update=trajectory: z and what targets read of it change at the ends of trajectories only."""
    rows = random_sequences(TASKS, 9, seed=3, parts=3)
    for slow in (1.0, 0.02):
        config = tiny_config(
            context__read="sample", context__update="trajectory", context__slow=slow, top__batch=None, top__n_step=1
        )
        b, _ = tiny_agent(config).top.believe(rows.copy())
        z, after = b["z"].detach(), b["next", "z"]
        part, row = rows["part"][rows["mask"]], torch.arange(TASKS).repeat_interleave(rows["mask"].sum(1))
        here = list(zip(row.tolist(), part.tolist(), strict=True))
        for i, place in enumerate(here):
            last = i + 1 == len(here) or here[i + 1] != place
            first = here.index(place)
            assert torch.equal(z[i], z[first])
            if not last:
                assert torch.allclose(after[i], z[i], atol=1e-6)
            else:
                assert not torch.allclose(after[i], z[i], atol=1e-3)
            if last and i + 1 < len(here) and here[i + 1][0] == place[0]:
                assert torch.allclose(after[i], z[i + 1], atol=1e-6)


def test_most_decisions_of_a_gradient_step():
    rows = random_sequences(TASKS, 9, seed=0)
    for most, expected in ((5, 5), (None, int(rows["mask"].sum())), (1000, int(rows["mask"].sum()))):
        b, q = tiny_agent(tiny_config(top__batch=most)).top.believe(rows.copy())
        assert b.shape == (expected,) and q.shape == (TASKS + int(rows["mask"].sum()),)


def test_the_averaged_weights_follow_slowly_and_act():
    agent = tiny_agent(tiny_config(top__average=0.25))
    actor, belief = agent.top.acting(average=True)
    assert actor is not agent.top.actor and belief is not agent.top.belief
    mean = None
    for step in range(3):
        agent.top.update(random_sequences(TASKS, 9, seed=step))
        now = agent.top.actor[0].module.net.net[0].weight.detach().clone()
        mean = now if mean is None else mean + 0.25 * (now - mean)
    torch.testing.assert_close(actor[0].module.net.net[0].weight, mean)
    assert not torch.allclose(mean, now, atol=1e-5)
    assert agent.make_policy(average=True).actor.actors[-1] is actor
    assert agent.make_policy(average=True).tracker.belief is belief
    assert agent.make_policy().actor.actors[-1] is agent.top.actor
    last = tiny_agent(tiny_config(top__average=1.0)).top
    assert last.acting(average=True) == (last.actor, last.belief)


def test_a_slow_encoder_behind_targets():
    agent = tiny_agent(tiny_config(context__slow=0.1))
    for step in range(2):
        agent.top.update(random_sequences(TASKS, 9, seed=step))
    rows = random_sequences(TASKS, 9, seed=5)
    b, _ = agent.top.believe(rows.copy())
    slow = agent.top.slow.module
    other = tiny_agent(tiny_config(context__slow=1.0)).top
    other.belief.load_state_dict(slow.state_dict())
    expected, _ = other.believe(rows.copy())
    assert torch.equal(b["next", "belief"], expected["next", "belief"].detach())
    assert not torch.allclose(b["belief"], expected["belief"], atol=1e-5)


@pytest.mark.parametrize(("depth", "level"), [(2, 0), (3, 1)])
def test_a_goal_level_learns_by_td3_with_bounded_targets(depth, level):
    config = tiny_config(
        context__latent_dim=0, hierarchy__depth=depth, hierarchy__decision_steps=4 ** (depth - 1), lower__tau=0.05
    )
    agent = tiny_agent(config)
    part = agent.levels[level]
    _, critics = make_goal_networks(agent.hierarchy, level, agent.observation_spec, False, config.lower)
    targets = copies(critics, part.loss.target_qvalue_network_params)
    critics = copies(critics, part.loss.qvalue_network_params)
    actor = copy.deepcopy(part.actor.module)
    target_actor = copy.deepcopy(actor)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 1e-3)
    others = {name: p.detach().clone() for name, p in agent.named_parameters() if f"levels.{level}." not in name}
    clamped = False
    for step in range(STEPS):
        batch = random_transitions((64,), seed=step, goal=True).exclude("steps_to_next_obs")
        torch.manual_seed(step)
        losses = agent.levels[level].update(batch.copy())
        torch.manual_seed(step)
        noise = (torch.randn(64, 2) * 0.2).clamp(-0.5, 0.5)
        arguments = (actor, critics, target_actor, targets, batch, [batch["goal"]], noise)
        loss_actor, loss_critic = td3_losses(*arguments, gamma=0.98, low=-4.0, high=0.0)
        clamped |= not torch.equal(td3_losses(*arguments, gamma=0.98, low=-1e9, high=1e9)[1], loss_critic)
        found = {name: loss.item() for name, loss in losses.items()}
        assert found == pytest.approx({"loss_actor": loss_actor.item(), "loss_qvalue": loss_critic.item()}, abs=1e-4)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        actor_step.step(), critic_step.step()
        soft_update([target_actor, *targets], [actor, *critics], 0.05)

        assert_same_parameters(part.loss.actor_network_params, "module.", [actor])
        assert_same_parameters(part.loss.target_actor_network_params, "module.", [target_actor])
        assert_same_parameters(part.loss.qvalue_network_params, "module.", critics)
        assert_same_parameters(part.loss.target_qvalue_network_params, "module.", targets)
    assert clamped
    for name, p in agent.named_parameters():  # nothing else moved
        assert name not in others or torch.equal(p, others[name]), name


def test_a_goal_level_learns_by_sac_with_bounded_targets():
    config = tiny_config(lower__algorithm="sac", lower__alpha=0.2)
    agent = tiny_agent(config)
    part = agent.levels[0]
    _, critics = make_goal_networks(agent.hierarchy, 0, agent.observation_spec, True, config.lower)
    targets = copies(critics, part.loss.target_qvalue_network_params)
    critics = copies(critics, part.loss.qvalue_network_params)
    actor = copy.deepcopy(part.actor[0].module)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 1e-3)
    for step in range(STEPS):
        batch = random_transitions((64,), seed=step, goal=True).exclude("steps_to_next_obs")
        torch.manual_seed(step)
        agent.levels[0].update(batch.copy())
        torch.manual_seed(step)
        noise, bounds = (torch.randn(64, 2), torch.randn(64, 2)), {"low": -4.0, "high": 0.0}
        task = [batch["goal"]]
        loss_actor, loss_critic = sac_losses(
            actor, critics, targets, batch, task, noise, gamma=0.98, alpha=0.2, **bounds
        )
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        actor_step.step(), critic_step.step()
        soft_update(targets, critics, config.lower.tau)
        assert_same_parameters(part.loss.actor_network_params, "module.0.module.", [actor])
        assert_same_parameters(part.loss.qvalue_network_params, "module.", critics)
        assert_same_parameters(part.loss.target_qvalue_network_params, "module.", targets)


def play(agent, config):
    """What the greedy policy does; z from a fixed seed."""
    return record(config, agent.make_policy(2, seed=2), [0, 1, 2], 32, ExplorationType.DETERMINISTIC)


def train(agent, seed=1):
    """One update of everything."""
    for level in agent.levels:
        level.update(random_transitions((32,), seed, goal=True).exclude("steps_to_next_obs"))
    return agent.top.update(random_sequences(TASKS, ROWS, seed))


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_a_fresh_agent_loads_a_checkpoint(algorithm):
    config = tiny_config(lower__algorithm=algorithm)
    state = tiny_agent(config).state_dict()
    tiny_agent(config, seed=1).load_state_dict(state)


@pytest.mark.parametrize(("latent_dim", "algorithm"), [(5, "td3"), (0, "sac")])
def test_state_dict_round_trip(latent_dim, algorithm):
    config = tiny_config(context__latent_dim=latent_dim, lower__algorithm=algorithm)
    agent, other = tiny_agent(config, seed=0), tiny_agent(config, seed=1)
    train(agent)
    state, expected = copy.deepcopy(agent.state_dict()), play(agent, config)
    assert not torch.allclose(play(other, config)["action"], expected["action"], atol=1e-3)
    other.load_state_dict(state)
    found = play(other, config)
    for key in ("action", ("hierarchy", "goal"), ("next", "observation"), *(["belief"] if latent_dim else [])):
        assert torch.equal(found[key], expected[key]), key
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_the_policy_follows_the_learner():
    """It plays the very networks that the updates move, also after a checkpoint was loaded."""
    config = tiny_config()
    agent = tiny_agent(config)
    policy = agent.make_policy(seed=2)
    agent.load_state_dict(tiny_agent(config, seed=1).state_dict())
    shown = policy.actor.actors[0], policy.actor.actors[1], policy.tracker.belief
    before = [[p.detach().clone() for p in module.parameters()] for module in shown]
    train(agent)
    for module, old in zip(shown, before, strict=True):
        assert all((p != o).any() for p, o in zip(module.parameters(), old, strict=True))
    learnt = list(agent.top.loss.actor_network_params.values(True, True))
    assert all(any(p is q for q in learnt) for p in policy.actor.actors[1].parameters())


def test_learning_rates_fall_linearly():
    """In the optimiser: alpha_1 is the encoder's, alpha_2 the actor's, alpha_3 the critics'."""
    agent = tiny_agent(tiny_config(top__alpha_1=4.0, top__alpha_2=2.0, top__alpha_3=1.0, top__lr_end=0.25))

    def rates():
        owner = {id(p): group["lr"] for group in agent.top.optimiser.param_groups for p in group["params"]}
        modules = agent.top.belief, agent.top.loss.actor_network_params, agent.top.loss.qvalue_network_params
        found = [{owner[id(p)] for p in module.parameters() if p.requires_grad} for module in modules]
        assert all(len(rate) == 1 for rate in found)
        return [rate.pop() for rate in found]

    assert rates() == [4.0, 2.0, 1.0]
    agent.top.anneal(0.5)
    assert rates() == [4 * 0.625, 2 * 0.625, 0.625]
    agent.top.anneal(1.0)
    assert rates() == [1.0, 0.5, 0.25]


def test_a_lower_levels_rate_falls_as_the_level_above_learns():
    (level,) = tiny_agent(tiny_config(lower__learning_rate=0.01, lower__lr_end=0.2)).levels
    for progress, rate in ((0.0, 0.01), (0.5, 0.006), (1.0, 0.002)):
        level.anneal(progress)
        assert [group["lr"] for group in level.optimiser.param_groups] == [pytest.approx(rate)]


def test_entropy_counts_as_much_as_rewards_that_were_met():
    """Of several agents, each has its own."""
    agent = tiny_agent(tiny_config(top__alpha=0.2, top__alpha_least=0.05))
    for worth, share in ((40.0, 1.0), (10.0, 0.25), (0.0, 0.05), (-3.0, 0.05), (99.0, 1.0)):
        agent.top.anneal(0.5, torch.tensor([worth]))
        assert agent.top.loss.log_alpha.exp().item() == pytest.approx(0.2 * share)
    config = tiny_config(top__alpha=0.2, top__alpha_least=0.05)
    two = make_agent(dataclasses.replace(config, seeds=2), make_library(dataclasses.replace(config, seeds=2)))
    two.top.anneal(0.5, torch.tensor([10.0, 40.0]))
    torch.testing.assert_close(two.top.loss.log_alpha.exp(), torch.tensor([0.05, 0.2]))


@pytest.mark.parametrize(
    ("objective", "observe_goal", "latent_dim", "algorithm"),
    [
        ("reward", False, 0, "td3"),
        ("reward", False, 2, "sac"),
        ("reward", False, 5, "td3"),
        ("reward", True, 0, "sac"),
        ("goal", True, 0, "td3"),
        ("goal", True, 0, "sac"),
    ],
)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_combination_collects_and_learns(depth, objective, observe_goal, latent_dim, algorithm):
    config = tiny_config(
        env__horizon=4, hierarchy__depth=depth, hierarchy__decision_steps=2 if depth == 2 else 4,
        top__objective=objective, top__observe_goal=observe_goal, context__latent_dim=latent_dim,
        lower__algorithm=algorithm,
    )  # fmt: skip
    agent = tiny_agent(config)
    assert len(agent.levels) == (depth if objective == "goal" else depth - 1)
    assert (agent.top is None) == (objective == "goal")
    policy = agent.make_policy(seed=0)
    assert (policy.tracker is not None) == (latent_dim > 0)
    batch = record(config, policy, [0, 2], 4)
    assert batch["action"].abs().max() <= 1 and ("goal" in batch.keys()) == observe_goal
    if latent_dim:
        assert batch["belief"].shape == (2, 4, 2 * latent_dim)
    rows = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)(batch)
    assert len(rows) == depth
    for level, transitions in zip(agent.levels, rows, strict=False):
        losses = level.update(transitions)
        assert losses.keys() == {"loss_actor", "loss_qvalue"} and all(map(math.isfinite, losses.values()))
    if agent.top is not None:
        top = rows[-1].reshape(2, -1)
        top.set("mask", torch.ones(top.shape, dtype=torch.bool)).set("part", torch.zeros(top.shape, dtype=torch.int64))
        losses = agent.top.update(top)
        names = {"loss_actor", "loss_qvalue", "loss_kl", "entropy"} | ({"loss_test"} if depth > 1 else set())
        assert losses.keys() == names and all(map(math.isfinite, losses.values()))


@pytest.mark.parametrize("belief", ["product", "attention", "recurrent"])
@pytest.mark.parametrize("read", ["belief", "sample"])
@pytest.mark.parametrize("update", ["decision", "trajectory"])
def test_every_belief_collects_and_learns(belief, read, update):
    config = tiny_config(context__belief=belief, context__read=read, context__update=update)
    agent = tiny_agent(config)
    before = copy.deepcopy(agent.top.belief.state_dict())
    rows = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)(
        record(config, agent.make_policy(2), [0, 2], 40)
    )[-1]
    rows = rows.reshape(2, -1)
    rows.set("mask", torch.ones(rows.shape, dtype=torch.bool)).set("part", rows["episode"].squeeze(-1) % 2)
    for _ in range(3):  # the heads of attention and recurrent start at zero
        assert all(map(math.isfinite, agent.top.update(rows).values()))
    after = agent.top.belief.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if not name.endswith("scale"))
    assert isinstance(agent.make_policy().tracker, BeliefTracker)


def test_missed_tests_cost_nothing_where_their_loss_has_no_weight():
    rows = random_sequences(TASKS, 9, seed=0)
    losses = tiny_agent(tiny_config(top__loss_test=0.0)).top.update(rows)
    assert "loss_test" not in losses.keys()
    assert tiny_agent(tiny_config(top__loss_test=1.0)).top.update(rows)["loss_test"] > 0


def test_rows_that_start_anew_leave_what_they_had_begun():
    """As those of new workers: steps of two episodes are never joined."""
    config = tiny_config()
    policy = tiny_agent(config).make_policy(trajectories=2)
    begun, anew = (record(config, policy, [0, 1, 2], steps) for steps in (13, 20))  # of 20
    hierarchy = tiny_agent(config).hierarchy
    one, other = (LevelTransitions(hierarchy, config.transitions, seed=0) for _ in range(2))
    assert all(len(rows) == 0 for rows in one(begun))
    one.reset()
    one(begun)
    joined, alone = one(anew), other(anew)
    for rows, expected in zip(joined, alone, strict=True):
        rows, expected = (
            part[part["transition_type"].squeeze(-1) == 0] for part in (rows, expected)
        )  # others are drawn
        assert len(rows) == len(expected) > 0
        for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
            assert torch.equal(rows[key], expected[key]), key


def test_meta_episodes_of_rows_that_start_anew_have_new_numbers():
    config = tiny_config()
    policy = tiny_agent(config).make_policy(trajectories=2)
    transitions = LevelTransitions(tiny_agent(config).hierarchy, config.transitions, seed=0)
    found = [transitions(record(config, policy, [0, 1], steps))[-1]["meta_episode"] for steps in (60, 60)]
    first, anew = (set(numbers.flatten().tolist()) for numbers in found)
    assert first == {0, 1, 2, 3} and len(anew) == 4 and min(anew) > max(first)


def test_what_would_part_actors_from_what_trains_them_is_refused():
    agent = tiny_agent(tiny_config())
    with pytest.raises(TypeError, match="an Agent cannot be deep-copied, as its copy would not learn"):
        copy.deepcopy(agent)
    with pytest.raises(ValueError, match="assign = True: losses and optimisers would go on"):
        agent.load_state_dict(agent.state_dict(), assign=True)
    copy.deepcopy(agent.make_policy())
    for level in (agent.levels[0], agent.top):
        with pytest.raises(TypeError, match=f"a {type(level).__name__} cannot be deep-copied"):
            copy.deepcopy(level)
        with pytest.raises(ValueError, match="assign = True"):
            level.load_state_dict(level.state_dict(), assign=True)
        level.load_state_dict(level.state_dict())


def test_a_belief_is_not_trained_on_other_evidence_than_it_acts_on():
    """What LevelTransitions makes without a word about evidence has the reward alone."""
    config = tiny_config()
    agent = tiny_agent(config)
    rows = random_sequences(TASKS, 9, seed=0, evidence=False)
    with pytest.raises(ValueError, match=r"no \['next.evidence'\].*LevelTransitions\(evidence=...\)"):
        agent.top.update(rows)
    tiny_agent(tiny_config(context__latent_dim=0)).top.update(rows)  # which reads none
    tracker = BeliefTracker(agent.top.belief, agent.hierarchy, 4)  # a reward alone, by numpy and by torch
    assert tracker._product is not None
    parts = [torch.randn(5, size) for size in (4, 2, 1, 4)]
    found = tracker._product.statistics(*(part.numpy() for part in parts))
    expected = agent.top.belief.statistics(Transition(*parts))
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_features_know_their_buffers_by_name():
    """TensorDict's to_module leaves buffers in the order of the tensors that it put in."""
    features = Features(Bounded(-4.0, 4.0, shape=(2,)), GoalSpace([0, 1], 0.0, 10.0, 0.5))
    observation, goal = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    before, own = features(observation, goal), TensorDict.from_module(features)
    with TensorDict({key: own[key] for key in sorted(own.keys())}).to_module(features):
        assert torch.equal(features(observation, goal), before)
    assert list(features._buffers) != features.names and torch.equal(features(observation, goal), before)


@pytest.mark.parametrize("batched", [SerialEnv, ParallelEnv])
def test_batched_environments_of_torchrl(batched):
    """They forward what they do not have to their copies, and were asked for ever."""
    env = batched(2, partial(GymEnv, "Pendulum-v1"))
    try:
        with pytest.raises(ConfigError, match=f"{batched.__name__} has no subgoal_space"):
            tiny_agent_of(env)
        env.subgoal_space = GoalSpace([0, 1, 2], [-1.0, -1.0, -8.0], [1.0, 1.0, 8.0], [0.2, 0.2, 1.0])
        agent = tiny_agent_of(TransformedEnv(env, StepCounter(6)))
        batch = rollout(TransformedEnv(env, StepCounter(6)), agent.make_policy(), 12)
        assert batch.shape == (2, 12) and batch["next", "done"].sum() == 4
    finally:
        env.close()


def tiny_agent_of(env):
    return Agent(env, default(HierarchyConfig, decision_steps=3), default(ReadingConfig, latent_dim=0))
