"""Tiny procedurally generated worlds with verifiable answers and two thinking patterns each.

A world writes problems, writes chains of thought for them, and owns an ordinary Hugging Face
tokenizer. It knows nothing of models or training.
"""

from opd.lab.worlds.chain import Chain
from opd.lab.worlds.content import Content
from opd.lab.worlds.ledger import Ledger
from opd.lab.worlds.route import Route
from opd.lab.worlds.words import Pattern, Problem, World

__all__ = ["Chain", "Content", "Ledger", "Pattern", "Problem", "Route", "World"]
