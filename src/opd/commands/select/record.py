"""A selection as plain JSON, with its sentences: what the report and `--json` show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from opd.commands.select.result import Selection, prompt_numbers
from opd.commands.select.templates import CONFIGURED, TEACHERS
from opd.config import Run, Select
from opd.recipes.select import Mixture
from opd.run.jsonl import json_safe


def to_record(cfg: Run, spec: Select, selection: Selection) -> dict[str, Any]:
    """The whole selection as plain JSON."""
    kept = {*selection.aligned, *selection.others}
    groups = {
        "aligned": selection.aligned,
        "drawn from the rest": selection.others,
        "left out": sorted(set(range(len(selection.prompts))) - kept),
    }
    ranking = selection.ranking
    best_first = np.argsort(-ranking.score, kind="stable")
    record: dict[str, Any] = json_safe(
        {
            "prompts": cfg.prompts.name,
            "output": spec.output,
            "summary": _summary(selection),
            "leaks": [asdict(leak) for leak in selection.leaks],
            "repeats": len(selection.repeats),
            "rows": selection.rows,
            "template": selection.template,
            "templates": [asdict(t) for t in selection.templates],
            "mixture": asdict(selection.mixture),
            "groups": {name: _means(spec, selection, g) for name, g in groups.items()},
            "ranking": {
                "score": ranking.score[best_first].tolist(),
                "advantage": ranking.advantage[best_first].tolist(),
            },
        }
    )
    return record


def _means(spec: Select, selection: Selection, indices: Sequence[int]) -> dict[str, float]:
    """The number of some prompts, and the means of their measurements."""
    rows = [prompt_numbers(spec, selection, index) for index in indices]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"prompts": len(rows)} | {n: float(np.mean([row[n] for row in rows])) for n in names}


def _summary(selection: Selection) -> list[str]:
    sentences = [_counts(selection), _entropy(selection.mixture)]
    if selection.templates:
        sentences.append(_template(selection.template))
    return [sentence for sentence in sentences if sentence]


def _counts(selection: Selection) -> str:
    exact = {leak.row for leak in selection.leaks if leak.exact}  # of any set; it may be in several
    near = {leak.row for leak in selection.leaks} - exact
    aligned, others = len(selection.aligned), len(selection.others)
    return (
        f"{selection.rows} rows; {len(exact)} are in an evaluation set, {len(near)} "
        f"nearly so, {len(selection.repeats)} are repeated; of {len(selection.prompts)} measured "
        f"{aligned + others} are kept: {aligned} aligned, {others} drawn from the rest."
    )


def _entropy(mixture: Mixture) -> str:
    aligned, rest = mixture.teacher[0], mixture.teacher[-1]
    if np.isnan(aligned):
        return ""
    direction = "higher" if rest > aligned else "lower"
    return (
        f"The teacher's entropy on the student's rollouts is {aligned:.3f} nats per token on "
        f"aligned prompts and {rest:.3f} on the rest: each quarter of other prompts draws the "
        f"student towards {abs(rest - aligned) / 4:.3f} nats {direction} entropy."
    )


def _template(name: str) -> str:
    if name == CONFIGURED:
        return "Template: none of the candidates is measurably better than the configured one."
    if name == TEACHERS:
        return (
            "Template: the teacher's own chat template is better here; set "
            "prompts.chat.chat_template to it."
        )
    return f"Template: better here is prompts.template={json.dumps(name)}"
