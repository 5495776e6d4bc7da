"""What can be had without learning: reference policies, and the goals that agree with what they saw."""

from peach_trl.references.arc import Arc
from peach_trl.references.candidates import Candidates, Region, Walk
from peach_trl.references.observer import ideal_estimates
from peach_trl.references.places import Search, Thompson
from peach_trl.references.play import Deciding, Played, Stay, play
from peach_trl.references.policies import has_references, policies, references
from peach_trl.references.square import Square

__all__ = [
    "Arc",
    "Candidates",
    "Deciding",
    "Played",
    "Region",
    "Search",
    "Square",
    "Stay",
    "Thompson",
    "Walk",
    "has_references",
    "ideal_estimates",
    "play",
    "policies",
    "references",
]
