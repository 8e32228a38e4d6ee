"""A check in words: the terminal's page, the record and its page, the file with its advice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from opd import config
from opd.commands.check.result import Checked, Found
from opd.config import Run
from opd.errors import UserError
from opd.recipes.check.features import SHOWN, by_quarter
from opd.recipes.check.probe import Own, Rules
from opd.recipes.check.verdict import Advice, points, share, sureness
from opd.reports.check_page import check_document
from opd.reports.html import write_report
from opd.run.console import Console
from opd.run.disk import human_size, write_json
from opd.run.jsonl import json_safe
from opd.run.preflight import check_record

POSITIONAL = (
    "overlap_ratio",
    "overlap_mass",
    "overlap_mass_teacher",
    "overlap_advantage",
    "entropy_gap",
    "reverse_kl",
)


def record(checked: Checked) -> dict[str, Any]:
    """Everything the check found, as plain JSON."""
    best = checked.found[0]
    found: dict[str, Any] = {
        "file": checked.file,
        "verdict": best.verdict,
        "reasons": [r.record() for r in best.reasons],
        "advice": [a.record() for a in best.advice],
        "sureness": None if best.prospect is None else sureness(best.prospect),
        "numbers": {name: asdict(e) for name, e in best.numbers.items()},
        "teachers": [_teacher(one) for one in checked.found],
        "prompts": 0 if checked.own is None else len(checked.own.prompts),
        "lost": list(checked.lost),
        "examples": list(checked.examples),
        "seconds": round(checked.seconds, 1),
    }
    if checked.plan is not None:
        plan = asdict(checked.plan) | {"seconds": checked.plan.seconds}
        found["plan"] = plan | {"check_share": checked.seconds / checked.plan.seconds}
    cfg = best.who.cfg
    found["pair"] = {
        "student": cfg.student.model,
        "teacher": None if cfg.teacher is None else cfg.teacher.model,
    }
    safe: dict[str, Any] = json_safe(found)
    return safe


def _teacher(found: Found) -> dict[str, Any]:
    prospect = found.prospect
    told: dict[str, Any] = {
        "name": found.who.label,
        "verdict": found.verdict,
        "handshake": [asdict(p) for p in found.who.points],
        "reasons": [r.record() for r in found.reasons],
        "numbers": {name: asdict(e) for name, e in found.numbers.items()},
    }
    if prospect is not None:
        told["prospect"] = asdict(prospect)
    if found.against is not None:
        told["by_quarter"] = {
            name: by_quarter(found.against.forward, SHOWN[name])
            for name in POSITIONAL
            if SHOWN[name] in found.against.forward.mean
        }
    return told


def say(checked: Checked, told: Mapping[str, Any], console: Console, *, json_lines: bool) -> None:
    """The page of the terminal, or the record as one line of JSON."""
    if json_lines:
        console.out.print_json(json.dumps(told), indent=None)
        return
    for line in lines(checked):
        console.say(line)


def lines(checked: Checked) -> Iterator[str]:
    """The page, a line at a time."""
    best = checked.found[0]
    yield ""
    yield f"  {best.verdict.upper()}   teacher {best.who.label}"
    if best.prospect is not None:
        yield from (f"  {line}" for line in _expected(best))
    yield ""
    if len(checked.found) > 1:
        yield from _ranking(checked.found)
    yield "Why"
    for i, reason in enumerate(best.reasons, 1):
        yield f"  {i}. {reason.text}."
        yield from (f"     {part}" for part in reason.evidence.split("; ") if part)
    for line in checked.lost:
        yield f"  -  {line}"
    if best.prospect is not None:
        for line in best.prospect.outside:
            yield f"  -  Outside what the lab has seen: {line}."
    if best.advice:
        yield ""
        yield "What to change"
        for one in best.advice:
            keys = ", ".join(f"{k}={json.dumps(v)}" for k, v in one.set.items())
            yield f"  -  {one.text}." + (f"  [{keys}]" if keys else "")
    for example in checked.examples:
        yield ""
        yield f"  {example['who']} on {example['prompt']!r}: answer expected {example['answer']!r},"
        yield f"  wrote {example['text']!r}"
    yield ""
    yield from _handshake(best)
    yield from _quarters(best)
    yield from _plan(checked)


def _expected(found: Found) -> Iterator[str]:
    prospect = found.prospect
    assert prospect is not None
    if prospect.change is not None:
        yield f"expected change of accuracy {points(prospect.change)}, 90 % interval"
    if prospect.recovery is not None:
        yield f"expected share of the teacher's lead {share(prospect.recovery)}"
    yield sureness(prospect)


def _ranking(found: Sequence[Found]) -> Iterator[str]:
    yield "Teachers, best first"
    for place, one in enumerate(found, 1):
        told = f"  {place}. {one.who.label:<28} {one.verdict:<16}"
        if one.prospect is not None and one.prospect.change is not None:
            told += f" expected {points(one.prospect.change)}"
        if "teacher_accuracy" in one.numbers:
            told += f"; alone {share(one.numbers['teacher_accuracy'])}"
        if one.prospect is None and one.reasons:
            told += f" {one.reasons[0].text.splitlines()[0]}"
        yield told
    yield ""


def _handshake(found: Found) -> Iterator[str]:
    yield "Handshake"
    for point in found.who.points:
        yield f"  {point.level:<8} {point.what:<9} {point.message}"
        if point.fix and point.level in ("warning", "failure"):
            yield f"  {'':<18} fix: {point.fix}"
    yield ""


def _quarters(found: Found) -> Iterator[str]:
    if found.against is None:
        return
    shown = [n for n in POSITIONAL if SHOWN[n] in found.against.forward.mean]
    if not shown:
        return
    yield "By quarter of the student's rollouts"
    for name in shown:
        values = by_quarter(found.against.forward, SHOWN[name])
        yield f"  {name:<22}" + "".join(f"{value:>9.3f}" for value in values)
    yield "  Levels alone mislead: failing pairs can start high too. The verdict rests on distance"
    yield "  and gain together."
    yield ""


def _plan(checked: Checked) -> Iterator[str]:
    plan = checked.plan
    if plan is None:
        yield f"This check took {checked.seconds:.0f} s."
        return
    count = ", ".join(f"{who} {n / 1e6:,.4g} M" for who, n in plan.parameters.items())
    parts = ", ".join(f"{part} {human_size(n)}" for part, n in plan.memory.items())
    yield f"Cost of {plan.steps} steps"
    yield f"  time         {_time(plan.seconds)}  ({plan.step:.3g} s a step, evaluations "
    yield f"               {_time(plan.evaluation)}, checkpoints {_time(plan.saving)})"
    yield f"  memory       {human_size(plan.peak)} at its peak, measured over one whole step:"
    yield f"               {parts}"
    yield f"  tokens       {plan.tokens:,.0f} written by the student"
    yield f"  teacher      {plan.teacher_calls:,} rollouts to score"
    yield f"  disk         at most {human_size(plan.disk)}"
    yield f"  parameters   {count}"
    yield (
        f"This check took {checked.seconds:.0f} s, {checked.seconds / plan.seconds:.1%} of that."
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def examples(own: Own, rules: Rules, found: Sequence[Found]) -> list[dict[str, str]]:
    """Two graded answers of the student, where no answer of anybody was accepted."""
    numbers = found[0].numbers
    both = [numbers[n].value for n in ("student_accuracy", "teacher_accuracy") if n in numbers]
    if len(both) < 2 or any(both):
        return []
    return [
        {
            "who": "The student",
            "prompt": rollout.prompt.text[-200:],
            "answer": rollout.prompt.answer or "",
            "text": rules.decode(rollout.ids.tolist())[-200:],
        }
        for rollout in own.rollouts[:: rules.n][:2]
    ]


def keep(cfg: Run, told: Mapping[str, Any], console: Console) -> None:
    """Leave the record and its page beside the run folder, where `opd train` finds them."""
    place = check_record(cfg.output.dir)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, told)
    html = place.with_name(f"{Path(cfg.output.dir).name}.checked.html")
    report = write_report(check_document(told), html)
    console.say(f"Record: {place}   Report: {report}")


def apply(
    file: Path, overrides: Sequence[str], best: Run, advised: Sequence[Advice], out: Path
) -> None:
    """Write the file anew with overrides, the best teacher and the advice in it.

    Raises:
        UserError: `out` exists, or the advice does not fit the file.
    """
    if out.exists():
        raise UserError(f"{out} exists and stays as it is. Give --apply another name.")
    data = config.overridden(config.read(file), overrides)
    if isinstance(data.get("teacher"), list) and best.teacher is not None:
        data["teacher"] = best.teacher.model_dump(mode="json", exclude_unset=True)
    changes = [f"{k}={json.dumps(v)}" for one in advised for k, v in one.set.items()]
    data = config.overridden(data, changes)
    config.validate(data, where=f"{file} with the advice")
    out.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
