"""What can be had without learning: reference policies, and the goals that agree with what they saw."""

from peach_trl.references.candidates import Arc, Candidates
from peach_trl.references.policies import (
    Played,
    Search,
    Stay,
    Thompson,
    has_references,
    play,
    policies,
    references,
)

__all__ = [
    "Arc",
    "Candidates",
    "Played",
    "Search",
    "Stay",
    "Thompson",
    "has_references",
    "play",
    "policies",
    "references",
]
