"""From what was measured to the verdict on one teacher, with reasons and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from opd.commands.check.candidates import Candidate
from opd.commands.check.gather import Gathering
from opd.commands.check.result import TeacherResult
from opd.commands.check.watch import CTRL_C
from opd.config import Coldstart, Run
from opd.core import stats
from opd.core.diagnostics import OVERLAP_K
from opd.core.stats import Estimate
from opd.models.lm import load_lm
from opd.recipes.check.advice import (
    Advice,
    RunFacts,
    advise,
    cold_start_rate,
    decide,
    support_mass,
)
from opd.recipes.check.diagnose import diagnose
from opd.recipes.check.reasons import (
    BASE_NOT_KNOWN,
    Reason,
    base_model_reason,
    explain,
    nothing_accepted_reason,
)
from opd.recipes.check.settings import begins_cold
from opd.recipes.check.verdict import UNKNOWN, Verdict, nothing_accepted
from opd.recipes.coldstart.progress import Overlap, reason_to_stop
from opd.setup.pair import Pair
from opd.types import Prompt


def judge_candidate(gathering: Gathering, index: int, file: str = "run.yaml") -> TeacherResult:
    """The verdict on a candidate from everything that was measured; advice names the run's file."""
    candidate = gathering.candidates[index]
    if not gathering.probe.sides:
        return _unmeasured(candidate, gathering)
    student, side = gathering.probe.sides[index]
    features, settings = gathering.features(index), gathering.settings(index)
    verdict, forecast, changes = decide(gathering.model, features, settings)
    reasons = [nothing_accepted_reason(features)]
    if verdict != UNKNOWN or not nothing_accepted(features):
        reasons = explain(verdict, forecast, features, settings)
    base = candidate.cfg.check.origin
    assert candidate.pair is not None
    if base is not None and candidate.pair.teacher is not None:
        reasons = [*reasons, _compare_with_base(base, candidate.pair, gathering, verdict)]
    rollouts = student.rollouts
    facts = RunFacts(
        truncated=float(sum(r.finish == "length" for r in rollouts) / len(rollouts)),
        support_mass=support_mass(candidate.cfg.loss, rollouts),
        max_new_tokens=candidate.cfg.rollout.max_new_tokens,
        cold_start=cold_start(candidate, features),
        cold_student=cold_student(candidate.cfg),
        prompts=len(student.prompts),
        most_prompts=gathering.probe.total,
        answer_limit=_answer_limit(candidate.cfg),
        room=_room(candidate, gathering.training.prompts),
        file=file,
    )
    advice = changes + advise(verdict, forecast, features, candidate.findings, facts)
    return TeacherResult(candidate, verdict, features, side, forecast, reasons, advice)


def _unmeasured(candidate: Candidate, gathering: Gathering) -> TeacherResult:
    """Not one round of the probe was over in time."""
    watch, speed = gathering.watch, gathering.speed
    reason = Reason(f"Not one prompt was measured before the check was ended by {watch.stopped}")
    advice = Advice("To settle it: let the check go on")
    if watch.stopped != CTRL_C:
        advice = Advice("To settle it: give the check more time (a larger --budget)")
    if speed is not None:
        evidence = (
            f"the student takes {speed.student.decode:.2g} s for a token of a few answers at once"
        )
        if speed.teachers:
            evidence += f", the teacher {speed.teachers[0].decode:.2g} s"
        reason = Reason(reason.text, evidence)
    if speed is not None and watch.stopped != CTRL_C:
        config = gathering.probe.config
        needed = 2 * speed.probe(32, config) + 4 * speed.step(candidate.cfg)
        needed = max(needed, 2 * watch.allowed)  # what was allowed was too little
        advice = Advice(f"To settle it: --budget {needed:.0f}, roughly, on this machine")
    return TeacherResult(candidate, UNKNOWN, reasons=[reason], advice=[advice])


def _answer_limit(cfg: Run) -> tuple[str, int] | None:
    """Key and value of the limit of held-out answers, where they have one of their own."""
    own = cfg.eval[0].max_new_tokens if cfg.eval else None
    return None if own is None else ("eval.0.max_new_tokens", own)


def _room(candidate: Candidate, prompts: Sequence[Prompt]) -> int | None:
    """Tokens that both contexts have left after the longest prompt."""
    context = candidate.context
    return None if context is None else context - max(len(prompt.ids) for prompt in prompts)


def cold_start(candidate: Candidate, features: Mapping[str, Estimate]) -> dict[str, object] | None:
    """What of `coldstart` is to be set; None if it is, or nothing would be learnt.

    Nothing is from a teacher that cannot generate, and where overlap is as good already as it is at
    a cold start's end; that is not known where the phase looks at fewer top tokens than the check.
    """
    cfg = candidate.cfg
    if begins_cold(cfg) or candidate.teacher_samplers is None:
        return None
    if {"overlap_mass", "top1_agreement"} <= features.keys() and cfg.loss.k >= OVERLAP_K:
        overlap = Overlap(features["overlap_mass"].value, features["top1_agreement"].value)
        if reason_to_stop([overlap], cfg.coldstart or Coldstart()) is not None:
            return None
    if cfg.coldstart is not None:  # waits for an alarm: as it is, but at the start
        return {"coldstart": {"when": "start"}}
    assert candidate.pair is not None
    hidden, adapters = int(candidate.pair.student.config.hidden_size), cfg.student.lora is not None
    return {"coldstart": {"lr": cold_start_rate(cfg.optim.lr, hidden, adapters=adapters)}}


def cold_student(cfg: Run) -> str | None:
    """Where `opd coldstart` leaves its student; None for a run that does not begin so."""
    return str(Path(cfg.output.dir, "coldstart", "student")) if begins_cold(cfg) else None


def _compare_with_base(path: str, pair: Pair, gathering: Gathering, verdict: Verdict) -> Reason:
    """Within the time of the check; not at all where that is over."""
    assert pair.teacher is not None
    watch = gathering.watch
    over = Reason(BASE_NOT_KNOWN, "the check was over before they were compared")
    if watch.stopped or watch.remaining < 0:
        return over
    student_side, config = gathering.probe.sides[0][0], gathering.probe.config
    rollouts, prompts = student_side.rollouts, len(student_side.prompts)
    kls = []
    with watch.evidence():
        base = load_lm(path, device=str(pair.student.device), key="check.origin")
        base.vocab = pair.student.vocab
        with watch.attached([base, pair.teacher, pair.student]):
            for lm in (pair.teacher, pair.student):
                metrics = diagnose(
                    base, lm, rollouts, k=config.k, tokens_per_batch=config.tokens_per_batch
                )
                kls.append(metrics.mean["diag/reverse_kl"].reshape(prompts, -1).mean(1))
    if len(kls) < 2:
        return over
    teacher_kl, student_kl = map(stats.mean, kls)
    return base_model_reason(teacher_kl, student_kl, verdict)
