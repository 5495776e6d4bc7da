"""What a run writes: metrics while it trains, and at the end a checkpoint, plots and the meta-test."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState

from peach_trl.agent import Agent
from peach_trl.config import ConfigError
from peach_trl.envs.batched_mujoco import BatchedMujocoEnv
from peach_trl.envs.families.maze_layouts import maze_walls
from peach_trl.envs.families.wind import Wind
from peach_trl.envs.goal_space import GoalSpace
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.evaluation import MetaTest, meta_test
from peach_trl.experiment import Config, checkpoint_of, make_agent, make_env, of_seeds
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.levels.errors import NotFiniteLossError
from peach_trl.levels.top_level import LOSSES
from peach_trl.references import references
from peach_trl.resume import SAVEPOINTS, locked, write_config
from peach_trl.rules import explained
from peach_trl.schedule import Phase, Schedule
from peach_trl.utils.plots import plot_curves, plot_posterior, plot_trajectories
from peach_trl.utils.run import Run, progress
from peach_trl.utils.savepoints import Component, Savepoints
from peach_trl.utils.signals import Stopping

LOGGED = (*LOSSES, "entropy")


def run_meta_test(agent: Agent, config: Config, library: TaskLibrary, split: str, seed: int) -> MetaTest:
    """A meta-test as ``config.evaluation`` has it, with the averaged weights of actor and encoder.

    Args:
        agent: what was learnt.
        config: environment, trajectories and rollouts.
        library: the tasks.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: of the draws of z; nothing here moves the generators of training.
    """
    policy = agent.make_policy(config.evaluation.trajectories, average=True, seed=seed)
    if config.device != "cpu":
        policy = copy.deepcopy(policy).to("cpu")
    tasks = library.split(split).repeat_interleave(config.evaluation.rollouts)
    return meta_test(policy, make_env(config, library, tasks), config.evaluation.trajectories)


class Runs:
    """The folders of the seeds that are trained at once: the run's own, or with several seeds ``seed_<number>`` in it.

    Each is what the seed's run alone would leave behind, with its own configuration. As a context manager it is like
    :class:`~peach_trl.utils.run.Run`; and whatever ends it early, SIGTERM included, leaves the agents as they were then
    in ``checkpoints/interrupted.pt``. What a resume needs is in ``savepoints/`` as long as the run is not finished.

    Args:
        folder: of the run.
        config: of all seeds; with ``resume`` the run in the folder goes on.

    Attributes:
        resumed: whether it is a run that goes on.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.resumed, plain = config.resume is not None, dataclasses.replace(config, resume=None, resume_allow=())
        self._lock = locked(folder)
        self.folder, self.configs, self.iterations = folder, of_seeds(plain), 0
        self.rescue: Callable[[], None] | None = None  # what saves the agents, once there are any
        self._stopping = Stopping()
        alone = len(self.configs) == 1
        folders = [folder] if alone else [folder / f"seed_{one.seed}" for one in self.configs]
        self.runs = [Run(at, one, one.logging, self.resumed) for at, one in zip(folders, self.configs, strict=True)]
        write_config(folder, plain)

    def __enter__(self) -> Runs:
        self._stopping.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        cause = self._stopping.cause(error)
        if isinstance(error, NotFiniteLossError):
            error.add_note(f"in iteration {self.iterations}, counted from 0")
            if error.batch is not None:
                path = self.runs[0].checkpoint("post_mortem", {"batch": error.batch.to_dict(), "losses": error.losses})
                error.add_note(f"the batch: {path}")
        if error is not None and self.rescue is not None:
            try:
                self.rescue()
            except Exception as problem:
                (cause or error).add_note(f"the agents could not be saved: {problem}")
        for run in self.runs:
            run.__exit__(kind, cause, trace)
        self._lock.close()
        self._stopping.__exit__(kind, error, trace)


class Report:
    """Gathers the metrics of an iteration and writes them to the folders of the seeds.

    Logged: ``train/return/trajectory_l``, the mean reward of a step while exploring; ``eval/return`` and success by
    trajectory of the meta-test; success and share tested of each level; losses, KL among them; speed.

    Args:
        runs: the folders.
        agent: the learner.
        config: how often to evaluate.
        library: the tasks.
        schedule: the passes.
    """

    def __init__(self, runs: Runs, agent: Agent, config: Config, library: TaskLibrary, schedule: Schedule) -> None:
        self.runs, self.agent, self.config, self.library, self._schedule = runs, agent, config, library, schedule
        self.env_steps, self.updates = 0, 0  # of each seed
        self._sums: dict[str, list[Tensor]] = defaultdict(list)  # [S] each
        self._clock = time.perf_counter()
        self._single = agent if len(runs.runs) == 1 else _template(runs.configs[0], library.single)
        self._best = BestAgents(agent, self._single, config.seeds) if config.evaluation.agent == "best" else None
        self._score = math.nan
        print(f"run folder: {runs.folder}")
        print("values by rule (peach_trl.rules):", *explained(config), sep="\n  ")
        self._bar = progress(len(schedule), "meta-training")
        self._savepoints: Savepoints | None = None
        if not runs.resumed:  # else what was saved last time is kept until all is loaded
            runs.rescue = lambda: self.save("interrupted")

    def keep(self, *state: Any) -> None:
        """Says what else goes on from pass to pass; where the run is resumed, all of it becomes what it was.

        Args:
            state: objects with ``state_dict()`` and ``load_state_dict()``, or with ``training_state()`` and
                ``load_training_state()``, in an order that is always the same.

        Raises:
            ConfigError: where a resumed run's savepoints are damaged, or do not fit.
        """
        parts: dict[str, Any] = {"agent": self.agent, "report": self, "schedule": self._schedule}
        parts |= {f"{number}_{type(part).__name__}": part for number, part in enumerate(state)}
        for name, part in parts.items():
            if hasattr(part, "training_state"):
                parts[name] = Component(part.training_state, part.load_training_state)
        parts["generators"] = GlobalRNGState()  # last, as nothing is to be drawn after it
        self._savepoints = Savepoints(self.runs.folder / SAVEPOINTS, self.config.checkpoint.keep, **parts)
        if self.runs.resumed:
            self._resume(self._savepoints)

    def _resume(self, savepoints: Savepoints) -> None:
        savepoints.clean()
        try:
            number = savepoints.load()
        except Exception as error:  # whatever does not fit
            raise ConfigError(f"resume = {self.runs.folder}: {str(error).splitlines()[0]}") from error
        every, rows = self.config.checkpoint.every, self.runs.runs[0].rows
        if number is None and (every is None or rows >= every):
            raise ConfigError(
                f"resume = {self.runs.folder}: {rows} iterations, and no savepoint; start it anew elsewhere"
            )
        if number is None:
            print("no savepoint was written yet: the run starts anew")
            for run in self.runs.runs:
                run.rewind(0, -1, 0.0, 0.0)
        else:
            print(f"resumed after iteration {number}, at environment step {self.env_steps}")
        for run in self.runs.runs:
            for path in (run.folder / "checkpoints").glob("iteration_*.pt"):
                if int(path.stem.rpartition("_")[2]) > (number or 0):
                    path.unlink()
        self._bar.update((number or 0) - self._bar.n)
        self.runs.iterations = number or 0
        self.runs.rescue = lambda: self.save("interrupted")

    def state_dict(self) -> dict[str, Any]:
        """Counters, the best agents so far, and how far the files of metrics are."""
        best = None if self._best is None else self._best.state_dict()
        for run in self.runs.runs:
            run.sync()
        files = [(run.rows, *run.spent) for run in self.runs.runs]
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "score": self._score,
            "best": best,
            "files": files,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, and cuts the files to what they were."""
        self.env_steps, self.updates, self._score = (state_dict[name] for name in ("env_steps", "updates", "score"))
        if self._best is not None:
            self._best.load_state_dict(state_dict["best"])
        for run, (rows, *spent) in zip(self.runs.runs, state_dict["files"], strict=True):
            run.rewind(rows, self.env_steps, *spent)

    def collected(self, batch: TensorDictBase, trajectory: int) -> None:
        """Takes in a recorded batch [S N, T], the ``trajectory``-th (from 0) of an iteration."""
        seeds = self.config.seeds
        self.env_steps += batch.numel() // seeds
        reward = batch["next", "reward"].view(seeds, -1).mean(-1)
        self._sums[f"return/trajectory_{trajectory + 1}"].append(reward)
        found = [level_metrics(self.agent.hierarchy, part) for part in batch.chunk(seeds)]
        for name in found[0]:
            self._sums[name].append(torch.tensor([of_seed[name] for of_seed in found]))

    def losses(self, level: str, losses: TensorDictBase) -> None:
        """Takes in the losses of one gradient step of ``level``; they are read at the end of the iteration."""
        self.updates += level == "top"
        for name in LOGGED:
            value = losses.get(name, None)
            if value is not None:
                self._sums[f"{name}/{level}"].append(value.detach())

    def iteration(self, phase: Phase) -> None:
        """Writes the means since the last call, and from time to time a meta-test on the evaluation split."""
        seconds = time.perf_counter() - self._clock
        means = {name: torch.stack(values).float().mean(0) for name, values in sorted(self._sums.items())}
        columns = {f"train/{name}": mean.expand(self.config.seeds).tolist() for name, mean in means.items()}
        tests = None
        if (phase.number + 1) % self.config.evaluation.every == 0:
            results = self.test(self.config.evaluation.split)
            tests = [test.metrics() for test in results]
            self._score = _score_of(results)
            if self._best is not None:
                for seed in self._best.take(results, phase.number):
                    run, config = self.runs.runs[seed], self.runs.configs[seed]
                    state = checkpoint_of(config, self.library.single, self._best.states[seed])
                    run.checkpoint("best", state, replace=True)
            if self.config.logging.videos:
                self.film(self.runs.runs[0].folder / "videos" / f"{self.env_steps}.gif")
        tested = tests or [{}] * self.config.seeds
        for seed, run in enumerate(self.runs.runs):
            metrics: dict[str, float] = {name: values[seed] for name, values in columns.items()}
            metrics |= {"time/updates/top": self.updates, "time/seconds/iteration": seconds}
            run.log(self.env_steps, metrics | {f"eval/{name}": value for name, value in tested[seed].items()})
        if tests:
            returns = [name for name in tests[0] if name.startswith("return/")]
            means_of = [sum(test[name] for test in tests) / len(tests) for name in returns]
            self._bar.set_postfix_str("return by trajectory " + " ".join(f"{value:.2f}" for value in means_of))
        self._bar.update()
        self.runs.iterations = phase.number + 1
        self._sums.clear()
        every = self.config.checkpoint.every
        if every is not None and (phase.number + 1) % every == 0:
            self._checkpoint(phase.number + 1)
        self._clock = time.perf_counter()

    def _checkpoint(self, number: int) -> None:
        """After so many passes: a file of each agent, and a savepoint of everything."""
        self.save(f"iteration_{number:06d}")
        for run in self.runs.runs:
            for old in sorted((run.folder / "checkpoints").glob("iteration_*.pt"))[: -self.config.checkpoint.keep]:
                old.unlink()
        if self._savepoints is not None:
            self._savepoints.save(number)

    def test(self, split: str) -> list[MetaTest]:
        """A meta-test of each seed's current agent; draws of z depend on the run's seed only."""
        result = run_meta_test(self.agent, self.config, self.library, split, self.config.seed)
        return result.of_seeds(self.config.seeds, self.library.single.num_tasks)

    def save(self, name: str, levels: str | None = None) -> None:
        """Writes a checkpoint of each seed's agent, and with ``levels`` one of its goal-reaching levels alone.

        The latter are skills for others (``lower.checkpoint``).
        """
        for seed, (run, config) in enumerate(zip(self.runs.runs, self.runs.configs, strict=True)):
            state = self.agent.state_of(seed, self._single)
            run.checkpoint(name, checkpoint_of(config, self.library.single, state))
            if levels is not None and len(self._single.levels):
                parts = {name: value for name, value in state.items() if name.startswith("levels.")}
                run.checkpoint(levels, checkpoint_of(config, self.library.single, parts))

    def film(self, path: Path) -> None:
        """A video of the first seed's meta-test on the first task of the evaluation split.

        Raises:
            ConfigError: where nothing can draw, or environments are not batched ones.
        """
        from peach_trl.envs.video import record_video  # here, as it chooses how MuJoCo draws

        evaluation, config = self.config.evaluation, self.config
        policy = copy.deepcopy(self.agent.make_policy(evaluation.trajectories, average=True, seed=config.seed)).to(
            "cpu"
        )
        tasks = self.library.split(evaluation.split).view(config.seeds, -1)[:, 0]  # a row of each seed
        env = make_env(config, self.library, tasks, policy)
        path.parent.mkdir(exist_ok=True)
        try:
            record_video(env, policy, path, steps=evaluation.trajectories * config.env.horizon, width=240, height=240)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"logging.videos = True: {error}; set it to false") from None
        finally:
            env.close()

    def finish(self) -> float:
        """Checkpoint, plots and the meta-test of the final agents on ``evaluation.final``'s tasks, which it prints.

        Returns:
            what a search for values may maximise: the returns by trajectory on ``evaluation.split``, summed, a mean
            over tasks and seeds; of the final agents if they are tested on it, else as last evaluated in training.
        """
        self._bar.close()
        split, library = self.config.evaluation.final, self.library.single
        if self._best is not None:
            self._best.take(self.test(self.config.evaluation.split), -1)
            self._best.restore()
        alone = len(self.runs.runs) == 1
        self.save("final", "levels")  # first of all
        self.runs.rescue = None
        results = self.test(split)
        bounds = bounds_of(self.runs.configs[0], library, split)
        tasks = {"list": library.name, "fingerprint": library.fingerprint()}
        counts = {"env_steps": self.env_steps, "top_updates": self.updates, "seeds_at_once": len(results)}
        for seed, (run, config, result) in enumerate(zip(self.runs.runs, self.runs.configs, results, strict=True)):
            save_meta_test(run, config, library, result, split)
            final = {f"eval/{name}": value for name, value in result.metrics().items()}
            plot_curves(run.folder / "metrics.csv", run.folder / "curves.png", bounds, final=final)
            chosen = {} if self._best is None else {"best_iteration": self._best.iterations[seed]}
            run.finish(**counts, **chosen, tasks=tasks, **{split: result.metrics()}, references=bounds)
            print_meta_test(result, split, bounds, None if alone else config.seed)
        shutil.rmtree(self.runs.folder / SAVEPOINTS, ignore_errors=True)
        print(f"run folder: {self.runs.folder}")
        return _score_of(results) if split == self.config.evaluation.split else self._score


def _template(config: Config, library: TaskLibrary) -> Agent:
    """An agent alone, of which only names and shapes are read; its weights are drawn beside the run's generators."""
    with torch.random.fork_rng(devices=[]):
        return make_agent(config, library)


def _score_of(results: Sequence[MetaTest]) -> float:
    return sum(result.returns.sum(1).mean().item() for result in results) / len(results)


class BestAgents:
    """Each seed's agent as it was when it did best in a meta-test, by the sum of the returns over all trajectories.

    To be used with validation tasks; a test on the same tasks would flatter it.

    Args:
        agent: the learner of all seeds, which :meth:`restore` changes.
        single: any agent of the same kind, alone.
        seeds: how many they are.

    Attributes:
        iterations: after which pass each was best, from 0; -1 for the end.
        states: the agents of the seeds when they were.
    """

    def __init__(self, agent: Agent, single: Agent, seeds: int) -> None:
        self.agent, self._single = agent, single
        self._scores = [-math.inf] * seeds
        self.states: list[dict[str, Tensor]] = [{} for _ in range(seeds)]
        self.iterations = [-1] * seeds

    def take(self, results: list[MetaTest], iteration: int) -> list[int]:
        """Keeps the agents of the seeds that did better than before, and says which these are."""
        better = []
        for seed, result in enumerate(results):
            score = float(result.returns.mean(0).sum())
            if math.isfinite(score) and score > self._scores[seed]:
                state = self.agent.state_of(seed, self._single)
                self.states[seed] = {name: value.clone() for name, value in state.items()}
                self._scores[seed], self.iterations[seed] = score, iteration
                better.append(seed)
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best agents so far."""
        return {"scores": self._scores, "states": self.states, "iterations": self.iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._scores, self.states = list(state_dict["scores"]), list(state_dict["states"])
        self.iterations = list(state_dict["iterations"])

    def restore(self) -> None:
        """Makes the agents what they were when they did best."""
        self.agent.load_seeds(self.states)


def bounds_of(config: Config, library: TaskLibrary, split: str) -> dict[str, list[float]]:
    """What can be had on the tasks of a split: the reference policies' returns / horizon by trajectory, if known."""
    env = make_env(config, library, library.split(split))
    try:
        steps = config.hierarchy.top_steps
        found = references(
            env,  # type: ignore[arg-type]
            trajectories=config.evaluation.trajectories,
            decision_steps=steps,
            reach=config.hierarchy.subgoal_reach * steps if config.hierarchy.subgoal == "relative" else math.inf,
            seed=0,
        )
    finally:
        env.close()
    return {name: values.tolist() for name, values in found.items()}


def save_meta_test(
    run: Run, config: Config, library: TaskLibrary, result: MetaTest, split: str, tasks: int = 5
) -> None:
    """Writes a meta-test's CSV and pictures: the belief in the end; where goals are places, paths of some tasks."""
    result.save_csv(run.folder / "meta_test.csv", split)
    goals = result.goals
    env = make_env(config, library, library.split("train")[:1])
    places = _in_the_plane(env, goals[0])
    if result.positions.shape[-1] == 2:
        if places:
            tolerance = float(cast(GoalSpace, result.goal_space).tolerance.max())
            _plot_paths(run, config, result, goals, tolerance, tasks, candidates=library.parameters, env=env)
        elif isinstance(env, Wind):  # the place is the same in all tasks
            place = torch.tensor(env.place).expand(len(goals), 2)
            _plot_paths(run, config, result, place, env.place_radius, tasks, candidates=None, env=env)
    env.close()
    if result.loc is not None:
        values = torch.atan2(goals[:, 1], goals[:, 0]).rad2deg() if places else goals[:, 0]
        label = "direction of the goal, degrees" if places else "first parameter of the task"
        plot_posterior(run.folder / "posterior.png", result.loc, result.scale, values, label)


def _in_the_plane(env: Any, goal: Tensor) -> bool:
    """Whether goals [2] are places x, y in metres, and not angles, say."""
    if env.goal_space is None or len(goal) != 2:
        return False
    if not isinstance(env, BatchedMujocoEnv):
        return env.goal_space.metric == "euclidean"
    place = env.goal_position(goal.double().numpy(), *env.simulation(0))
    return place is not None and bool(abs(place[:2] - goal.double().numpy()).max() < 1e-6)


def _plot_paths(
    run: Run,
    config: Config,
    result: MetaTest,
    goals: Tensor,
    tolerance: float,
    tasks: int,
    *,
    candidates: Tensor | None,
    env: Any,
) -> None:
    """Draws the paths of some tasks, whose ``goals`` [R, 2] count within ``tolerance``, in metres."""
    first = torch.arange(0, len(goals), config.evaluation.rollouts)  # the first rollout of each task
    rows = first[torch.linspace(0, len(first) - 1, min(tasks, len(first))).round().long()]
    plot_trajectories(
        run.folder / "trajectories.png",
        result.positions[rows],
        goals[rows],
        tolerance,
        subgoals=None if result.subgoals is None else result.subgoals[rows],
        found=result.found[rows],
        candidates=candidates,
        walls=maze_walls(env),
        names=[f"task {task}" for task in result.task_ids[rows].tolist()],
    )


def print_meta_test(result: MetaTest, split: str, bounds: Mapping[str, list[float]], seed: int | None = None) -> None:
    """Prints return and success by trajectory number, and beside them what can be had."""
    of_seed = "" if seed is None else f"seed {seed}: "
    rollouts = f"{len(result.returns)} rollouts"
    print(f"{of_seed}meta-test on the {split} tasks, {rollouts}: return divided by the horizon (success)")
    for k, (value, success) in enumerate(zip(result.returns.mean(0), result.success.mean(0), strict=True)):
        print(f"  trajectory {k + 1}: {value:.3f} ({success:.2f}){_beside(bounds, k)}")


def _beside(bounds: Mapping[str, list[float]], k: int) -> str:
    return "".join(f"; {name} {values[k]:.3f}" for name, values in bounds.items())
