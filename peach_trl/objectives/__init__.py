"""Losses of the top level, of the goal-reaching levels and of the context encoder."""
