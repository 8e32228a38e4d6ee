"""E17 and E18: two skills from two teachers, and the student as its own teacher with a hint.

`python -m opd_lab.teachers_trial --cache DIR --seeds 3 --write docs/lab-teachers.md`. Results are
kept in the cache one by one, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd import config
from opd.config import Optim
from opd.core import stats
from opd.models.lm import load_lm
from opd.recipes.distillation import distill
from opd.recipes.sft import sft
from opd.rng import generator
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build
from opd_lab import zoo
from opd_lab.checkpoints import QUICK
from opd_lab.corpus import Corpus, encode
from opd_lab.runs import EXTRA_TOKENS, one_thread
from opd_lab.streams import WorldStream
from opd_lab.worlds import Problem, write_prompts
from opd_lab.worlds.chain import Chain
from opd_lab.worlds.content_chain import KNOWN, OTHER

BASE, GENERALIST = "quick-base", "quick-clean"
HALVES = {"first": KNOWN, "second": OTHER}
STEPS, TRAIN, TEST = 40, 1000, 256
TEACHER_DOCUMENTS, TEACHER_LR, BATCH = 4_800, 2e-3, 32
HINT = "{prompt} ANS {answer}"
HINTED_DOCUMENTS = 16_000

logger = logging.getLogger(__name__)
Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class HalfChain(Chain):
    """Chain problems about one half of the symbols, in training and evaluation alike.

    Attributes:
        half: its name in `HALVES`.
    """

    half: str = "first"

    def symbol_pool(self, index: int, rng: np.random.Generator, *, held_out: bool) -> Sequence[str]:
        """See `SymbolWorld`."""
        return HALVES[self.half]


@dataclass(frozen=True)
class Trial:
    """One seed of both experiments.

    Attributes:
        seed: of models, prompts and runs.
        cache: where models and results are kept.
    """

    seed: int
    cache: Path

    def half(self, name: str) -> HalfChain:
        """The world of one half, at the depth of the base."""
        return HalfChain(depth=QUICK.depth, half=name)

    def prompts(self, name: str, world: Chain, count: int, *, held_out: bool) -> str:
        """A prompt file, written if absent."""
        path = self.cache / f"{name}-{'test' if held_out else 'train'}-{self.seed}.jsonl"
        if not path.exists():
            write_prompts(path, world.problems(count, self.seed, held_out=held_out))
        return str(path)

    def trained(self, name: str, parent: Path, documents: list[tuple[Problem, str]]) -> Path:
        """A model trained on documents, built if absent."""
        folder = self.cache / f"{name}-seed{self.seed}"
        if folder.is_dir():
            return folder
        tokenizer = QUICK.tokenizer()
        with one_thread():
            model = load_lm(str(parent), dtype="float32", device="cpu")
            examples = encode(documents, tokenizer)
            settings = Optim(lr=TEACHER_LR, warmup=20)
            for _ in sft(
                model,
                examples,
                steps=len(examples) // BATCH,
                batch=BATCH,
                optim=settings,
                schedule="cosine",
                seed=self.seed,
            ):
                pass
        made = folder.with_name(f".{folder.name}")
        shutil.rmtree(made, ignore_errors=True)
        model.causal.save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.rename(folder)
        return folder

    def run(
        self, name: str, student: Path, sections: dict[str, Any], evals: dict[str, str]
    ) -> Path:
        """The run folder of an arm, trained if its summary is absent."""
        out = self.cache / f"run-{name}-seed{self.seed}"
        if (out / "summary.json").exists():
            return out
        test = {"temperature": 1.0, "top_p": 1.0, "n": 1, "every": 0, "grader": "exact"}
        data: dict[str, Any] = {
            "student": {"model": str(student)},
            "rollout": {"n": 4, "max_new_tokens": QUICK.max_tokens() + EXTRA_TOKENS},
            "loss": {"k": 16},
            "diagnostics": {"positions": 512},
            "optim": {"lr": 1e-3},
            "train": {"steps": STEPS, "prompts_per_step": 16, "seed": self.seed},
            "eval": [{"path": path, "name": label, **test} for label, path in evals.items()],
            "output": {"dir": str(out), "save_every": 10**6, "keep": 1, "rollout_sample": 0},
        }
        for section, values in sections.items():
            data[section] = data.get(section, {}) | values
        with one_thread():
            session, completions = build(
                config.parse(data), resume=False, overwrite=True, console=Console("quiet")
            )
            try:
                distill(session, completions)
            finally:
                session.folder.close()
        return out


def two_teachers(trial: Trial) -> Results:
    """E17: accuracy on either half after learning from teachers of the halves, in several ways."""
    base = zoo.build(BASE, trial.seed, trial.cache)
    generalist = zoo.build(GENERALIST, trial.seed, trial.cache)
    worlds = {name: trial.half(name) for name in HALVES}
    clean = Corpus(size=TEACHER_DOCUMENTS, corrupt=0.0)
    teachers = {
        name: trial.trained(f"teacher-{name}", base, clean.generate(world, trial.seed))
        for name, world in worlds.items()
    }
    files = {n: trial.prompts(n, w, TRAIN, held_out=False) for n, w in worlds.items()}
    evals = {n: trial.prompts(n, w, TEST, held_out=True) for n, w in worlds.items()}
    both: dict[str, Any] = {"files": [{"path": path} for path in files.values()]}
    named = {n: {"model": str(path)} for n, path in teachers.items()}
    arms: dict[str, dict[str, Any]] = {
        "routed: each teacher on its half": {
            "teachers": named,
            "prompts": {"files": [{"path": files[n], "teacher": n} for n in files]},
        },
        "first teacher alone, on both halves": {"teacher": named["first"], "prompts": both},
        "second teacher alone, on both halves": {"teacher": named["second"], "prompts": both},
        "generalist of the same size, on both": {
            "teacher": {"model": str(generalist)},
            "prompts": both,
        },
        "mixture 0.5 + 0.5, on both halves": {
            "teachers": named,
            "prompts": {
                "files": [{"path": p, "teacher": dict.fromkeys(files, 0.5)} for p in files.values()]
            },
        },
    }
    results: Results = {}
    for number, (label, sections) in enumerate(arms.items()):
        sections["prompts"] = sections["prompts"] | {"max_tokens": 128}
        out = trial.run(f"e17-{number}", base, sections, evals)
        results.setdefault("before training", accuracies(out, "before"))
        results[label] = accuracies(out, "after")
    student, half_steps = base, {"train": {"steps": STEPS // 2}}
    for name in HALVES:
        section = {"teacher": named[name], "prompts": {"path": files[name], "max_tokens": 128}}
        out = trial.run(f"e17-then-{name}", student, section | half_steps, evals)
        results[f"one after the other, after the {name}"] = accuracies(out, "after")
        student = out / "final"
    return results


def hint(trial: Trial) -> Results:
    """E18: accuracy without a hint after learning from oneself with one, and from another model."""
    base = zoo.build(BASE, trial.seed, trial.cache)
    documents = Corpus(size=HINTED_DOCUMENTS // 2).generate(QUICK, trial.seed)
    documents += [
        (with_hint(problem), text)
        for problem, text in Corpus(size=HINTED_DOCUMENTS // 2, corrupt=0.0, off_task=0.0).generate(
            QUICK, trial.seed + 1000
        )
    ]
    order = generator(trial.seed, WorldStream.CORPUS, 18).permutation(len(documents))
    student = trial.trained("hinted-base", base, [documents[i] for i in order])
    teacher = zoo.build(GENERALIST, trial.seed, trial.cache)
    files = {"path": trial.prompts("all", QUICK, TRAIN, held_out=False), "max_tokens": 128}
    evals = {"task": trial.prompts("all", QUICK, TEST, held_out=True)}
    own = {"from": "student", "prompt": HINT}
    arms: dict[str, dict[str, Any]] = {
        "itself with the answer, frozen": own | {"weights": "frozen"},
        "itself with the answer, ema 0.9": own | {"weights": "ema", "decay": 0.9},
        "itself with the answer, live": own | {"weights": "live"},
        "another model (98 % right), no hint": {"model": str(teacher)},
    }
    results: Results = {}
    for number, (label, section) in enumerate(arms.items()):
        out = trial.run(f"e18-{number}", student, {"teacher": section, "prompts": files}, evals)
        results.setdefault("before training", accuracies(out, "before"))
        rows = [r for r in read_jsonl(out / "metrics.jsonl") if "train/loss" in r]
        results[label] = accuracies(out, "after") | {
            "length": rows[-1]["rollout/length"],
            "entropy": rows[-1]["rollout/entropy"],
        }
        for name in ("rollout/hint_quoted", "rollout/distinct"):
            if name in rows[-1]:
                results[label][name.partition("/")[2]] = rows[-1][name]
    return results


def with_hint(problem: Problem) -> Problem:
    """A problem whose prompt is what `HINT` makes of it."""
    return replace(problem, items=(*problem.items, "ANS", problem.answer))


def accuracies(out: Path, when: str) -> dict[str, float]:
    """Accuracy of each held-out set."""
    sets = json.loads((out / "summary.json").read_text("utf-8"))["sets"]
    return {label: entry[when]["value"] for label, entry in sets.items()}


def collect(
    measure: Callable[[Trial], Results], name: str, seeds: int, cache: Path
) -> list[Results]:
    """The results of every seed, those that are kept not measured again."""
    results = []
    for seed in range(seeds):
        path = cache / f"{name}-{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(measure(Trial(seed, cache)), indent=1))
        results.append(json.loads(path.read_text()))
        logger.info("%s seed %d: %s", name, seed, results[-1])
    return results


def table(results: Sequence[Results]) -> str:
    """Mean over seeds with Student's interval, one row per arm."""
    columns = list(dict.fromkeys(c for r in results for arm in r.values() for c in arm))
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in results[0]:
        cells = []
        for column in columns:
            values = [r[arm][column] for r in results if column in r[arm]]
            if not values:
                cells.append("-")
                continue
            mean = stats.mean(np.array(values))
            interval = f" [{mean.low:.2f}, {mean.high:.2f}]" if len(values) > 1 else ""
            cells.append(f"{mean.value:.2f}{interval}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(seeds: int, cache: Path) -> str:
    """docs/lab-teachers.md."""
    e17, e18 = (collect(m, n, seeds, cache) for m, n in ((two_teachers, "e17"), (hint, "e18")))
    return f"""# Several teachers, and the student as its own

Written by `python -m opd_lab.teachers_trial`; not edited by hand. Models of 0.1 M parameters in the
chain world, {seeds} seeds; means with Student's 95 % interval over seeds. {STEPS} steps of 16
prompts x 4 responses in every arm.

## E17: two skills, two teachers

The student knows wrong values of half of the symbols. Each teacher was trained on right documents
about one half of the symbols ("first", "second"); accuracy on held-out problems about either half.

{table(e17)}

"One after the other" has {STEPS // 2} steps with each teacher. The generalist is of the student's
size: a larger one was not run.

## E18: the answer as a hint

The student was trained on problems with and without the answer in the prompt; with it, its chains
of thought are right. Accuracy ("task"), length, entropy and diversity are without the hint.

{table(e18)}

A worked example as the hint, and SmolLM2, were not run.
"""


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, default=None)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("opd").setLevel(logging.ERROR)
    text = page(args.seeds, args.cache)
    if args.write is None:
        logger.info("%s", text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
