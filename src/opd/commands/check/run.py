"""One check from file to verdict: compatibility, a timed step, rounds of the probe, advice."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

from opd import config
from opd.commands.check import output, timing
from opd.commands.check.candidates import Candidate, load_candidate, teacher_labels
from opd.commands.check.memory import check_memory
from opd.commands.check.result import CheckResult, TeacherResult
from opd.commands.check.rounds import Budget, Probe, run_probe
from opd.commands.check.timing import StepTimer
from opd.config import LocalTeacher, Run
from opd.core import stats
from opd.core.stats import Estimate
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.recipes.check.advice import RunFacts, advise, find_changes
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.cost import RunCost
from opd.recipes.check.diagnose import diagnose
from opd.recipes.check.features import compute_features
from opd.recipes.check.forecast import predict
from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.probe import TeacherSide
from opd.recipes.check.reasons import Reason, base_model_reason, explain
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.verdict import (
    CHANGES,
    GO,
    NO_GO,
    UNKNOWN,
    Verdict,
    decisive_rule,
    judge,
    nothing_accepted,
)
from opd.run.console import Console
from opd.setup.pair import Pair
from opd.setup.prompts import load_training_prompts

SHORT = 120.0  # seconds a check may take beside a run of less than half an hour ...
LONG_RUN, LONG_FRACTION = 1800.0, 0.05  # ... and as a fraction of a longer one
STEP_FRACTION = 0.25  # of the budget, for the timed step
# Learning rate of a cold start: times optim.lr (paper: 1e-5 against 1e-6), but at most so much,
# since tiny models train at high rates already.
COLD_START_LR_FACTOR, COLD_START_MAX_LR = 10.0, 4e-3


def run_check(
    file: Path,
    overrides: Sequence[str],
    *,
    budget: float | None = None,
    apply: Path | None = None,
    json_lines: bool = False,
) -> CheckResult:
    """Check the run of a file, print the result, and write its record beside the run folder.

    Args:
        file: run.yaml; its teacher may be a list.
        overrides: `key=value`.
        budget: seconds; None: 5 % of a run of half an hour or more, else two minutes.
        apply: where to write the file with the advice followed.
        json_lines: print the record instead of text.

    Raises:
        UserError: wrong input; a single teacher that cannot be reached.
    """
    limits = Budget(budget)
    cfgs = config.load_each(file, overrides)
    output.require_outputs(cfgs, file, apply)
    console = Console("json" if json_lines else "plain")
    console.print(f"Checking {file} ...")
    with tempfile.TemporaryDirectory() as scratch:
        result = check(str(file), cfgs, limits, Path(scratch))
    record = output.to_record(result)
    output.print_result(record, console, json_lines=json_lines)
    output.save_record(cfgs[0], record, console)
    if apply is not None:
        best = result.best
        output.apply_advice(file, overrides, best.candidate.cfg, best.advice, apply)
        console.print(f"Wrote {apply} with the advice followed: opd train {apply}")
    return result


def check(file: str, cfgs: Sequence[Run], budget: Budget, scratch: Path) -> CheckResult:
    """See `run_check`; nothing is printed or written.

    Args:
        file: as `run_check`.
        cfgs: one per teacher.
        budget: of time and tokens.
        scratch: a folder for the timed step.
    """
    candidates = _load_candidates(cfgs, scratch)
    compatible = [c for c in candidates if c.compatible]
    incompatible = [
        TeacherResult(c, NO_GO, reasons=_failures(c.findings))
        for c in candidates
        if not c.compatible
    ]
    if not compatible:
        elapsed = monotonic() - budget.started
        return CheckResult(file, incompatible, None, None, (), (), elapsed)
    first = compatible[0]
    assert first.pair is not None
    prompts = load_training_prompts(first.cfg, first.pair, Console("quiet"))
    cost, seconds = None, budget.seconds or math.inf  # fewer tokens are less time
    if math.isinf(budget.token_fraction):  # a timed step would generate as much as the probe does
        cost, seconds = _measure_cost(first, prompts, budget.seconds, scratch)
    probe = run_probe(compatible, prompts, budget.started + seconds, budget.token_fraction)
    teachers = [
        _judge_candidate(c, side, probe) for c, side in zip(compatible, probe.teachers, strict=True)
    ]
    teachers = sorted(teachers, key=_rank, reverse=True) + incompatible
    return CheckResult(
        file,
        teachers,
        probe.student,
        cost if cost is None else _at_final_length(cost, teachers[0].features),
        output.examples(probe, teachers[0].features),
        probe.limitations,
        monotonic() - budget.started,
    )


def _load_candidates(cfgs: Sequence[Run], scratch: Path) -> list[Candidate]:
    """All teachers beside one student; of several, one that cannot be reached is a failure."""
    candidates: list[Candidate] = []
    plans = [check_memory(cfg) for cfg in cfgs]  # while all of the memory is free
    runs = zip(cfgs, teacher_labels(cfgs), plans, strict=True)
    for i, (cfg, label, memory) in enumerate(runs):
        student = next((c.pair.student for c in candidates if c.pair is not None), None)
        folder = scratch / str(i)
        folder.mkdir()
        try:
            candidates.append(load_candidate(cfg, label, student, folder, memory=memory))
        except UserError as error:
            if len(cfgs) == 1:
                raise
            candidates.append(
                Candidate(label, cfg, [Finding("reach", "failure", str(error))], None)
            )
    return candidates


def _failures(findings: Sequence[Finding]) -> list[Reason]:
    return [Reason(f.message, f.fix) for f in findings if f.level == "failure"]


def _rank(result: TeacherResult) -> tuple[int, float]:
    """Higher is better: the verdict, then the predicted change (without answers: transfer)."""
    order = {GO: 3, CHANGES: 2, UNKNOWN: 1, NO_GO: 0}[result.verdict]
    if result.forecast is None:
        return order, 0.0
    change = result.forecast.change
    return order, result.forecast.transfer if change is None else change.value


def _measure_cost(
    candidate: Candidate, prompts: PromptSet, budget: float | None, scratch: Path
) -> tuple[RunCost | None, float]:
    """The cost of the run, and the seconds this check may take."""
    assert candidate.pair is not None
    cfg = candidate.cfg
    if cfg.rollout.engine != "hf":
        return None, budget or SHORT
    timer = StepTimer(candidate, prompts, scratch)
    rough = timer.step(timing.FIRST).seconds * cfg.train.steps
    allowed = budget or max(SHORT, LONG_FRACTION * rough if rough > LONG_RUN else 0.0)
    step_seconds = max(rough / cfg.train.steps, 1e-9)
    fits = int(STEP_FRACTION * allowed / step_seconds * cfg.train.prompts_per_step)
    step = timer.median_step(max(timing.FIRST, min(cfg.train.prompts_per_step, fits)))
    cost = timing.run_cost(candidate, step, timing.time_evaluations(cfg, candidate.pair))
    if budget is None:
        allowed = max(SHORT, LONG_FRACTION * cost.seconds if cost.seconds > LONG_RUN else 0.0)
    return cost, allowed


def _judge_candidate(candidate: Candidate, side: TeacherSide, probe: Probe) -> TeacherResult:
    cfg, features = candidate.cfg, compute_features(probe.student, side)
    assert candidate.pair is not None
    settings = RunSettings.of_run(cfg, candidate.pair.student)
    grader_fault = _grader_at_fault(features)
    model = load_model()
    forecast = predict(model, features, settings)
    verdict: Verdict = UNKNOWN if grader_fault else judge(forecast, features)
    changes = []
    if decisive_rule(forecast, features) in ("too little", "undecided") and not grader_fault:
        changes = find_changes(model, features, settings)
    verdict = CHANGES if changes else verdict
    reasons = grader_fault or explain(verdict, forecast, features, settings)
    base = cfg.check.origin
    if base is not None and candidate.pair.teacher is not None:
        reasons = [*reasons, _compare_with_base(base, candidate.pair, probe)]
    rollouts = probe.student.rollouts
    support = side.on_student.mean.get("diag/support_mass")
    facts = RunFacts(
        truncated=float(sum(r.finish == "length" for r in rollouts) / len(rollouts)),
        support_mass=1.0 if support is None else float(support.mean()),
        max_new_tokens=cfg.rollout.max_new_tokens,
        cold_start=_cold_start(cfg),
        prompts=len(probe.student.prompts),
    )
    advice = changes + advise(verdict, forecast, features, candidate.findings, facts)
    return TeacherResult(candidate, verdict, features, side, forecast, reasons, advice)


def _cold_start(cfg: Run) -> dict[str, object] | None:
    """The section for a cold start; None if there is one, or the teacher cannot generate."""
    starts_cold = cfg.coldstart is not None and cfg.coldstart.when == "start"
    if starts_cold or not isinstance(cfg.teacher, LocalTeacher):
        return None
    lr = min(COLD_START_LR_FACTOR * cfg.optim.lr, max(COLD_START_MAX_LR, cfg.optim.lr))
    return {"coldstart": {"lr": float(f"{lr:.3g}")}}


def _grader_at_fault(features: Mapping[str, Estimate]) -> list[Reason]:
    """Both models at 0 %: the grader or the template is wrong, not the models."""
    if not nothing_accepted(features):
        return []
    return [
        Reason(
            "No answer of either model was accepted: suspect the grader or the template, not the "
            "models",
            "look at the two examples below; prompts.grader, prompts.template and prompts.chat "
            "decide",
        )
    ]


def _compare_with_base(path: str, pair: Pair, probe: Probe) -> Reason:
    assert pair.teacher is not None
    base = load_lm(path, device=str(pair.student.device), key="check.origin")
    base.vocab = pair.student.vocab
    rollouts, prompts = probe.student.rollouts, len(probe.student.prompts)
    k, tokens = probe.config.k, probe.config.tokens_per_batch
    teacher, student = (
        diagnose(base, lm, rollouts, k=k, tokens_per_batch=tokens).mean["diag/reverse_kl"]
        for lm in (pair.teacher, pair.student)
    )
    teacher_kl, student_kl = (
        stats.mean(kl.reshape(prompts, -1).mean(1)) for kl in (teacher, student)
    )
    return base_model_reason(teacher_kl, student_kl)


def _at_final_length(cost: RunCost, features: Mapping[str, Estimate]) -> RunCost:
    """The cost if completions go from the student's length to the teacher's."""
    if "teacher_length" not in features:
        return cost
    student, teacher = features["student_length"].value, features["teacher_length"].value
    return cost.with_lengths((student + teacher) / (2 * student))
