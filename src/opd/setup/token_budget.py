"""Tokens of a micro-batch where the configuration leaves them to the machine."""

from __future__ import annotations

from opd.config import Run
from opd.errors import UserError
from opd.setup.memory_plan import AUTO_TOKENS, plan_memory


def token_budget(cfg: Run) -> int:
    """Padded tokens per forward-backward."""
    size = cfg.train.tokens_per_microbatch
    return auto_tokens(cfg) if size == "auto" else size


def auto_tokens(cfg: Run) -> int:
    """Tokens per micro-batch on this machine where train.tokens_per_microbatch is auto.

    From the size of the memory, not from what is free: the same in a run that is resumed.
    """
    try:
        return plan_memory(cfg).tokens_per_microbatch
    except UserError:  # what cannot be planned may still run
        return AUTO_TOKENS
