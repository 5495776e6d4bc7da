"""The context variable: encoder, beliefs, and the belief that the policy carries along."""

import dataclasses

import pytest
import torch
from tiny import Ending, random_context, random_transitions, record, tiny_agent, tiny_config
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.config import ConfigError
from peach_trl.context import Attention, Belief, BeliefTracker, ContextEncoder, GaussianProduct, Recurrent, Transition
from peach_trl.context.kinds import make_belief
from peach_trl.experiment import load_agent, make_agent, make_env, make_library
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.utils import Run

HIGH = torch.tensor([10.0, 5.0, 1.0, 0.5])
SPEC = Bounded(-HIGH, HIGH, shape=(4,))


def make(kind, decisions=None):
    """A belief with random weights everywhere, its head included."""
    torch.manual_seed(0)
    encoder = ContextEncoder(SPEC, 2, 6 if kind.startswith("product") else 12, cells=(16,))
    beliefs = {
        "product": lambda: GaussianProduct(encoder, 3, decisions=decisions),
        "product, softplus": lambda: GaussianProduct(encoder, 3, decisions=decisions, precision="softplus"),
        "attention": lambda: Attention(encoder, 3, features=12, heads=2, decisions=decisions),
        "recurrent": lambda: Recurrent(encoder, 3, features=12),
    }
    belief = beliefs[kind]()
    for parameter in belief.parameters():
        nn.init.normal_(parameter, std=0.5)
    return belief


KINDS = ["product", "product, softplus", "attention", "recurrent"]
SETS = KINDS[:3]


def context(batch, length, seed):
    """Contexts of 0, 1, ... transitions, their mask apart."""
    rows = random_context(batch, length, seed)
    return Transition.of(rows), rows["mask"]


# Beliefs.


@pytest.mark.parametrize("kind", KINDS)
def test_scan_equals_repeated_update(kind):
    belief, (c, mask) = make(kind), context(4, 7, seed=1)
    states = belief.scan(c, mask)
    state = belief.initial(4)
    assert states.shape == (4, 8, belief.state_dim) and torch.equal(states[:, 0], state)
    for t in range(7):
        after = belief.update(state, Transition(*(part[:, t] for part in c)))
        state = torch.where(mask[:, t : t + 1], after, state)
        torch.testing.assert_close(states[:, t + 1], state)
    assert not torch.allclose(states[3, 2], states[3, 3], atol=1e-3)
    torch.testing.assert_close(belief(c, mask), belief.posterior(state))


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_forgets_all_but_the_last_decisions(kind, window):
    belief, whole, (c, _) = make(kind, window), make(kind), context(2, 7, seed=2)
    states, state = belief.scan(c), belief.initial(2)
    for t in range(7):
        state = belief.update(state, Transition(*(part[:, t] for part in c)))
        torch.testing.assert_close(states[:, t + 1], state)
        last = Transition(*(part[:, max(0, t + 1 - window) : t + 1] for part in c))
        torch.testing.assert_close(belief.posterior(state), whole(last), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SETS)
def test_a_window_slides_over_transitions_only(kind):
    belief, (c, mask) = make(kind, 3), context(6, 12, seed=2)
    for row in range(1, 6):
        last = Transition(*(part[row : row + 1, max(0, row - 3) : row] for part in c))
        found = [value[row : row + 1] for value in belief(c, mask)]
        torch.testing.assert_close(found, list(make(kind)(last)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="mask first: pack each row to the left"):
        belief.scan(c, mask.flip(1))


@pytest.mark.parametrize("kind", SETS)
def test_order_and_masked_transitions_do_not_matter(kind):
    belief, (c, mask) = make(kind), context(4, 7, seed=3)
    expected = belief(c, mask)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert order.tolist() != list(range(7))
    torch.testing.assert_close(belief(Transition(*(part[:, order] for part in c)), mask[:, order]), expected)
    other, _ = context(4, 7, seed=4)
    mixed = Transition(*(torch.where(mask.unsqueeze(-1), a, b) for a, b in zip(c, other, strict=True)))
    assert not torch.equal(mixed.observation, c.observation)
    found = belief(mixed, mask)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_order_matters_to_a_recurrent_belief():
    belief, (c, _) = make("recurrent"), context(2, 5, seed=3)
    flipped = Transition(*(part.flip(1) for part in c))
    assert not torch.allclose(belief(c)[0], belief(flipped)[0], atol=1e-2)
    with pytest.raises(ValueError, match="mask first: pack each row to the left"):
        belief.scan(c, torch.tensor([[True, False, True, True, True]] * 2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_transition_counts(kind):
    belief, row = make(kind), Transition.of(random_transitions((1, 1), seed=9))
    expected = belief(row)[0]
    for name in Transition._fields:
        changed = row._replace(**{name: getattr(row, name) + 0.5})
        assert not torch.allclose(belief(changed)[0], expected, atol=1e-4), name


def gaussian(belief, c, row, step):
    """One transition's Gaussian from its definition."""
    s, a, r, after = (part[row, step] for part in c)
    mean, x = belief.encoder.net(torch.cat([s / HIGH, a, r, after / HIGH])).chunk(2)
    if belief.precision == "softplus":
        return mean, nn.functional.softplus(x) + 1e-3
    return mean, torch.exp(-(x - 1).clamp(-8, 10) / 2)


@pytest.mark.parametrize("kind", SETS[:2])
def test_the_posterior_is_the_product_of_densities(kind):
    """Densities multiplied on a grid, with the prior and by transition, then normalised."""
    belief, (c, mask) = make(kind), context(4, 6, seed=1)
    loc, scale = belief(c, mask)
    grid = torch.linspace(-12, 12, 80001, dtype=torch.float64)
    for task in range(4):
        for z in range(3):
            log_density = -0.5 * grid**2
            for j in range(task):  # the mask of random_context
                mean, deviation = (value[z].double() for value in gaussian(belief, c, task, j))
                log_density = log_density - 0.5 * ((grid - mean) / deviation) ** 2
            density = (log_density - log_density.max()).exp()
            density = density / density.sum()
            mean = (density * grid).sum()
            torch.testing.assert_close(loc[task, z].double(), mean, atol=1e-5, rtol=1e-4)
            deviation = (density * (grid - mean) ** 2).sum().sqrt()
            torch.testing.assert_close(scale[task, z].double(), deviation, atol=1e-5, rtol=1e-3)
    assert scale[3].max() < 1 and loc[1:].abs().min() > 1e-4


def test_nothing_known_is_the_prior():
    for kind in SETS[:2]:
        loc, scale = make(kind)(*context(1, 5, seed=2))
        assert torch.equal(loc, torch.zeros(1, 3)) and torch.equal(scale, torch.ones(1, 3))
    for kind, features in (("attention", 12), ("recurrent", 12)):  # untrained heads
        torch.manual_seed(0)
        config = tiny_config(context__belief=kind, context__features=features, context__latent_dim=3).context
        belief = make_belief(config, SPEC, 2)
        loc, scale = belief(*context(3, 5, seed=2))
        assert torch.equal(loc, torch.zeros(3, 3)) and torch.equal(scale, torch.ones(3, 3))


def test_bad_arguments_are_refused():
    encoder = ContextEncoder(SPEC, 2, 6)
    for call, message in (
        (lambda: GaussianProduct(encoder, 0), "latent_dim = 0"),
        (lambda: GaussianProduct(encoder, 3, precision="log"), "precision = 'log': use exponential or softplus"),
        (lambda: GaussianProduct(encoder, 3, decisions=0), "decisions = 0: the window must hold at least 1"),
        (lambda: Attention(encoder, 3, features=10, heads=4), "features = 10: must be a multiple of heads = 4"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    hierarchy = tiny_agent(tiny_config()).hierarchy
    for options, message in (
        ({"read": "mean"}, "read = 'mean': use one of belief, sample"),
        ({"update": "episode"}, "update = 'episode': use one of decision, trajectory"),
        ({"trajectories": 0}, "trajectories = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BeliefTracker(make("product"), hierarchy, 4, **options)
    with pytest.raises(ValueError, match="make it with num_tasks"):
        BeliefTracker(make("product"), hierarchy, 4).reset(torch.tensor([0]))


# An encoder of one's own.


class OwnEncoder(nn.Module):
    def __init__(self, observation_spec, action_dim, out_features):
        super().__init__()
        self.net = nn.Linear(3 * observation_spec.shape[-1] + action_dim + 2, out_features)

    def forward(self, observation, action, evidence, next_observation):
        return self.net(torch.cat([observation, action, evidence, next_observation], -1)).tanh()


def test_an_encoder_is_handed_in_as_an_object_or_by_name():
    config = tiny_config()
    agent = tiny_agent(config, encoder=OwnEncoder(SPEC, 2, 10))
    assert isinstance(agent.top.belief.encoder, OwnEncoder)
    assert isinstance(agent.make_policy().tracker.belief.encoder, OwnEncoder)
    named = tiny_agent(tiny_config(context__encoder=f"{__name__}:OwnEncoder"))
    assert isinstance(named.top.belief.encoder, OwnEncoder)
    belief = GaussianProduct(OwnEncoder(SPEC, 2, 10), 5)
    agent = make_agent(config, make_library(config), belief=belief)
    assert agent.top.belief is belief and agent.make_policy().tracker.belief is belief
    several = make_agent(dataclasses.replace(config, seeds=2), make_library(config), belief=belief).top.belief
    own = [{id(parameter) for parameter in part.parameters()} for part in several.copies]  # each agent has one
    assert len(own) == 2 and own[0] and not own[0] & own[1]
    with pytest.raises(ConfigError, match="context.latent_dim = 5: the belief that was handed over has 3"):
        make_agent(config, make_library(config), belief=make("product"))
    with pytest.raises(ConfigError, match=r"OwnEncoder: puts out \[7\] for a transition; this belief needs \[10\]"):
        tiny_agent(config, encoder=OwnEncoder(SPEC, 2, 7))
    with pytest.raises(ValueError, match="encoder and belief are both given"):
        make_agent(config, make_library(config), OwnEncoder(SPEC, 2, 10), belief)
    for path in ("nowhere:Encoder", f"{__name__}:Nothing", "OwnEncoder"):
        with pytest.raises(ConfigError, match="write module:name"):
            tiny_agent(tiny_config(context__encoder=path))


def test_an_agent_with_an_encoder_of_ones_own_is_loaded(tmp_path):
    config = tiny_config()
    agent = tiny_agent(config, encoder=OwnEncoder(SPEC, 2, 10))
    run = Run(tmp_path, config)
    path = run.checkpoint("final", {"config": dataclasses.asdict(config), "agent": agent.state_dict()})
    _, _, loaded = load_agent(str(path), encoder=OwnEncoder(SPEC, 2, 10))
    for name, value in agent.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with pytest.raises(ConfigError, match="hand over the encoder or belief that it was trained with"):
        load_agent(str(path))


# The tracker.


def meta_episodes(config, agent, batch):
    """The converted decisions of every row's meta-episodes, in order."""
    rows = LevelTransitions(agent.hierarchy, config.transitions, evidence=agent.evidence)(batch)[-1]
    return {
        number: rows[(rows["meta_episode"] == number).squeeze(-1)] for number in rows["meta_episode"].unique().tolist()
    }


@pytest.mark.parametrize("belief", ["product", "attention", "recurrent"])
@pytest.mark.parametrize("clock", ["own_goal", "time"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_policys_belief_agrees_with_the_conversion(depth, clock, belief):
    """At each decision, over the trajectories of a meta-episode, it is what its converted transitions give."""
    config = tiny_config(
        hierarchy__depth=depth, hierarchy__clock=clock, transitions__reward_scale=0.7, context__belief=belief
    )
    agent = tiny_agent(config, seed=depth)
    for parameter in agent.top.belief.parameters():
        nn.init.normal_(parameter, std=0.3)
    policy = agent.make_policy(trajectories=2)
    tasks, horizon = torch.tensor([2, 0, 1]), config.env.horizon
    library = make_library(config)
    base = Ending(config.env, 3, library=library, tasks=tasks)
    env = make_env(config, library, tasks, policy)
    policy.explore(at_random=True)
    torch.manual_seed(0)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        batch = TransformedEnv(base, env.transform.clone()).rollout(8 * horizon, policy, break_when_any_done=False)
    done = batch["next", "done"].squeeze(-1)
    assert batch["next", "terminated"].any() and not (done == done[:1]).all()
    acts, compared = batch["hierarchy", "acts"][..., -1], 0
    for number, rows in meta_episodes(config, agent, batch).items():
        row = number % 3
        here = acts[row] & (batch["context", "meta_episode"][row, :, 0] == number // 3)
        found = batch["belief"][row][here]
        states = agent.top.belief.scan(Transition(*(part.unsqueeze(0) for part in Transition.of(rows))))[0]
        expected = agent.top.belief.read(states).detach()
        assert abs(len(found) - len(rows)) <= 1 or number // 3 > 0
        count = min(len(found), len(rows))
        torch.testing.assert_close(found[:count], expected[:count], atol=1e-4, rtol=1e-3)
        compared += count
    assert compared > 30 * (1 if depth > 1 else 4)
    reads = batch["belief"]
    changed = (reads[:, 1:] != reads[:, :-1]).any(-1)
    assert not (changed & ~acts[:, 1:]).any()  # between decisions it stays


def test_a_meta_episode_carries_the_belief_over_and_ends_with_the_prior():
    config = tiny_config()
    batch = record(config, tiny_agent(config).make_policy(trajectories=3), [0, 1], 7 * 20)
    nothing = torch.cat([torch.zeros(5), torch.zeros(5)])
    starts = batch["belief"][:, ::20]
    for t in range(7):
        assert (starts[:, t] == nothing).all() == (t % 3 == 0)
        assert (batch["context", "trajectory"][:, 20 * t : 20 * t + 20] == t % 3).all()
        assert (batch["context", "meta_episode"][:, 20 * t : 20 * t + 20] == t // 3).all()


def test_update_by_trajectory_reads_once_a_trajectory():
    config = tiny_config(context__update="trajectory")
    batch = record(config, tiny_agent(config).make_policy(trajectories=2), [0, 1], 60)
    reads = batch["belief"].unflatten(1, (3, 20))
    assert torch.equal(reads, reads[:, :, :1].expand_as(reads))
    other = record(tiny_config(), tiny_agent(tiny_config()).make_policy(trajectories=2), [0, 1], 60)
    assert not torch.equal(reads[:, 1, 0], reads[:, 0, 0])
    assert not torch.equal(other["belief"][:, 4], other["belief"][:, 0])


def test_samples_follow_the_belief_in_force():
    """Drawn anew exactly where the top level acts, from what is known there."""
    config = tiny_config(context__read="sample")
    agent = tiny_agent(config)
    with torch.no_grad():  # every transition says: 3 +- 0.01
        agent.top.belief.encoder.net[-1].weight.zero_()
        agent.top.belief.encoder.net[-1].bias[:5], agent.top.belief.encoder.net[-1].bias[5:] = 3.0, 10.2
    batch = record(config, agent.make_policy(seed=1), [0, 1, 2], 40)
    z, acts = batch["z"], batch["hierarchy", "acts"][..., -1]
    changed = (z[:, 1:] != z[:, :-1]).all(-1)
    assert torch.equal(changed, acts[:, 1:]) and torch.equal(changed, (z[:, 1:] != z[:, :-1]).any(-1))
    assert acts.sum() == 3 * 10
    known = torch.arange(40) % 20 >= 4
    assert (z[:, known] - 3).abs().max() < 0.1
    assert z[:, ~known].std() > 0.5 and z[:, ~known].abs().max() < 5


def test_rows_of_a_table_start_from_their_own_task():
    config = tiny_config(context__read="sample", context__update="trajectory", context__precision="softplus")
    agent = tiny_agent(config)
    tracker = agent.make_policy(num_tasks=3, seed=1).tracker
    c = random_context(2, 6, seed=5)
    tracker.condition(torch.tensor([2, 0]), c)
    expected = agent.top.belief(Transition.of(c), c["mask"])
    torch.testing.assert_close(agent.top.belief.posterior(tracker.table[[2, 0]]), expected)
    assert torch.equal(tracker.table[1], torch.zeros(10)) and not tracker.table.requires_grad
    mean = torch.tensor([-5.0, 0.0, 5.0])
    policy = agent.make_policy(num_tasks=3, seed=1)
    policy.tracker.table[:, :5], policy.tracker.table[:, 5:] = 1e6, 1e6 * mean.unsqueeze(-1)
    batch = record(config, policy, [2, 0, 1, 0], 40)
    for start in (0, 20):
        torch.testing.assert_close(
            batch["z"][:, start], mean[[2, 0, 1, 0]].unsqueeze(-1).expand(4, 5), rtol=0, atol=0.01
        )
    policy.tracker.reset(torch.tensor([0, 2]))
    assert policy.tracker.table.abs().sum(-1).nonzero().flatten().tolist() == [1]


def test_draws_depend_on_the_seed_and_nothing_else():
    config = tiny_config(context__read="sample")
    agent = tiny_agent(config)

    def first(seed, global_seed):
        torch.manual_seed(global_seed)
        return record(config, agent.make_policy(seed=seed), [0, 1, 2], 1)["z"]

    assert torch.equal(first(1, 0), first(1, 5))
    assert not torch.equal(first(1, 0), first(2, 0))
    assert not torch.equal(first(None, 0), first(None, 5))  # the process's seed


def test_draws_follow_a_seed_that_is_set_after_a_trial_call():
    """As in a worker of a collector, which calls the policy once to see its outputs and is seeded later."""
    config = tiny_config(context__read="sample")
    agent = tiny_agent(config)

    def first(born_with):
        policy = agent.make_policy()
        torch.manual_seed(born_with)
        record(config, policy, [0, 1, 2], 1, ExplorationType.DETERMINISTIC)
        torch.manual_seed(0)
        return record(config, policy, [0, 1, 2], 1)

    assert torch.equal(first(born_with=5)["z"], first(born_with=6)["z"])


@pytest.mark.parametrize("kind", ["product", "attention", "recurrent", "window"])
def test_beliefs_take_any_leading_dimensions(kind):
    """[L], [B, L] and [A, B, L] transitions, with a mask and without."""
    torch.manual_seed(0)
    if kind in ("product", "window"):
        encoder = ContextEncoder(Unbounded((4,)), 2, out_features=10)
        belief = GaussianProduct(encoder, 5, decisions=3 if kind == "window" else None)
    else:
        encoder = ContextEncoder(Unbounded((4,)), 2, out_features=32)
        belief = {"attention": Attention, "recurrent": Recurrent}[kind](encoder, latent_dim=5, features=32)
    parts = [torch.randn(2, 3, 7, size) for size in (4, 2, 1, 4)]
    mask = torch.arange(7) < torch.tensor([[7, 4, 0], [1, 2, 3]]).unsqueeze(-1)
    whole, pairs = Transition(*parts), Transition(*(part.flatten(0, 1) for part in parts))
    for masks in ((None, None), (mask, mask.flatten(0, 1))):
        for method in (belief.forward, belief.trace):
            for one, other in zip(method(whole, masks[0]), method(pairs, masks[1]), strict=True):
                assert torch.allclose(one.flatten(0, 1), other, atol=1e-6) and one.shape[:2] == (2, 3)
    single = Transition(*(part[0, 0] for part in parts))
    for method in (belief.forward, belief.trace):
        for one, other in zip(method(single), method(whole), strict=True):
            assert torch.allclose(one, other[0, 0], atol=1e-6)


class Mean(Belief):
    """The mean over rewards so far; each of its methods can be made wrong."""

    state_dim = 2

    def __init__(self, **wrong):
        super().__init__(nn.Linear(1, 1), latent_dim=1)
        vars(self).update(wrong)

    def update(self, state, transition):
        return state + torch.cat([transition.evidence[..., :1], torch.ones_like(transition.evidence[..., :1])], -1)

    def scan(self, transitions, mask=None):
        reward = transitions.evidence[..., :1]
        return nn.functional.pad(torch.cat([reward, torch.ones_like(reward)], -1).cumsum(-2), (0, 0, 1, 0))

    def posterior(self, state):
        return state[..., :1] / state[..., 1:].clamp(min=1), torch.ones_like(state[..., :1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, None),
        (
            {"scan": lambda transitions: None},
            r"Mean: scan\(.* returns NoneType; it must return \[2, 4, 2\]",
        ),
        ({"scan": lambda transitions: transitions.evidence}, r"scan\(transitions \[B, L\]\) returns \[2, 3, 6\]"),
        ({"update": lambda state: state}, r"Mean: update\(state \[B, S\], transition \[B\]\); TypeError: "),
        ({"update": lambda state, transition: state[:1]}, r"update\(.* returns \[1, 2\]; it must return \[2, 2\]"),
        (
            {"update": lambda state, transition: state + 2},
            r"after 1 transitions update\(\) has another state",
        ),
        ({"posterior": lambda state: state}, r"posterior\(\) returns a Tensor; return \(mean, deviation\)"),
        ({"posterior": lambda state: (state, state)}, r"posterior\(.* returns \[2, 4, 2\]; it must return \[2, 4, 1\]"),
        ({"posterior": lambda state: (state[..., :1],) * 2}, r"a deviation of 0; it must be above 0"),
    ],
)
def test_a_belief_of_ones_own_is_tried(wrong, message):
    config = tiny_config(context__latent_dim=1)
    library = make_library(config)
    if message is None:
        assert make_agent(config, library, belief=Mean()).top.belief.training
        return
    with pytest.raises(ConfigError, match=message):
        make_agent(config, library, belief=Mean(**wrong))


def test_an_encoder_of_another_signature_is_named():
    config = tiny_config()
    with pytest.raises(ConfigError, match=r"Linear: it takes \(s, a, r, s'\) of 4, 2, \d and 4 numbers; TypeEr"):
        make_agent(config, make_library(config), encoder=nn.Linear(4, 10))
