"""The context encoder, the product of Gaussians, and the posterior that the policy carries along."""

import pytest
import torch
from tensordict import TensorDict
from tiny import random_context, random_transitions, record, tiny_agent, tiny_config
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType

from peach_trl.hierarchy.transitions import HINDSIGHT_ACTION, LevelTransitions
from peach_trl.modules.encoder import ContextEncoder, EncoderConfig, product_of_gaussians, sample_latent
from peach_trl.modules.posterior import PosteriorState

HIGH = torch.tensor([10.0, 5.0, 1.0, 0.5])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ContextEncoder(Bounded(-HIGH, HIGH, shape=(4,)), 2, EncoderConfig(latent_dim=3, cells=(16,), min_scale=1e-2))


def encode(encoder, context):
    out = encoder(TensorDict({"context": context}, context.shape[:1]))
    return out["z_loc"], out["z_scale"]


def gaussian(encoder, row):
    """One transition's Gaussian from its definition: the network on the scaled transition, softplus, smallest scale."""
    after = row["next"]
    features = torch.cat([row["observation"] / HIGH, row["action"], after["reward"], after["observation"] / HIGH])
    out = encoder.net(features)
    return out[:3], torch.nn.functional.softplus(out[3:]) + 1e-2


def test_the_posterior_is_the_product_of_densities(encoder):
    """Densities multiplied on a grid, with the prior and by transition, then normalised."""
    context = random_context(4, 6, seed=1)
    loc, scale = encode(encoder, context)
    grid = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    for task in range(4):
        for z in range(3):
            density = torch.exp(-0.5 * grid**2)
            for j in range(6):
                if j < task:  # the mask of random_context
                    mean, deviation = (value[z].double() for value in gaussian(encoder, context[task, j]))
                    density = density * torch.exp(-0.5 * ((grid - mean) / deviation) ** 2)
            density = density / density.sum()
            mean = (density * grid).sum()
            torch.testing.assert_close(loc[task, z].double(), mean, atol=1e-5, rtol=1e-4)
            deviation = (density * (grid - mean) ** 2).sum().sqrt()
            torch.testing.assert_close(scale[task, z].double(), deviation, atol=1e-5, rtol=1e-4)
    assert scale[3].max() < 1 and loc[1:].abs().min() > 1e-4


def test_product_of_gaussians_closed_form():
    generator = torch.Generator().manual_seed(0)
    mu, sigma = torch.randn(5, 2, generator=generator), torch.rand(5, 2, generator=generator) + 0.1
    loc, scale = torch.zeros(2), torch.ones(2)  # multiplied one by one, from the prior on
    for m, s in zip(mu, sigma, strict=True):
        variance = 1 / (1 / scale**2 + 1 / s**2)
        loc, scale = variance * (loc / scale**2 + m / s**2), variance.sqrt()
    found = product_of_gaussians(1 + sigma.pow(-2).sum(0), (mu / sigma**2).sum(0))
    torch.testing.assert_close(found, (loc, scale))


def test_an_empty_context_is_exactly_the_prior(encoder):
    context = random_context(2, 5, seed=2)
    context["mask"] = torch.zeros(2, 5, dtype=torch.bool)
    loc, scale = encode(encoder, context)
    assert torch.equal(loc, torch.zeros(2, 3)) and torch.equal(scale, torch.ones(2, 3))
    loc, scale = encode(encoder, context[:, :0])
    assert torch.equal(loc, torch.zeros(2, 3)) and torch.equal(scale, torch.ones(2, 3))


def test_order_and_masked_transitions_do_not_matter(encoder):
    context = random_context(4, 7, seed=3)
    expected = encode(encoder, context)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert order.tolist() != list(range(7))
    torch.testing.assert_close(encode(encoder, context[:, order]), expected)

    other = random_context(4, 7, seed=4)
    mixed = torch.where(context["mask"], context, other)
    assert not torch.equal(mixed["observation"], context["observation"])
    found = encode(encoder, mixed)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(encode(encoder, context[:, :3])[0][:3], expected[0][:3])  # no padding at all
    mixed["next", "reward"] = context["next", "reward"] + 1
    assert not torch.allclose(encode(encoder, mixed)[0][1:], expected[0][1:])  # the others do


def test_draws_are_reparametrised():
    loc, scale = torch.zeros(2000, 2, requires_grad=True), torch.full((2000, 2), 0.5, requires_grad=True)
    z = sample_latent(loc, scale, torch.Generator().manual_seed(0))
    by_loc, by_scale = torch.autograd.grad(z.sum(), (loc, scale))
    assert torch.equal(by_loc, torch.ones(2000, 2))
    torch.testing.assert_close(by_scale * 0.5, z.detach())
    assert abs(z.std().item() - 0.5) < 0.02 and abs(z.mean().item()) < 0.03


# PosteriorState: the table of tasks.


@pytest.fixture
def agent():
    return tiny_agent(tiny_config())


@pytest.fixture
def posterior(agent) -> PosteriorState:
    return agent.make_policy(num_tasks=5, seed=0).posterior


def test_condition_is_the_encoders_posterior(agent, posterior):
    context = random_context(3, 6, seed=5)
    context["mask"][0, :2] = True
    posterior.condition(torch.tensor([4, 0, 2]), context)
    expected = encode(agent.encoder, context)
    torch.testing.assert_close(posterior.posterior(torch.tensor([4, 0, 2])), expected)
    assert not posterior.precision.requires_grad
    untouched = posterior.posterior(torch.tensor([1, 3]))
    assert torch.equal(untouched[0], torch.zeros(2, 5)) and torch.equal(untouched[1], torch.ones(2, 5))
    posterior.condition(torch.tensor([4]), context[2:])  # a new context replaces the old one
    torch.testing.assert_close(posterior.posterior(torch.tensor([4]))[0], expected[0][2:])


def test_updates_one_by_one_equal_one_context(posterior):
    context = random_context(2, 6, seed=6)
    context["mask"][:] = True
    posterior.condition(torch.tensor([1, 3]), context)
    precision, shift = posterior.precision.clone(), posterior.shift.clone()
    posterior.reset()
    for j in range(6):
        rows = context[:, j].exclude("mask")
        posterior.update(rows.set("task_id", torch.tensor([[1], [3]])))
    torch.testing.assert_close(posterior.precision, precision)
    torch.testing.assert_close(posterior.shift, shift)

    posterior.reset()  # at once, in any order, several rows of a task
    rows = context.exclude("mask").set("task_id", torch.tensor([[[1]], [[3]]]).expand(2, 6, 1)).reshape(-1)
    posterior.update(rows[torch.randperm(12, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(posterior.precision, precision)
    torch.testing.assert_close(posterior.shift, shift)
    assert torch.equal(posterior.precision[[0, 2, 4]], torch.ones(3, 5))
    assert torch.equal(posterior.shift[[0, 2, 4]], torch.zeros(3, 5))


def test_reset_of_some_tasks_and_of_all(posterior):
    context = random_context(5, 6, seed=7)
    context["mask"][:] = True
    posterior.condition(torch.arange(5), context)
    precision, shift = posterior.precision.clone(), posterior.shift.clone()
    posterior.reset(torch.tensor([2, 4]))
    assert torch.equal(posterior.precision[[2, 4]], torch.ones(2, 5))
    assert torch.equal(posterior.shift[[2, 4]], torch.zeros(2, 5))
    assert torch.equal(posterior.precision[[0, 1, 3]], precision[[0, 1, 3]])
    assert torch.equal(posterior.shift[[0, 1, 3]], shift[[0, 1, 3]])
    posterior.reset()
    assert torch.equal(posterior.precision, torch.ones(5, 5)) and torch.equal(posterior.shift, torch.zeros(5, 5))


# The policy's z.


@pytest.mark.parametrize("clock", ["own", "fixed"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_update_within_a_trajectory_agrees_with_the_conversion(depth, clock):
    """What the policy multiplied in by an episode's last decision is what its converted transitions give."""
    config = tiny_config(hierarchy__depth=depth, hierarchy__clock=clock, transitions__reward_scale=0.7)
    agent = tiny_agent(config, seed=depth)
    policy = agent.make_policy(num_tasks=3, seed=1)
    # What is known before: the entries of the tasks differ.
    known = random_context(3, 4, seed=8, proposal=2)
    policy.posterior.condition(torch.arange(3), known)
    tasks, horizon = [2, 0, 1, 0], config.env.horizon
    batch = record(config, policy, tasks, 2 * horizon)
    top = LevelTransitions(agent.hierarchy, config.transitions)(batch)[-1]
    top = top[(top["kind"] == HINDSIGHT_ACTION).squeeze(-1)]
    assert 0 < (top["next", "reward"] > 0).float().mean() < 1  # the rewards of decisions do differ
    if depth > 1:  # subgoals are missed, so that hindsight actions differ from proposals
        assert (batch["next", "done"].squeeze(-1) | batch["hierarchy", "acts"][..., -1]).float().mean() < 0.9
        made = batch["hierarchy", "proposal"][batch["hierarchy", "acts"][..., -1]]
        assert not torch.allclose(made, top["action"], atol=1e-2)
    for number, episode in enumerate(top["episode"].unique().tolist()):
        row, second = divmod(number, 2)
        rows = top[(top["episode"] == episode).squeeze(-1)]
        assert (rows["task_id"] == tasks[row]).all() and len(rows) >= 5
        rows = rows[:-1]  # the last decision is still going on when z is drawn for the last time
        context = rows.set("mask", torch.ones(len(rows), dtype=torch.bool)).unsqueeze(0)
        precision, shift = agent.encoder.natural(context)
        prior = policy.posterior.precision[tasks[row]], policy.posterior.shift[tasks[row]]
        found = batch["posterior"][row, second * horizon + horizon - 1]
        torch.testing.assert_close(found["precision"], prior[0] + precision[0] - 1, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["shift"], prior[1] + shift[0], rtol=1e-4, atol=1e-4)
        first = batch["posterior"][row, second * horizon]  # every episode starts from the table
        assert torch.equal(first["precision"], prior[0]) and torch.equal(first["shift"], prior[1])
    assert number == 7
    assert torch.equal(policy.posterior.precision[1], agent.encoder.natural(known)[0][1])  # a rollout only reads it


def test_z_follows_the_posterior_in_force():
    """Drawn anew exactly where the top level acts, from the posterior recorded there."""
    config = tiny_config()
    agent = tiny_agent(config)
    with torch.no_grad():  # every transition says: 3 +- 0.01
        agent.encoder.net[-1].weight.zero_()
        agent.encoder.net[-1].bias[:5], agent.encoder.net[-1].bias[5:] = 3.0, -4.6
    batch = record(config, agent.make_policy(num_tasks=3, seed=1), [0, 1, 2], 40)
    z, acts = batch["z"], batch["hierarchy", "acts"][..., -1]
    changed = (z[:, 1:] != z[:, :-1]).all(-1)
    assert torch.equal(changed, acts[:, 1:]) and torch.equal(changed, (z[:, 1:] != z[:, :-1]).any(-1))
    assert acts.sum() == 3 * 10
    known = torch.arange(40) % 20 >= 4
    assert (z[:, known] - 3).abs().max() < 0.1
    assert z[:, ~known].std() > 0.5 and z[:, ~known].abs().max() < 5


def test_coupled_draws_keep_their_noise_within_an_episode():
    """z = mean + noise * deviation of the posterior in force, one noise an episode."""
    config = tiny_config(context__draw="coupled", hierarchy__clock="own")
    policy = tiny_agent(config).make_policy(num_tasks=3, seed=1)
    batch = record(config, policy, [0, 1, 2, 1], 60)
    loc, scale = product_of_gaussians(batch["posterior", "precision"], batch["posterior", "shift"])
    noise = ((batch["z"] - loc) / scale).unflatten(1, (3, 20))
    torch.testing.assert_close(noise, noise[:, :, :1].expand_as(noise), atol=1e-3, rtol=1e-3)
    draws = noise[:, :, 0].reshape(12, 5)
    assert len(draws.unique(dim=0)) == 12 and 0.6 < draws.std() < 1.4
    z, acts = batch["z"], batch["hierarchy", "acts"][..., -1]
    assert torch.equal((z[:, 1:] != z[:, :-1]).all(-1), acts[:, 1:])


def test_draw_by_trajectory_keeps_z_within_an_episode():
    config = tiny_config(context__draw="trajectory")
    policy = tiny_agent(config).make_policy(num_tasks=3, seed=1)
    batch = record(config, policy, [0, 1, 2, 1], 60)
    assert "posterior" not in batch.keys()
    z = batch["z"].unflatten(1, (3, 20))
    assert torch.equal(z, z[:, :, :1].expand_as(z))
    draws = z[:, :, 0].reshape(12, 5)
    assert len(draws.unique(dim=0)) == 12  # another one for each row and each episode
    assert 0.6 < draws.std() < 1.4  # of the prior


@pytest.mark.parametrize("draw", ["trajectory", "decision", "coupled"])
def test_rows_use_the_posterior_of_their_own_task(draw):
    config = tiny_config(context__draw=draw)
    policy = tiny_agent(config).make_policy(num_tasks=3, seed=1)
    mean = torch.tensor([-5.0, 0.0, 5.0])
    policy.posterior.precision[:] = 1e6
    policy.posterior.shift[:] = 1e6 * mean.unsqueeze(-1)
    batch = record(config, policy, [2, 0, 1, 0], 20)
    expected = mean[batch["task_id"][:, 0]].expand(4, 5)
    torch.testing.assert_close(batch["z"][:, 0], expected, rtol=0, atol=0.01)


def test_draws_depend_on_the_seed_and_nothing_else():
    config = tiny_config()
    agent = tiny_agent(config)

    def first(seed, global_seed):
        torch.manual_seed(global_seed)
        return record(config, agent.make_policy(num_tasks=3, seed=seed), [0, 1, 2], 1)["z"]

    assert torch.equal(first(1, 0), first(1, 5))
    assert not torch.equal(first(1, 0), first(2, 0))
    assert not torch.equal(first(None, 0), first(None, 5))  # the process's seed


def test_draws_follow_a_seed_that_is_set_after_a_trial_call():
    """As in a worker of a collector, which calls the policy once to see its outputs and is seeded later."""
    config = tiny_config()
    agent = tiny_agent(config)

    def first(born_with):
        policy = agent.make_policy(num_tasks=3)
        torch.manual_seed(born_with)
        record(config, policy, [0, 1, 2], 1, ExplorationType.DETERMINISTIC)
        torch.manual_seed(0)
        return record(config, policy, [0, 1, 2], 1)

    one, other = first(born_with=5), first(born_with=6)
    assert torch.equal(one["z"], other["z"])


def test_bad_arguments_are_refused(agent, encoder):
    with pytest.raises(ValueError, match="context.draw = 'episode': use .*decision"):
        PosteriorState(encoder, agent.hierarchy, 3, 4, "episode", 1.0)
    with pytest.raises(ValueError, match="latent_dim = 0"):
        ContextEncoder(Bounded(-HIGH, HIGH, shape=(4,)), 2, EncoderConfig(latent_dim=0, cells=(16,), min_scale=1e-2))


def test_the_transitions_of_a_context_are_told_apart(encoder):
    """Guards the tests above: every part of a transition enters the encoder."""
    row = random_transitions((1, 1), seed=9).set("mask", torch.ones(1, 1, dtype=torch.bool))
    expected = encode(encoder, row)[0]
    for key in ("observation", "action", ("next", "reward"), ("next", "observation")):
        changed = row.clone()
        changed[key] = changed[key] + 0.5
        assert not torch.allclose(encode(encoder, changed)[0], expected, atol=1e-4), key
