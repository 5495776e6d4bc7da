"""Rollouts of a hierarchy in a batched environment with no TensorDict inside the loop over time.

TorchRL's Collector spends one to three milliseconds a step on TensorDicts, whatever the number of rows: more than the
physics of a small model. Here the same modules read and write a dict of arrays, and the TensorDict ``[N, T]`` is made
once a batch. What it writes is the same, bit for bit, as what TorchRL's Collector writes; copies of the policy's state
under ``"next"`` are left out.
"""

from __future__ import annotations

import gc
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from operator import is_not, itemgetter
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.envs import Compose, EnvBase, RewardSum, TensorDictPrimer, Transform, TransformedEnv
from torchrl.envs.utils import set_exploration_type

from peach_trl.collectors.faults import telling
from peach_trl.envs.errors import NotFiniteError
from peach_trl.modules.carried import CarriedState, Frame

DONE_KEYS = ("done", "terminated", "truncated")
Arrays: TypeAlias = dict[Any, np.ndarray]


class PlainSteps(Protocol):
    """What an environment of N rows offers besides TorchRL's methods, to be stepped without a TensorDict.

    For an exact resume it also has ``process_state`` and ``load_process_state``, as those of TaskEnv.

    Attributes:
        batch_size: ``[N]``.
        observation_spec: TorchRL's, a Composite.
        not_finite: see :class:`~peach_trl.envs.BatchedMujocoEnv`.
    """

    batch_size: torch.Size
    observation_spec: Any
    not_finite: Any

    def advance(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], NotFiniteError | None]:
        """What :meth:`EnvBase.step` writes under ``"next"``, as arrays [N, ...], and what broke."""
        ...

    def restart(self, mask: Tensor | None = None) -> dict[str, Tensor]:
        """What :meth:`EnvBase.reset` writes, for all rows; those of ``mask`` [N] or [N, 1] start anew."""
        ...


@runtime_checkable
class PlainActs(Protocol):
    """What a policy offers besides TorchRL's methods, to act without a TensorDict, as a :class:`HierarchyPolicy` does.

    Attributes:
        in_keys: what it reads, also of what it carries itself.
    """

    in_keys: Any

    def advance(self, frame: Frame) -> None:
        """Writes what ``forward`` writes, as arrays [N, ...], into ``frame.arrays``, where all that it reads is."""
        ...

    def process_state(self) -> dict[str, Any]:
        """What goes on from step to step besides weights and what is carried, such as generators."""
        ...

    def load_process_state(self, state: dict[str, Any], /) -> None:
        """Restores it."""
        ...


class Lockstep:
    """An environment and a policy that advance together; a policy's state and the tasks live on between calls.

    Args:
        env: one that offers :class:`PlainSteps`, such as a :class:`~peach_trl.envs.BatchedMujocoEnv` or a
            :class:`~peach_trl.envs.GymnasiumTasksEnv`, as it is or under ``RewardSum`` and ``TensorDictPrimer``.
        policy: one that offers :class:`PlainActs`, such as a :class:`~peach_trl.hierarchy.HierarchyPolicy`, whose
            primers must be among these transforms.

    Raises:
        ValueError: for other environments, transforms or policies, which TorchRL's own Collector takes; and at a start,
            for an environment that lacks what the policy reads.

    Examples:
        >>> from peach_trl.experiment import PeachConfig, make_agent, make_env, make_library
        >>> from peach_trl.utils import load_config
        >>> config = load_config(PeachConfig, "peach", overrides=["env.horizon=40"])
        >>> library = make_library(config)
        >>> agent = make_agent(config, library)
        >>> policy = agent.make_policy()
        >>> lockstep = Lockstep(make_env(config, library, torch.arange(3), policy), policy)
        >>> lockstep.reset()
        >>> lockstep.run(25).shape, lockstep.run(25)["next", "done"].sum()  # goes on where it stopped
        (torch.Size([3, 25]), tensor(3))
    """

    def __init__(self, env: EnvBase, policy: PlainActs) -> None:
        if not isinstance(policy, PlainActs):
            raise ValueError(
                f"policy of type {type(policy).__name__}: must be a HierarchyPolicy, or offer PlainActs; use "
                "torchrl.collectors.Collector for others"
            )
        self.env, self.policy = env, policy
        self.base, transforms = _parts_of(env)
        self._carried = [transform for transform in transforms if isinstance(transform, CarriedState)]
        self._observed = list(self.base.observation_spec.keys())
        self._frame: Frame | None = None

    @staticmethod
    def takes(env: EnvBase, policy: Any) -> bool:
        """Whether these two can advance in lock-step."""
        try:
            return isinstance(policy, PlainActs) and bool(_parts_of(env))
        except ValueError:
            return False

    def reset(self) -> None:
        """Starts all rows anew."""
        self.start(self.env.reset())

    def start(self, carrier: TensorDictBase) -> None:
        """Starts from what a reset of ``env`` returned."""
        leaves = {key: carrier.get(key).numpy() for key in carrier.keys(True, True)}
        leaves.pop(("collector", "traj_ids"), None)
        missing = [key for key in self.policy.in_keys if key not in leaves and key != "task_id"]  # which is for some
        if missing:
            raise ValueError(
                f"the environment has no {missing}, which the policy reads: transform it with"
                " torchrl.modules.get_primers_from_module(policy)"
            )
        own = {*self._observed, *DONE_KEYS, *(key for part in self._carried for key in part.keys)}
        self._initial = {key: value for key, value in leaves.items() if key not in own}  # as the primers have it
        self._frame = Frame(leaves, self.base.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where all rows are, policy and environment, for an exact resume; the weights are not among it.

        Where the environment cannot be saved, ``env`` is ``None``.
        """
        frame = None if self._frame is None else self._frame.arrays
        state = getattr(self.base, "process_state", None)  # some environments cannot
        return {
            "frame": None if frame is None else [(key, torch.from_numpy(value.copy())) for key, value in frame.items()],
            "env": None if state is None else state(),
            "policy": self.policy.process_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Where the environment cannot be restored, all rows start anew, with seeds from torch's generator.
        """
        self.policy.load_process_state(state_dict["policy"])
        if state_dict["env"] is None or state_dict["frame"] is None:
            self.env.set_seed(_drawn_seed())  # else starts would be those of the run's beginning
            self.reset()
            return
        cast(Any, self.base).load_process_state(state_dict["env"])
        arrays = {key if isinstance(key, str) else tuple(key): value.numpy() for key, value in state_dict["frame"]}
        self._frame = Frame(arrays, self.base.batch_size)

    def run(self, steps: int) -> TensorDict:
        """The next ``steps`` of all rows, ``[N, steps]``; rows that are done are reset on the way.

        With ``not_finite="raise"`` a row that breaks ends the run; the error has the steps so far as its ``batch``.
        With ``"truncate"`` the run goes on.

        Root keys are those that TorchRL's Collector writes; under ``"next"`` stand what the environment returned, and
        ``episode_reward`` if the environment sums it, but no copies of the policy's state.
        """
        if self._frame is None:
            self.reset()
        now: list[Arrays] = []
        after: list[Arrays] = []
        broken = None
        with _no_garbage_collection():
            with torch.inference_mode():
                for _ in range(steps):
                    frame = cast(Frame, self._frame)
                    try:
                        result = self._step(frame)
                    except NotFiniteError as error:
                        self._frame, broken = None, error  # the next run starts all rows anew
                        break
                    now.append(frame.arrays)
                    after.append(result)
                    self._frame = self._next(frame, result)
            # Not under inference mode, since learners may use it.
            batch = _stack(now, after, self.base.batch_size) if now else None
        if broken is not None:
            broken.batch = batch
            raise broken
        return cast(TensorDict, batch)

    def _step(self, frame: Frame) -> Arrays:
        """The policy writes its action into ``frame``; returns what the environment made of it."""
        self.policy.advance(frame)
        arrays = frame.arrays
        values, error = self.base.advance(arrays["action"])
        result: Arrays = values
        if error is not None:
            tensors = {key: torch.from_numpy(value.copy()) for key, value in values.items()}
            error.tensordict = TensorDict(tensors, self.base.batch_size)
            error.raise_or_warn(self.base.not_finite)
        if "episode_reward" in arrays:
            result["episode_reward"] = arrays["episode_reward"] + values["reward"]
        return result

    def _next(self, frame: Frame, result: Arrays) -> Frame:
        """What the next step starts from: the policy's state, the new observation, and fresh episodes where done."""
        arrays = frame.arrays
        following: dict[Any, Any] = arrays | result
        del following["reward"]
        for part in self._carried:
            following.update(part.carry(arrays, result))
        done = result["done"]
        if done.any():
            restarted = self.base.restart(torch.from_numpy(done))
            following |= {key: value.numpy() for key, value in restarted.items()}
            for key, initial in self._initial.items():
                ends = done.reshape(-1, *[1] * (initial.ndim - 1))
                following[key] = np.where(ends, initial, following[key])
        return Frame(following, frame.batch_size)


class LockstepCollector(Collector):
    """TorchRL's Collector with :class:`Lockstep` for its loop over time, where environment and policy allow.

    With others, such as a ``GymEnv`` or an environment under further transforms, it is TorchRL's.

    Takes the arguments of TorchRL's Collector; ``collector_class=LockstepCollector`` puts it into the workers of a
    MultiSyncCollector or MultiAsyncCollector. Not supported: random frames, frames per trajectory, devices other than
    the CPU, and writing to a replay buffer by itself.

    Args:
        create_env_fn: an environment, or a function that makes one.
        policy: for example a HierarchyPolicy.
        kwargs: as TorchRL's Collector has them.

    Raises:
        ValueError: for arguments that are not supported.
    """

    _unsupported = ("init_random_frames", "max_frames_per_traj", "replay_buffer", "split_trajs", "compile_policy")

    def __init__(self, create_env_fn: Any, policy: Any = None, **kwargs: Any) -> None:
        for name in self._unsupported:
            if kwargs.get(name) not in (None, False, 0, -1):  # -1 is TorchRL's for none
                raise ValueError(
                    f"{name} = {kwargs[name]!r}: LockstepCollector has none; use torchrl.collectors.Collector"
                )
        same = kwargs.get("return_same_td", False)  # so in workers, whose batches lie in shared memory
        kwargs.update(use_buffers=False, return_same_td=True, no_cuda_sync=True)
        kwargs.setdefault("auto_register_policy_transforms", False)
        kwargs.setdefault("trust_policy", True)  # TorchRL would load its compiler to look at it
        super().__init__(create_env_fn, policy, **kwargs)
        # What TorchRL's workers ask for, and what its shutdown removes.
        self._use_buffers, self._batch, self._final_rollout = same, None, None
        self._truncates = bool(kwargs.get("set_truncated", False))
        self._lockstep = self._started() if Lockstep.takes(self.env, self.policy) else None

    def _started(self) -> Lockstep:
        """From the reset that TorchRL's constructor made."""
        carrier, policy = self._carrier, cast(Any, self.policy)
        policy(carrier.copy())  # as TorchRL's Collector tries it: later draws are then the same
        lockstep = Lockstep(self.env, policy)
        lockstep.start(carrier)
        self._ids = carrier["collector", "traj_ids"]
        return lockstep

    def rollout(self) -> TensorDictBase:
        """A batch ``[N, frames_per_batch / N]``."""
        with telling():
            return super().rollout() if self._lockstep is None else self._in_lockstep(self._lockstep)

    def _in_lockstep(self, lockstep: Lockstep) -> TensorDictBase:
        if self.pre_collect_hook is not None:
            self.pre_collect_hook()
        if self.reset_at_each_iter:
            self.reset()
        with set_exploration_type(self.exploration_type):
            batch = lockstep.run(self.frames_per_batch)
        batch.set(("collector", "traj_ids"), self._trajectory_ids(batch["next", "done"].squeeze(-1)))
        if self._truncates:
            for name in ("truncated", "done"):
                batch["next", name][:, -1] = True
        if not self._use_buffers:
            return batch
        self._batch = batch if self._batch is None else self._batch.update_(batch)
        return self._batch

    def _trajectory_ids(self, done: Tensor) -> Tensor:
        """A number for each step's trajectory, ``[N, T]``, different for all trajectories of this collector."""
        ids = self._ids.unsqueeze(1).repeat(1, done.shape[1])
        for step in done.any(0).nonzero().flatten().tolist():
            ended = done[:, step]
            self._ids = self._ids.masked_scatter(ended, self._traj_pool.get_traj_and_increment(int(ended.sum())))
            ids[:, step + 1 :] = self._ids.unsqueeze(1)
        return ids

    def state_dict(self) -> OrderedDict[str, Any]:
        """For an exact resume: where all rows are, and the generators of its process; not the weights.

        All of it is one tensor of bytes, as TorchRL hands nothing but tensors from its workers to their parent.
        """
        state: dict[str, Any] = {"generators": GlobalRNGState().state_dict()}
        if self._lockstep is not None:
            state["rows"] = self._lockstep.state_dict()
            state["counts"] = self._frames, self._iter
            state["traj"] = self._ids, self._traj_pool.state_dict()
        else:
            state["torchrl"] = dict(super().state_dict())
            state["policy"] = self.policy.process_state() if isinstance(self.policy, PlainActs) else None
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return OrderedDict(state=torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))

    def load_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> None:
        """Restores what :meth:`state_dict` gave, in a collector of the same seed; TorchRL's own rows start anew."""
        state = torch.load(io.BytesIO(state_dict["state"].numpy().tobytes()), weights_only=True)
        GlobalRNGState().load_state_dict(state["generators"])
        if self._lockstep is None:
            super().load_state_dict(OrderedDict(state["torchrl"]), **kwargs)
            if state["policy"] is not None:
                cast(PlainActs, self.policy).load_process_state(state["policy"])
            self.env.set_seed(_drawn_seed())
            self.reset()
            return
        self._lockstep.load_state_dict(state["rows"])
        self._frames, self._iter = state["counts"]
        self._ids, pool = state["traj"]
        self._traj_pool.load_state_dict(pool)

    def reset(self, index: Any = None, **kwargs: Any) -> None:
        """Starts all rows anew."""
        if self._lockstep is None:
            super().reset(index, **kwargs)
            return
        if index is not None or kwargs:
            raise ValueError(f"reset(index={index!r}, {kwargs}): LockstepCollector resets all rows, without arguments")
        self._lockstep.reset()
        self._ids = self._traj_pool.get_traj_and_increment(self.n_env)


def _drawn_seed() -> int:
    return int(torch.randint(2**31, ()))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pauses the search for reference cycles, which a rollout's many tensors would set off again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parts_of(env: EnvBase) -> tuple[PlainSteps, list[Transform]]:
    """The environment itself, and the transforms around it."""
    transforms: list[Transform] = []
    while isinstance(env, TransformedEnv):
        chain = list(env.transform) if isinstance(env.transform, Compose) else [env.transform]
        while chain:
            transform = chain.pop()
            transforms.append(transform)
            if isinstance(transform, Compose):
                chain.extend(transform)
            elif not isinstance(transform, RewardSum | TensorDictPrimer):
                raise ValueError(
                    f"transform {type(transform).__name__}: a lock-step rollout knows RewardSum and TensorDictPrimer"
                    " only; use torchrl.collectors.Collector"
                )
        env = env.base_env
    # Of the class: batches of environments forward what they are asked for to their parts.
    if not all(callable(getattr(type(env), name, None)) for name in ("advance", "restart")):
        raise ValueError(
            f"environment of type {type(env).__name__}: a lock-step rollout needs its methods advance and restart; use"
            " peach_trl.collectors.rollout or torchrl.collectors.Collector for others"
        )
    return cast(PlainSteps, env), transforms


def _stack(now: list[Arrays], after: list[Arrays], batch_size: torch.Size) -> TensorDict:
    shape = torch.Size([*batch_size, len(now)])
    batch = TensorDict({"next": TensorDict(_columns(after), shape)}, shape)
    for key, value in _columns(now).items():
        batch.set(key, value)
    return batch


def _columns(steps: list[Arrays]) -> dict[Any, Tensor]:
    """The entries of T steps, [N, ...] each, as tensors [N, T, ...]."""
    keys = list(steps[0])
    columns = zip(*map(itemgetter(*keys), steps), strict=True)
    return {key: _column(column) for key, column in zip(keys, columns, strict=True)}


def _column(steps: Sequence[np.ndarray]) -> Tensor:
    changed = [True, *map(is_not, steps[1:], steps)]  # much of the policy's state rests between decisions
    values = torch.from_numpy(np.concatenate(list(compress(steps, changed)))).unflatten(0, (sum(changed), -1))
    if not all(changed):
        values = values[torch.tensor(changed).cumsum(0) - 1]
    return values.transpose(0, 1).contiguous()
