"""Experience for the recipes: trajectories of all training tasks, in this process or in workers, whose faults it tells."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector

from peach_trl.collectors.lockstep import LockstepCollector
from peach_trl.collectors.workers import worker_collector
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.experiment import make_env
from peach_trl.hierarchy.policy import HierarchyPolicy
from peach_trl.schemas import Config


class WorkerError(RuntimeError):
    """A worker process ended, or did not answer in time; the message names it."""


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
        factories = [partial(make_env, config, library, shard, policy) for shard in shards]
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

    Raises:
        WorkerError: by ``next``, when a worker process ended, or did not answer within ``collector.timeout`` seconds;
            with ``collector.restart_workers``, one that was killed is replaced instead, and so are the others, whose
            rows start anew.
    """

    def __init__(self, config: Config, library: TaskLibrary, policy: TensorDictModuleBase) -> None:
        if isinstance(policy, HierarchyPolicy):
            nothing = torch.zeros(library.num_tasks)
            # So that copies and workers have as many.
            policy.explore(tasks=nothing, since=nothing.long(), elsewhere=nothing)
        self.config, self.library, self.policy = config, library, policy
        self._plays = policy if config.device == "cpu" else copy.deepcopy(policy).to("cpu")
        self.restarts = 0
        self._late: list[int] = []
        self._make()

    def _make(self) -> None:
        self._collector = make_collector(self.config, self.library, self._plays)
        self._batches = iter(self._collector)
        self._workers = list(getattr(self._collector, "procs", ()))

    def __next__(self) -> TensorDictBase:
        if self._plays is not self.policy:
            self._plays.load_state_dict(self.policy.state_dict())
        try:
            with self._watched():
                return next(self._batches)
        except RuntimeError as error:  # TorchRL's, of any worker that ended
            if not (ended := self._ended()):
                raise
            said = "; ".join(f"worker {number} {how}" for number, how in ended)
            if not (self.config.collector.restart_workers and all("killed" in how for _, how in ended)):
                raise WorkerError(f"collector: {said}") from error
        print(f"collector: {said}; new workers take over, all rows start anew", flush=True)
        self.shutdown()
        self.restarts += 1
        self._make()
        return next(self)

    def _ended(self) -> list[tuple[int, str]]:
        """Numbers of the workers that ended, and how."""
        found = [(number, "did not answer in time, and was killed") for number in self._late]
        for number, process in enumerate(self._workers):
            if number in self._late or process._closed or (code := process.exitcode) is None:
                continue  # TorchRL closes those that it ended itself
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}, see above"
            )
            found.append((number, how))
        return found

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Kills workers that do not answer in time; TorchRL then notices."""
        seconds = self.config.collector.timeout
        if not self._workers or seconds is None:
            yield
            return
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill(self) -> None:
        for number, process in enumerate(self._workers):
            if process.is_alive():
                self._late.append(number)
                process.kill()

    def state_dict(self) -> Mapping[str, Any]:
        """Where all rows are, and the generators of what collects them; see :class:`LockstepCollector`."""
        return self._collector.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._collector.load_state_dict(state_dict)  # type: ignore[arg-type]

    def shutdown(self) -> None:
        """Ends the workers. They are no daemons: without it, an error in this process would wait for them for ever."""
        self._late.clear()
        self._collector.shutdown()


@contextmanager
def collecting(config: Config, library: TaskLibrary, policy: TensorDictModuleBase) -> Iterator[Trajectories]:
    """:class:`Trajectories` whose workers end on every way out."""
    trajectories = Trajectories(config, library, policy)
    try:
        yield trajectories
    finally:
        trajectories.shutdown()
