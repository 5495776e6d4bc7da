"""PEACH as the source has it, to the letter: Algorithm 1 with z sampled once a trajectory and contexts drawn from B^i.

    python recipes/source.py
    python recipes/source.py hierarchy.depth=3 context.read=belief

What z knows of the task comes from the task's replay, whoever collected it, not from the row's own trajectories;
critics and their targets read the same z. Values and their meaning: configs/common.yaml and configs/source.yaml.
recipes/pearl.py is the same with a flat policy. Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # first: it checks keys before torch is imported
from peach_trl.collecting import collecting
from peach_trl.experiment import (
    SourceConfig,
    make_agent,
    make_context_sampler,
    make_exploration,
    make_level_buffer,
    make_library,
    make_task_buffer,
    make_transitions,
    seed_everything,
)
from peach_trl.report import Report
from peach_trl.runs import Runs
from peach_trl.schedule import Schedule
from peach_trl.utils.cli import recipe


def meta_train(config: SourceConfig, run_dir: Path) -> float:
    """Algorithm 1, in the symbols of the paper."""
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")  # T_i ~ p(T)
    agent = make_agent(config, library)
    lower, top = agent.levels, agent.top
    policy = agent.make_policy(num_tasks=library.num_tasks)  # pi_h(s, z), ..., pi_0(s, g_0)
    q = policy.tracker  # q(z | c^i) of every task
    assert q is not None
    B = make_task_buffer(config, library)  # one B^i a task
    replays = [make_level_buffer(config, library, level) for level in range(len(lower))]  # one a goal-reaching level
    S_c = make_context_sampler(config, B)
    transitions = make_transitions(config, library, agent)
    exploration = make_exploration(config, library, agent)  # none by default
    train, source = config.train, config.source

    with Runs(run_dir, config) as runs, collecting(config, library, policy, transitions) as trajectories:
        schedule = Schedule(config, agent, exploration)  # warm-up of the lower levels, prefill of B, training
        report = Report(runs, agent, config, library, schedule)
        report.keep(trajectories, transitions, B, *replays, S_c, exploration)  # what resume= goes on with
        for phase in schedule:
            if phase.forgets:
                B.empty()  # what the top level met while nothing below it worked

            q.reset(T)  # c^i = {}
            for l in range(train.trajectories):
                explores = exploration.settings(l, phase.progress)  # which tasks, from which decision on, where to
                policy.explore(warmup=phase.warmup, at_random=phase.at_random, **explores)
                batch = next(trajectories)  # z ~ q(z | c^i); TRAIN-LEVEL(top, s, z)
                agent.see(batch["observation"])  # means and deviations of what has no bounds
                *rows_lower, rows_top = transitions(batch)
                B.extend(rows_top)
                exploration.collected(batch, phase.by_chance)
                report.collected(batch, l)
                for i, (level, replay, rows) in enumerate(zip(lower, replays, rows_lower, strict=True)):
                    replay.extend(rows)
                    for rows_i in replay.batches(train.lower_batch, phase.lower_updates):
                        report.losses(f"level_{i}", level.update(rows_i))
                q.condition(T, S_c(T))  # c^i ~ B^i

            for level in lower:
                level.anneal(phase.progress)
            top.anneal(phase.progress)
            for _ in range(phase.top_updates):
                share = min(1.0, (report.updates + 1) / max(source.kl_annealing, 1))
                top.coefficients["loss_kl"] = config.top.loss_kl * share  # beta
                T_i = B.draw_tasks(T, train.meta_batch)  # the meta-batch
                c = S_c(T_i)  # c^i ~ S_c(B^i)
                b = B.sample_tasks(
                    T_i, source.batch, best_fraction=source.best_fraction, best_of=source.best_of, recent=source.recent
                )  # b^i ~ B^i
                report.losses("top", top.update(b, c))  # L_critic, L_actor, L_KL; alpha_1, alpha_2, alpha_3

            report.iteration(phase)
        return report.finish()  # for sweepers: on the validation tasks


main = recipe(SourceConfig, config_name="source")(meta_train)

if __name__ == "__main__":
    main()
