"""Pairs of tiny models over generated worlds, and what training them does: the data of the check.

setting (a generated world with the sizes of its models) - kinds, models (students and teachers by
construction) - design (which pairs are trained, and how) - outcomes (a run and its accuracies) -
queue (all of them, resumable) - commands.
"""
