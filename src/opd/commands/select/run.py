"""The command: measure, choose, write the prompt file and the report about it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opd import rng
from opd.commands.outputs import require_section, require_selection_outputs
from opd.commands.select.prepare import drop_duplicates, measurement_setup, subsample
from opd.commands.select.record import to_record
from opd.commands.select.result import Selection
from opd.commands.select.rows import output_rows, write_rows
from opd.commands.select.templates import choose_template
from opd.config import Run, Select
from opd.errors import UserError
from opd.recipes.select import choose_prompts, measure_prompts, mixture_entropy, rank_prompts
from opd.reports.html import write_report
from opd.reports.select_page import select_document
from opd.rng import Stream
from opd.run.console import Console
from opd.setup.launch import start_servers
from opd.setup.models import open_models
from opd.setup.preflight import read_inputs
from opd.setup.prompts import load_training_prompts
from opd.setup.self_teacher import require_ordinary_teacher

FRACTIONS = (0.0, 0.25, 0.5, 1.0)  # of prompts from the rest, in the report


def run_select(cfg: Run, json_lines: bool = False, *, overwrite: bool = False) -> dict[str, Any]:
    """Measure, choose, write `select.output` and its report; return the record.

    Args:
        cfg: the run.
        json_lines: print the record instead of text.
        overwrite: replace what an earlier `opd select` wrote there.

    Raises:
        UserError: no `select` section, outputs that exist or are inputs, nothing left to choose
            from, or as `opd.setup.models.open_models`.
    """
    spec = require_section(cfg)
    require_selection_outputs(cfg, spec, overwrite=overwrite)
    console = Console("json" if json_lines else "plain")
    read_inputs(cfg, console, trains=False)
    with TemporaryDirectory() as logs, start_servers([cfg], console, Path(logs, "select")):
        selection = select(cfg, spec, console)
    output = Path(spec.output)
    write_rows(output, output_rows(cfg, spec, selection))
    record = to_record(cfg, spec, selection)
    report = write_report(
        select_document(record, source=cfg.prompts.name), output.with_suffix(".html")
    )
    if json_lines:
        console.out.print_json(json.dumps(record), indent=None)
    for sentence in record["summary"]:
        console.print(sentence)
    console.print(f"Prompts: {output}\nReport:  {report}")
    return record


def select(cfg: Run, spec: Select, console: Console) -> Selection:
    """The whole procedure; nothing is written.

    Args:
        cfg: the run.
        spec: its select section.
        console: shows progress.

    Raises:
        UserError: as `run_select`.
    """
    require_ordinary_teacher(cfg, "opd select")
    models = open_models(cfg, console)
    cfg, pair, seed = models.cfg, models.pair, cfg.train.seed
    prompts = load_training_prompts(cfg, pair, console)
    usable, leaked, repeated = drop_duplicates(cfg, spec, prompts)
    models.handshake(prompts)
    with TemporaryDirectory() as folder:
        setup = measurement_setup(models, spec, usable, Path(folder), console)
        template, templates = choose_template(cfg, spec, pair, setup, usable, console)
        measured = subsample(usable, spec.limit, seed)
        console.print(f"Measuring {len(measured)} prompts, {spec.n} completions of each model ...")
        measurements = measure_prompts(setup, measured, rng.key(seed, Stream.SELECT_MEASURE))
    ranking = rank_prompts(measurements, spec.n)
    aligned, others = choose_prompts(ranking, spec.keep, seed)
    if not aligned:
        raise UserError(
            f"On none of the {len(measured)} prompts measured is the teacher better than the "
            "student: there is nothing to learn from it here. Use another teacher or other prompts."
        )
    mixture = mixture_entropy(measurements, aligned, FRACTIONS)
    return Selection(
        prompts.rows,
        leaked,
        repeated,
        measured,
        measurements,
        ranking,
        aligned,
        others,
        mixture,
        template,
        templates,
    )
