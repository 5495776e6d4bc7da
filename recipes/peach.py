"""PEACH: meta-training of a hierarchy with a context variable (Algorithm 1), then meta-test on held-out tasks.

    python recipes/peach.py
    python recipes/peach.py -m hierarchy.depth=1,2,3 context.latent_dim=0,2,5

The context variable is the agent's belief q(z | c^{0:t}): part of its state, read at every decision of the top level.
recipes/source.py is the algorithm to the letter. Values and their meaning: configs/common.yaml and configs/peach.yaml.
Results: the run's folder under runs/.
"""

from __future__ import annotations

from pathlib import Path

import peach_trl.utils.startup  # noqa: F401  # first: it checks keys before torch is imported
from peach_trl.collecting import collecting
from peach_trl.experiment import (
    PeachConfig,
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


@recipe(PeachConfig, config_name="peach")
def main(config: PeachConfig, run_dir: Path) -> float:
    """Algorithm 1, in the symbols of the paper."""
    seed_everything(config)
    library = make_library(config)
    T = library.split("train")  # T_i ~ p(T)
    agent = make_agent(config, library)
    lower, top = agent.levels, agent.top  # theta_pi(0..h-1), theta_Q(0..h-1); theta_pi(h), theta_Q(h), phi
    policy = agent.make_policy(config.train.trajectories)  # pi_h(s, q(z | c)), ..., pi_0(s, g_0)
    B = make_task_buffer(config, library)  # one B^i a task
    replays = [make_level_buffer(config, library, level) for level in range(len(lower))]  # one a goal-reaching level
    S_c = make_sequence_sampler(config, B)
    transitions = make_transitions(config, library, agent)
    exploration = make_exploration(config, library, agent)  # of tasks whose rewards are not met
    novelty = make_novelty(config, agent)  # a reward for new states, early on
    train = config.train

    with Runs(run_dir, config) as runs, collecting(config, library, policy, transitions) as trajectories:
        schedule = Schedule(config, agent, exploration)  # warm-up of the lower levels, prefill of B, training
        report = Report(runs, agent, config, library, schedule)
        report.keep(trajectories, transitions, B, *replays, S_c, exploration, novelty)  # what resume= goes on with
        for phase in schedule:
            if phase.forgets:
                B.empty()  # what the top level met while nothing below it worked

            for l in range(train.trajectories):  # every row keeps its own c^i, {} before the first
                explores = exploration.settings(l, phase.progress)  # which tasks, from which decision on, where to
                policy.explore(warmup=phase.warmup, at_random=phase.at_random, **explores)
                batch = next(trajectories)  # TRAIN-LEVEL(top, s, q(z | c^i)), which adds its decisions to c^i
                agent.see(batch["observation"])  # means and deviations of what has no bounds
                *rows_lower, rows_top = transitions(batch)
                B.extend(rows_top)
                exploration.collected(batch, phase.by_chance)
                report.collected(batch, l)
                for i, (level, replay, rows) in enumerate(zip(lower, replays, rows_lower, strict=True)):
                    replay.extend(rows)
                    for rows_i in replay.batches(train.lower_batch, phase.lower_updates):
                        report.losses(f"level_{i}", level.update(rows_i))

            for b_i in S_c.batches(T, train.meta_batch, train.top_updates * phase.by_chance):
                novelty.learn(b_i)  # what chance shows is not new

            for level in lower:
                level.anneal(phase.progress)
            top.anneal(phase.progress, worth=best_so_far(config, exploration))
            M, costly = train.meta_batch, exploration.behind_costs
            rare = exploration.unsolved & exploration.rare
            for b_i in S_c.batches(T, M, phase.top_updates, rare):  # b^i ~ S_c(B^i) of a meta-batch of M tasks T_i
                b_i = novelty(b_i, phase.progress, costly)  # early on, where costs hide rewards, r has a bonus
                b, q = top.believe(b_i)  # q(z | c^{0:t}) before and after each decision
                L = top.loss(b)  # L_critic, L_actor: SAC that reads q; and missed subgoal tests
                L.update(top.kl_loss(q))  # L_KL: KL(q || N(0, I))
                top.weigh(L).backward()  # L_critic + L_actor + beta L_KL + ..., by their coefficients
                top.step()  # phi -= alpha_1 grad(L_critic + beta L_KL), theta_pi -= alpha_2 grad L_actor,
                report.losses("top", L)  # theta_Q -= alpha_3 grad L_critic; then the targets

            report.iteration(phase)
        return report.finish()  # for sweepers: on the validation tasks


if __name__ == "__main__":
    main()
