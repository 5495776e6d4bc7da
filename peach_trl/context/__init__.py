"""What is the task? The context variable z: encoder, belief, tracker and the sequences that they learn from."""

from peach_trl.context.belief import Belief, BeliefConfig, GaussianProduct, SummedBelief, reading
from peach_trl.context.contexts import ContextConfig, ContextSampler
from peach_trl.context.encoder import ContextEncoder, Transition
from peach_trl.context.flat import FlatBeliefTracker
from peach_trl.context.kinds import Attention, Recurrent, make_belief
from peach_trl.context.sequences import SequenceConfig, SequenceSampler
from peach_trl.context.tracker import BeliefTracker, context_key

__all__ = [
    "Attention",
    "Belief",
    "BeliefConfig",
    "BeliefTracker",
    "ContextConfig",
    "ContextEncoder",
    "ContextSampler",
    "FlatBeliefTracker",
    "GaussianProduct",
    "Recurrent",
    "SequenceConfig",
    "SequenceSampler",
    "SummedBelief",
    "Transition",
    "context_key",
    "make_belief",
    "reading",
]
