"""Prompts the teacher was improved on, and how much of others to mix in (E7)."""

from __future__ import annotations

import numpy as np

from opd.commands.select import rows_of, select, write_rows
from opd.config import parse
from opd.core import stats
from opd.run.console import Console
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, line
from opd_lab.experiments.teachers import ACCURACY
from opd_lab.runs import Result, Task, digest, one_thread, run_config
from opd_lab.worlds import Content
from opd_lab.worlds.content import OTHER

PAIR = ("chain-base", "chain-content")
MIXED = (0.25, 0.5)  # share of prompts without the teacher's content
STEPS = 80
LIMIT = 600  # prompts that opd select measures
ENTROPY = "eval/task/response_entropy"


def e7() -> Entry:
    """Aligned content against all and none of it, and the mixing ratio."""
    kinds = {
        "aligned": Content(known=1.0),
        **{f"mix{100 * share:.0f}": Content(known=1 - share, other=share) for share in MIXED},
        "none": Content(known=0.0, other=1.0),
        "all": Content(known=0.0, other=0.0),
    }
    said = {
        "aligned": "aligned alone",
        "mix25": "a quarter without",
        "mix50": "half without",
        "none": "all without",
        "all": "any symbols",
    }

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {"teacher": bench.accuracy(PAIR[1])}
        lines = []
        for key, world in kinds.items():
            task = Task(world, test=1024)
            done = bench.run(Arm(*PAIR, (f"train.steps={STEPS}", "eval.0.every=20")), task)
            known, anything = halves(done, STEPS)
            numbers |= {f"known_{key}": known, f"any_{key}": anything}
            numbers[f"entropy_{key}"] = done.curve(ENTROPY)[1][-1]
            numbers[f"training_entropy_{key}"] = done.last("diag/student_entropy")
            lines.append(line(done, ACCURACY, "accuracy, both kinds", said[key]))
            lines.append(line(done, ENTROPY, "entropy on held-out prompts", said[key]))
            before = halves(done, 0)
            numbers |= {"known_before": before[0], "any_before": before[1]}
            numbers["entropy_before"] = done.curve(ENTROPY)[1][0]
        numbers |= chosen_by_the_product(bench)
        return Found(numbers, lines)

    claims = (
        Claim(
            "on the teacher's own content aligned prompts teach at least as much as any prompts "
            "(tolerance .02), and .2 more than prompts without it",
            lambda n: (
                n["known_aligned"] >= n["known_all"] - 0.02
                and n["known_aligned"] - n["known_none"] >= 0.2
            ),
        ),
        Claim(
            "aligned prompts lower the entropy on the same held-out prompts",
            lambda n: n["entropy_aligned"] < n["entropy_before"],
        ),
        Claim(
            "half of other prompts mixed in leaves more entropy than aligned prompts alone",
            lambda n: n["entropy_mix50"] > n["entropy_aligned"],
        ),
        Claim(
            "and costs at most .05 accuracy on the aligned content",
            lambda n: n["known_aligned"] - n["known_mix50"] <= 0.05,
        ),
        Claim(
            "opd select finds the content in a mixture of thirds: AUROC of its score at least .8",
            lambda n: n["auroc_score"] >= 0.8,
        ),
        Claim(
            "and training on what it keeps is at least as good there as on as many at random "
            "(tolerance .02)",
            lambda n: n["known_selected"] >= n["known_random"] - 0.02,
        ),
    )
    shown = {"known_before": "accuracy on the teacher's content, before"}
    shown |= {f"known_{key}": words for key, words in said.items()}
    shown |= {"any_before": "accuracy on any symbols, before"}
    shown |= {f"any_{key}": words for key, words in said.items()}
    shown |= {"entropy_before": "entropy on held-out prompts, before"}
    shown |= {f"entropy_{key}": words for key, words in said.items()}
    shown |= {
        "auroc_score": "opd select: AUROC of its score for the content",
        "auroc_advantage": "of teacher advantage alone",
        "auroc_mixed": "of mixed outcomes alone",
        "auroc_mass": "of overlap mass alone",
        "auroc_entropy": "of low teacher entropy alone",
        "share_before": "share of the content in the mixture",
        "share_aligned": "among the prompts called aligned",
        "known_selected": "accuracy on the teacher's content, selected",
        "known_random": "as many at random",
        "any_selected": "accuracy on any symbols, selected",
        "any_random": "as many at random",
    }
    return Entry(
        "E7",
        "Teacher-aligned prompts",
        f"{PAIR[0]} learns from {PAIR[1]}, improved on problems about half of the symbols "
        f"alone, in {STEPS} steps. Varied: what the training prompts are about: those symbols, a "
        "mixture with problems about the other half, those alone, or any symbols. Held out: the "
        "same 512 problems about the teacher's symbols and 512 about any.",
        "prompts of the teacher's RL set beat deduplicated others; student entropy falls "
        "strongly; mixing recommended, never measured",
        measure,
        claims,
        shown,
        "Accuracy on the teacher's content is partly by construction: only there does the teacher "
        "know more.",
    )


def chosen_by_the_product(bench: Bench) -> dict[str, float]:
    """Does `opd select` find the teacher's content in a mixture of thirds, and does it help?

    AUROC of its score and of each measure for "about the teacher's symbols alone"; accuracy after
    training on what it keeps, and on as many prompts of the mixture at random.
    """
    world = Content(known=1 / 3, other=1 / 3)
    task = Task(world, test=1024)
    folders = [bench.model(name) for name in PAIR]
    data = run_config(folders[0], folders[1], task, bench.seed, bench.cache, bench.cache / "none")
    made = bench.cache / "prompts" / f"selected-{digest(repr(world), str(bench.seed))}.jsonl"
    data |= {"eval": [], "select": {"output": str(made), "limit": LIMIT, "n": 8, "k": 4}}
    cfg = parse(data)
    assert cfg.select is not None
    with one_thread():
        found = select(cfg, cfg.select, Console("quiet"))
    write_rows(made, rows_of(cfg, cfg.select, found))
    at_random = made.with_name(made.name.replace("selected", "random"))
    rows = task.files(bench.seed, bench.cache)["train"].read_text("utf-8").splitlines()
    kept = len(found.aligned) + len(found.others)
    at_random.write_text("\n".join(rows[:kept]) + "\n", encoding="utf-8")
    about = np.array([not set(p.text.split()) & set(OTHER) for p in found.prompts])
    values = {
        "score": found.ranked.score,
        "advantage": found.ranked.advantage,
        "mixed": found.ranked.mixed,
        "mass": found.measured.mass,
        "entropy": -found.measured.teacher_entropy,
    }
    numbers = {f"auroc_{name}": stats.auroc(v, about).value for name, v in values.items()}
    numbers |= {
        "share_aligned": float(about[found.aligned].mean()),
        "share_before": float(about.mean()),
        "shift_entropy": found.mixture.teacher[-1] - found.mixture.teacher[0],
    }
    for name, path in (("selected", made), ("random", at_random)):
        done = bench.run(
            Arm(*PAIR, (f"train.steps={STEPS}", "eval.0.every=20", f"prompts.path={path}")), task
        )
        numbers[f"known_{name}"], numbers[f"any_{name}"] = halves(done, STEPS)
        numbers[f"entropy_{name}"] = done.curve(ENTROPY)[1][-1]
    return numbers


def halves(result: Result, step: int) -> tuple[float, float]:
    """Accuracy on held-out problems of the teacher's content, and on any (they alternate)."""
    correct = result.correct(step)
    return float(correct[::2].mean()), float(correct[1::2].mean())
