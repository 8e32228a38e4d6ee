"""The loss section of a configuration as an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opd.config import Run
from opd.core.loss_settings import LossSettings
from opd.run.console import Console
from opd.types import Kind

if TYPE_CHECKING:
    from opd.core.objective import Objective


def resolve_support(cfg: Run, kinds: frozenset[Kind], console: Console) -> Run:
    """Replace `loss.support: auto` by what a teacher that gives `kinds` can serve."""
    loss = cfg.loss
    if loss.support != "auto":
        return cfg
    if cfg.compares_text:
        chosen: dict[str, Any] = {"support": "student_topk" if Kind.SUPPORT in kinds else "sampled"}
    elif Kind.SUPPORT in kinds:
        chosen = {"support": "student_topk"}
    else:
        mode = "tail" if loss.mode == "paper" else loss.mode
        chosen = {"support": "teacher_topk", "mode": mode}
        console.print(
            "loss.support=auto: this teacher server cannot score the student's own tokens; "
            f"training on teacher_topk with loss.mode={mode}."
        )
    return cfg.model_copy(update={"loss": loss.model_copy(update=chosen)})


def make_objective(cfg: Run) -> Objective:
    """The loss section and its terms as one objective.

    Raises:
        ValueError: loss.support is still auto; see `resolve_support`.
        UserError: a combination that is biased, undefined or trains nothing.
    """
    from opd.core.objective import Objective  # torch: not before a loss is computed

    return Objective(**_fields(cfg))


def loss_settings(cfg: Run) -> LossSettings:
    """What `make_objective` refuses and asks for, without the formulas.

    Raises:
        ValueError: likewise.
        UserError: likewise.
    """
    return LossSettings(**_fields(cfg))


def _fields(cfg: Run) -> dict[str, Any]:
    loss, terms = cfg.loss, cfg.loss.terms
    if loss.support == "auto":
        raise ValueError("loss.support=auto depends on the teacher: call resolve_support first")
    return {
        "divergence": loss.divergence,
        "support": loss.support,
        "k": loss.k,
        "mode": loss.mode,
        "estimator": loss.estimator,
        "beta": loss.beta,
        "reward_scale": terms.reward_scale,
        "entropy_forward_kl": terms.entropy_forward_kl,
        "position_decay": terms.position_decay,
        "outcome_weight": terms.outcome_weight,
        "student_temperature": loss.student_temperature,
        "sampling_temperature": cfg.rollout.temperature,
        "sampling_truncated": cfg.rollout.top_p < 1,
        "other_tokenizer": cfg.compares_text,
    }
