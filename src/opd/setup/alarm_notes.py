"""Alarms that a run asks for and that can never be given: said before it begins."""

from __future__ import annotations

from collections.abc import Iterator

from opd.alarms.monitor import window_size
from opd.alarms.rules import RULES
from opd.config import Run

# Of the metrics that compare the student with its teacher, which diagnostics.positions measures.
COMPARING = (
    "overlap-stagnating",
    "overlap-mass-falling",
    "support-mass-draining",
    "teacher-off-support",
    "entropy-gap-open",
    "entropy-collapse",
    "late-spike",
    "nothing-to-learn",
    "drift",
    "reverse-distillation",
)
OF_ACCURACY = ("reverse-distillation", "accuracy-falling")
OF_EVALUATIONS = (*OF_ACCURACY, "diversity-falling", "forgetting")  # these wait for no window
OF_HINTS = ("hint-leaking", "responses-alike")
WINDOWS = {"overlap-stagnating": 4, "nothing-to-learn": 4}  # that a rule compares; others: 2


def notes_of_alarms(cfg: Run, *, graded: bool) -> Iterator[str]:
    """Sentences about alarms that never come, and about a stop that has nothing to keep.

    Args:
        cfg: the run.
        graded: whether the accuracy of training rollouts is measured.
    """
    never = _never_given(cfg, graded=graded)
    waits = cfg.coldstart is not None and cfg.coldstart.when == "alarm"
    possible = {"tail", "cap"} | ({"cold start"} if waits else set())
    may_act = {rule.name for rule in RULES if possible & set(rule.interventions)}
    for name, rule in cfg.alarms.rules.items():
        action = rule.action or cfg.alarms.action
        if action == "off":
            continue
        if name in never:
            yield f"alarms.rules.{name} is never given: {never[name]}."
        elif rule.action == "act" and name not in may_act:
            yield (
                f"alarms.rules.{name}.action=act does what warn does: there is nothing this "
                "run can do about it by itself. Set stop, or leave it out."
            )
    if cfg.alarms.action != "off" and cfg.has_teacher and cfg.diagnostics.positions == 0:
        yield (
            "diagnostics.positions=0 measures nothing that these alarms are about: "
            f"{', '.join(COMPARING)}. They are never given."
        )
    if cfg.alarms.action != "off" and not cfg.eval and not graded:
        yield (
            "Nothing measures accuracy: there is no held-out set (eval), and not every training "
            f"prompt has an answer. The alarms {', '.join(OF_EVALUATIONS)} are never given."
        )
    if cfg.alarms.may_stop and not cfg.eval:
        yield (
            "An alarm that stops the run keeps the student of the last step: there is no held-out "
            "set to know the best by. Give eval a set."
        )


def _never_given(cfg: Run, *, graded: bool) -> dict[str, str]:
    """Names of alarms with the reason why this run never gives them."""
    reasons: dict[str, str] = {}
    window = window_size(cfg.train.steps)
    for rule in RULES:
        needed = window * WINDOWS.get(rule.name, 2)
        waits = rule.name not in OF_EVALUATIONS or not cfg.eval
        if waits and cfg.train.steps < needed:
            reasons[rule.name] = (
                f"it compares steps {window} at a time and needs {needed} (train.steps="
                f"{cfg.train.steps})"
            )
    if not cfg.has_teacher:
        reasons |= dict.fromkeys(COMPARING, "teacher is null")
    elif cfg.diagnostics.positions == 0:
        reasons |= dict.fromkeys(COMPARING, "diagnostics.positions=0 measures nothing of it")
    if not cfg.eval and not graded:
        why = "there is no held-out set (eval), and not every training prompt has an answer"
        reasons |= dict.fromkeys(OF_ACCURACY, why)
    if all(spec.n == 1 for spec in cfg.eval):
        reasons["diversity-falling"] = "no held-out set has several answers a prompt (eval.N.n)"
    if len(cfg.eval) < 2:
        reasons["forgetting"] = f"it is about a second held-out set, and eval has {len(cfg.eval)}"
    if not cfg.rollout.ahead:
        reasons["stale-rollouts"] = "rollout.ahead=0 makes no rollout older than its step"
    if cfg.teacher is None or cfg.teacher.prompt is None:
        why = "it is about what teacher.prompt shows the only teacher, and that is not set"
        reasons |= dict.fromkeys(OF_HINTS, why)
    return reasons
