"""Trajectories of all training tasks, in this process or in workers, whose faults are told."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector

from peach_trl.collectors.faults import Faults, made_telling
from peach_trl.collectors.lockstep import LockstepCollector
from peach_trl.collectors.workers import worker_collector
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.experiment import make_env
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.schemas import Config
from peach_trl.seeding import named_generator

Result = TypeVar("Result")
FAULT_ENDS = 5.0  # seconds in which a worker that told what went wrong ends


class WorkerError(RuntimeError):
    """A worker process ended, or did not answer in time; the message names it.

    Args:
        message: what happened.
        killed: whether another process in its place may do better.
    """

    def __init__(self, message: str, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed


def make_collector(config: Config, library: TaskLibrary, policy: TensorDictModuleBase) -> BaseCollector:
    """Collects a trajectory of each row a batch, [tasks * envs_per_task, horizon], in this or in worker processes."""
    tasks = library.split("train").repeat_interleave(config.train.envs_per_task)
    workers = config.collector.workers
    frames = len(tasks) * config.env.horizon
    if workers == 0:
        factory = partial(make_env, config, library, tasks, policy)
        collector = LockstepCollector(factory, policy, frames_per_batch=frames, total_frames=-1)
    else:
        shards = tasks.tensor_split(workers)
        factories = [partial(made_telling, partial(make_env, config, library, shard, policy)) for shard in shards]
        steps = [len(shard) * config.env.horizon for shard in shards]
        collector = worker_collector(config.collector.engine, factories, policy, steps)
    collector.set_seed(config.seed)
    return collector


class Trajectories(Iterator[TensorDictBase]):
    """The batches of :func:`make_collector`, one after the other, by a policy with the weights that it has by then.

    Args:
        config: how they are collected.
        library: the tasks.
        policy: the learner's, on its device; a copy plays on the CPU.
        transitions: what joins batches to each other; it is reset where new workers take over, as all rows start anew.

    Raises:
        WorkerError: by ``next``, when a worker process ended, or did not answer within ``collector.timeout`` seconds;
            with ``collector.restart_workers``, one that was killed is replaced instead, and so are the others, whose
            rows start anew.
    """

    def __init__(
        self,
        config: Config,
        library: TaskLibrary,
        policy: TensorDictModuleBase,
        transitions: LevelTransitions | None = None,
    ) -> None:
        if isinstance(policy, HierarchyPolicy):
            nothing = torch.zeros(library.num_tasks)
            # So that copies and workers have as many.
            policy.explore(tasks=nothing, since=nothing.long(), elsewhere=nothing)
        self.config, self.library, self.policy, self._transitions = config, library, policy, transitions
        self._plays = policy if config.device == "cpu" else copy.deepcopy(policy).to("cpu")
        self.restarts = self._given = 0  # the latter: trajectories of this pass
        self._make()

    def _make(self) -> None:
        config = self.config
        if self.restarts:  # other random numbers than at first
            seed = int(torch.randint(2**31, (), generator=named_generator(f"restart {self.restarts}", config.seed)))
            config = dataclasses.replace(config, seed=seed)
        self._faults = Faults()
        with self._faults.listening():
            self._collector = make_collector(config, self.library, self._plays)
        self._batches = iter(self._collector)
        self._workers = list(getattr(self._collector, "procs", ()))

    def __next__(self) -> TensorDictBase:
        if self._plays is not self.policy:
            self._plays.load_state_dict(self.policy.state_dict())
        batch = self._or_restart(lambda: next(self._batches))
        self._given = (self._given + 1) % self.config.train.trajectories
        return batch

    def _or_restart(self, ask: Callable[[], Result]) -> Result:
        """What workers answer; with ``collector.restart_workers``, new ones where they are gone, once for an answer."""
        try:
            return self._guarded(ask)
        except WorkerError as error:
            if not (self.config.collector.restart_workers and error.killed):
                raise
            print(f"{error}; new workers take over, all rows start anew", flush=True)
        self.shutdown()
        self.restarts += 1
        self._make()
        if self._transitions is not None:
            self._transitions.reset()
        for _ in range(self._given):  # their meta-episodes are to be where the others were
            self._guarded(lambda: next(self._batches))
        return self._guarded(ask)

    def _guarded(self, ask: Callable[[], Result]) -> Result:
        """What workers answer; TorchRL waits for some answers for ever, also of processes that are no more.

        So a thread waits for them, and this one looks after the processes.
        """
        if not self._workers:
            return ask()
        found: list[Any] = []
        thread = threading.Thread(target=_noted, args=(ask, found), daemon=True)
        thread.start()
        begun, seconds, ended = time.monotonic(), self.config.collector.timeout, []
        while thread.is_alive():
            thread.join(0.2)
            if thread.is_alive() and seconds is not None and time.monotonic() - begun > seconds:
                raise WorkerError(f"collector: no answer of its workers within {seconds:g} s, collector.timeout", True)
            if thread.is_alive() and (ended := self._ended()):
                break
        if found and not isinstance(found[0], Exception):
            return found[0]
        if ended := ended or self._ended():
            said = "; ".join(f"worker {number} {how}" for number, how, _ in ended)
            raise WorkerError(f"collector: {said}", all(killed for *_, killed in ended)) from (found or [None])[0]
        raise found[0]

    def _ended(self) -> list[tuple[int, str, bool]]:
        """Numbers of the workers that ended, how, and whether it was by a signal.

        Those that TorchRL ends, by SIGTERM, because another one has failed, are left out.
        """
        found, others = [], []
        for number, process in enumerate(self._workers):
            if process._closed:
                continue  # TorchRL closes those that it ended itself
            if fault := self._faults.of(process.pid):
                process.join(FAULT_ENDS)  # it may be on its way out still
            if (code := process.exitcode) is None:
                continue
            if code < 0:
                how = f"was killed by {signal.Signals(-code).name}"
            else:
                how = f"ended with exit code {code}, {fault or 'see above'}"
            (others if code == -signal.SIGTERM else found).append((number, how, code < 0))
        return found or others

    def state_dict(self) -> dict[str, Any]:
        """Where all rows are, and the generators of what collects them; see :class:`LockstepCollector`."""
        rows = self._or_restart(lambda: self._collector.state_dict())
        return {"rows": rows, "restarts": self.restarts, "given": self._given}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        if self.restarts != state_dict["restarts"]:  # whose generators are of another seed
            self.shutdown()
            self.restarts = state_dict["restarts"]
            self._make()
        self._given = state_dict["given"]
        self._guarded(lambda: self._collector.load_state_dict(state_dict["rows"]))

    def shutdown(self) -> None:
        """Ends the workers. They are no daemons: without it, an error in this process would wait for them for ever."""
        for process in self._workers:
            if not process._closed and process.is_alive():
                os.kill(process.pid, signal.SIGCONT)  # a stopped one would not hear of it
        self._collector.shutdown()
        self._faults.close()


@contextmanager
def collecting(
    config: Config, library: TaskLibrary, policy: TensorDictModuleBase, transitions: LevelTransitions | None = None
) -> Iterator[Trajectories]:
    """:class:`Trajectories` whose workers end on every way out."""
    trajectories = Trajectories(config, library, policy, transitions)
    try:
        yield trajectories
    finally:
        trajectories.shutdown()


def _noted(ask: Callable[[], Any], found: list[Any]) -> None:
    try:
        found.append(ask())
    except Exception as error:  # told by the thread that waits for it
        found.append(error)
