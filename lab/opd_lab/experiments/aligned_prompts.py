"""E7: prompts about what the teacher was improved on, and how many others to mix in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opd.core import stats
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curves,
)
from opd_lab.experiments.setups import ACCURACY
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult, Task
from opd_lab.worlds import ContentChain
from opd_lab.worlds.content_chain import OTHER

PAIR = ("chain-base", "chain-content")
STEPS = 80
SELECT_LIMIT = 600  # prompts that opd select measures
ENTROPY = "eval/task/response_entropy"
CHANGES = (f"train.steps={STEPS}", "eval.0.every=20")
ALIGNED, QUARTER, HALF, NONE, ANY = "aligned", "quarter", "half", "none", "any"
MIXTURES = {
    ALIGNED: ContentChain(known=1.0),
    QUARTER: ContentChain(known=0.75, other=0.25),
    HALF: ContentChain(known=0.5, other=0.5),
    NONE: ContentChain(known=0.0, other=1.0),
    ANY: ContentChain(known=0.0, other=0.0),
}
LABELS = {
    ALIGNED: "aligned alone",
    QUARTER: "a quarter without",
    HALF: "half without",
    NONE: "all without",
    ANY: "any symbols",
}


@dataclass(frozen=True)
class Evaluated:
    """Held-out accuracy on the teacher's content and on any symbols, and the student's entropy."""

    known: float
    any: float
    entropy: float


@dataclass(frozen=True)
class SelectNumbers:
    """What `opd select` makes of a mixture of thirds.

    Attributes:
        auroc: of each measure, for "about the teacher's symbols alone".
        fraction_before: of the teacher's content in the mixture.
        fraction_aligned: among the prompts called aligned.
        selected: after training on what it keeps.
        random: after training on as many prompts at random.
    """

    auroc: dict[str, float]
    fraction_before: float
    fraction_aligned: float
    selected: Evaluated
    random: Evaluated


@dataclass(frozen=True)
class Numbers:
    """One seed; `after` by mixture."""

    before: Evaluated
    after: dict[str, Evaluated]
    select: SelectNumbers


def aligned_prompts() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E7",
        "Teacher-aligned prompts",
        f"{PAIR[0]} learns from {PAIR[1]}, improved on problems about half of the symbols "
        f"alone, in {STEPS} steps. Varied: what the training prompts are about: those symbols, a "
        "mixture with problems about the other half, those alone, or any symbols. Held out: the "
        "same 512 problems about the teacher's symbols and 512 about any.",
        "prompts of the teacher's RL set beat deduplicated others; student entropy falls "
        "strongly; mixing recommended, never measured",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "Accuracy on the teacher's content is partly by construction: only there does the teacher "
        "know more.",
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per mixture, then what `opd select` makes of a mixture of thirds."""
    results = {
        name: workspace.run(Arm(*PAIR, CHANGES), Task(world, test=1024))
        for name, world in MIXTURES.items()
    }
    numbers = Numbers(
        before=evaluated(results[ANY], 0),
        after={name: evaluated(result, STEPS) for name, result in results.items()},
        select=measure_selection(workspace),
    )
    panels = {ACCURACY: "accuracy, both kinds", ENTROPY: "entropy on held-out prompts"}
    by_label = {LABELS[name]: result for name, result in results.items()}
    return Measurement(numbers, metric_curves(by_label, panels))


def measure_selection(workspace: Workspace) -> SelectNumbers:
    """Whether `opd select` finds the teacher's content in a mixture, and whether it helps."""
    task = Task(ContentChain(known=1 / 3, other=1 / 3), test=1024)
    selection = workspace.select_prompts(*PAIR, task, SELECT_LIMIT)
    known = np.array([not set(text.split()) & set(OTHER) for text in selection.texts])
    selected, random = (
        evaluated(workspace.run(Arm(*PAIR, (*CHANGES, f"prompts.path={path}")), task), STEPS)
        for path in (selection.selected, selection.random)
    )
    return SelectNumbers(
        auroc={name: stats.auroc(v, known).value for name, v in selection.measures.items()},
        fraction_before=float(known.mean()),
        fraction_aligned=float(known[selection.aligned].mean()),
        selected=selected,
        random=random,
    )


def evaluated(result: RunResult, step: int) -> Evaluated:
    """The evaluation after a step; held-out problems of the two kinds alternate."""
    correct, entropies = result.correct(step), dict(zip(*result.curve(ENTROPY), strict=True))
    return Evaluated(float(correct[::2].mean()), float(correct[1::2].mean()), entropies[step])


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy and entropy by mixture, and the numbers of `opd select`."""
    return (
        Column("accuracy on the teacher's content, before", lambda n: n.before.known),
        *by_mixture(lambda e: e.known),
        Column("accuracy on any symbols, before", lambda n: n.before.any),
        *by_mixture(lambda e: e.any),
        Column("entropy on held-out prompts, before", lambda n: n.before.entropy),
        *by_mixture(lambda e: e.entropy),
        *SELECT_COLUMNS,
    )


def by_mixture(value: Callable[[Evaluated], float]) -> tuple[Column[Numbers], ...]:
    """One number of the evaluation after training, by mixture."""
    return keyed_columns(LABELS, lambda n: {m: value(e) for m, e in n.after.items()})


AUROC_COLUMNS: tuple[Column[Numbers], ...] = keyed_columns(
    {
        "score": "opd select: AUROC of its score for the content",
        "advantage": "of teacher advantage alone",
        "mixed": "of mixed outcomes alone",
        "mass": "of overlap mass alone",
        "entropy": "of low teacher entropy alone",
    },
    lambda n: n.select.auroc,
)
SELECT_COLUMNS: tuple[Column[Numbers], ...] = (
    *AUROC_COLUMNS,
    Column("fraction of the content in the mixture", lambda n: n.select.fraction_before),
    Column("among the prompts called aligned", lambda n: n.select.fraction_aligned),
    Column("accuracy on the teacher's content, selected", lambda n: n.select.selected.known),
    Column("as many at random", lambda n: n.select.random.known),
    Column("accuracy on any symbols, selected", lambda n: n.select.selected.any),
    Column("as many at random", lambda n: n.select.random.any),
)
CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "on the teacher's own content aligned prompts teach at least as much as any prompts "
        "(tolerance .02), and .2 more than prompts without it",
        lambda n: (
            n.after[ALIGNED].known >= n.after[ANY].known - 0.02
            and n.after[ALIGNED].known - n.after[NONE].known >= 0.2
        ),
    ),
    Claim(
        "aligned prompts lower the entropy on the same held-out prompts",
        lambda n: n.after[ALIGNED].entropy < n.before.entropy,
    ),
    Claim(
        "half of other prompts mixed in leaves more entropy than aligned prompts alone",
        lambda n: n.after[HALF].entropy > n.after[ALIGNED].entropy,
    ),
    Claim(
        "and costs at most .05 accuracy on the aligned content",
        lambda n: n.after[ALIGNED].known - n.after[HALF].known <= 0.05,
    ),
    Claim(
        "opd select finds the content in a mixture of thirds: AUROC of its score at least .8",
        lambda n: n.select.auroc["score"] >= 0.8,
    ),
    Claim(
        "and training on what it keeps is at least as good there as on as many at random "
        "(tolerance .02)",
        lambda n: n.select.selected.known >= n.select.random.known - 0.02,
    ),
)
