"""How a level learns: goal-reaching levels and the top level, each behind ``update(batch) -> losses``."""

from peach_trl.levels.errors import NotFiniteLossError
from peach_trl.levels.goal_level import GoalLevel, LowerConfig, make_goal_networks
from peach_trl.levels.novelty import Novelty, NoveltyConfig
from peach_trl.levels.top_level import ReadingConfig, TopConfig, TopLevel
from peach_trl.levels.top_networks import make_top_networks

__all__ = [
    "GoalLevel",
    "LowerConfig",
    "NotFiniteLossError",
    "Novelty",
    "NoveltyConfig",
    "ReadingConfig",
    "TopConfig",
    "TopLevel",
    "make_goal_networks",
    "make_top_networks",
]
