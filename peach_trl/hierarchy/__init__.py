"""The hierarchy of levels: its structure, the lock-step policy, and each level's transitions."""

from peach_trl.hierarchy.evidence import Evidence
from peach_trl.hierarchy.exploration import Exploration, ExplorationConfig
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.hierarchy.policy import HierarchyActor, HierarchyClock, HierarchyPolicy
from peach_trl.hierarchy.structure import Hierarchy, HierarchyConfig
from peach_trl.hierarchy.transitions import LevelTransitions, TransitionsConfig

__all__ = [
    "Evidence",
    "Exploration",
    "ExplorationConfig",
    "Hierarchy",
    "HierarchyActor",
    "HierarchyClock",
    "HierarchyConfig",
    "HierarchyPolicy",
    "LevelTransitions",
    "TransitionsConfig",
    "level_metrics",
]
