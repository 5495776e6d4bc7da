"""PEARL: a flat policy with a context variable (Rakelly et al. 2019, arXiv 1903.08254), which is PEACH of depth 1.

    python recipes/pearl.py

Values and their meaning: configs/pearl.yaml. Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

from peach_trl.config import ConfigError
from peach_trl.experiment import (
    Config,
    collecting,
    make_agent,
    make_context_sampler,
    make_library,
    make_task_buffer,
    sample_batch,
    seed_everything,
)
from peach_trl.hierarchy.transitions import LevelTransitions
from peach_trl.report import Report
from peach_trl.utils.cli import recipe
from peach_trl.utils.run import Run


@recipe(Config, config_name="pearl")
def main(config: Config, run_dir: Path) -> None:
    """Meta-training in the symbols of the paper: one level, pi(a | s, z), which acts at every step."""
    if config.hierarchy.depth != 1 or config.context.latent_dim == 0:
        raise ConfigError(
            "hierarchy.depth, context.latent_dim: PEARL is flat and has a z; use recipes/peach.py or hac.py"
        )
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")  # T_i ~ p(T)
    agent = make_agent(config, library)
    policy = agent.make_policy(library.num_tasks)  # pi(a | s, z)
    posterior = policy.posterior  # q(z | c^i) of every task
    assert posterior is not None  # since latent_dim > 0
    B = make_task_buffer(config, library)  # one B^i a task
    S_c = make_context_sampler(config, B)
    transitions = LevelTransitions(agent.hierarchy, config.transitions, config.seed)
    train = config.train

    with Run(run_dir, config) as run, collecting(config, library, policy) as trajectories:
        report = Report(run, agent, config, library)
        start = train.prefill  # until then the top level proposes at random
        for iteration in range(start + train.iterations):
            at_random = iteration < start
            policy.set_top_random(1.0 if at_random else config.hierarchy.top_random_share)

            posterior.reset(T)  # c^i = {}
            for l in range(train.trajectories):
                batch = next(trajectories)  # z ~ q(z | c^i), then one trajectory
                (rows,) = transitions(batch)
                B.extend(rows)
                report.collected(batch, l)
                posterior.condition(T, S_c(T))  # c^i ~ B^i

            agent.anneal(max(0, iteration - start) / train.iterations)
            for _ in range(0 if at_random else train.top_updates):
                T_i = B.draw_tasks(T, train.meta_batch)  # the meta-batch
                c, b = S_c(T_i), sample_batch(config, B, T_i)  # c^i ~ S_c(B^i), b^i ~ B^i
                report.losses("top", agent.update_top(b, c))

            report.iteration(iteration)
        report.finish()


if __name__ == "__main__":
    main()
