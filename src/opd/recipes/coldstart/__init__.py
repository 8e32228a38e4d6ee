"""Off-policy cold start: imitate the teacher until the student can be taught on its own rollouts.

completions (where the teacher's completions come from) - progress (what was done, when to stop) -
phase (the rounds, before a run or in the middle of one).
"""

from opd.recipes.coldstart.completions import CompletionSource
from opd.recipes.coldstart.phase import before_training, during_training

__all__ = ["CompletionSource", "before_training", "during_training"]
