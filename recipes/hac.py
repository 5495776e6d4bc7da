"""HAC: a hierarchy without a context variable (Levy et al. 2019, arXiv 1712.00948), which is PEACH with latent_dim 0.

    python recipes/hac.py                                   # the task is hidden: the baseline without z
    python recipes/hac.py top.goal=known                    # the oracle: the top level is told the goal
    python recipes/hac.py top.goal=known top.follows=goal   # HAC as published: every level reaches for a goal

Values and their meaning: configs/hac.yaml. Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

from peach_trl.config import ConfigError
from peach_trl.experiment import (
    Config,
    collecting,
    make_agent,
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


@recipe(Config, config_name="hac")
def main(config: Config, run_dir: Path) -> None:
    """TRAIN-LEVEL for all levels at once, and their updates."""
    if config.context.latent_dim > 0:
        raise ConfigError(f"context.latent_dim = {config.context.latent_dim}: HAC has no z; use recipes/peach.py")
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")
    agent = make_agent(config, library)
    policy = agent.make_policy(library.num_tasks)  # pi_h(s), ..., pi_0(s, g_0)
    B = make_task_buffer(config, library)  # of a top level that follows the reward
    B_goal = [make_level_buffer(config, level) for level in range(len(agent.levels))]
    transitions = LevelTransitions(agent.hierarchy, config.transitions, config.seed)
    follows_reward, train = config.top.follows == "reward", config.train

    with Run(run_dir, config) as run, collecting(config, library, policy) as trajectories:
        report = Report(run, agent, config, library)
        start = train.warmup + train.prefill  # until then the top level proposes at random
        for iteration in range(start + train.iterations):
            at_random = iteration < start
            policy.set_top_random(1.0 if at_random else config.hierarchy.top_random_share)
            goal_updates = train.warmup_updates if iteration < train.warmup else train.lower_updates
            if iteration == train.warmup:
                B.empty()  # what the top level met while nothing below it worked

            for l in range(train.trajectories):
                batch = next(trajectories)  # TRAIN-LEVEL(top, s)
                rows = transitions(batch)
                report.collected(batch, l)
                if follows_reward:
                    B.extend(rows[-1])
                for level, B_i in enumerate(B_goal):
                    B_i.extend(rows[level])
                    for _ in range(goal_updates):
                        report.losses(f"level_{level}", agent.update_level(level, B_i.sample()))

            if follows_reward:
                agent.anneal(max(0, iteration - start) / train.iterations)
            for _ in range(train.top_updates if follows_reward and not at_random else 0):
                b = sample_batch(config, B, B.draw_tasks(T, train.meta_batch))
                report.losses("top", agent.update_top(b))

            report.iteration(iteration)
        report.finish()


if __name__ == "__main__":
    main()
