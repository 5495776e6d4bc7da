"""Values by rule, for keys set to ``auto``: what follows from a task's horizon, best reward and size of goals.

With T environment steps an episode, L episodes of a meta-episode, r the best reward of a step, K the environment steps
of a decision of the top level and D = T / K decisions an episode:

==============================  ==================================  ===============================================
key                             rule                                why
==============================  ==================================  ===============================================
``hierarchy.decision_steps``    2 x goal size / length of a step,   a decision crosses about a goal, so that a path
                                within T / 20 and T / 10            misses none; an episode has 10 to 20 decisions
``transitions.reward_scale``    40 / (T r)                          a perfect episode is worth 40, whatever the task
``top.gamma``                   (1 - 1 / max(10, L D / 3))^(1 / K)  a decision looks ahead for a third of a
                                                                    meta-episode, at least for 10 decisions
``top.test_penalty``            4 / D                               10 % of a perfect decision
``context.reward_factor``       D / 10, with D = T at depth 1       the encoder reads a perfect decision as 4
``train.envs_per_task``         2 million / (330 x tasks x L x T),  more rows only where steps are left over
                                at least 1
``train.iterations``            2 million / (rows x L x T) less     passes of collecting and learning make the
                                warm-up, within 50 and 330          difference, not rows that play side by side
``top.average``                 25 / gradient steps of the top      averaged weights lag behind by a 25th of training,
                                level, at most .01                  however long it is
==============================  ==================================  ===============================================

The default task's values were there first (K 20, reward_scale .2, gamma .99475 = .9^(1/20), test_penalty .4); the rules
carry them over to others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peach_trl.config import AUTO, ConfigError

KEYS = (
    "hierarchy.decision_steps",
    "transitions.reward_scale",
    "top.gamma",
    "top.test_penalty",
    "context.reward_factor",
    "train.envs_per_task",
    "train.iterations",
    "top.average",
)
GIVEN = (  # what rules read
    "hierarchy.depth",
    "hierarchy.decision_steps",
    "hierarchy.steps",
    "train.envs_per_task",
    "train.iterations",
    "train.top_updates",
)
PERFECT = 40.0  # what a perfect episode is worth to the top level, in scaled reward
AHEAD = 10  # decisions that a decision looks ahead, at least
LAGS, FASTEST = 25, 0.01  # averaged weights lag behind by that part of all gradient steps; their highest rate
STEPS, LEAST, MOST = 2_000_000, 50, 330  # environment steps of a run, and iterations of it


@dataclass(frozen=True)
class TaskFacts:
    """What the rules need to know of the tasks of a family.

    Attributes:
        horizon: environment steps an episode, T.
        best_reward: the largest reward of a step, r; ``None`` where it has no bound worth the name.
        goal_size: how far from a goal there are rewards, in the units of the subgoal space; ``None`` without goals.
        step_length: how far a step can lead along an axis, likewise; ``None`` where it depends.
    """

    horizon: int
    best_reward: float | None = None
    goal_size: float | None = None
    step_length: float | None = None


def resolve(
    values: Mapping[str, Any], facts: TaskFacts, tasks: int, trajectories: int, before: int = 0
) -> dict[str, tuple[Any, str]]:
    """The values of the keys that are ``"auto"``, and how they come about.

    Args:
        values: the keys of the table above, with a number or ``"auto"`` each; those it lacks have no rule applied.
        facts: of the task family.
        tasks: that are trained on.
        trajectories: of a meta-episode, L.
        before: iterations of warm-up and prefill.

    Returns:
        For each key that was ``"auto"`` its value and the rule with its numbers.

    Raises:
        ConfigError: if a rule needs a fact that the family does not state.

    Examples:
        >>> keys = ("hierarchy.decision_steps", "transitions.reward_scale", "top.gamma", "train.iterations")
        >>> facts = TaskFacts(horizon=100, best_reward=1.0, goal_size=0.2, step_length=0.1)
        >>> found = resolve(dict.fromkeys(keys, "auto"), facts, tasks=60, trajectories=3, before=5)
        >>> {key: value for key, (value, _) in found.items()}
        {'hierarchy.decision_steps': 5, 'transitions.reward_scale': 0.4, 'top.gamma': 0.98979, 'train.iterations': 106}
        >>> found["transitions.reward_scale"][1]
        '40 / (100 steps x best reward 1)'
    """
    found: dict[str, tuple[Any, str]] = {}

    def need(name: str, key: str) -> float:
        value = getattr(facts, name)
        if value is None:
            raise ConfigError(f"{key} = 'auto': the task family does not state its {name}; set {key} to a value")
        return value

    T, updates = facts.horizon, values.get("train.top_updates", 0)
    K, steps = values.get("hierarchy.decision_steps", 1), values.get("hierarchy.steps")
    if steps is not None:
        if K == AUTO:
            found["hierarchy.decision_steps"] = math.prod(steps), f"the product of hierarchy.steps = {list(steps)}"
        K = math.prod(steps)
    if K == AUTO:
        size, step = need("goal_size", "hierarchy.decision_steps"), need("step_length", "hierarchy.decision_steps")
        low, high = max(1, math.ceil(T / 20)), max(1, T // 10)
        K = min(max(round(2 * size / step), low), high)
        rule = f"2 x goal size {size:g} / length of a step {step:g}, within {low} and {high}"
        found["hierarchy.decision_steps"] = K, rule
    D, top = T / K, T / (K if values.get("hierarchy.depth", 2) > 1 else 1)
    rows = values.get("train.envs_per_task", 1)
    if rows == AUTO:
        rows = max(1, STEPS // (MOST * tasks * trajectories * T))
        rule = f"{STEPS:,} steps / ({MOST} x {tasks} tasks x {trajectories} trajectories x {T} steps), at least 1"
        found["train.envs_per_task"] = rows, rule
    rows *= tasks
    iterations = values.get("train.iterations", AUTO)
    if iterations == AUTO:
        iterations = min(max(STEPS // (rows * trajectories * T) - before, LEAST), MOST)
    rules: dict[str, Callable[[str], tuple[Any, str]]] = {
        "transitions.reward_scale": lambda key: (
            _rounded(PERFECT / (T * need("best_reward", key))),
            f"{PERFECT:g} / ({T} steps x best reward {need('best_reward', key):g})",
        ),
        "top.gamma": lambda key: (
            _rounded((1 - 1 / max(AHEAD, trajectories * D / 3)) ** (1 / K)),
            f"(1 - 1 / max({AHEAD}, {trajectories} trajectories x {D:g} decisions / 3))^(1 / {K})",
        ),
        "top.test_penalty": lambda key: (_rounded(PERFECT / 10 / D), f"{PERFECT / 10:g} / {D:g} decisions"),
        "context.reward_factor": lambda key: (_rounded(top / 10), f"{top:g} decisions / 10"),
        "train.iterations": lambda key: (
            iterations,
            f"{STEPS:,} steps / ({rows} rows x {trajectories} trajectories x {T} steps) - {before}, "
            f"within {LEAST} and {MOST}",
        ),
        "top.average": lambda key: (
            _rounded(min(LAGS / max(iterations * updates, 1), FASTEST)),
            f"{LAGS} / ({iterations} iterations x {updates} gradient steps), at most {FASTEST}",
        ),
    }
    return found | {key: rule(key) for key, rule in rules.items() if values.get(key) == AUTO}


def resolved(config: Any) -> Any:
    """A recipe's configuration with values in place of ``"auto"``; see :func:`resolve`.

    A gradient step has no more tasks than there are.
    """
    found = resolve({key: _value(config, key) for key in (*KEYS, *GIVEN)}, *_task(config))
    for key, (value, _) in found.items():
        group, name = key.split(".")
        changed = dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{group: changed})
    M = min(config.train.meta_batch, config.env.train_tasks)  # as tasks are drawn without replacement
    return dataclasses.replace(config, train=dataclasses.replace(config.train, meta_batch=M))


def explained(config: Any) -> list[str]:
    """A line for each value of a configuration that a rule gives, or would give."""
    lines = []
    for key in KEYS:
        value = _value(config, key)
        given = {name: _value(config, name) for name in GIVEN}
        try:
            by_rule, rule = resolve({**given, key: AUTO}, *_task(config))[key]
        except ConfigError:
            continue
        lines.append(f"{key} = {value:g}: {'' if value == by_rule else f'not {by_rule:g} = '}{rule}")
    return lines


def _value(config: Any, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def _task(config: Any) -> tuple[TaskFacts, int, int, int]:
    train = config.train
    before = (train.warmup if config.hierarchy.depth > 1 else 0) + train.prefill
    return config.env.facts(), config.env.train_tasks, train.trajectories, before


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
