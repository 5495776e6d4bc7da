"""What a gradient step costs, against its matrix products alone and against others who do the same: CPU time, ours = 1.

    python benchmarks/update.py                             # all sizes, all contenders that are installed
    python benchmarks/update.py sizes=default rounds=5      # some of it
    python benchmarks/update.py peers=plain,scan ms=1       # some contenders; milliseconds as well
    python benchmarks/update.py sizes=pearl oyster=PATH     # with PEARL's own code, of a checkout of katerakelly/oyster
    python benchmarks/update.py compile=1                   # plain torch through torch.compile, too

Sizes: `default`, the top and the lower level of configs/peach.yaml, with one-step targets and no norm below; `pearl`,
a flat policy with PEARL's networks and batches; `wide`, SAC and TD3 of 2 x 256 units at a batch of 256. One process,
one thread, one core. The contenders take turns, `updates` steps at a time, over `rounds` rounds (at least 2): medians
and quartiles of the ratio within a round.
What plain torch and JAX compute is checked against the package first, over several updates with the same draws.
`pip install -e ".[benchmarks]"` brings JAX, Stable-Baselines3 and SBX; what is missing is left out, with a message.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

# Before JAX is imported. Its CPU time is that of all its threads, in any case.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gymnasium import spaces  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from torch import Tensor  # noqa: E402
from update_peers import Jax, Layers, PlainTorch, Problem, Products  # noqa: E402

from peach_trl.agent import Agent  # noqa: E402
from peach_trl.experiment import PeachConfig, SourceConfig, make_agent, make_library, seed_everything  # noqa: E402
from peach_trl.modules.networks import observation_scale  # noqa: E402
from peach_trl.utils import load_config  # noqa: E402

CONFIGS = Path(__file__).parents[1] / "configs"
SAME = ["top.n_step=1", "context.evidence=reward", "lower.critic_norm=false"]  # what the contenders compute
CHECKED = 4  # updates whose losses are compared
ROWS = 20_000  # in the replay of other packages


@dataclass
class Case:
    """One gradient step of the package, and the problem that it is.

    Attributes:
        name: what it is.
        update: one update with the package's public components.
        stepwise: one update that returns the losses and the draws behind them.
        problem: the same for the others.
        updates: in a turn, by default.
        note: what it leaves out.
        bf16: the same in bfloat16.
    """

    name: str
    update: Callable[[], Any]
    stepwise: Callable[[int], tuple[dict[str, float], dict[str, Tensor]]]
    problem: Problem
    updates: int
    note: str = "the package's public components"
    bf16: Case | None = None

    def run(self, n: int) -> None:
        """N updates."""
        for _ in range(n):
            self.update()


# The package's agents, and random data of their shapes.


def load(schema: type, name: str, overrides: list[str]) -> tuple[Any, Agent]:
    """Configuration and agent."""
    config = load_config(schema, name, CONFIGS, overrides)
    seed_everything(config)
    return config, make_agent(config, make_library(config))


def columns(agent: Agent, shape: tuple[int, ...], level: int, steps: int | None = None) -> TensorDict:
    """Random transitions: observations and goals in their range, one in twenty terminal."""
    generator = torch.Generator().manual_seed(0)

    def uniform(size: int) -> Tensor:
        return 2 * torch.rand(*shape, size, generator=generator) - 1

    scale = observation_scale(agent.observation_spec)
    end = uniform(1) > 0.9
    after = {"observation": uniform(len(scale)) / scale, "reward": uniform(1), "done": end, "terminated": end}
    now = {"observation": uniform(len(scale)) / scale, "action": 0.98 * uniform(agent.hierarchy.proposal_dims[level])}
    space = agent.hierarchy.space_of(level)
    if space is not None:
        now["goal"] = after["goal"] = space.low + (1 + uniform(space.dim)) * space.half_range
    if steps is not None:
        now["steps_to_next_obs"] = torch.full((*shape, 1), steps)
    return TensorDict({**now, "next": TensorDict(after, shape)}, shape)


def layers(named: Any, member: int | None = None) -> Layers:
    """The layers of a perceptron, or of one member of an ensemble, by the numbers in their names."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in named:
        *_, number, kind = name.split(".")
        if number.isdigit():
            part = tensor.detach() if member is None else tensor.detach()[member]
            found.setdefault(int(number), {})[kind] = part.clone()
    return [(layer["weight"], layer["bias"]) for _, layer in sorted(found.items())]


def networks(loss: Any) -> dict[str, Layers]:
    """Actor and critics of a loss."""
    params = loss.actor_network_params, loss.qvalue_network_params
    actor, critics = (list(part.data.flatten_keys(".").items()) for part in params)
    return {"actor": layers(actor)} | {f"critic_{i}": layers(critics, i) for i in range(2)}


def data_of(batch: TensorDict, scale: Tensor) -> dict[str, Any]:
    """A batch as the others get it."""
    data = {
        "s": batch["observation"], "a": batch["action"], "r": batch["next", "reward"], "scale": scale,
        "s_after": batch["next", "observation"], "terminated": batch["next", "terminated"],
    }  # fmt: skip
    if "steps_to_next_obs" in batch.keys():
        data["steps"] = batch["steps_to_next_obs"]
    return data


def context_of(context: TensorDict) -> dict[str, Any]:
    """A context as the others get it."""
    after = context["next"]
    return {
        "context_s": context["observation"], "context_a": context["action"], "context_r": after["reward"],
        "context_s_after": after["observation"], "context_mask": context["mask"],
    }  # fmt: skip


def top_case(name: str, config: Any, agent: Agent, batch: TensorDict, context: TensorDict | None, updates: int) -> Case:
    """The top level's step, which is SAC."""
    top, settings = agent.top, config.top
    nets, noises, data = networks(top.loss), {}, data_of(batch, observation_scale(agent.observation_spec))
    reads = None if top.belief is None else config.context.read
    if reads is not None:
        nets["encoder"] = layers(top.belief.encoder.net.named_parameters())
        data |= context_of(batch if context is None else context)
        if reads == "sample":
            noises["z"] = (len(batch), config.context.latent_dim)
    if config.context.bootstrap and "part" in batch.keys():
        data["part"] = batch["part"]
    if reads is None:
        data = {key: value if key == "scale" else value.flatten(0, 1) for key, value in data.items()}
    noises["after"] = noises["now"] = tuple(data["a"].shape)
    slow = reads is not None and config.context.next == "after"
    problem = Problem(
        "sac", nets, data, {"encoder": settings.alpha_1, "actor": settings.alpha_2, "critic": settings.alpha_3},
        settings.gamma, settings.tau, alpha=settings.alpha, reads=reads, precision=config.context.precision,
        beta=settings.loss_kl, slow=config.context.slow if slow else 1.0, average=settings.average, noises=noises,
    )  # fmt: skip

    def stepwise(seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        b, q = top.believe(batch) if context is None else top.infer(batch, context)
        noise = {}
        if "z" in noises:
            noise["z"] = (b[top.loss.tensor_keys.context][:, 0].detach() - q["z_loc"].detach()) / q["z_scale"].detach()
        torch.manual_seed(seed)
        found = top.loss(b)
        found.update(top.kl_loss(q))
        top.weigh(found).backward()
        top.step()
        torch.manual_seed(seed)
        noise |= {key: torch.randn(noises[key]) for key in ("after", "now")}
        names = ["loss_qvalue", "loss_actor"] + ["loss_kl"] * (reads is not None)
        return {key: found[key].item() for key in names}, noise

    return Case(name, lambda: top.update(batch, context), stepwise, problem, updates)


def lower_case(name: str, config: Any, agent: Agent, batch: TensorDict, updates: int) -> Case:
    """The lowest level's step, which is TD3 with bounded values."""
    level, settings, hierarchy = agent.levels[0], config.lower, agent.hierarchy
    space, relative = hierarchy.space_of(0), config.hierarchy.subgoal == "relative"
    data = data_of(batch, observation_scale(agent.observation_spec)) | {
        "goal": batch["goal"], "goal_slice": slice(space.indices[0], space.indices[-1] + 1), "goal_relative": relative,
        "goal_middle": space.low + space.half_range, "goal_range": hierarchy.reach[1] if relative else space.half_range,
    }  # fmt: skip
    shape = tuple(batch["action"].shape)
    problem = Problem(
        "td3", networks(level.loss), data, dict.fromkeys(("actor", "critic"), settings.learning_rate),
        settings.gamma, settings.tau, noise=settings.policy_noise, clip=settings.noise_clip,
        horizon=float(hierarchy.k), noises={"after": shape},
    )  # fmt: skip

    def stepwise(seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        torch.manual_seed(seed)
        found = level.update(batch)
        torch.manual_seed(seed)
        return {key: found[key].item() for key in ("loss_qvalue", "loss_actor")}, {"after": torch.randn(shape)}

    return Case(name, lambda: level.update(batch), stepwise, problem, updates)


def default_cases() -> list[Case]:
    """The default job's, but for targets of several decisions and the lower critics' norm, which others do not have."""
    config, agent = load(PeachConfig, "peach", SAME)
    decisions = -(-config.env.horizon // agent.hierarchy.k)  # of an episode
    shape = config.train.meta_batch * config.sequences.per_task, config.sequences.episodes * decisions
    batch = columns(agent, shape, 1, agent.hierarchy.k)
    batch["mask"] = torch.ones(shape, dtype=torch.bool)
    batch["part"] = torch.arange(shape[1]).div(decisions, rounding_mode="floor").expand(shape).clone()
    batch["missed"], batch["proposal"] = torch.zeros(*shape, 1, dtype=torch.bool), batch["action"].clone()
    lower = columns(agent, (config.train.lower_batch,), 0)
    size = f"{shape[0]} sequences of {shape[1]} decisions, networks of 2 x 64, belief of {config.context.latent_dim}"
    return [
        top_case(f"default, top level: {size}", config, agent, batch, None, 50),
        lower_case(f"default, lower level: TD3, batch {len(lower)}, networks of 2 x 64", config, agent, lower, 100),
    ]


def pearl_cases() -> list[Case]:
    """PEARL's, as its code has them for HalfCheetahVel: 16 tasks, 256 transitions and contexts of 100 each."""
    cases = []
    for norm in (False, True):
        cells = ["top.actor_cells=[300,300,300]", "top.critic_cells=[300,300,300]", "context.cells=[200,200,200]"]
        overrides = ["env=HalfCheetahVel", f"top.critic_norm={str(norm).lower()}", *cells]
        config, agent = load(SourceConfig, "pearl", overrides)
        batch, context = columns(agent, (16, 256), 0, 1), columns(agent, (16, 100), 0)
        context["mask"] = torch.ones(16, 100, dtype=torch.bool)
        name = f"pearl: 16 x 256 transitions, networks of 3 x 300, critics with{'' if norm else 'out'} normalisation"
        case = top_case(name, config, agent, batch, context, 2)
        short = load(SourceConfig, "pearl", [*overrides, "top.bf16=true", "context.bf16=true"])
        case.bf16 = top_case(name, *short, batch, context, 2)
        case.bf16.note = "the package's public components, computing in bfloat16: other rounding"
        cases.append(case)
    return cases


def wide_cases() -> list[Case]:
    """SAC and TD3 without any context, as other packages have them."""
    sizes = ["top.actor_cells=[256,256]", "top.critic_cells=[256,256]", "top.critic_norm=false", "top.average=1"]
    overrides = ["env=HalfCheetahVel", "context.latent_dim=0", "context.bootstrap=false", "top.batch=null", *sizes]
    config, agent = load(PeachConfig, "peach", ["hierarchy.depth=1", *SAME, *overrides])
    batch = columns(agent, (256, 1), 0)
    batch["mask"], batch["part"] = torch.ones(256, 1, dtype=torch.bool), torch.zeros(256, 1, dtype=torch.int64)
    sac = top_case("wide: SAC, batch 256, networks of 2 x 256", config, agent, batch, None, 30)
    overrides = ["env=HalfCheetahVel", "lower.actor_cells=[256,256]", "lower.critic_cells=[256,256]", *SAME]
    config, agent = load(PeachConfig, "peach", overrides)
    name = "wide: TD3, batch 256, networks of 2 x 256"
    return [sac, lower_case(name, config, agent, columns(agent, (256,), 0), 30)]


SIZES = {"default": default_cases, "pearl": pearl_cases, "wide": wide_cases}


# Other packages, which compute something close to it: what they leave out or do besides is printed.


class Unplayed(gymnasium.Env):
    """An environment that is only asked for its spaces."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self.observation_space = spaces.Box(-1, 1, (observation_dim,), np.float32)
        self.action_space = spaces.Box(-1, 1, (action_dim,), np.float32)


class Baselines:
    """SAC or TD3 of Stable-Baselines3 or SBX: ``model.train`` with a full replay buffer of random transitions."""

    def __init__(self, package: str, p: Problem) -> None:
        module = importlib.import_module(package)
        logger = importlib.import_module("stable_baselines3.common.logger")
        weights = [weight for weight, _ in p.nets["actor"] if weight.ndim == 2]
        self.batch = p.data["a"].shape[:-1].numel()
        env = Unplayed(weights[0].shape[1], p.data["a"].shape[-1])
        options: dict[str, Any] = {"policy_kwargs": {"net_arch": [len(weight) for weight in weights[:-1]]}}
        options |= {"batch_size": self.batch, "buffer_size": ROWS, "gamma": p.gamma, "tau": p.tau, "device": "cpu"}
        options |= {"ent_coef": p.alpha} if p.algorithm == "sac" else {"policy_delay": 1}
        self.model = getattr(module, p.algorithm.upper())("MlpPolicy", env, seed=0, **options)
        self.model.set_logger(logger.Logger(folder=None, output_formats=[]))
        self._fill(self.model.replay_buffer)
        without = "no bounds of values, " if p.horizon else "fixed alpha, "
        self.note = f"{without}policy updated at each step; draws its batches from its replay, too"

    def _fill(self, buffer: Any) -> None:
        generator = np.random.default_rng(0)
        for name in ("observations", "next_observations", "actions", "rewards"):
            column = getattr(buffer, name)
            column[:] = generator.uniform(-1, 1, column.shape)
        buffer.dones[:] = generator.uniform(size=buffer.dones.shape) > 0.95
        buffer.pos, buffer.full = 0, True

    def run(self, n: int) -> None:
        """N updates in one call."""
        self.model.train(gradient_steps=n, batch_size=self.batch)
        if hasattr(self.model, "key"):  # SBX works in the background
            importlib.import_module("jax").block_until_ready(self.model.policy.qf_state.params)


class Oyster:
    """A gradient step of PEARL's own code, github.com/katerakelly/oyster, on random data in place of its replay.

    Modules that it imports without a use here are stand-ins while it is imported; nothing else is changed. It has a
    value network in place of target critics, an optimiser a network, and no prior in its product; s' is in its context.
    """

    note = "no normalisation; one value network in place of target critics; proposes once; random data, no replay"

    def __init__(self, path: str, p: Problem) -> None:
        if not (Path(path) / "rlkit").is_dir():
            raise SystemExit(f"oyster={path}: no checkout of katerakelly/oyster; git clone it, and name its folder")
        unused = ("gtimer", "gym", "gym.spaces", "joblib", "dateutil", "dateutil.tz")
        stubs = {name: MagicMock() for name in unused}
        with patch.dict(sys.modules, stubs), patch.object(sys, "path", [path, *sys.path]):
            rlkit = {
                name: importlib.import_module(f"rlkit.torch.{name}")
                for name in ("networks", "sac.agent", "sac.policies", "sac.sac", "pytorch_util")
            }
        self.algorithm = self._build(SimpleNamespace(**{k.split(".")[-1]: v for k, v in rlkit.items()}), p)
        d, size = p.data, p.data["s"].shape
        batch = [d["s"], d["a"], d["r"], d["s_after"], d["terminated"].float()]
        self.algorithm.sample_sac = lambda indices: batch
        self.context = torch.cat([d["context_s"], d["context_a"], d["context_r"], d["context_s_after"]], -1)
        self.tasks = range(size[0])

    def _build(self, rlkit: SimpleNamespace, p: Problem) -> Any:
        """Networks and algorithm, as launch_experiment.py of that code puts them together, with its default rates."""
        rlkit.pytorch_util.set_gpu_mode(False)
        s, a, z = p.data["s"].shape[-1], p.data["a"].shape[-1], p.noises["z"][-1]
        make, cells = rlkit.networks.FlattenMlp, [300, 300, 300]
        critics = [make(hidden_sizes=cells, input_size=s + a + z, output_size=1) for _ in range(2)]
        value = make(hidden_sizes=cells, input_size=s + z, output_size=1)
        policy = rlkit.policies.TanhGaussianPolicy(hidden_sizes=cells, obs_dim=s + z, latent_dim=z, action_dim=a)
        encoder = rlkit.networks.MlpEncoder(hidden_sizes=[200] * 3, input_size=2 * s + a + 1, output_size=2 * z)
        options = {"recurrent": False, "use_information_bottleneck": True, "sparse_rewards": False}
        options["use_next_obs_in_context"] = True
        agent = rlkit.agent.PEARLAgent(z, encoder, policy, **options)
        return rlkit.sac.PEARLSoftActorCritic(
            env=MagicMock(), train_tasks=[], eval_tasks=[], latent_dim=z, nets=[agent, *critics, value],
            meta_batch=len(p.data["s"]), batch_size=p.data["s"].shape[1], policy_lr=3e-4, qf_lr=3e-4, vf_lr=3e-4,
            context_lr=3e-4, kl_lambda=0.1, soft_target_tau=0.005, discount=0.99, reward_scale=5.0, **options,
        )  # fmt: skip

    def run(self, n: int) -> None:
        """N updates."""
        for _ in range(n):
            self.algorithm.agent.clear_z(num_tasks=len(self.tasks))
            self.algorithm._take_step(self.tasks, self.context)
            self.algorithm.agent.detach_z()


# Measuring.


PEERS = "products,plain,compile,jax,scan,sb3,sbx,oyster"


def contenders(case: Case, words: dict[str, str]) -> dict[str, Any]:
    """The contenders that were asked for, that fit the case and that are installed, by their names."""
    p = case.problem
    makers: dict[str, tuple[str, bool, Callable[[], Any]]] = {
        "products": ("its matrix products alone", True, lambda: Products(p)),
        "plain": ("plain torch", True, lambda: PlainTorch(p)),
        "compile": ("plain torch, compiled", words["compile"] == "1", lambda: PlainTorch(p, compiled=True)),
        "jax": ("JAX, a call an update", True, lambda: Jax(p)),
        "scan": ("JAX, one scan of all", True, lambda: Jax(p, scan=True)),
        "sb3": ("Stable-Baselines3", p.reads is None, lambda: Baselines("stable_baselines3", p)),
        "sbx": ("SBX, one scan of all", p.reads is None, lambda: Baselines("sbx", p)),
        "oyster": ("oyster", p.reads == "sample" and words["oyster"] != "", lambda: Oyster(words["oyster"], p)),
    }
    found: dict[str, Any] = {"ours": case} | ({} if case.bf16 is None else {"ours, bfloat16": case.bf16})
    for name, fits, make in (makers[key] for key in words["peers"].split(",")):
        try:
            found |= {name: make()} if fits else {}
        except ImportError as error:
            print(f'  {name}: left out, {error}; pip install -e ".[benchmarks]"')
    return found


def check(case: Case, peers: dict[str, Any]) -> None:
    """Several updates side by side: the losses of those who say that they compute the same must be ours."""
    worst: dict[str, float] = {}
    for step in range(CHECKED):
        expected, noise = case.stepwise(step)
        for name, peer in peers.items():
            found = peer.update(noise)
            for key, value in expected.items():
                error = abs(float(found[key]) - value) / max(abs(value), 1e-2)
                worst[name] = max(worst.get(name, 0.0), error)
                if error > (1e-4 if step == 0 else 1e-3):
                    raise RuntimeError(f"{case.name}, update {step}: {key} of {name} is off by {error:.1e}")
    for name, error in worst.items():
        print(f"  {name}: losses are ours over {CHECKED} updates, but for {error:.0e} at most")


def measure(peers: dict[str, Any], rounds: int, updates: int) -> dict[str, list[float]]:
    """CPU seconds an update of each contender in each round, after one round that is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            peers[name].run(updates)
            if turn > 0:
                seconds[name].append((time.process_time() - start) / updates)
    return seconds


def table(seconds: dict[str, list[float]], peers: dict[str, Any], flop: int, ms: bool) -> None:
    """Prints the ratios within rounds, ours = 1: median and quartiles."""
    ours = seconds["ours"]
    print(f"  {flop / 1e9:.4f} GFLOP of matrix products an update; CPU time, ours = 1 (quartiles over rounds)")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, ours, strict=True)]
        if name == "ours":  # its own spread
            ratios = [value / statistics.median(ours) for value in ours]
        low, middle, high = statistics.quantiles(ratios, n=4)
        absolute = f"{1e3 * statistics.median(values):9.3f} ms  " if ms else ""
        print(f"  {name:26s} {middle:6.2f}  ({low:.2f} .. {high:.2f})  {absolute}{peers[name].note}", flush=True)


def main() -> None:
    """Runs what was asked for."""
    words = {"sizes": ",".join(SIZES), "peers": PEERS, "rounds": "10", "updates": "", "ms": "0", "compile": "0"}
    words["oyster"] = ""
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name not in words or (name in ("sizes", "peers") and not set(value.split(",")) <= {*words[name].split(",")}):
            raise SystemExit(f"{word}: unknown; use {' '.join(f'{key}={value}' for key, value in words.items())}")
        words[name] = value
    torch.set_num_threads(1)
    for size in words["sizes"].split(","):
        for case in SIZES[size]():
            print(case.name, flush=True)
            peers = contenders(case, words)
            check(case, {name: peer for name, peer in peers.items() if isinstance(peer, PlainTorch | Jax)})
            updates = int(words["updates"] or case.updates)
            flop = Products(case.problem).flop
            table(measure(peers, int(words["rounds"]), updates), peers, flop, words["ms"] == "1")
            print(flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
