"""Pruning by overlap for completions of some thirty tokens.

The product's numbers are made for completions of thousands of tokens: fifty bad positions are the
end of the weight, and no cap is below sixteen tokens.
"""

from __future__ import annotations

from dataclasses import replace

from opd.training.horizon import Pruning
from opd.training.session import Session

# Top-1 agreement, because k = 16 is a quarter of this vocabulary; three bad tokens are the end.
PRUNING = Pruning(k=1, threshold=1.0, drop=0.34, ended_fraction=0.75)
MIN_TOKENS = 9


def with_short_horizon(session: Session) -> Session:
    """The session of a run with `horizon.prune`, with the numbers above instead of its own."""
    interventions = session.interventions
    horizon = replace(interventions.adjustable.horizon, pruning=PRUNING, min_tokens=MIN_TOKENS)
    interventions.adjustable = replace(interventions.adjustable, horizon=horizon)
    return replace(session, source=replace(session.source, pruning=PRUNING))
