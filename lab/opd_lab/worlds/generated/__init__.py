"""Generated worlds: family x parameters x tokenization, a function of (family, seed).

A family says what a problem is and how it is reasoned about, in two thinking patterns; a world adds
a tokenizer, fillers and lapses (what post-training can repair). Like all worlds, it knows nothing
of models or training.
"""

from opd_lab.worlds.generated.family import Family, Lapses, Recall, Step
from opd_lab.worlds.generated.sampling import FAMILIES, sample_world
from opd_lab.worlds.generated.tokenization import TOKENIZATIONS, Tokenization
from opd_lab.worlds.generated.world import GeneratedWorld

__all__ = [
    "FAMILIES",
    "TOKENIZATIONS",
    "Family",
    "GeneratedWorld",
    "Lapses",
    "Recall",
    "Step",
    "Tokenization",
    "sample_world",
]
