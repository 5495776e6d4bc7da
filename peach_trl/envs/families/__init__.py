"""Task families: published ones, and mazes; all on the batched simulator."""
