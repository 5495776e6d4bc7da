"""Collection in several workers, on TorchRL's engines: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, MultiSyncCollector
from torchrl.envs import EnvBase
from torchrl.weight_update import SharedMemWeightSyncScheme

from peach_trl.collectors.lockstep import LockstepCollector

ENGINES = ("processes", "ray")
_NO_END = 10**15  # frames; -1 would end Ray's collector at once


def worker_collector(
    engine: str, factories: Sequence[Callable[[], EnvBase]], policy: Any, frames: Sequence[int]
) -> BaseCollector:
    """A collector with a :class:`LockstepCollector` in each of several workers; its batches are [rows of all, T].

    Workers act with the weights that ``policy`` has when a batch begins, its buffers included.

    Args:
        engine: ``"processes"``: TorchRL's MultiSyncCollector; ``"ray"``: its RayCollector, in the cluster that the
            environment variable ``RAY_ADDRESS`` names, else in one that is started on this machine.
        factories: a function a worker, which makes its environment.
        policy: a TensorDictModule.
        frames: environment steps of a batch, a number a worker; for Ray equal ones.

    Raises:
        ValueError: for an unknown engine, different numbers of frames with Ray, or more workers than its cluster has
            processors.
        ImportError: if Ray is not installed.
    """
    if engine == "processes":
        return _Processes(
            list(factories),
            policy,
            frames_per_batch=list(frames),
            total_frames=-1,
            collector_class=LockstepCollector,
            use_buffers=True,
            cat_results=0,
            auto_register_policy_transforms=False,
            update_at_each_batch=True,
        )
    if engine != "ray":
        raise ValueError(f"engine = {engine!r}: use one of {', '.join(ENGINES)}")
    if len(set(frames)) > 1:
        raise ValueError(f"frames = {list(frames)}: workers of Ray play as many rows each; divide the rows evenly")
    if find_spec("ray") is None:
        raise ImportError("engine = 'ray': the package ray is not installed; pip install peach-trl[ray]")
    return _ray_collector(factories, policy, sum(frames))


class _Processes(MultiSyncCollector):
    """Ends what hands weights over, too: left to the end of the program, it would wait for a thread for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._scheme = SharedMemWeightSyncScheme()
        before = set(multiprocessing.active_children())
        try:
            super().__init__(*args, weight_sync_schemes={"policy": self._scheme}, **kwargs)
        except BaseException:  # also where it is interrupted while they start, and nobody else can end them
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            self._scheme.shutdown()
            raise

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Ends the processes, and the threads of this one."""
        super().shutdown(*args, **kwargs)
        self._scheme.shutdown()


class _SeededCollector(LockstepCollector):
    """Seeds its process, too, as the workers of a MultiSyncCollector are."""

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        torch.manual_seed(seed)
        return cast(int, super().set_seed(seed, static_seed))


def _ray_collector(factories: Sequence[Callable[[], EnvBase]], policy: Any, frames: int) -> BaseCollector:
    from torchrl.collectors.distributed import RayCollector

    collector = RayCollector(
        list(factories),
        policy,
        frames_per_batch=frames,
        total_frames=_NO_END,
        collector_class=_SeededCollector,  # type: ignore[arg-type]
        num_collectors=len(factories),
        sync=True,
        update_after_each_batch=True,
        postproc=_joined,
        ray_init_config=_ray_settings(len(factories)),
        remote_configs={"num_cpus": 1, "num_gpus": 0},
    )
    collector.update_policy_weights_(policy)
    return collector


def _ray_settings(workers: int) -> dict[str, Any]:
    """How Ray is started, with a processor for each worker: one that gets none would be waited for without end."""
    ray = importlib.import_module("ray")  # an extra
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "ignore_reinit_error": True}
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            return {**settings, "address": "local", "num_cpus": max(workers, os.cpu_count() or 1)}
        ray.init(**settings)
    processors = int(ray.cluster_resources().get("CPU", 0))
    if workers > processors:
        raise ValueError(
            f"{workers} workers: the Ray cluster has {processors} processors, and each takes one; give it more nodes "
            f"first, or collector.workers={processors}"
        )
    return settings


def _joined(batch: TensorDictBase) -> TensorDictBase:
    """Batches [W, N, T] of W workers as one of all rows."""
    return batch.flatten(0, 1)
