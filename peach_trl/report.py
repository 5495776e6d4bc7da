"""What a run writes: metrics while it trains, and at the end a checkpoint, plots and the meta-test."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState

from peach_trl.agent import Agent
from peach_trl.best_agents import BestAgents
from peach_trl.config import ConfigError
from peach_trl.envs.tasks import TaskLibrary
from peach_trl.evaluation import MetaTest
from peach_trl.experiment import Config, checkpoint_of, levels_file, make_agent, make_env
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.levels.top_level import LOSSES
from peach_trl.meta_tests import bounds_of, print_meta_test, run_meta_test, save_meta_test
from peach_trl.rules import explained
from peach_trl.runs import Runs
from peach_trl.schedule import Phase, Schedule
from peach_trl.utils.files import SAVEPOINTS
from peach_trl.utils.loggers import log_film
from peach_trl.utils.plots import plot_curves
from peach_trl.utils.run import progress
from peach_trl.utils.savepoints import Component, Savepoints

LOGGED = (*LOSSES, "entropy")


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
        self._best = BestAgents(agent, self._single) if config.evaluation.agent == "best" else None
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
        parts: dict[str, Any] = {"agent": self.agent, "schedule": self._schedule}
        parts |= {f"{number}_{type(part).__name__}": part for number, part in enumerate(state)}
        parts["report"] = self  # behind all that may be refused: it drops rows and files of what came later
        for name, part in parts.items():
            if hasattr(part, "training_state"):
                parts[name] = Component(part.training_state, part.load_training_state)
        parts["generators"] = GlobalRNGState()  # last, as nothing is to be drawn after it
        facts = {"tasks": self.library.single.fingerprint(), "config": self.runs.digest}
        self._savepoints = Savepoints(self.runs.folder / SAVEPOINTS, self.config.checkpoint.keep, facts, **parts)
        if self.runs.resumed:
            self._resume(self._savepoints)

    def _resume(self, savepoints: Savepoints) -> None:
        savepoints.clean()
        try:
            number = savepoints.load()
        except Exception as error:  # whatever does not fit
            raise ConfigError(f"resume = {self.runs.folder}: {str(error).splitlines()[0]}") from error
        every, rows = self.config.checkpoint.every, self.runs.runs[0].rows
        if number is None and (every is None or rows > every):  # a kill may have come between a row and its savepoint
            raise ConfigError(
                f"resume = {self.runs.folder}: {rows} iterations, and no savepoint; start it anew elsewhere"
            )
        if number is None:
            print("no savepoint was written yet: the run starts anew")
            for run in self.runs.runs:
                run.rewind(0, -1, 0.0, 0.0)
            if any((path := levels_file(config)) is not None and not path.is_file() for config in self.runs.configs):
                raise ConfigError(f"lower.checkpoint = {path}: no such file, and no savepoint has its levels yet")
        else:
            print(f"resumed after iteration {number}, at environment step {self.env_steps}")
        self.runs.goes_on()
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
        for run, (rows, *_) in zip(self.runs.runs, state_dict["files"], strict=True):
            run.rows_until(rows)  # refuses what is damaged before anything is cut
        self.env_steps, self.updates, self._score = (state_dict[name] for name in ("env_steps", "updates", "score"))
        if self._best is not None and state_dict["best"] is not None:
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
            tests = [test.metrics("eval/") for test in results]
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
            run.log(self.env_steps, metrics | tested[seed])
        if tests:
            returns = [name for name in tests[0] if name.startswith("eval/return/")]
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
        """A video of the first seed's meta-test on the first task of the evaluation split, also for its loggers.

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
        log_film(self.runs.runs[0].loggers, path, self.env_steps)

    def finish(self) -> float:
        """Checkpoint, plots and the meta-test of the final agents on ``evaluation.final``'s tasks, which it prints.

        Returns:
            what a search for values may maximise: the returns by trajectory on ``evaluation.split``, summed, a mean
            over tasks and seeds; of the final agents if they are tested on it, or are the best ones, else as last
            evaluated in training.
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
        tasks = library.identity()
        counts = {"env_steps": self.env_steps, "top_updates": self.updates, "seeds_at_once": len(results)}
        for seed, (run, config, result) in enumerate(zip(self.runs.runs, self.runs.configs, results, strict=True)):
            save_meta_test(run, config, library, result, split)
            curves = run.folder / "metrics.csv", run.folder / "curves.png"
            plot_curves(*curves, bounds, final=result.metrics("eval/"))
            chosen = {} if self._best is None else {"best_iteration": self._best.iterations[seed]}
            run.finish(**counts, **chosen, tasks=tasks, **{split: result.metrics()}, references=bounds)
            print_meta_test(result, split, bounds, None if alone else config.seed)
        shutil.rmtree(self.runs.folder / SAVEPOINTS, ignore_errors=True)
        print(f"run folder: {self.runs.folder}")
        if split == self.config.evaluation.split:
            return _score_of(results)
        if self._best is not None:
            return self._best.score
        return _score_of(self.test(self.config.evaluation.split)) if math.isnan(self._score) else self._score


def _template(config: Config, library: TaskLibrary) -> Agent:
    """An agent alone, of which only names and shapes are read; its weights are drawn beside the run's generators."""
    lower = dataclasses.replace(config.lower, checkpoint=None)  # it may be gone
    with torch.random.fork_rng(devices=[]):
        return make_agent(dataclasses.replace(config, lower=lower), library)


def _score_of(results: Sequence[MetaTest]) -> float:
    return sum(result.returns.sum(1).mean().item() for result in results) / len(results)
