"""What rollouts that are a step older go together with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opd.config.schema import Run


def require_ahead_possible(run: Run) -> None:
    """Refuse what importance weights of a prefix do not correct, or what has nothing to sample.

    Raises:
        ValueError: naming the other key.
    """
    for wrong, reason in (
        (
            run.rollout.path is not None,
            "rollout.path replays rollouts: there is nothing to sample. Remove one of the two",
        ),
        (
            run.rollout.top_p != 1,
            f"rollout.top_p={run.rollout.top_p} leaves tokens out, other ones after every update, "
            "so that no weight makes up for it. Set rollout.top_p=1",
        ),
        (
            run.loss.terms.outcome_weight > 0,
            f"loss.terms.outcome_weight={run.loss.terms.outcome_weight} is about whole responses, "
            "and the weights are about what comes before a token. Set it to 0",
        ),
        (
            run.compares_text,
            "teacher.tokenizer compares chunks that end after a token, and the weights are about "
            "what comes before it. Set rollout.ahead=0",
        ),
        (
            run.horizon is not None and run.horizon.prune is not None,
            "horizon.prune follows rollouts from step to step, and these come a step late. Use "
            "horizon.cap or horizon.grow",
        ),
    ):
        if wrong:
            raise ValueError(f"rollout.ahead=1: {reason}")
