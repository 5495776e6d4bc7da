"""HAC: a hierarchy without a context variable (Levy et al. 2019, arXiv 1712.00948), which is PEACH with latent_dim 0.

    python recipes/hac.py                                           # the task is hidden: the baseline without z
    python recipes/hac.py top.observe_goal=true                     # the oracle: the top level is told the goal
    python recipes/hac.py top.observe_goal=true top.objective=goal  # HAC as published: every level reaches for a goal

Values and their meaning: configs/common.yaml and configs/hac.yaml. Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # first: it checks keys before torch is imported
from peach_trl.collecting import collecting
from peach_trl.experiment import (
    HacConfig,
    best_so_far,
    make_agent,
    make_exploration,
    make_level_buffer,
    make_library,
    make_novelty,
    make_sequence_sampler,
    make_task_buffer,
    make_transitions,
    seed_everything,
)
from peach_trl.report import Report
from peach_trl.runs import Runs
from peach_trl.schedule import Schedule
from peach_trl.utils.cli import recipe


@recipe(HacConfig, config_name="hac")
def main(config: HacConfig, run_dir: Path) -> float:
    """TRAIN-LEVEL for all levels at once, and their updates."""
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")
    agent = make_agent(config, library)
    top = agent.top  # None where its objective is the goal: then it is one of the goal-reaching levels
    policy = agent.make_policy()  # pi_h(s), ..., pi_0(s, g_0)
    B = make_task_buffer(config, library)  # of a top level that follows the reward
    replays = [make_level_buffer(config, library, level) for level in range(len(agent.levels))]
    S = make_sequence_sampler(config, B)
    transitions = make_transitions(config, library, agent)
    exploration = make_exploration(config, library, agent)  # of tasks whose rewards are not met
    novelty = make_novelty(config, agent)  # a reward for new states, early on
    train = config.train

    with Runs(run_dir, config) as runs, collecting(config, library, policy, transitions) as trajectories:
        schedule = Schedule(config, agent, exploration)  # warm-up of the lower levels, prefill of B, training
        report = Report(runs, agent, config, library, schedule)
        report.keep(trajectories, transitions, B, *replays, S, exploration, novelty)  # what resume= goes on with
        for phase in schedule:
            if phase.forgets:
                B.empty()  # what the top level met while nothing below it worked

            for l in range(train.trajectories):
                explores = {} if top is None else exploration.settings(l, phase.progress)
                policy.explore(warmup=phase.warmup, at_random=phase.at_random, **explores)  # by task not in HAC itself
                batch = next(trajectories)  # TRAIN-LEVEL(top, s)
                agent.see(batch["observation"])  # means and deviations of what has no bounds
                rows = transitions(batch)
                exploration.collected(batch, phase.by_chance)
                report.collected(batch, l)
                if top is not None:
                    B.extend(rows[-1])
                for i, (level, replay) in enumerate(zip(agent.levels, replays, strict=True)):
                    replay.extend(rows[i])
                    for rows_i in replay.batches(train.lower_batch, phase.lower_updates):
                        report.losses(f"level_{i}", level.update(rows_i))

            if top is not None:
                for b_i in S.batches(T, train.meta_batch, train.top_updates * phase.by_chance):
                    novelty.learn(b_i)  # what chance shows is not new
                for level in agent.levels:
                    level.anneal(phase.progress)
                top.anneal(phase.progress, worth=best_so_far(config, exploration))
                rare, costly = exploration.unsolved & exploration.rare, exploration.behind_costs
                for b_i in S.batches(T, train.meta_batch, phase.top_updates, rare):
                    report.losses("top", top.update(novelty(b_i, phase.progress, costly)))

            report.iteration(phase)
        return report.finish()  # for sweepers: on the validation tasks


if __name__ == "__main__":
    main()
