"""One check from file to verdict: handshakes, a timed step, rounds of the probe, advice."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from opd import config
from opd.commands.check import output, timing
from opd.commands.check.candidates import Candidate, candidate, labels
from opd.commands.check.result import Checked, Found
from opd.commands.check.timing import Timer
from opd.config import LocalTeacher, Run
from opd.core import stats
from opd.core.stats import Estimate
from opd.data.graders import Grader, grader_for
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.models.tokenizers import make_decoder
from opd.recipes.check.compatibility import Point
from opd.recipes.check.cost import Plan
from opd.recipes.check.diagnose import diagnose
from opd.recipes.check.features import features
from opd.recipes.check.forecast import foretell, load_model
from opd.recipes.check.probe import (
    Against,
    Own,
    Player,
    Rules,
    play_server,
    play_student,
    play_teacher,
)
from opd.recipes.check.verdict import Reason, Verdict, advice, judge, origin_reason, reasons
from opd.run.console import Console
from opd.samplers.hf import Decoding
from opd.setup.pair import Pair
from opd.setup.session import budget as microbatch
from opd.setup.session import load_eval_task, load_training_prompts

logger = logging.getLogger(__name__)

SHORT = 120.0  # seconds a check may take beside a run of less than half an hour ...
LONG_RUN, LONG_SHARE = 1800.0, 0.05  # ... and as a share of a longer one
STEP_SHARE = 0.25  # of the budget, for the timed step
FIRST_ROUND = 8  # prompts; later rounds double as long as there is time
LEAST_PROMPTS = 32  # that a verdict rests on, however few tokens it may write
COLD_RATE, COLD_CEILING = 10.0, 4e-3  # times optim.lr (paper: 1e-5 against 1e-6); tiny models less


def run_check(
    file: Path,
    overrides: Sequence[str],
    *,
    budget: float | None = None,
    apply: Path | None = None,
    json_lines: bool = False,
) -> Checked:
    """Check the run of a file, say what was found, and leave the record beside the run folder.

    Args:
        file: run.yaml; its teacher may be a list.
        overrides: `key=value`.
        budget: seconds; None: 5 % of a run of half an hour or more, else two minutes.
        apply: where to write the file with the advice followed.
        json_lines: print the record instead of the page.

    Raises:
        UserError: wrong input; a single teacher that cannot be reached.
    """
    began = time.monotonic()
    cfgs = config.load_each(file, overrides)
    console = Console("json" if json_lines else "plain")
    console.say(f"Checking {file} ...")
    with tempfile.TemporaryDirectory() as scratch:
        checked = check(str(file), cfgs, budget=budget, began=began, scratch=Path(scratch))
    record = output.record(checked)
    output.say(checked, record, console, json_lines=json_lines)
    output.keep(cfgs[0], record, console)
    if apply is not None:
        best = checked.found[0]
        output.apply(file, overrides, best.who.cfg, best.advice, apply)
        console.say(f"Wrote {apply} with the advice followed: opd train {apply}")
    return checked


def check(
    file: str,
    cfgs: Sequence[Run],
    *,
    budget: float | None,
    began: float,
    scratch: Path,
    share: float = math.inf,
) -> Checked:
    """See `run_check`; nothing is printed or written.

    Args:
        file: as `run_check`.
        cfgs: one a teacher.
        budget: as `run_check`.
        began: `time.monotonic()` from which on the budget counts.
        scratch: a folder for the timed step.
        share: how much the check may write, over all tokens that the run will, but at least for
            `LEAST_PROMPTS`; below infinity no step is timed, so there is no plan of hours and
            memory, and no limit of time beside `budget`.
    """
    whos: list[Candidate] = []
    for cfg, label in zip(cfgs, labels(cfgs), strict=True):
        student = next((w.pair.student for w in whos if w.pair is not None), None)
        place = scratch / str(len(whos))
        place.mkdir()
        try:
            whos.append(candidate(cfg, label, student, place))
        except UserError as error:
            if len(cfgs) == 1:
                raise
            whos.append(Candidate(label, cfg, [Point("reach", "failure", str(error))], None))
    playing = [w for w in whos if w.fit]
    failed = [Found(w, "don't", reasons=_failures(w.points)) for w in whos if w not in playing]
    if not playing:
        return Checked(file, failed, None, None, (), (), time.monotonic() - began)
    first = playing[0]
    assert first.pair is not None
    prompts = load_training_prompts(first.cfg, first.pair, Console("quiet"))
    plan, allowed = None, budget or math.inf  # a share of the tokens is a share of the time
    if math.isinf(share):  # a timed step would write as much as the probe does
        plan, allowed = _cost(first, prompts, budget, scratch)
    own, sides, rules, lost = _play(playing, prompts, began + allowed, share)
    found = [_found(who, own, side, rules) for who, side in zip(playing, sides, strict=True)]
    found = sorted(found, key=_promise, reverse=True) + failed
    return Checked(
        file,
        found,
        own,
        plan if plan is None else _lengthened(plan, found[0].numbers),
        output.examples(own, rules, found),
        lost,
        time.monotonic() - began,
    )


def _failures(points: Sequence[Point]) -> list[Reason]:
    return [Reason(p.message, p.fix) for p in points if p.level == "failure"]


def _promise(found: Found) -> tuple[int, float]:
    """Best first: the verdict, then the expected change (without answers: what is taken over)."""
    order = {"go": 2, "go with changes": 1, "don't": 0}[found.verdict]
    if found.prospect is None:
        return order, 0.0
    change = found.prospect.change
    return order, found.prospect.share if change is None else change.value


def _cost(
    who: Candidate, prompts: PromptSet, budget: float | None, scratch: Path
) -> tuple[Plan | None, float]:
    """The plan, and the seconds this check may take."""
    assert who.pair is not None
    cfg = who.cfg
    if cfg.rollout.engine != "hf":
        return None, budget or SHORT
    timer = Timer(who, prompts, scratch)
    rough = timer.step(timing.FIRST).seconds * cfg.train.steps
    allowed = budget or max(SHORT, LONG_SHARE * rough if rough > LONG_RUN else 0.0)
    fits = int(
        STEP_SHARE * allowed / max(rough / cfg.train.steps, 1e-9) * cfg.train.prompts_per_step
    )
    step = timer.steady(max(timing.FIRST, min(cfg.train.prompts_per_step, fits)))
    planned = timing.plan(who, step, timing.evaluations(cfg, who.pair))
    if budget is None:
        allowed = max(SHORT, LONG_SHARE * planned.seconds if planned.seconds > LONG_RUN else 0.0)
    return planned, allowed


def _play(
    whos: Sequence[Candidate], prompts: PromptSet, deadline: float, share: float
) -> tuple[Own, list[Against], Rules, list[str]]:
    """Rounds of prompts until the deadline, the share of tokens, or all of them."""
    first = whos[0]
    assert first.pair is not None
    chosen, grader, lost = _graded_prompts(first.cfg, first.pair, prompts)
    r = first.cfg.rollout
    rules = Rules(
        Decoding(r.max_new_tokens, r.temperature, r.top_p, r.top_k),
        make_decoder(first.pair.tokenizer),
        grader,
        k=min(max(first.cfg.loss.k, first.cfg.diagnostics.k), first.pair.student.vocab),
        tokens=microbatch(first.cfg),
        batch=r.batch,
        seed=first.cfg.train.seed,
    )
    student = Player(first.pair.student, first.pair.stop)
    own: Own | None = None
    sides: list[Against] = []
    at, size = 0, FIRST_ROUND
    most = min(first.cfg.check.prompts, len(chosen.prompts))
    while at < most:
        started = time.monotonic()
        part = chosen.prompts[at : min(at + size, most)]
        written = play_student(student, part, rules)
        against = [_against(who, student, written, rules) for who in whos]
        own = written if own is None else own + written
        sides = [a + b for a, b in zip(sides, against, strict=True)] if sides else against
        at += len(part)
        each = (time.monotonic() - started) / len(part)
        in_time = int(min((deadline - time.monotonic()) / each, most))
        size = min(2 * size, in_time, _affordable(first.cfg, own, sides, share))
        if size < 1:
            break
    assert own is not None
    return own, sides, rules, lost


def _affordable(cfg: Run, own: Own, sides: Sequence[Against], share: float) -> int:
    """Prompts more that a check may look at, by the tokens it has written so far."""
    if math.isinf(share):
        return cfg.check.prompts
    done = len(own.prompts)
    length = sum(map(len, own.rollouts)) / len(own.rollouts)
    planned = cfg.train.steps * cfg.train.prompts_per_step * cfg.rollout.n * length
    each = (own.written + sum(side.written for side in sides)) / done
    return max(int(share * planned / each), LEAST_PROMPTS) - done


def _against(who: Candidate, student: Player, own: Own, rules: Rules) -> Against:
    if who.server is not None:
        return play_server(who.server, own, rules)
    assert who.pair is not None
    assert who.pair.teacher is not None
    teacher = Player(who.pair.teacher, who.pair.teacher_stop)
    return play_teacher(teacher, student, own, rules)


def _graded_prompts(
    cfg: Run, pair: Pair, prompts: PromptSet
) -> tuple[PromptSet, Grader | None, list[str]]:
    """The prompts of the probe, their grader, and what is lost if there is none."""
    grader = grader_for(prompts.prompts, cfg.prompts.grader)
    if grader is not None:
        return prompts, grader, []
    if cfg.eval:
        task = load_eval_task(cfg, cfg.eval[0], 0, pair)
        told = f"The training prompts have no answers; those of {task.label} are used instead."
        return task.prompts, task.grader, [told]
    return (
        prompts,
        None,
        [
            "No prompt has an answer, so what the teacher can do, continuation gain and the "
            "expected change are unknown: the rest is judged by likeness alone. Give prompts.path "
            "an `answer` column, or an eval set."
        ],
    )


def _found(who: Candidate, own: Own, side: Against, rules: Rules) -> Found:
    cfg, numbers = who.cfg, features(own, side)
    why_not = _grader_at_fault(numbers)
    prospect = foretell(load_model(), numbers)
    verdict: Verdict = "don't" if why_not else judge(prospect, numbers)
    said = why_not or reasons(prospect, numbers)
    origin = cfg.check.origin
    if origin is not None and who.pair is not None and who.pair.teacher is not None:
        said = [*said, _origin(origin, who.pair, own, rules)]
    support = side.forward.mean.get("diag/support_mass")
    given = advice(
        verdict,
        prospect,
        numbers,
        who.points,
        truncated=float(sum(r.finish == "length" for r in own.rollouts) / len(own.rollouts)),
        support_mass=1.0 if support is None else float(support.mean()),
        new_tokens=cfg.rollout.max_new_tokens,
        cold_start=_cold_start(cfg),
    )
    return Found(who, verdict, numbers, side, prospect, said, given)


def _cold_start(cfg: Run) -> dict[str, object] | None:
    """The section that begins with a cold start; None where there is one, or nobody to write."""
    begins = cfg.coldstart is not None and cfg.coldstart.when == "start"
    if begins or not isinstance(cfg.teacher, LocalTeacher):
        return None
    rate = min(COLD_RATE * cfg.optim.lr, max(COLD_CEILING, cfg.optim.lr))
    return {"coldstart": {"lr": float(f"{rate:.3g}")}}


def _grader_at_fault(numbers: Mapping[str, Estimate]) -> list[Reason]:
    """Both models at 0 %: the grader or the template is wrong, not the models."""
    both = [numbers[n].value for n in ("student_accuracy", "teacher_accuracy") if n in numbers]
    if len(both) < 2 or any(both):
        return []
    return [
        Reason(
            "No answer of either model was accepted: suspect the grader or the template, not the "
            "models",
            "look at the two examples below; prompts.grader, prompts.template and prompts.chat "
            "decide",
        )
    ]


def _origin(path: str, pair: Pair, own: Own, rules: Rules) -> Reason:
    assert pair.teacher is not None
    origin = load_lm(path, device=str(pair.student.device), key="check.origin")
    origin.vocab = pair.student.vocab
    kls = [
        diagnose(origin, lm, own.rollouts, k=rules.k, tokens=rules.tokens)
        for lm in (pair.teacher, pair.student)
    ]
    groups = len(own.prompts)
    teacher, student = (
        stats.mean(found.mean["diag/reverse_kl"].reshape(groups, -1).mean(1)) for found in kls
    )
    return origin_reason(teacher, student)


def _lengthened(plan: Plan, numbers: Mapping[str, Estimate]) -> Plan:
    """The plan, with completions going from the student's length to the teacher's."""
    if "teacher_length" not in numbers:
        return plan
    ours, theirs = numbers["student_length"].value, numbers["teacher_length"].value
    return plan.lengthened((ours + theirs) / (2 * ours))
