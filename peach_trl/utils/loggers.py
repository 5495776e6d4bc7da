"""Loggers by name, TorchRL's: what a run writes to ``metrics.csv`` goes to each of them as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peach_trl.config import ConfigError, option

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go besides ``metrics.csv``; see ``configs/`` for values."""

    loggers: tuple[str, ...] = option(
        choices=LOGGERS, help="TorchRL's loggers, by name; csv: metrics.csv, there anyway"
    )
    project: str = option(help="of wandb and trackio")
    online: bool = option(help="wandb: send to its server while the run goes on; false: kept in the run's folder")
    videos: bool = option(help="a video of the meta-test at each evaluation, one of each trajectory of a task")

    def check(self) -> None:
        """Refuses a logger whose package is missing."""
        for name in self.loggers:
            package = _PACKAGES.get(name)
            if package is not None and find_spec(package) is None:
                raise ConfigError(
                    f"loggers = {name}: the package {package} is not installed; pip install {package}, or leave it out"
                )


def make_logger(name: str, folder: Path, config: LoggingConfig) -> Any:
    """TorchRL's logger of this name, which writes into a run's folder.

    Args:
        name: one of :data:`LOGGERS`, but for csv, which a run writes itself.
        folder: of the run; its name and its parent's are the run's name.
        config: project, and whether to go online.
    """
    from torchrl.record.loggers import get_logger  # imported when it is used, as that takes a while

    if name == "tensorboard":
        return get_logger(name, str(folder), "tensorboard")
    run = "_".join(folder.resolve().parts[-2:])
    if name == "wandb":
        options: dict[str, Any] = {"project": config.project, "offline": not config.online, "reinit": "create_new"}
        return get_logger(name, str(folder), run, wandb_kwargs=options)
    if name == "mlflow":
        from torchrl.record.loggers.mlflow import MLFlowLogger  # get_logger names a folder, which mlflow takes no more

        place = folder.resolve()
        return MLFlowLogger(
            exp_name=config.project,
            tracking_uri=f"sqlite:///{place / 'mlflow.db'}",
            artifact_location=(place / "mlflow").as_uri(),
        )
    return get_logger("trackio", str(folder), run, trackio_kwargs={"project": config.project})


def log_film(loggers: Sequence[Any], path: Path, step: int) -> None:
    """Hands a video file to loggers, as ``eval/meta_test``; of one that cannot take it, a line says why.

    Args:
        loggers: TorchRL's; all but trackio's encode it by a package of their own, most of them by moviepy.
        path: ``.gif`` or ``.mp4``.
        step: environment steps so far.
    """
    if not loggers:
        return
    import imageio.v3  # imported when they are used, as that takes a while
    import torch

    frames = torch.from_numpy(imageio.v3.imread(path))
    for logger in loggers:
        try:
            logger.log_video("eval/meta_test", frames.permute(0, 3, 1, 2).unsqueeze(0), step=step)
        except Exception as error:  # TensorBoard's is of this very class
            print(f"{type(logger).__name__}: {path.name} is in the run's folder only: {str(error).splitlines()[0]}")


def close_logger(logger: Any) -> None:
    """Ends what a logger has open: the methods have another name in each."""
    experiment = logger.experiment
    end: Callable[[], Any] | None = getattr(experiment, "finish", None) or getattr(experiment, "close", None)
    if end is not None:
        end()
    else:  # mlflow's is an ActiveRun, a context manager
        experiment.__exit__(None, None, None)


def forget_after(logger: Any, step: int) -> None:
    """Hides what a logger has of later steps: in TensorBoard, by an event of a new start there; others keep it."""
    if not type(logger).__name__.startswith("Tensorboard"):
        return
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

    start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    logger.experiment._get_file_writer().add_event(start, step + 1)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names, as hyperparameters are logged.

    Examples:
        >>> flat({"seed": 0, "top": {"tau": 0.1, "cells": (64, 64)}})
        {'seed': 0, 'top.tau': 0.1, 'top.cells': '(64, 64)'}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, (int, float, str)) else str(value)
    return found
