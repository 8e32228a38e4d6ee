"""One check from file to verdict: compatibility, evidence within the budget, verdict, advice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from opd import config
from opd.commands.check import output
from opd.commands.check.agreement import compare_gradients, describe
from opd.commands.check.candidates import Candidate, load_candidate, teacher_labels
from opd.commands.check.gather import SHORT, Gathering
from opd.commands.check.judging import judge_candidate
from opd.commands.check.memory import check_memory
from opd.commands.check.result import CheckResult, TeacherResult
from opd.commands.check.rounds import Budget
from opd.commands.check.watch import CTRL_C, Watch
from opd.commands.outputs import require_check_outputs
from opd.config import Run
from opd.core.stats import Estimate
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows, to_json_line
from opd.errors import UserError
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.cost import RunCost
from opd.recipes.check.reasons import Reason
from opd.recipes.check.verdict import NO_GO, rank
from opd.run.console import Console
from opd.setup.launch import start_servers
from opd.setup.preflight import read_inputs
from opd.setup.prompts import load_training_prompts
from opd.setup.routing import prompts_of


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
        budget: seconds once the models are loaded; None: 5 % of the run's own time, two minutes at
            least.
        apply: where to write the file with the advice followed.
        json_lines: print the record instead of text.

    Raises:
        UserError: wrong input; a single teacher that cannot be reached.
    """
    limits = Budget(budget)
    cfgs = config.load_each(file, overrides)
    if cfgs[0].teachers:
        return _check_members(file, cfgs[0], limits, apply, json_lines=json_lines)
    require_check_outputs(cfgs, file, apply)
    console = Console("json" if json_lines else "plain")
    several = {"teacher": None} if len(cfgs) > 1 else {}
    inputs = read_inputs(
        cfgs[0].model_copy(update=several), console, trains=False, judges_pair=True
    )
    console.print(f"Checking {file} ...")
    with (
        tempfile.TemporaryDirectory() as scratch,
        start_servers(cfgs, console, Path(scratch, "check")),
    ):
        result = check(str(file), cfgs, limits, Path(scratch), console.note, inputs.longest_prompt)
    record = output.to_record(result)
    output.print_result(record, console, json_lines=json_lines)
    output.save_record(cfgs[0], record, console)
    if apply is not None:
        _apply(result, file, overrides, apply, console)
    return result


def _check_members(
    file: Path, cfg: Run, limits: Budget, apply: Path | None, *, json_lines: bool
) -> CheckResult:
    """Check each of a run's teachers on its own prompts; the worst result."""
    if apply is not None:
        raise UserError(
            "--apply follows the advice about one teacher, and this run has "
            f"{len(cfg.teachers)}. Leave it out; each teacher's own record has the advice."
        )
    console = Console("json" if json_lines else "plain")
    inputs = read_inputs(cfg, console, trains=False, judges_pair=True)
    assert inputs.prompts is not None
    limits = replace(limits, part=1 / len(cfg.teachers))
    if limits.seconds is not None:  # the comparison of the teachers has a part, too
        limits = replace(limits, seconds=limits.seconds / (len(cfg.teachers) + 1))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = teacher_runs(cfg, inputs.prompts, Path(scratch))
        for name, own in runs.items():
            require_check_outputs([own], file, None)
            console.print(f"Checking teacher {name} of {file} on its prompts ...")
            folder = Path(scratch) / f"check-{name}"
            folder.mkdir()
            with start_servers([own], console, folder / "server"):
                result = check(
                    str(file), [own], limits, folder, console.note, inputs.longest_prompt
                )
            record = output.to_record(result)
            output.print_result(record, console, json_lines=json_lines)
            output.save_record(own, record, console)
            results.append(result)
            if result.interrupted:
                left = ", ".join(list(runs)[len(results) :]) or "whether they pull apart"
                console.print(f"Not checked: {left}.")
                break
        else:
            seconds = _seconds_left(limits.seconds, results)
            _show_agreement(cfg, inputs.prompts, Path(scratch, "agreement"), console, seconds)
    return min(results, key=lambda result: _rank(result.best))


def _seconds_left(each: float | None, results: Sequence[CheckResult]) -> float:
    """For the comparison of the teachers: its part, and what the checks have not taken of theirs.

    Args:
        each: seconds of a part; None: as by default.
        results: of the checks.
    """
    if each is None:
        return SHORT
    return each + sum(max(0.0, each - result.seconds) for result in results)


def _show_agreement(
    cfg: Run, prompts: PromptSet, scratch: Path, console: Console, seconds: float
) -> None:
    """Say whether the teachers pull apart; where that cannot be measured, say why."""
    scratch.mkdir()
    watch, unknown = Watch(console.note), "Whether the teachers pull apart is not known: "
    lines = [f"{unknown}there was no time to compare them. A larger --budget would allow it."]
    try:
        with watch.evidence(), start_servers([cfg], console, scratch / "server"):
            lines = describe(compare_gradients(cfg, prompts, scratch, watch, seconds))
    except UserError as error:
        lines = [f"{unknown}{error}"]
    if watch.stopped == CTRL_C:
        lines = [f"{unknown}the check was ended by {CTRL_C}."]
    for line in lines:
        console.print(line)


def teacher_runs(cfg: Run, prompts: PromptSet, scratch: Path) -> dict[str, Run]:
    """One run for each of several teachers, on the rows that it scores."""
    rows = {row.index: row.values for row in read_rows(cfg.prompts.source)}
    runs = {}
    for name in cfg.teachers:
        path = scratch / f"{name}.jsonl"
        own = [rows[p.index] for p in prompts_of(prompts, name).prompts]
        path.write_text("".join(map(to_json_line, own)), encoding="utf-8")
        section = cfg.prompts.model_copy(update={"path": str(path), "files": []})
        folder = cfg.output.model_copy(update={"dir": f"{cfg.output.dir}.{name}"})
        changes = {"prompts": section, "output": folder}
        runs[name] = cfg.of_teacher(name).model_copy(update=changes)
    return runs


def _apply(
    result: CheckResult, file: Path, overrides: Sequence[str], out: Path, console: Console
) -> None:
    """Write the file with the advice followed; nothing for a run that is not expected to work."""
    best = result.best
    if best.verdict == NO_GO:
        console.print(
            f"{out} was not written: no advice makes this run one that is expected to work."
        )
        return
    output.apply_advice(file, overrides, best.candidate.cfg, best.advice, out)
    followed = "the advice followed" if any(a.set for a in best.advice) else "nothing to change"
    console.print(f"Wrote {out} with {followed}: opd train {out}")


def check(
    file: str,
    cfgs: Sequence[Run],
    budget: Budget,
    scratch: Path,
    show: Callable[[str], None] = lambda line: None,
    longest_prompt: int | None = None,
) -> CheckResult:
    """See `run_check`; nothing is written.

    Args:
        file: as `run_check`.
        cfgs: one per teacher.
        budget: of time and tokens.
        scratch: an empty folder.
        show: prints a line of progress.
        longest_prompt: its tokens, for the plan of memory; None: prompts.max_tokens.
    """
    candidates = _load_candidates(cfgs, scratch, longest_prompt)
    watch = Watch(show)
    compatible = [c for c in candidates if c.compatible]
    incompatible = [
        TeacherResult(c, NO_GO, reasons=_failures(c.findings))
        for c in candidates
        if not c.compatible
    ]
    if not compatible:
        return CheckResult(file, incompatible, None, None, (), (), watch.seconds)
    first = compatible[0]
    assert first.pair is not None
    training = load_training_prompts(first.cfg, first.pair, Console("quiet"))
    gathering = Gathering(compatible, training, budget, watch, scratch)
    gathering.run()
    typed = file if Path(file).is_file() else "run.yaml"  # a run may have been made without one
    teachers = [judge_candidate(gathering, i, typed) for i in range(len(compatible))]
    teachers = sorted(teachers, key=_rank, reverse=True)
    cost, best, limitations = gathering.cost, teachers[0].features, gathering.probe.limitations
    if watch.stopped:
        limitations = [*limitations, f"The check was ended by {watch.stopped}."]
    return CheckResult(
        file,
        teachers + incompatible,
        gathering.probe.student,
        cost if cost is None else _at_final_length(cost, best, first.cfg.rollout.max_new_tokens),
        output.examples(gathering.probe, best),
        limitations,
        watch.seconds,
        watch.stopped == CTRL_C,
    )


def _load_candidates(
    cfgs: Sequence[Run], scratch: Path, longest_prompt: int | None
) -> list[Candidate]:
    """All teachers beside one student; of several, one that cannot be reached is a failure."""
    candidates: list[Candidate] = []
    plans = [check_memory(cfg, longest_prompt) for cfg in cfgs]  # while all of the memory is free
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


def _rank(result: TeacherResult) -> tuple[int, float, float]:
    """Higher is better: the verdict, then what is predicted."""
    return rank(result.verdict, result.forecast)


def _at_final_length(cost: RunCost, features: Mapping[str, Estimate], limit: int) -> RunCost:
    """The cost if rollouts of at most `limit` tokens go from the student's length to the teacher's.

    The teacher's answers may be longer: they are sampled as a held-out set is.
    """
    if "teacher_length" not in features:
        return cost
    student = features["student_length"].value
    teacher = min(features["teacher_length"].value, limit)
    return cost.with_lengths((student + teacher) / (2 * student))
