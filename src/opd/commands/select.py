"""`opd select`: the configured pair and prompts, measured; a prompt file and a page about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opd import rng
from opd.config import LocalTeacher, Run, Select
from opd.data.duplicates import Leak, leaks, questions_of, repeats
from opd.data.graders import grader_for
from opd.data.prompts import PromptSet, load_prompts
from opd.data.readers import read_rows
from opd.errors import UserError
from opd.models import tokenizers
from opd.recipes.select import (
    Bench,
    Measured,
    Mixture,
    Ranked,
    Tried,
    choose,
    compare_templates,
    measure_prompts,
    mixture,
    rank,
)
from opd.reports.html import write_report
from opd.reports.select_page import select_document
from opd.rng import Stream
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.disk import write_bytes
from opd.samplers.hf import Decoding, HFSampler
from opd.setup.models import Models, open_models
from opd.setup.pair import Pair
from opd.setup.prompts import load_training_prompts, max_prompt_tokens
from opd.setup.samplers import rollout_decoding
from opd.types import Prompt, Sampler, Teacher

CONFIGURED = "prompts.template"
TEACHERS = "the teacher's chat template"
SHARES = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Selection:
    """What was found: leaks, repeats, templates, measurements, choice."""

    rows: int
    leaks: list[Leak]
    repeats: dict[int, int]
    prompts: list[Prompt]
    measured: Measured
    ranked: Ranked
    aligned: list[int]
    others: list[int]
    mixture: Mixture
    template: str
    tried: list[Tried]


def run_select(cfg: Run, json_lines: bool = False) -> dict[str, Any]:
    """Measure, choose, write `select.output`, its page and its JSON twin; return the record.

    Raises:
        UserError: no `select` section, nothing left to choose from, or as
            `opd.setup.session.build`.
    """
    if cfg.select is None:
        raise UserError("There is no `select` section. Add `select: {output: selected.jsonl}`.")
    console = Console("json" if json_lines else "plain")
    found = select(cfg, cfg.select, console)
    output = Path(cfg.select.output)
    write_rows(output, rows_of(cfg, cfg.select, found))
    record = record_of(cfg, cfg.select, found)
    report = write_report(
        select_document(record, source=cfg.prompts.path), output.with_suffix(".html")
    )
    if json_lines:
        console.out.print_json(json.dumps(record), indent=None)
    for sentence in record["said"]:
        console.say(sentence)
    console.say(f"Prompts: {output}\nReport:  {report}")
    return record


def select(cfg: Run, spec: Select, console: Console) -> Selection:
    """The whole procedure, nothing written."""
    with ExitStack() as stack:
        models = open_models(cfg, console)
        cfg, pair = models.cfg, models.pair
        prompts = load_training_prompts(cfg, pair, console)
        leaked, usable, again = _usable(cfg, spec, prompts)
        teacher, writer = _teacher(models, prompts, stack, console)
        bench = _bench(cfg, spec, pair, teacher, writer, usable)
        template, tried = _templates(cfg, spec, pair, bench, usable, console)
        measured_on = _drawn(usable, spec.limit, cfg.train.seed)
        console.say(f"Measuring {len(measured_on)} prompts, {spec.n} responses of each model ...")
        measured = measure_prompts(
            bench, measured_on, rng.key(cfg.train.seed, Stream.SELECT_MEASURE)
        )
    ranked = rank(measured, spec)
    aligned, others = choose(ranked, spec, cfg.train.seed)
    if not aligned:
        raise UserError(
            f"On none of the {len(measured_on)} prompts measured is the teacher better than the "
            "student: there is nothing to learn from it here. Use another teacher or other prompts."
        )
    return Selection(
        prompts.rows,
        leaked,
        again,
        measured_on,
        measured,
        ranked,
        aligned,
        others,
        mixture(measured, aligned, SHARES),
        template,
        tried,
    )


def _usable(
    cfg: Run, spec: Select, prompts: PromptSet
) -> tuple[list[Leak], list[Prompt], dict[int, int]]:
    """Leaks into evaluation sets, what is left, and what of it was asked before."""
    paths = [(e.label, e.path) for e in cfg.eval] + [(Path(p).stem, p) for p in spec.against]
    known = {p.index for p in prompts.prompts}
    asked = [q for q in questions_of(cfg.prompts.path) if q.index in known]
    leaked = leaks(asked, [(label, questions_of(p)) for label, p in paths], near=spec.near)
    out = {leak.row for leak in leaked}
    again = repeats([q for q in asked if q.index not in out], near=spec.near)
    usable = [p for p in prompts.prompts if p.index not in out and p.index not in again]
    if len(usable) < 2:
        raise UserError(
            f"{cfg.prompts.path}: {len(usable)} prompts are left of {len(prompts.prompts)} after "
            f"{len(out)} that stand in evaluation sets and {len(again)} repeated ones."
        )
    return leaked, usable, again


def _drawn(prompts: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    if limit is None or limit >= len(prompts):
        return list(prompts)
    draws = rng.generator(seed, Stream.SELECT_LIMIT)
    return [prompts[i] for i in sorted(draws.choice(len(prompts), limit, replace=False).tolist())]


def _teacher(
    models: Models, prompts: PromptSet, stack: ExitStack, console: Console
) -> tuple[Teacher, Sampler | None]:
    """The teacher as a scorer and, if it can generate, as a sampler."""
    models.handshake(prompts)
    folder = Path(stack.enter_context(TemporaryDirectory()))
    teacher = models.teacher(folder, console, Clock())
    if teacher is None:
        raise UserError("opd select needs a teacher; teacher is null.")
    sampler = models.teacher_sampler(rollout_decoding(models.cfg))
    if sampler is None:
        console.say("The teacher server only scores: prompts are ranked without its accuracy.")
    return teacher, sampler


def _bench(
    cfg: Run,
    spec: Select,
    pair: Pair,
    teacher: Teacher,
    writer: Sampler | None,
    prompts: Sequence[Prompt],
) -> Bench:
    r, k = cfg.rollout, min(cfg.diagnostics.k, pair.student.vocab)
    if r.engine != "hf":
        raise UserError(
            f"rollout.engine={r.engine}: opd select samples the student in this process. Run it "
            "with rollout.engine=hf (and rollout.url, rollout.model, rollout.path null)."
        )
    decoding = Decoding(r.max_new_tokens, r.temperature, r.top_p, r.top_k)
    return Bench(
        student=HFSampler(pair.student, decoding, stop=pair.stop, capture=k, batch=r.batch),
        writer=writer,
        teacher=teacher,
        grader=grader_for(prompts, cfg.prompts.grader),
        decode=tokenizers.make_decoder(pair.tokenizer),
        n=spec.n,
        k=k,
    )


def _templates(
    cfg: Run, spec: Select, pair: Pair, bench: Bench, usable: Sequence[Prompt], console: Console
) -> tuple[str, list[Tried]]:
    """Compare candidates on the same prompts with the same random numbers."""
    chat = cfg.prompts.chat
    candidates: dict[str, tuple[str | None, dict[str, Any] | None]] = {
        CONFIGURED: (cfg.prompts.template, chat)
    }
    candidates |= {text: (text, chat) for text in spec.templates}
    own = _teachers_chat(cfg, pair)
    if own is not None and chat is not None:
        candidates[TEACHERS] = (cfg.prompts.template, chat | {"chat_template": own})
    if len(candidates) == 1:
        return CONFIGURED, []
    chosen = {p.index for p in _drawn(usable, spec.template_prompts, cfg.train.seed)}
    sets = {
        name: load_prompts(
            cfg.prompts.path,
            pair.tokenizer,
            template=template,
            chat=keywords,
            max_tokens=cfg.prompts.max_tokens,
            context=max_prompt_tokens(pair, cfg.rollout.max_new_tokens, "rollout.max_new_tokens"),
        ).prompts
        for name, (template, keywords) in candidates.items()
    }
    for prompts in sets.values():  # paired: only prompts that every template leaves short enough
        chosen &= {p.index for p in prompts}
    if len(chosen) < 2:
        raise UserError(
            "The candidate templates leave fewer than two prompts short enough to compare; raise "
            "prompts.max_tokens or select.template_prompts."
        )
    console.say(f"Comparing {len(candidates)} templates on {len(chosen)} prompts ...")
    key = rng.key(cfg.train.seed, Stream.SELECT_TEMPLATE)
    found = {
        name: measure_prompts(bench, [p for p in prompts if p.index in chosen], key)
        for name, prompts in sets.items()
    }
    return compare_templates(found, spec.n)


def _teachers_chat(cfg: Run, pair: Pair) -> str | None:
    """The teacher's chat template, if there is one that differs from the student's."""
    if not isinstance(cfg.teacher, LocalTeacher):
        return None
    theirs = tokenizers.load_tokenizer(
        cfg.teacher.model, cfg.teacher.revision, key="teacher.model"
    ).chat_template
    same = theirs is None or theirs == pair.tokenizer.chat_template
    return None if same else str(theirs)


def rows_of(cfg: Run, spec: Select, found: Selection) -> list[dict[str, Any]]:
    """The kept rows as they were, with `why` and what was measured."""
    rows = {row.index: row.values for row in read_rows(cfg.prompts.path)}
    kept = []
    for place in sorted([*found.aligned, *found.others]):
        numbers = _numbers(spec, found, place)
        shown = ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in numbers.items())
        why = "aligned" if place in set(found.aligned) else "other: drawn from the rest"
        row = dict(rows[found.prompts[place].index])
        kept.append(row | {"why": f"{why}; {shown}", "measured": numbers})
    return kept


def _numbers(spec: Select, found: Selection, place: int) -> dict[str, float]:
    """What was measured of a prompt, without what could not be."""
    measured, ranked = found.measured, found.ranked
    values = {
        "teacher_accuracy": measured.teacher[place] / spec.n,
        "student_accuracy": measured.student[place] / spec.n,
        "advantage": ranked.advantage[place],
        f"pass_at_{spec.k}": ranked.pass_at[place],
        "mixed": ranked.mixed[place],
        "overlap_mass": measured.mass[place],
        "teacher_entropy": measured.teacher_entropy[place],
        "score": ranked.score[place],
    }
    return {name: round(float(v), 4) for name, v in values.items() if not np.isnan(v)}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A prompt file that appears whole.

    Raises:
        UserError: rows that the format cannot hold, or a place that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(list(rows)), sink)
            data = sink.getvalue().to_pybytes()
        else:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write_bytes(path, data)
    except (OSError, pa.ArrowException, TypeError) as error:
        raise UserError(
            f"select.output={path} cannot be written: {error}. Try the other format (.jsonl or "
            ".parquet), or another folder."
        ) from None


def record_of(cfg: Run, spec: Select, found: Selection) -> dict[str, Any]:
    """Everything of the page as plain JSON."""
    exact = [leak for leak in found.leaks if leak.exact]
    near = [leak for leak in found.leaks if not leak.exact]
    kept = len(found.aligned) + len(found.others)
    said = [
        f"{found.rows} rows; {len(exact)} ask what an evaluation set asks, {len(near)} nearly so, "
        f"{len(found.repeats)} ask again; of {len(found.prompts)} measured {kept} are kept: "
        f"{len(found.aligned)} aligned, {len(found.others)} drawn from the rest.",
        _about_entropy(found.mixture),
    ]
    if found.tried:
        said.append(_about_template(found.template))
    return {
        "prompts": cfg.prompts.path,
        "output": spec.output,
        "said": [sentence for sentence in said if sentence],
        "leaks": [asdict(leak) for leak in found.leaks],
        "repeats": len(found.repeats),
        "rows": found.rows,
        "template": found.template,
        "templates": [_plain(asdict(t)) for t in found.tried],
        "mixture": _plain(asdict(found.mixture)),
        "groups": {
            "aligned": _group(spec, found, found.aligned),
            "drawn from the rest": _group(spec, found, found.others),
            "left out": _group(
                spec,
                found,
                sorted(set(range(len(found.prompts))) - {*found.aligned, *found.others}),
            ),
        },
        "ranking": {
            "score": np.sort(found.ranked.score)[::-1].tolist(),
            "advantage": _plain(
                found.ranked.advantage[np.argsort(-found.ranked.score, kind="stable")].tolist()
            ),
        },
    }


def _group(spec: Select, found: Selection, places: Sequence[int]) -> dict[str, float | None]:
    """Means over some prompts."""
    rows = [_numbers(spec, found, place) for place in places]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"prompts": len(rows)} | {n: float(np.mean([row[n] for row in rows])) for n in names}


def _about_entropy(found: Mixture) -> str:
    here, there = found.teacher[0], found.teacher[-1]
    if np.isnan(here):
        return ""
    change = "higher" if there > here else "lower"
    return (
        f"The teacher's entropy on the student's rollouts is {here:.3f} nats a token on aligned "
        f"prompts and {there:.3f} on the rest: each quarter of other prompts draws the student "
        f"towards {abs(there - here) / 4:.3f} nats {change} entropy."
    )


def _about_template(name: str) -> str:
    if name == CONFIGURED:
        return "Template: none of the candidates is distinguishably better than the configured one."
    if name == TEACHERS:
        return (
            "Template: the teacher's own chat template is better here; set "
            "prompts.chat.chat_template to it."
        )
    return f"Template: better here is prompts.template={json.dumps(name)}"


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
