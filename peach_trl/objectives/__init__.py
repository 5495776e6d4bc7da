"""Losses of the top level, of the goal-reaching levels and of the context encoder."""

from peach_trl.objectives.context import ContextMixin, ContextSACLoss
from peach_trl.objectives.goal import BoundedTD0Estimator, GoalLossConfig, make_goal_loss
from peach_trl.objectives.kl import KLLoss
from peach_trl.objectives.sac import PlainSACLoss

__all__ = [
    "BoundedTD0Estimator",
    "ContextMixin",
    "ContextSACLoss",
    "GoalLossConfig",
    "KLLoss",
    "PlainSACLoss",
    "make_goal_loss",
]
