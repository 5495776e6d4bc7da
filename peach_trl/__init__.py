"""PEACH: meta-learning with multi-level hierarchies via context variables, as modular components on TorchRL."""
