"""Tiny procedurally generated worlds with verifiable answers and two thinking patterns each.

A world writes problems, writes chains of thought for them, and owns an ordinary Hugging Face
tokenizer. It knows nothing of models or training.
"""

from opd_lab.worlds.chain import Chain
from opd_lab.worlds.content import Content
from opd_lab.worlds.ledger import Ledger
from opd_lab.worlds.route import Route
from opd_lab.worlds.words import Pattern, Problem, World, write_prompts

__all__ = ["Chain", "Content", "Ledger", "Pattern", "Problem", "Route", "World", "write_prompts"]
