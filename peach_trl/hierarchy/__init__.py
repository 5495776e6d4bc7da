"""The hierarchy of levels: its structure, the lock-step policy, and each level's transitions."""
