"""The result of a selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.config import Select
from opd.data.duplicates import Leak
from opd.recipes.select import Measurements, Mixture, Ranking, TemplateResult, pass_k
from opd.types import Prompt


@dataclass(frozen=True)
class Selection:
    """Prompts measured, and which of them are kept.

    Attributes:
        rows: of the prompt file.
        leaks: prompts that an evaluation set contains.
        repeats: row of each repeated prompt, to the row it repeats.
        prompts: (P,) that were measured.
        measurements: of each.
        ranking: of each.
        aligned: indices of the kept prompts on which the teacher is better, best first.
        others: indices of those kept from the rest.
        mixture: entropies by the fraction of others.
        template: name of the best one.
        templates: of all that were compared.
    """

    rows: int
    leaks: list[Leak]
    repeats: dict[int, int]
    prompts: list[Prompt]
    measurements: Measurements
    ranking: Ranking
    aligned: list[int]
    others: list[int]
    mixture: Mixture
    template: str
    templates: list[TemplateResult]


def prompt_numbers(spec: Select, selection: Selection, index: int) -> dict[str, float]:
    """The measurements of one prompt, by name; those that are NaN are left out."""
    measurements, ranking = selection.measurements, selection.ranking
    values = {
        "teacher_accuracy": measurements.teacher_correct[index] / spec.n,
        "student_accuracy": measurements.student_correct[index] / spec.n,
        "advantage": ranking.advantage[index],
        f"pass_at_{pass_k(spec.n)}": ranking.pass_at_k[index],
        "mixed": ranking.mixed[index],
        "overlap_mass": measurements.overlap_mass[index],
        "teacher_entropy": measurements.teacher_entropy[index],
        "score": ranking.score[index],
    }
    return {name: round(float(v), 4) for name, v in values.items() if not np.isnan(v)}
