"""The agent: PEARL's update at depth 1, HAC's without z, checkpoints, and every combination that can be built."""

import copy
import math

import pytest
import torch
from reference_losses import Optimiser, assert_same_parameters, copies, sac_losses, soft_update, td3_losses
from tiny import random_context, random_transitions, record, tiny_agent, tiny_config
from torch.nn.functional import softplus
from torchrl.envs.utils import ExplorationType

from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION, LevelTransitions
from peach_trl.modules.networks import make_goal_level, make_top

TASKS, ROWS, CONTEXT, STEPS = 3, 16, 5, 3


def top_copies(agent, latent_dim):
    """The top level's actor, critics and target critics as plain modules."""
    _, critics = make_top(agent.hierarchy, agent.observation_spec, latent_dim, None, agent.config)
    return (
        copy.deepcopy(agent.top_actor[0].module),
        copies(critics, agent.top_loss.qvalue_network_params),
        copies(critics, agent.top_loss.target_qvalue_network_params),
    )


def same_top(agent, actor, critics, targets):
    assert_same_parameters(agent.top_loss.actor_network_params, "module.0.module.", [actor])
    assert_same_parameters(agent.top_loss.qvalue_network_params, "module.", critics)
    assert_same_parameters(agent.top_loss.target_qvalue_network_params, "module.", targets)


@pytest.mark.parametrize("annealing", [0, 2])
def test_depth_1_is_pearls_update(annealing):
    """Rakelly et al. 2019, algorithm 1, in plain torch: all parameters after each of three gradient steps."""
    config = tiny_config(
        hierarchy__depth=1, top__alpha_1=3e-3, top__alpha_2=1e-3, top__alpha_3=2e-3, top__loss_kl=0.3, top__gamma=0.9,
        top__kl_annealing=annealing,
    )  # fmt: skip
    agent = tiny_agent(config)
    actor, critics, targets = top_copies(agent, 5)
    net, scale = copy.deepcopy(agent.encoder.net), torch.tensor([0.1, 0.1, 1 / 0.2625, 1 / 0.2625])  # arena, 1.05 speed
    encoder_step = Optimiser([net], 3e-3)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 2e-3)
    generator = torch.Generator()
    generator.set_state(agent._latent.get_state())
    start = {name: p.detach().clone() for name, p in agent.named_parameters()}

    for step in range(STEPS):
        batch = random_transitions((TASKS, ROWS), seed=step, horizon=1)  # a decision is a step
        c = random_context(TASKS, CONTEXT, seed=10 + step)
        torch.manual_seed(step)
        agent.update_top(batch, c)

        # z ~ q(z | c), the product of the transitions' Gaussians and N(0, 1)
        after = c["next"]
        parts = [c["observation"] * scale, c["action"], after["reward"], after["observation"] * scale]
        mean, deviation = net(torch.cat(parts, -1)).chunk(2, -1)
        precision = c["mask"].unsqueeze(-1) / (softplus(deviation) + config.context.min_scale) ** 2
        variance = 1 / (1 + precision.sum(1))
        mu = variance * (precision * mean).sum(1)
        z = mu + variance.sqrt() * torch.randn(mu.shape, generator=generator)
        kl = 0.5 * (mu**2 + variance - 1 - variance.log()).sum(-1).mean()

        torch.manual_seed(step)
        noise = torch.randn(TASKS, ROWS, 2), torch.randn(TASKS, ROWS, 2)  # at s' and at s
        task = [z.unsqueeze(1).expand(TASKS, ROWS, 5)]
        loss_actor, loss_critic = sac_losses(actor, critics, targets, batch, task, noise, gamma=0.9, alpha=0.1)
        beta = 0.3 * (min(1, (step + 1) / annealing) if annealing else 1)
        encoder_step.gradient(loss_critic + beta * kl)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        for optimiser in (encoder_step, actor_step, critic_step):
            optimiser.step()
        soft_update(targets, critics, config.top.tau)

        same_top(agent, actor, critics, targets)
        for found, expected in zip(agent.encoder.net.parameters(), net.parameters(), strict=True):
            # Adam divides small gradients by their own size, and rounding with them: it differs between processors.
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    moved = {name: (p - start[name]).abs().max().item() for name, p in agent.named_parameters()}
    assert min(value for name, value in moved.items() if "target" not in name) > 1e-3


def test_without_z_the_top_update_is_sac():
    agent = tiny_agent(tiny_config(context__latent_dim=0, top__alpha_2=3e-3, top__alpha_3=1e-3, top__gamma=0.9))
    assert agent.encoder is None
    actor, critics, targets = top_copies(agent, 0)
    actor_step, critic_step = Optimiser([actor], 3e-3), Optimiser(critics, 1e-3)
    for step in range(STEPS):
        batch = random_transitions((TASKS, ROWS), seed=step)
        torch.manual_seed(step)
        losses = agent.update_top(batch)
        assert "loss_kl" not in losses
        torch.manual_seed(step)
        noise = torch.randn(TASKS, ROWS, 2), torch.randn(TASKS, ROWS, 2)
        loss_actor, loss_critic = sac_losses(actor, critics, targets, batch, [], noise, gamma=0.9, alpha=0.1)
        assert losses["loss_actor"] == pytest.approx(loss_actor.item(), abs=1e-4)
        assert losses["loss_qvalue"] == pytest.approx(loss_critic.item(), abs=1e-4)
        actor_step.gradient(loss_actor)
        critic_step.gradient(loss_critic)
        actor_step.step(), critic_step.step()
        soft_update(targets, critics, 0.02)
        same_top(agent, actor, critics, targets)


@pytest.mark.parametrize(("depth", "level"), [(2, 0), (3, 1)])
def test_a_goal_level_learns_by_td3_with_bounded_targets(depth, level):
    config = tiny_config(
        context__latent_dim=0, hierarchy__depth=depth, hierarchy__decision_steps=4 ** (depth - 1), lower__tau=0.05
    )
    agent = tiny_agent(config)
    part = agent.levels[level]
    _, critics = make_goal_level(agent.hierarchy, level, agent.observation_spec, False, config.lower)
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
        losses = agent.update_level(level, batch.copy())
        torch.manual_seed(step)
        noise = (torch.randn(64, 2) * 0.2).clamp(-0.5, 0.5)
        arguments = (actor, critics, target_actor, targets, batch, [batch["goal"]], noise)
        loss_actor, loss_critic = td3_losses(*arguments, gamma=0.98, low=-4.0, high=0.0)
        clamped |= not torch.equal(td3_losses(*arguments, gamma=0.98, low=-1e9, high=1e9)[1], loss_critic)
        assert losses == pytest.approx({"loss_actor": loss_actor.item(), "loss_qvalue": loss_critic.item()}, abs=1e-4)
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
    _, critics = make_goal_level(agent.hierarchy, 0, agent.observation_spec, True, config.lower)
    targets = copies(critics, part.loss.target_qvalue_network_params)
    critics = copies(critics, part.loss.qvalue_network_params)
    actor = copy.deepcopy(part.actor[0].module)
    actor_step, critic_step = Optimiser([actor], 1e-3), Optimiser(critics, 1e-3)
    for step in range(STEPS):
        batch = random_transitions((64,), seed=step, goal=True).exclude("steps_to_next_obs")
        torch.manual_seed(step)
        agent.update_level(0, batch.copy())
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
    """What the greedy policy does; z from a fixed seed and a posterior that differs between tasks."""
    policy = agent.make_policy(num_tasks=3, seed=2)
    if policy.posterior is not None:
        policy.posterior.shift[:] = torch.tensor([-1.0, 0.0, 1.0]).unsqueeze(-1)
    return record(config, policy, [0, 1, 2], 12, ExplorationType.DETERMINISTIC)


def train(agent, seed=1):
    """One update of everything."""
    for level in range(len(agent.levels)):
        agent.update_level(level, random_transitions((32,), seed, goal=True).exclude("steps_to_next_obs"))
    context = None if agent.encoder is None else random_context(TASKS, CONTEXT, seed)
    return agent.update_top(random_transitions((TASKS, ROWS), seed), context)


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
    for key in ("action", ("hierarchy", "goal"), ("next", "observation"), *(["z"] if latent_dim else [])):
        assert torch.equal(found[key], expected[key]), key
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_the_policy_follows_the_learner():
    """It plays the very networks that the updates move, also after a checkpoint was loaded."""
    config = tiny_config()
    agent = tiny_agent(config)
    policy = agent.make_policy(num_tasks=3, seed=2)
    agent.load_state_dict(tiny_agent(config, seed=1).state_dict())
    shown = policy.actor.actors[0], policy.actor.actors[1], policy.posterior.encoder
    before = [[p.detach().clone() for p in module.parameters()] for module in shown]
    train(agent)
    for module, old in zip(shown, before, strict=True):
        assert all((p != o).any() for p, o in zip(module.parameters(), old, strict=True))
    learnt = list(agent.top_loss.actor_network_params.values(True, True))
    assert all(any(p is q for q in learnt) for p in policy.actor.actors[1].parameters())


def test_learning_rates_fall_linearly():
    """In the optimiser: alpha_1 is the encoder's, alpha_2 the actor's, alpha_3 the critics'."""
    agent = tiny_agent(tiny_config(top__alpha_1=4.0, top__alpha_2=2.0, top__alpha_3=1.0, top__lr_end=0.25))

    def rates():
        owner = {id(p): group["lr"] for group in agent.optimiser.param_groups for p in group["params"]}
        modules = agent.encoder, agent.top_loss.actor_network_params, agent.top_loss.qvalue_network_params
        found = [{owner[id(p)] for p in module.parameters() if p.requires_grad} for module in modules]
        assert all(len(rate) == 1 for rate in found)
        return [rate.pop() for rate in found]

    assert rates() == [4.0, 2.0, 1.0]
    agent.anneal(0.5)
    assert rates() == [4 * 0.625, 2 * 0.625, 0.625]
    agent.anneal(1.0)
    assert rates() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("follows", "goal", "latent_dim", "algorithm"),
    [
        ("reward", "hidden", 0, "td3"),
        ("reward", "hidden", 2, "sac"),
        ("reward", "hidden", 5, "td3"),
        ("reward", "known", 0, "sac"),
        ("goal", "known", 0, "td3"),
        ("goal", "known", 0, "sac"),
    ],
)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_combination_collects_and_learns(depth, follows, goal, latent_dim, algorithm):
    config = tiny_config(
        env__horizon=4, hierarchy__depth=depth, hierarchy__decision_steps=2 if depth == 2 else 4,
        top__follows=follows, top__goal=goal, context__latent_dim=latent_dim, lower__algorithm=algorithm,
    )  # fmt: skip
    agent = tiny_agent(config)
    assert len(agent.levels) == (depth if follows == "goal" else depth - 1)
    assert (agent.encoder is not None) == (latent_dim > 0)
    policy = agent.make_policy(num_tasks=3, seed=0)
    assert (policy.posterior is not None) == (latent_dim > 0)
    batch = record(config, policy, [0, 2], 4)
    assert batch["action"].abs().max() <= 1 and ("goal" in batch.keys()) == (goal == "known")
    if latent_dim:
        assert batch["z"].shape == (2, 4, latent_dim)
    rows = LevelTransitions(agent.hierarchy, config.transitions)(batch)
    assert len(rows) == depth
    for level in range(len(agent.levels)):
        losses = agent.update_level(level, rows[level])
        assert losses.keys() == {"loss_actor", "loss_qvalue"} and all(map(math.isfinite, losses.values()))
    if follows == "reward":
        top = rows[-1].unsqueeze(0)
        context = top.set("mask", top["kind"].squeeze(-1) == HINDSIGHT_ACTION) if latent_dim else None
        losses = agent.update_top(top, context)
        names = {"loss_actor", "loss_qvalue", "entropy"} | ({"loss_kl"} if latent_dim else set())
        assert losses.keys() == names and all(map(math.isfinite, losses.values()))
