"""Pictures and videos of environments, without a display; of batched ones with the goal and the subgoals in force."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.declared import declared
from peach_trl.envs.renderers import Camera, RowRenderer, drawable, frames_per_second, make_renderer

_FILM = (".mp4", ".mkv", ".mov", ".webm")

Policy = Callable[[TensorDictBase], TensorDictBase]


class Video:
    """A video file that grows by a frame whenever a policy acts, for what :func:`record_video` does not do.

    Args:
        env: a batched environment, or a :class:`~peach_trl.envs.GymnasiumTasksEnv` whose copies draw themselves, in a
            size of their own; transformed or not.
        path: ``.gif``, or with imageio-ffmpeg ``.mp4``, ``.mkv``, ``.mov`` or ``.webm``; a file that exists is
            replaced. A GIF keeps equal frames as one that is shown longer.
        rows: the rows to show, side by side.
        width: of one row's picture, in pixels.
        height: likewise.
        fps: frames a second; ``None`` for the simulation's own time, within 10 to 50.
        camera: see :class:`~peach_trl.envs.renderers.RowRenderer`.

    Attributes:
        frames: number of frames so far.

    Raises:
        ImportError: if imageio-ffmpeg is needed and missing.
        IndexError: for rows that the environment does not have.
        RuntimeError: where nothing can draw; it names the remedy.
        ValueError: for other endings of ``path``, and for a camera that the model does not have.

    Examples:
        Three rollouts in one file::

            with Video(env, "rollouts.gif") as video:
                for _ in range(3):
                    env.rollout(200, video.watch(policy))
    """

    def __init__(
        self,
        env: EnvBase,
        path: Path | str,
        *,
        rows: Sequence[int] = (0,),
        width: int = 480,
        height: int = 480,
        fps: float | None = None,
        camera: Camera = None,
    ) -> None:
        import imageio.v2 as imageio  # here, as no run needs it

        base, self.path, self.rows, self.frames = drawable(env), Path(path), tuple(rows), 0
        wrong = [row for row in self.rows if not 0 <= row < base.batch_size[0]]
        if wrong or not self.rows:
            raise IndexError(f"rows = {self.rows}: give rows between 0 and {base.batch_size[0] - 1}")
        options = _writer_options(self.path, frames_per_second(base) if fps is None else fps)
        self._renderer = make_renderer(env, width, height, camera)
        self._writer = imageio.get_writer(self.path, **options)

    def watch(self, policy: Policy) -> Policy:
        """The same policy, which adds a frame whenever it has acted: a state, and the subgoals chosen in it."""

        def watched(tensordict: TensorDictBase) -> TensorDictBase:
            acted = policy(tensordict)
            self.add(acted.get(("hierarchy", "goal"), None))
            return acted

        return watched

    def add(self, subgoals: Tensor | None = None) -> None:
        """Adds a frame of the rows as they are now, with ``subgoals`` ``[N, h, G]``, bottom level first."""
        pictures = [self._renderer.draw(row, None if subgoals is None else subgoals[row]) for row in self.rows]
        self._writer.append_data(np.concatenate(pictures, axis=1))
        self.frames += 1

    def close(self) -> None:
        """Completes the file."""
        self._writer.close()
        self._renderer.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def record_video(
    env: EnvBase,
    policy: Policy | None,
    path: Path | str,
    *,
    rows: Sequence[int] = (0,),
    steps: int | None = None,
    explore: bool = False,
    **options: Any,
) -> int:
    """Writes a video of a policy from a reset on, one frame a step, and returns the number of frames.

    Rows that are done go on with their next episode.

    Args:
        env: as of :class:`Video`; its rows are reset.
        policy: reads and writes a TensorDict, with or without a hierarchy; ``None`` acts at random.
        path: ``.gif``, or with imageio-ffmpeg ``.mp4``; a file that exists is replaced.
        rows: the rows to show, side by side.
        steps: environment steps; ``None`` for one horizon.
        explore: whether the policy explores.
        options: ``width``, ``height``, ``fps`` and ``camera`` of :class:`Video`.

    Examples:
        ::

            policy = agent.make_policy()
            env = make_env(config, library, library.split("test"), policy)
            record_video(env, policy, "test.mp4", rows=(0, 7, 14))
    """
    count = declared(env, "horizon") if steps is None else steps
    exploration = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with Video(env, path, rows=rows, **options) as video, set_exploration_type(exploration), torch.no_grad():
        env.rollout(count, video.watch(env.rand_action if policy is None else policy), break_when_any_done=False)
    return video.frames


def render_row(env: EnvBase, row: int = 0, subgoals: Tensor | None = None, **options: Any) -> np.ndarray:
    """One picture of ``row`` as it is now, uint8 ``[height, width, 3]``; for many, a ``RowRenderer`` is faster.

    Args:
        env: a batched environment, transformed or not.
        row: the row to draw.
        subgoals: ``[h, G]``, in the units of the subgoal space, bottom level first.
        options: ``width``, ``height`` and ``camera`` of :class:`~peach_trl.envs.renderers.RowRenderer`.

    Examples:
        ::

            env.reset()
            imageio.imwrite("start.png", render_row(env, subgoals=torch.tensor([[3.0, 4.0]])))
    """
    renderer = RowRenderer(env, **options)
    try:
        return renderer.draw(row, subgoals)
    finally:
        renderer.close()


def _writer_options(path: Path, fps: float) -> dict[str, Any]:
    if path.suffix.lower() == ".gif":
        return {"duration": 1000 / fps, "loop": 0}
    if path.suffix.lower() not in _FILM:
        raise ValueError(f"path = {str(path)!r}: a video's name ends in one of .gif, {', '.join(_FILM)}")
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError(f"path = {str(path)!r}: needs imageio-ffmpeg (pip install imageio-ffmpeg); or write a .gif")
    return {"fps": fps, "macro_block_size": 2}  # H.264 wants even sizes; odd ones are scaled
