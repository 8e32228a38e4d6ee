"""Tiny procedurally generated worlds with verifiable answers and two thinking patterns each.

A world generates problems and chains of thought for them, and owns an ordinary Hugging Face
tokenizer. It knows nothing of models or training.
"""

from opd_lab.worlds.chain import Chain
from opd_lab.worlds.content_chain import ContentChain
from opd_lab.worlds.ledger import Ledger
from opd_lab.worlds.prefixed import PrefixedWorld
from opd_lab.worlds.route import Route
from opd_lab.worlds.switched import SwitchedWorld
from opd_lab.worlds.vocabulary import detect_pattern
from opd_lab.worlds.world import Pattern, Problem, World, write_prompts

__all__ = [
    "Chain",
    "ContentChain",
    "Ledger",
    "Pattern",
    "PrefixedWorld",
    "Problem",
    "Route",
    "SwitchedWorld",
    "World",
    "detect_pattern",
    "write_prompts",
]
