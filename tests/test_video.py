"""Pictures and videos: what is drawn, where it is drawn, and the files. Where MuJoCo cannot draw at all, skipped."""

import contextlib
import dataclasses
import importlib.util
import math
from functools import partial
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import mujoco
import mujoco.gl_context
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_recipes import manifest_of, start, without_speed
from tiny import TINY, record, tiny_agent, tiny_config
from torchrl.envs import GymEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from peach_trl.envs import GymnasiumTasksEnv, PointEnv, TaskLibrary
from peach_trl.envs.renderers import LEVEL_COLOURS, RowRenderer, marker_size
from peach_trl.envs.video import Video, record_video, render_row
from peach_trl.experiment import make_env, make_library
from peach_trl.utils import Run
from peach_trl.utils.loggers import log_film

PIXELS, METRES = 160, 20.0  # an overhead picture: pixels, and metres that they stand for, along each side
CONFIG = dataclasses.replace(
    tiny_config().env, arena=8.0, radius=5.0, horizon=10, goal_tolerance=2.0, subgoal_tolerance=1.0, frame_skip=5
)
PLACES = [[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [3.0, -4.0]]


class NowherePoint(PointEnv):
    """Its goals are no places."""

    def goal_position(self, goal, model, data):
        return None


class ClumsyPoint(PointEnv):
    """It spoils the copy of the simulation that it is handed."""

    def goal_position(self, goal, model, data):
        data.qpos[:], data.geom_xpos[:] = 5.0, 5.0
        return super().goal_position(goal, model, data)


@pytest.fixture(scope="module", autouse=True)
def drawable():
    try:
        render_row(PointEnv(CONFIG, 1), width=16, height=16)
    except RuntimeError as error:
        pytest.skip(f"no OpenGL for MuJoCo on this machine: {error}")


def point(cls=PointEnv, rows=4):
    library = TaskLibrary(torch.tensor(PLACES), {"train": torch.arange(4)})
    env = cls(CONFIG, rows, library=library)
    env.reset()
    return env


def overhead():
    camera = mujoco.MjvCamera()
    camera.type, camera.azimuth, camera.elevation = int(mujoco.mjtCamera.mjCAMERA_FREE), 90, -90
    camera.lookat[:], camera.distance = (0, 0, 0.25), METRES / 2 / math.tan(math.radians(22.5))
    return camera


SMALL = {"width": PIXELS, "height": PIXELS}


def picture(env, row=0, subgoals=None):
    return render_row(env, row, subgoals, camera=overhead(), **SMALL).astype(int)


def changed(first, second, by=8):
    return (np.abs(first.astype(int) - second.astype(int)) > by).any(-1)


def centre(mask):
    """The middle of the pixels of a mask, in metres (x, y)."""
    row, column = np.nonzero(mask)
    return METRES * ((column.mean() + 0.5) / PIXELS - 0.5), METRES * (0.5 - (row.mean() + 0.5) / PIXELS)


def area(mask):
    return mask.sum() * (METRES / PIXELS) ** 2


def red(frame):
    """The pixels of the point."""
    frame = frame.astype(int)
    return (frame[..., 0] > 100) & (frame[..., 0] > 2 * frame[..., 1]) & (frame[..., 0] > 2 * frame[..., 2])


def milliseconds(path):
    """How long a GIF takes; it keeps equal frames as one, shown longer."""
    return sum(imageio.immeta(path, index=i)["duration"] for i in range(len(imageio.imread(path))))


def push(tensordict):
    """A policy that drives along x."""
    return tensordict.set("action", torch.tensor([1.0, 0.0]).expand(*tensordict.batch_size, 2))


# What is drawn, and where.


@pytest.mark.parametrize(("width", "height"), [(64, 48), (800, 656)])  # the model's own framebuffer is 640 x 640
def test_pictures_have_their_size_and_are_not_blank(width, height):
    frame = render_row(point(), width=width, height=height)
    assert frame.shape == (height, width, 3) and frame.dtype == np.uint8
    assert frame.std() > 20 and len(np.unique(frame.reshape(-1, 3), axis=0)) > 20


def test_the_picture_is_the_right_way_up_and_of_the_right_row():
    env = point()
    td = env.reset()
    for _ in range(8):
        action = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
        td = env.step(td.set("action", action))["next"]
    for row in range(4):
        assert centre(red(picture(env, row))) == pytest.approx(td["observation"][row, :2].tolist(), abs=0.15)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_subgoal_is_drawn_at_its_place_in_its_levels_colour(place, level):
    env, row = point(), (PLACES.index(place) + 2) % 4  # a row whose goal is elsewhere
    subgoals = torch.full((3, 2), 50.0)  # beyond the picture
    without = picture(env, row, subgoals)
    subgoals[level] = torch.tensor(place)
    with_one = picture(env, row, subgoals)
    mask = changed(with_one, without)
    assert centre(mask) == pytest.approx(place, abs=0.3)
    assert area(mask) == pytest.approx(math.pi * CONFIG.subgoal_tolerance**2, rel=0.3)
    tint = (with_one - without)[mask].mean(0)  # towards the marker's colour, away from the rest
    wanted = np.array(LEVEL_COLOURS[level][:3])
    assert tint.argmax() == wanted.argmax() and tint.argmin() == wanted.argmin()


def test_a_hidden_goal_is_drawn_as_large_as_its_tolerance():
    env = point()
    assert "goal" not in env.observation_spec.keys()
    for row, place in enumerate(PLACES):
        env.goal_space, space = None, env.goal_space
        without = picture(env, row)
        env.goal_space = space
        with_goal = picture(env, row)
        mask = changed(with_goal, without)
        assert centre(mask) == pytest.approx(place, abs=0.4)
        assert area(mask) == pytest.approx(math.pi * CONFIG.goal_tolerance**2, rel=0.3)
        assert (with_goal - without)[mask].mean(0).argmax() == 1  # green


def test_goals_that_are_no_places_are_not_drawn():
    env = point(NowherePoint)
    plain = picture(env)
    env.goal_space = None
    assert not changed(picture(env, 0, torch.tensor([[3.0, 3.0]])), plain).any()


def test_the_environments_goal_position_may_change_what_it_is_handed():
    subgoals = torch.tensor([[3.0, 3.0], [-3.0, 3.0]])
    assert not changed(picture(point(ClumsyPoint), 0, subgoals), picture(point(), 0, subgoals)).any()


def test_places_may_depend_on_the_state_of_the_row():
    env = point(NowherePoint)
    env.rollout(10, lambda td: push(td).set("action", td["action"] * torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None]))
    without = [picture(env, row) for row in (0, 1)]
    env.goal_position = lambda goal, model, data: np.array([data.qpos[0] * 2, 5.0, 0.25])
    places = [centre(changed(picture(env, row), plain)) for row, plain in zip((0, 1), without, strict=True)]
    assert places == [pytest.approx((2 * env._qpos[0, 0], 5.0), abs=0.3), pytest.approx((0.0, 5.0), abs=0.3)]


def test_markers_of_boxes_are_boxes():
    env = point()
    env.subgoal_space = type(env.subgoal_space)([0, 1], -8.0, 8.0, [2.0, 0.5])
    mask = changed(picture(env, 0, torch.tensor([[3.0, -4.0]])), picture(env))
    rows, columns = np.nonzero(mask)
    sides = np.array([np.ptp(columns) + 1, np.ptp(rows) + 1]) * METRES / PIXELS
    assert sides == pytest.approx([4.0, 1.0], abs=0.3)
    assert area(mask) > 0.9 * sides.prod()
    assert marker_size(env.subgoal_space, np.ones(2), np.array([1.0, 9.0, 1.0]), 0.1).tolist() == [2.0, 0.1, 0.1]


# Cameras.


def test_the_default_camera_sees_the_goals_of_all_tasks():
    env = point()
    with contextlib.closing(RowRenderer(env, **SMALL)) as renderer:
        frames = [renderer.draw(row) for row in range(4)]
    for frame, other in zip(frames, frames[1:] + frames[:1], strict=True):
        rows, columns = np.nonzero(changed(frame, other))
        assert len(rows) > 20 and min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < PIXELS - 1


def test_the_default_camera_follows_a_body_without_places_to_go():
    env = point(NowherePoint)
    with contextlib.closing(RowRenderer(env, **SMALL)) as renderer:
        before = centre(red(renderer.draw(0)))
        travelled = env.rollout(10, push)["next", "observation"][0, -1, 0]
        after = centre(red(renderer.draw(0)))
    assert travelled > 1.5
    assert after == pytest.approx(before, abs=0.2)


def test_cameras_by_name(tmp_path):
    env = point()
    with pytest.raises(ValueError, match="camera = 'side': .* its cameras are: none"):
        render_row(env, camera="side")
    spec = mujoco.MjSpec.from_file(str(Path(__file__).parent.parent / "peach_trl" / "envs" / "assets" / "point.xml"))
    spec.worldbody.add_camera(name="above", pos=[0, 0, 30])
    env = point()
    env.model = spec.compile()
    env.close()
    env._batch = None
    above = render_row(env, camera="above", **SMALL)
    assert changed(above, render_row(env, **SMALL)).any()
    assert centre(red(above)) == pytest.approx((0, 0), abs=0.2)


# Videos.


def test_a_video_of_a_plain_policy(tmp_path):
    env, path = point(), tmp_path / "push.gif"
    assert record_video(env, push, path, rows=(1, 2), steps=8, camera=overhead(), **SMALL) == 8
    frames = imageio.imread(path)
    assert frames.shape == (8, PIXELS, 2 * PIXELS, 3)
    assert imageio.immeta(path)["duration"] == pytest.approx(100)  # ms: 5 simulation steps of 0.02 s
    path_1 = env.rollout(8, push)["observation"][1, :, 0]
    for half in (frames[:, :, :PIXELS], frames[:, :, PIXELS:]):
        driven = [centre(red(frame))[0] for frame in half]
        assert driven == pytest.approx(path_1.tolist(), abs=0.2)  # a frame shows the state in which the policy acts
    assert changed(frames[0, :, :PIXELS], frames[0, :, PIXELS:]).sum() > 100  # the rows' tasks differ


def test_a_video_shows_the_subgoals_in_force(tmp_path):
    """Each frame has the subgoals that the policy has just chosen."""
    goals = torch.tensor([[-4.0, 6.0], [4.0, 6.0], [4.0, -6.0]])
    chosen = iter(goals)

    def policy(td):
        subgoals = torch.full((4, 1, 2), 50.0)  # beyond the picture, but for the row that is shown
        subgoals[2] = next(chosen)
        return push(td).set(("hierarchy", "goal"), subgoals)

    for name, acts in (("with.gif", policy), ("without.gif", push)):
        record_video(point(), acts, tmp_path / name, rows=(2,), steps=3, camera=overhead(), **SMALL)
    with_goals, without = (imageio.imread(tmp_path / name) for name in ("with.gif", "without.gif"))
    for frame, plain, goal in zip(with_goals, without, goals, strict=True):
        assert centre(changed(frame, plain, by=60)) == pytest.approx(goal.tolist(), abs=0.4)


def test_a_video_of_a_hierarchy(tmp_path):
    config = tiny_config(hierarchy__depth=3)
    policy = tiny_agent(config).make_policy()
    env = make_env(config, make_library(config), torch.arange(2), policy)
    path = tmp_path / "hierarchy.gif"
    assert record_video(env, policy, path, rows=(1,), steps=12, width=96, height=64) == 12
    frames = imageio.imread(path)
    assert frames.shape[1:] == (64, 96, 3) and milliseconds(path) == 12 * 40
    assert any(changed(a, b).any() for a, b in zip(frames, frames[1:], strict=False))
    flat = record(config, policy, [0, 1], 12, ExplorationType.DETERMINISTIC)
    assert flat["hierarchy", "goal"].shape == (2, 12, 2, 2)  # what add() is handed


@pytest.mark.parametrize("explore", [False, True])
def test_exploration_steps_and_episodes(tmp_path, explore):
    seen = []

    def policy(td):
        seen.append((exploration_type(), td["step_count"][0].item()))
        return push(td)

    env = TransformedEnv(point(), StepCounter())
    arguments = {} if explore else {"steps": 13}
    opposite = ExplorationType.DETERMINISTIC if explore else ExplorationType.RANDOM
    with set_exploration_type(opposite):
        frames = record_video(env, policy, tmp_path / "a.gif", explore=explore, width=16, height=16, **arguments)
    kind = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    assert frames == len(seen) == (10 if explore else 13)  # one horizon by default
    assert seen == [(kind, step % 10) for step in range(frames)]


def test_without_a_policy_it_acts_at_random(tmp_path):
    assert record_video(point(), None, tmp_path / "a.gif", steps=2, width=16, height=16) == 2


def test_several_rollouts_in_one_video(tmp_path):
    env, path = point(), tmp_path / "two.gif"
    with Video(env, path, fps=20, camera=overhead(), **SMALL) as video:
        for _ in range(2):
            env.rollout(4, video.watch(push))
    assert video.frames == 8
    frames = imageio.imread(path)
    assert len(frames) == 8 and imageio.immeta(path)["duration"] == 50
    assert not changed(frames[0], frames[4]).any() and changed(frames[3], frames[4]).any()


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_films(tmp_path):
    path = tmp_path / "push.mp4"
    record_video(point(), push, path, rows=(0, 1), steps=8, camera=overhead(), width=98, height=98)
    frames = imageio.imread(path, plugin="FFMPEG")
    assert frames.shape == (8, 98, 196, 3) and imageio.immeta(path, plugin="FFMPEG")["fps"] == 10
    assert changed(frames[0], frames[-1]).any()


# What cannot be drawn.


def test_a_film_without_imageio_ffmpeg_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install imageio-ffmpeg\); or write a .gif"):
        record_video(point(), push, tmp_path / "a.mp4")


def test_no_opengl_says_what_to_do(monkeypatch):
    def broken(width, height):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(mujoco.gl_context, "GLContext", broken)
    with pytest.raises(RuntimeError, match="MUJOCO_GL='osmesa'.*glGetError.*set MUJOCO_GL=egl .*libegl1"):
        render_row(point())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": (0, 4)}, IndexError, "between 0 and 3"),
        ({"rows": ()}, IndexError, "between 0 and 3"),
        ({"path": "a.avi"}, ValueError, r"a.avi'.* \.gif, \.mp4"),
    ],
)
def test_wrong_arguments_raise_and_write_nothing(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        record_video(point(), push, **{"path": "a.gif", **options})
    assert list(tmp_path.iterdir()) == []


def test_other_environments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="GymEnv cannot be drawn"):
        record_video(GymEnv("CartPole-v1"), None, tmp_path / "a.gif")


class Drawn(gymnasium.Env):
    """One number, which is the shade of its picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}
    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode, self.shade = render_mode, 0

    def reset(self, *, seed=None, options=None):
        self.shade = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.shade += 10
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return None if self.render_mode is None else np.full((20, 30, 3), self.shade, np.uint8)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_of_gymnasium_draw_themselves(tmp_path, vectorization):
    library = TaskLibrary(torch.zeros(2, 1), {"train": torch.arange(2)})
    options = {"num_envs": 2, "horizon": 6, "vectorization": vectorization, "seed": 0}
    env = GymnasiumTasksEnv(partial(Drawn, "rgb_array"), library, stay, **options)
    assert record_video(env, None, tmp_path / "a.gif", rows=(0, 1)) == 6
    frames = imageio.imread(tmp_path / "a.gif")
    assert frames.shape == (6, 20, 60, 3) and frames[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    env.close()
    with pytest.raises(RuntimeError, match="no row was reset yet"):
        env.render_row(0)
    blind = GymnasiumTasksEnv(Drawn, library, stay, **options)
    with pytest.raises(ValueError, match="its copies draw a NoneType, no picture; make them with render_mode"):
        record_video(blind, None, tmp_path / "b.gif")
    blind.close()


def stay(env, task):
    """All tasks are one."""


# The recipe.


def test_films_of_a_gymnasium_environment(tmp_path):
    """While training, and of a checkpoint: a copy draws where Gymnasium's registry says that it can."""
    gymnasium.register("peach_trl_tests/Drawn-v0", Drawn)
    try:
        space = "{indices: [0], low: -1.0, high: 1.0, tolerance: 0.1}"
        own = [
            "env.options.env_id=peach_trl_tests/Drawn-v0",
            "env.options.set_task=shade",
            f"env.options.subgoal={space}",
        ]
        tiny = [change for change in TINY if not change.startswith("env.")]
        (run,) = start(
            tmp_path, "peach", "env=gymnasium", "env.horizon=20", *tiny, *own, "logging.videos=true", plots=False
        )
        assert list((run / "videos").iterdir())
        (filmed,) = start(tmp_path / "film", "video", f"checkpoint={run}", "tasks=2", "trajectories=1")
        assert imageio.imread(filmed / "meta_test.gif").shape[2] == 60
    finally:
        del gymnasium.registry["peach_trl_tests/Drawn-v0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = tiny_config()
    with Run(tmp_path_factory.mktemp("trained"), config) as run:
        state = {"config": dataclasses.asdict(config), "agent": tiny_agent(config).state_dict()}
        return run.checkpoint("final", state)


def test_the_recipe_films_a_meta_test(checkpoint, tmp_path, capsys):
    arguments = [f"checkpoint={checkpoint}", "tasks=9", "trajectories=2", "width=64", "height=48", "split=train"]
    (run,) = start(tmp_path, "video", *arguments)
    assert manifest_of(run)["frames"] == 40 and manifest_of(run)["tasks"] == [0, 1, 2]  # of 20 steps each
    frames = imageio.imread(run / "meta_test.gif")
    assert frames.shape[1:] == (48, 3 * 64, 3) and milliseconds(run / "meta_test.gif") == 40 * 40
    assert "tasks [0, 1, 2], 40 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"), [("path=a.avi", "a.avi'"), ("camera=side", "camera = 'side'"), ("tasks=0", "tasks = 0")]
)
def test_the_recipe_refuses_bad_values(checkpoint, tmp_path, capsys, override, message):
    with pytest.raises(SystemExit) as end:
        start(tmp_path, "video", f"checkpoint={checkpoint}", override)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and errors.startswith("Configuration error: ") and message in errors
    assert list(tmp_path.glob("runs/*/*")) == []


@pytest.mark.processes
def test_videos_and_loggers_while_training(tmp_path):
    """A film at each evaluation changes nothing of the run."""
    short = ["train.iterations=2", "train.warmup=0", "train.prefill=0", "evaluation.every=1"]
    logging = {"true": "logging.loggers=[tensorboard]", "false": "logging.loggers=[]"}
    runs = [
        start(tmp_path / name, "peach", *TINY, *short, loggers, f"logging.videos={name}", plots=False)[0]
        for name, loggers in logging.items()
    ]
    films = sorted((runs[0] / "videos").iterdir(), key=lambda path: int(path.stem))
    assert [film.name for film in films] == ["120.gif", "240.gif"] and films[0].read_bytes()[:6] == b"GIF89a"
    assert not (runs[1] / "videos").exists() and not (runs[1] / "tensorboard").exists()
    events = EventAccumulator(str(runs[0] / "tensorboard"), {"images": 0})
    events.Reload()
    shown = events.Images("eval/meta_test")
    assert [event.step for event in shown] == [120, 240] and shown[0].encoded_image_string[:3] == b"GIF"
    assert without_speed(runs[0]) == without_speed(runs[1])


def test_a_logger_without_an_encoder_says_so(tmp_path, capsys):
    """The film is in the run's folder all the same."""
    imageio.imwrite(
        tmp_path / "film.gif", np.stack([np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)])
    )

    class Bare:
        def log_video(self, name, video, step):
            assert (name, video.shape, step) == ("eval/meta_test", (1, 2, 3, 16, 16), 7)
            raise ImportError("moviepy is missing")

    log_film([Bare()], tmp_path / "film.gif", 7)
    assert capsys.readouterr().out == "Bare: film.gif is in the run's folder only: moviepy is missing\n"
