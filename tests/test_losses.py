"""The losses: which gradient reaches what, and their values against plain torch."""

import copy
from dataclasses import dataclass

import pytest
import torch
from reference_losses import copies, sac_losses, td3_losses
from tensordict import NestedKey, TensorDict
from tiny import random_context, random_sequences, random_transitions, tiny_agent, tiny_config
from torch.distributions import Normal, kl_divergence
from torchrl.modules import BatchRenorm1d, ValueOperator
from torchrl.objectives import CrossQLoss, SACLoss, ValueEstimators

from peach_trl.levels import make_goal_networks, make_top_networks
from peach_trl.objectives.context import ContextMixin, ContextSACLoss
from peach_trl.objectives.goal import BoundedTD0Estimator, GoalLossConfig, make_goal_loss
from peach_trl.objectives.kl import KLLoss
from peach_trl.objectives.plain import critic_loss
from peach_trl.objectives.sac import PlainSACLoss

TASKS, ROWS, CONTEXT = 3, 16, 5
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")  # the agent makes them, these tests do not


def leaves(params):
    return [p for p in params.values(True, True) if p.requires_grad]


def parts_of(agent):
    """What the three learning rates belong to."""
    return {
        "actor": leaves(agent.top.loss.actor_network_params),
        "critics": leaves(agent.top.loss.qvalue_network_params),
        "encoder": list(agent.top.belief.parameters()),
    }


# Routing of gradients.

ROUTES = {
    "loss_actor": {"actor"},
    "loss_qvalue": {"critics", "encoder"},
    "loss_test": {"critics", "encoder"},
    "loss_kl": {"encoder"},
}


def reached(losses, agent):
    """Which parts each loss has a gradient for."""
    found = {name: set() for name in ROUTES}
    for name, parts in found.items():
        for part, parameters in parts_of(agent).items():
            gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            if any(g is not None and g.abs().max() > 0 for g in gradients):
                parts.add(part)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context__read": "sample"},
        {"context__next": "same"},
        {"context__update": "trajectory"},
        {"context__belief": "attention"},
        {"context__belief": "recurrent"},
        {"context__slow": 1.0},
    ],
)
def test_each_loss_reaches_what_algorithm_1_says(changes):
    agent = tiny_agent(tiny_config(**changes))
    for parameter in agent.top.belief.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    b, q = agent.top.believe(random_sequences(TASKS, ROWS, seed=2))
    assert reached(agent.top.kl_loss(q).update(agent.top.loss(b)), agent) == ROUTES


def test_the_sources_losses_reach_the_same():
    agent = tiny_agent(tiny_config(context__read="sample", context__next="same", context__update="trajectory"))
    batch = random_sequences(TASKS, ROWS, seed=2).exclude("mask", "part")
    b, q = agent.top.infer(batch, random_context(TASKS, CONTEXT, seed=1))
    assert b["z"].shape == (TASKS, ROWS, 5) and ("next", "z") not in b.keys(True)
    assert reached(agent.top.kl_loss(q).update(agent.top.loss(b)), agent) == ROUTES


@pytest.mark.parametrize(("kept", "moved"), list(ROUTES.items()))
def test_an_update_moves_what_the_loss_belongs_to(kept, moved):
    """The same through the optimiser: with one loss only, the rest stays as it was."""
    agent = tiny_agent(tiny_config(**{f"top__{name}": float(name == kept) for name in ROUTES}))
    before = {name: [p.detach().clone() for p in parameters] for name, parameters in parts_of(agent).items()}
    for step in range(2):  # with momentum, which must not leak either
        agent.top.update(random_sequences(TASKS, ROWS, step))
    changed = {
        name
        for name, parameters in parts_of(agent).items()
        if any(not torch.equal(new, old) for new, old in zip(parameters, before[name], strict=True))
    }
    assert changed == moved


def test_updates_leave_their_inputs_alone():
    agent = tiny_agent(tiny_config())
    sequences, context = random_sequences(TASKS, ROWS, 1), random_context(TASKS, CONTEXT, 1)
    batch = random_transitions((TASKS, ROWS), 2)
    given = (sequences, batch, context)
    before = [td.clone() for td in given]
    agent.top.update(sequences)
    agent.top.update(batch, context)
    for now, old in zip(given, before, strict=True):
        assert (now.select(*old.keys(True, True)) == old).all()
        assert not {"belief", "z_loc", ("next", "belief")} & set(now.keys(True))


def test_an_actor_input_with_the_encoders_gradient_is_refused():
    """A forgotten set_keys would send L_actor's gradient to the encoder in silence."""
    config = tiny_config(context__read="sample")
    agent = tiny_agent(config)
    b, _ = agent.top.believe(random_sequences(TASKS, ROWS, seed=2))
    agent.top.loss.set_keys(context="belief")
    with pytest.raises(
        ValueError, match=r"the actor's loss reads 'z', which carries a gradient: .*set_keys\(context='z'\)"
    ):
        agent.top.loss(b)
    agent.top.loss.set_keys(context="z")
    agent.top.loss(b)


@pytest.mark.parametrize("key", ["belief", ("task", "belief"), ("a", "b", "z")])
def test_the_context_may_stand_anywhere(key):
    """Nested keys give what the plain one gives, and ``next`` is read where there is one."""
    context, after = torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(0)), torch.randn(ROWS, 10)
    results = []
    for name, given in (("belief", None), (key, None), (key, after)):
        actor, critics = renamed(name)
        loss = make_sac(ContextSACLoss, actor, critics)
        loss.set_keys(context=name)
        batch = random_transitions((ROWS,), seed=2).set(name, context.clone().requires_grad_())
        if given is not None:
            batch["next"].set(name, given)
        torch.manual_seed(3)
        found = loss(batch)
        assert name in loss.in_keys
        results.append([found["loss_qvalue"].item(), found["loss_actor"].item()])
    assert results[0] == results[1]
    assert results[2][0] != results[1][0] and results[2][1] == results[1][1]


def renamed(name):
    """The networks of a top level that find their context under ``name``."""
    actor, critics = top_networks(5)
    actor.module[0].in_keys = ["observation", name]
    for critic in critics:
        critic.in_keys = ["observation", name, "action"]
    return actor, critics


class ContextCrossQLoss(ContextMixin, CrossQLoss):
    """The same routing for another of TorchRL's losses."""

    @dataclass
    class _AcceptedKeys(CrossQLoss._AcceptedKeys):
        context: NestedKey = "belief"

    default_keys = _AcceptedKeys


class NormNet(torch.nn.Module):
    """A critic of CrossQ's kind: batch normalisation, no target network."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4 + 10 + 2, 16), BatchRenorm1d(16, warmup_steps=0), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        )

    def forward(self, *inputs):
        return self.net(torch.cat(inputs, -1))


def test_crossq_reads_a_belief_with_the_same_routing():
    agent = tiny_agent(tiny_config())
    critics = [ValueOperator(NormNet(), in_keys=["observation", "belief", "action"]) for _ in range(2)]
    loss = ContextCrossQLoss(agent.top.actor, critics, fixed_alpha=True, alpha_init=0.1, target_entropy=-2.0)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    b, _ = agent.top.believe(random_sequences(TASKS, ROWS, seed=2))
    losses = loss(b)
    encoder = list(agent.top.belief.parameters())
    by_actor = torch.autograd.grad(losses["loss_actor"], encoder, retain_graph=True, allow_unused=True)
    by_critic = torch.autograd.grad(losses["loss_qvalue"], encoder, retain_graph=True, allow_unused=True)
    assert all(g is None for g in by_actor) and all(g is not None and g.abs().max() > 0 for g in by_critic)
    # The belief after the decision is what the value at s' reads.
    found = []
    for changed in (b, b.clone().set(("next", "belief"), b["next", "belief"] + 1)):
        torch.manual_seed(0)
        found.append(copy.deepcopy(loss)(changed.detach())["loss_qvalue"])  # batch renormalisation moves with each call
    assert not torch.isclose(*found, rtol=1e-3)


# The top level's SAC.


def top_networks(latent_dim):
    config = tiny_config(context__latent_dim=latent_dim)
    agent = tiny_agent(config)
    torch.manual_seed(5)
    return make_top_networks(2, agent.observation_spec, config.context, None, config.top)


def make_sac(kind, actor, critics, gamma=0.9, alpha=0.3):
    options = {"fixed_alpha": True, "target_entropy": 0.0, "loss_function": "l2", "deactivate_vmap": True}
    loss = kind(actor, critics, alpha_init=alpha, **options)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    return loss


def perturbed_targets(params, seed):
    """Makes the target networks differ from the others, as they do in training."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in params.data.flatten_keys(".").items():
        if not name.endswith("features.scale"):
            p += 0.1 * torch.randn(p.shape, generator=generator)


def test_what_a_subclass_overrides_is_used():
    """Also without a word about the short way; and in ``learn``, which recipes and levels call."""

    class Weighed(ContextSACLoss):
        def qvalue_v2_loss(self, tensordict):
            loss, found = super().qvalue_v2_loss(tensordict)
            return 3 * loss, found

    class Added(ContextSACLoss):
        def forward(self, tensordict):
            losses = super().forward(tensordict)
            return losses.set("loss_actor", losses["loss_actor"] + 7)

    actor, critics = top_networks(0)
    batch, found = random_transitions((ROWS,), seed=2), []
    for kind in (ContextSACLoss, Weighed, Added):
        loss = make_sac(kind, copy.deepcopy(actor), copy.deepcopy(critics))
        for call in (loss, loss.learn):
            torch.manual_seed(3)
            found.append(call(batch.clone()).detach())
    (plain, learnt, *weighed), added = found[:4], found[4:]
    assert all(torch.isclose(losses["loss_qvalue"], 3 * plain["loss_qvalue"]) for losses in weighed)
    assert all(torch.isclose(losses["loss_actor"], plain["loss_actor"] + 7) for losses in added)
    assert torch.isclose(learnt["loss_qvalue"], plain["loss_qvalue"])


def test_what_torchrl_offers_is_not_ignored():
    """A learnt alpha, masks, keyword calls, and priorities, with our networks and a context."""
    agent = tiny_agent(tiny_config())
    b, _ = agent.top.believe(random_sequences(TASKS, ROWS, seed=2))
    b, (actor, critics) = b.detach(), top_networks(5)
    options = {"loss_function": "l2", "target_entropy": -2.0}
    learnt = ContextSACLoss(copy.deepcopy(actor), copy.deepcopy(critics), **options)
    learnt.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    losses = learnt(b.clone())
    losses["loss_alpha"].backward()
    assert learnt.log_alpha.grad.abs() > 0
    fixed = make_sac(ContextSACLoss, copy.deepcopy(actor), copy.deepcopy(critics))
    assert fixed.is_plain(b) and fixed(b.clone())["loss_alpha"] == 0
    masked = b.clone().set(("collector", "mask"), torch.ones(*b.shape, dtype=torch.bool))
    assert not fixed.is_plain(masked)
    named = {"_".join(key) if isinstance(key, tuple) else key: b[key] for key in fixed.in_keys}
    torch.manual_seed(0)
    by_name = dict(zip(fixed.out_keys, fixed(**named), strict=True))
    torch.manual_seed(0)
    by_batch = fixed(b.select(*fixed.in_keys))
    assert all(torch.equal(by_name[key], by_batch[key]) for key in fixed.out_keys)
    weighed = b.clone().set("priority_weight", torch.ones(*b.shape))
    assert not fixed.is_plain(weighed)
    fixed(weighed)
    assert weighed["td_error"].shape == b.shape and (weighed["td_error"] > 0).all()


@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_plain_sac_is_torchrls_where_it_cannot_be_short(function):
    """Our networks are one node of autograd, which vmap cannot look into."""
    actor, critics = top_networks(0)
    loss = PlainSACLoss(actor, critics, loss_function=function, target_entropy=-2.0)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    losses = loss(random_transitions((ROWS,), seed=2))
    (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
    assert all(p.grad is not None for p in leaves(loss.qvalue_network_params))


def test_memory_does_not_grow_with_the_sizes_of_batches():
    actor, critics = top_networks(0)
    loss = make_sac(ContextSACLoss, actor, critics)
    for rows in range(10, 60):
        loss.learn(random_transitions((rows,), seed=2))
    assert loss._parts
    for part in loss._parts.values():
        assert len(part._made) <= 4 and sum(len(pool) for pool in part._pools.values()) <= 4


@pytest.mark.parametrize("plain", [True, False])
def test_without_z_it_is_torchrls_sac(plain, monkeypatch):
    """Bit by bit in TorchRL's way, and to rounding on plain tensors."""
    if not plain:
        monkeypatch.setattr(ContextSACLoss, "is_plain", lambda self, batch: False)
    actor, critics = top_networks(0)
    found, expected = [], []
    for kind, results in ((ContextSACLoss, found), (SACLoss, expected)):
        loss = make_sac(kind, copy.deepcopy(actor), copy.deepcopy(critics))
        perturbed_targets(loss.target_qvalue_network_params, seed=1)
        torch.manual_seed(3)
        losses = loss(random_transitions((ROWS,), seed=2))
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        gradients = [p.grad for p in leaves(loss.actor_network_params) + leaves(loss.qvalue_network_params)]
        results += [losses["loss_actor"], losses["loss_qvalue"], losses["entropy"], *gradients]
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if plain else 0, atol=1e-6 if plain else 0)


@pytest.mark.parametrize("steps", [True, False])
def test_with_z_it_is_sac_on_s_and_z(steps):
    """Values and gradients, that of z included, against SAC by hand."""
    actor, critics = top_networks(5)
    loss = make_sac(ContextSACLoss, actor, critics)
    perturbed_targets(loss.target_qvalue_network_params, seed=1)
    plain_actor = copy.deepcopy(actor[0].module)
    plain = copies(copy.deepcopy(critics), loss.qvalue_network_params)
    targets = copies(copy.deepcopy(critics), loss.target_qvalue_network_params)
    batch = random_transitions((TASKS, ROWS), seed=2)
    if not steps:
        batch = batch.exclude("steps_to_next_obs")
    z = torch.randn(TASKS, 1, 10, generator=torch.Generator().manual_seed(4)).requires_grad_()

    torch.manual_seed(3)
    found = loss(batch.copy().set("belief", z.expand(TASKS, ROWS, 10)))
    torch.manual_seed(3)
    noise = torch.randn(TASKS, ROWS, 2), torch.randn(TASKS, ROWS, 2)
    task = [z.expand(TASKS, ROWS, 10)]
    loss_actor, loss_qvalue = sac_losses(plain_actor, plain, targets, batch, task, noise, gamma=0.9, alpha=0.3)
    torch.testing.assert_close(found["loss_actor"], loss_actor)
    torch.testing.assert_close(found["loss_qvalue"], loss_qvalue)

    by_z = torch.autograd.grad(found["loss_qvalue"], z, retain_graph=True)[0]
    torch.testing.assert_close(by_z, torch.autograd.grad(loss_qvalue, z, retain_graph=True)[0])
    found_actor = torch.autograd.grad(found["loss_actor"], list(actor[0].module.parameters()))
    by_hand = torch.autograd.grad(loss_actor, list(plain_actor.parameters()))
    torch.testing.assert_close(found_actor, by_hand, atol=1e-6, rtol=1e-4)


def test_the_discount_is_per_environment_step():
    """gamma ** k for a decision of k steps."""
    actor, critics = top_networks(0)
    batch = random_transitions((ROWS,), seed=2)
    batch["next", "terminated"] = torch.zeros(ROWS, 1, dtype=torch.bool)

    def loss_qvalue(gamma, steps):
        loss = make_sac(ContextSACLoss, copy.deepcopy(actor), copy.deepcopy(critics), gamma=gamma)
        perturbed_targets(loss.target_qvalue_network_params, seed=1)
        torch.manual_seed(3)
        rows = batch.exclude("steps_to_next_obs") if steps is None else batch.clone()
        if steps is not None:
            rows["steps_to_next_obs"] = torch.full((ROWS, 1), steps)
        return loss(rows)["loss_qvalue"]

    torch.testing.assert_close(loss_qvalue(0.9, 3), loss_qvalue(0.9**3, 1))
    torch.testing.assert_close(loss_qvalue(0.9, 1), loss_qvalue(0.9, None))
    assert (loss_qvalue(0.9, 3) - loss_qvalue(0.9, 1)).abs() > 1e-3


# Goal-reaching levels.


def make_goal(algorithm, gamma=0.95, noise=0.0, alpha=0.3, level=0):
    """A goal-reaching level of H = 4, its plain networks and those of its targets."""
    config = tiny_config(lower__algorithm=algorithm)
    agent = tiny_agent(config)
    torch.manual_seed(6)
    networks = make_goal_networks(agent.hierarchy, level, agent.observation_spec, algorithm == "sac", config.lower)
    actor, critics = networks
    options = GoalLossConfig(algorithm=algorithm, gamma=gamma, policy_noise=noise, noise_clip=0.5, alpha=alpha)
    assert agent.hierarchy.k == 4
    return make_goal_loss(actor, critics, 4, options), actor, critics


def goal_loss_by_hand(loss, actor, critics, batch, algorithm, seed, low=-4.0, high=0.0, gamma=0.95, alpha=0.3):
    """(loss_actor, loss_qvalue), with the draws that the loss makes after ``torch.manual_seed(seed)``."""
    plain_actor = copy.deepcopy(actor[0].module if algorithm == "sac" else actor.module)
    plain = copies(copy.deepcopy(critics), loss.qvalue_network_params)
    targets = copies(copy.deepcopy(critics), loss.target_qvalue_network_params)
    torch.manual_seed(seed)
    shape, task, bounds = batch["action"].shape, [batch["goal"]], {"low": low, "high": high}
    if algorithm == "sac":
        noise = torch.randn(shape), torch.randn(shape)
        return sac_losses(plain_actor, plain, targets, batch, task, noise, gamma=gamma, alpha=alpha, **bounds)
    return td3_losses(plain_actor, plain, plain_actor, targets, batch, task, torch.zeros(shape), gamma=gamma, **bounds)


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_targets_are_clamped_to_the_attainable(algorithm):
    loss, actor, critics = make_goal(algorithm)
    batch = random_transitions((64,), seed=7, goal=True).exclude("steps_to_next_obs")
    batch["next", "reward"] = 4 * batch["next", "reward"]
    torch.manual_seed(3)
    found = loss(batch.copy())
    expected = goal_loss_by_hand(loss, actor, critics, batch, algorithm, 3)
    torch.testing.assert_close(found["loss_actor"], expected[0])
    torch.testing.assert_close(found["loss_qvalue"], expected[1])
    for bounds in ({"low": -1e9}, {"high": 1e9}):  # both of them do bite
        other = goal_loss_by_hand(loss, actor, critics, batch, algorithm, 3, **bounds)
        assert (found["loss_qvalue"] - other[1]).abs() > 0.1


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_the_worst_target_is_minus_h(algorithm):
    """r = -1 before a state of value -H: the target is -H, not -1 - gamma H; and never above 0."""
    loss, _, critics = make_goal(algorithm, alpha=1e-6)
    for name, p in loss.target_qvalue_network_params.data.flatten_keys(".").items():
        if name.endswith("net.4.weight") or name.endswith("net.4.bias"):
            p.fill_(0.0 if name.endswith("weight") else 50.0)
    batch = random_transitions((ROWS,), seed=7, goal=True).exclude("steps_to_next_obs")
    batch["next", "terminated"] = torch.zeros(ROWS, 1, dtype=torch.bool)
    q = torch.stack(
        [
            net(batch["observation"], batch["goal"], batch["action"])
            for net in copies(critics, loss.qvalue_network_params)
        ]
    )
    for reward, target in ((-1.0, -4.0), (0.0, -0.95 * 4), (9.0, 0.0)):
        batch["next", "reward"] = torch.full((ROWS, 1), reward)
        torch.testing.assert_close(loss(batch.copy())["loss_qvalue"], ((q - target) ** 2).mean(1).sum())


@pytest.mark.parametrize("level", [0, 1])
def test_predictions_lie_within_the_attainable(level):
    config = tiny_config(hierarchy__depth=3, hierarchy__decision_steps=16, lower__critic_norm=False)
    agent = tiny_agent(config)
    _, critics = make_goal_networks(agent.hierarchy, level, agent.observation_spec, False, config.lower)
    batch = random_transitions((256,), seed=7, goal=True)
    inputs = (100 * batch["observation"], 10 * batch["goal"], batch["action"])
    values = torch.cat([critic.module(*inputs) for critic in critics])
    assert values.min() >= -4 and values.max() <= 0
    assert values.min() < -3 and values.max() > -1  # far from what untrained networks give for small inputs


@pytest.mark.parametrize("name", ["td3", "sac", "top"])
def test_only_terminated_rows_are_not_bootstrapped(name):
    if name == "top":
        loss = make_sac(ContextSACLoss, *top_networks(0))
    else:
        loss, *_ = make_goal(name)
    batch = random_transitions((ROWS,), seed=8, goal=name != "top")
    batch["next", "reward"] = -batch["next", "reward"].abs()
    terminated = batch["next", "terminated"].squeeze(-1)
    truncated = batch["next", "done"].squeeze(-1) & ~terminated
    going_on = ~batch["next", "done"].squeeze(-1)
    assert min(terminated.sum(), truncated.sum(), going_on.sum()) > 1

    def loss_qvalue(rows):
        torch.manual_seed(3)
        changed = batch.clone()
        changed["next", "observation"][rows] += 3.0
        return loss(changed)["loss_qvalue"].item()

    as_it_was = loss_qvalue(torch.zeros(ROWS, dtype=torch.bool))
    assert loss_qvalue(terminated) == as_it_was
    assert abs(loss_qvalue(truncated) - as_it_was) > 1e-6
    assert abs(loss_qvalue(going_on) - as_it_was) > 1e-6


def test_the_bounded_estimator_clamps_and_discounts():
    estimator = BoundedTD0Estimator(low=-4.0, high=0.0, gamma=0.5, value_network=None)
    terminated = torch.tensor([[False], [False], [True], [False]])
    step = {
        "reward": torch.tensor([[-1.0], [-3.0], [-1.0], [1.0]]),
        "state_value": torch.tensor([[-2.0], [-4.0], [-4.0], [-1.0]]),
        "done": torch.ones(4, 1, dtype=torch.bool),
        "terminated": terminated,
    }
    assert estimator.value_estimate(TensorDict({"next": step}, [4])).squeeze(-1).tolist() == [-2.0, -4.0, -1.0, 0.0]


# KL.


def test_kl_closed_form():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(4, 3, generator=generator)
    scale = torch.rand(4, 3, generator=generator) + 0.05
    expected = kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum(-1).mean()
    assert expected > 0.5
    found = KLLoss()(TensorDict({"z_loc": loc, "z_scale": scale}, [4]))["loss_kl"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(KLLoss()(z_loc=loc, z_scale=scale), expected)  # without a TensorDict
    renamed = KLLoss()
    renamed.set_keys(loc="mean", scale="deviation")
    torch.testing.assert_close(renamed(TensorDict({"mean": loc, "deviation": scale}, [4]))["loss_kl"], expected)


def test_losses_of_critics_in_several_stacks_add_up():
    y, stacks = torch.randn(2, 6, 1), [torch.randn(2, 2, 6, 1), torch.randn(1, 2, 6, 1)]  # [G, n, 1], [E, G, n, 1]
    critics = [lambda x, tape, out=out: out for out in stacks]
    total, gradient = critic_loss(critics, torch.randn(2, 6, 3), y, learns=False, wants_x=False)
    expected = (torch.cat(stacks) - y).square().mean((-2, -1)).sum(0)
    torch.testing.assert_close(total, expected)
    assert gradient is None
