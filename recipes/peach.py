"""PEACH: meta-training of a hierarchy with a context variable (Algorithm 1), then meta-test on held-out tasks.

    python recipes/peach.py
    python recipes/peach.py -m hierarchy.depth=1,2,3 context.latent_dim=0,2,5

Values and their meaning: configs/peach.yaml. Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

from peach_trl.experiment import (
    Config,
    collecting,
    make_agent,
    make_context_sampler,
    make_level_buffer,
    make_library,
    make_task_buffer,
    sample_batch,
    seed_everything,
)
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.report import Report
from peach_trl.utils.cli import recipe
from peach_trl.utils.run import Run


@recipe(Config, config_name="peach")
def main(config: Config, run_dir: Path) -> None:
    """Algorithm 1, in the symbols of the paper."""
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")  # T_i ~ p(T)
    agent = make_agent(config, library)
    policy = agent.make_policy(library.num_tasks)  # pi_h(s, z), ..., pi_0(s, g_0)
    posterior = policy.posterior  # q(z | c^i) of every task; None without z (HAC)
    B = make_task_buffer(config, library)  # one B^i a task
    B_lower = [make_level_buffer(config, level) for level in range(len(agent.levels))]
    S_c = make_context_sampler(config, B)
    transitions = LevelTransitions(agent.hierarchy, config.transitions, config.seed)
    train = config.train

    with Run(run_dir, config) as run, collecting(config, library, policy) as trajectories:
        report = Report(run, agent, config, library)
        start = train.warmup + train.prefill  # until then the top level proposes at random
        for iteration in range(start + train.iterations):
            at_random = iteration < start
            policy.set_top_random(1.0 if at_random else config.hierarchy.top_random_share)
            lower_updates = train.warmup_updates if iteration < train.warmup else train.lower_updates
            if iteration == train.warmup:
                B.empty()  # what the top level met while nothing below it worked

            if posterior is not None:
                posterior.reset(T)  # c^i = {}
            for l in range(train.trajectories):
                batch = next(trajectories)  # z ~ q(z | c^i); TRAIN-LEVEL(top, s, z)
                *lower, top = transitions(batch)
                B.extend(top)
                report.collected(batch, l)
                for level, (B_i, rows) in enumerate(zip(B_lower, lower, strict=True)):
                    B_i.extend(rows)
                    for _ in range(lower_updates):
                        report.losses(f"level_{level}", agent.update_level(level, B_i.sample()))
                if posterior is not None:
                    posterior.condition(T, S_c(T))  # c^i ~ B^i

            agent.anneal(max(0, iteration - start) / train.iterations)
            for _ in range(0 if at_random else train.top_updates):
                T_i = B.draw_tasks(T, train.meta_batch)  # the meta-batch
                c, b = S_c(T_i), sample_batch(config, B, T_i)  # c^i ~ S_c(B^i), b^i ~ B^i
                report.losses("top", agent.update_top(b, c))  # alpha_1, alpha_2, alpha_3

            report.iteration(iteration)
        report.finish()


if __name__ == "__main__":
    main()
