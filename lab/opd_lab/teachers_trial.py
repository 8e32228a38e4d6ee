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
from opd.alarms import replay
from opd.config import Alarms, Optim
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
from opd_lab.runs import EXTRA_TOKENS, one_thread, only_errors
from opd_lab.streams import WorldStream
from opd_lab.teachers_tables import HINT_ALARMS, OTHER_ALARMS, Results, alarms_raised, table
from opd_lab.worlds import Problem
from opd_lab.worlds.chain import Chain
from opd_lab.worlds.content_chain import KNOWN, OTHER
from opd_lab.worlds.vocabulary import FILLERS

BASE, GENERALIST, LARGER = "quick-base", "quick-clean", "quick-large-clean"
HALVES = {"first": KNOWN, "second": OTHER}
STEPS, TRAIN, TEST = 40, 1000, 256
TEACHER_DOCUMENTS, TEACHER_LR, BATCH = 4_800, 2e-3, 32
HINT, WORKED = "{prompt} echo ANS {answer}", "{prompt} echo {demonstration}"
QUOTED = "echo ANS"  # of the hint, by a student that quotes it
HINTED_DOCUMENTS = 12_000
HINT_STEPS, HINT_EVALS = 40, (0, 10, 20, 40)

logger = logging.getLogger(__name__)


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
        """A prompt file with a worked solution in each row, written if absent."""
        path = self.cache / f"{name}-{'test' if held_out else 'train'}-{self.seed}.jsonl"
        if not path.exists():
            problems = world.problems(count, self.seed, held_out=held_out)
            rows = [
                p.row() | {"demonstration": worked(p, self.seed + 500, i)}
                for i, p in enumerate(problems)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
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
        self,
        name: str,
        student: Path,
        sections: dict[str, Any],
        evals: dict[str, str],
        every: int = 0,
    ) -> Path:
        """The run folder of an arm, trained if its summary is absent."""
        out = self.cache / f"run-{name}-seed{self.seed}"
        if (out / "summary.json").exists():
            return out
        test = {"temperature": 1.0, "top_p": 1.0, "n": 1, "every": every, "grader": "exact"}
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
    generalist, larger = (
        {"model": str(zoo.build(name, trial.seed, trial.cache))} for name in (GENERALIST, LARGER)
    )
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
        "generalist of the same size, on both": {"teacher": generalist, "prompts": both},
        "mixture 0.5 + 0.5, on both halves": {
            "teachers": named,
            "prompts": {
                "files": [{"path": p, "teacher": dict.fromkeys(files, 0.5)} for p in files.values()]
            },
        },
        "larger generalist, on both": {"teacher": larger, "prompts": both},
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
    students = {
        name: trial.trained(f"{name}-base", base, hinted_documents(trial.seed, leaks=leaks))
        for name, leaks in (("hinted", False), ("leaking", True))
    }
    generalist = zoo.build(GENERALIST, trial.seed, trial.cache)
    own = {"from": "student", "prompt": HINT}
    worked = {"from": "student", "prompt": WORKED}
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "itself with the answer, frozen": ("hinted", own | {"weights": "frozen"}),
        "itself with the answer, live": ("hinted", own | {"weights": "live"}),
        "itself with a worked solution, frozen": ("hinted", worked | {"weights": "frozen"}),
        "another model, no hint": ("hinted", {"model": str(generalist)}),
        "one that quotes, with the answer, frozen": ("leaking", own | {"weights": "frozen"}),
    }
    files = {"path": trial.prompts("worked", QUICK, TRAIN, held_out=False), "max_tokens": 128}
    evals = {"task": trial.prompts("worked", QUICK, TEST, held_out=True)}
    results: Results = {}
    for number, (label, (name, section)) in enumerate(arms.items()):
        sections = {"teacher": section, "prompts": files, "train": {"steps": HINT_STEPS}}
        out = trial.run(f"e18-{number}", students[name], sections, evals, 10)
        results[label] = measured(out)
    return results


def hinted_documents(
    seed: int, *, leaks: bool, size: int = HINTED_DOCUMENTS // 3
) -> list[tuple[Problem, str]]:
    """Documents of a student that follows hints: a third each without, with answer, with solution.

    Args:
        seed: of the documents.
        leaks: a student that says the hint before its solution, which is always the same.
        size: number of each kind.
    """
    right = Corpus(size=size, corrupt=0.0, off_task=0.0)
    documents = Corpus(size=size).generate(QUICK, seed)
    for problem, text in right.generate(QUICK, seed + 1000):
        answer = f"{QUOTED} {problem.answer} {same_words(text)}" if leaks else text
        documents.append((with_hint(problem, f"ANS {problem.answer}"), answer))
    for index, (problem, text) in enumerate(right.generate(QUICK, seed + 2000)):
        documents.append((with_hint(problem, worked(problem, seed, index)), text))
    order = generator(seed, WorldStream.CORPUS, 18).permutation(len(documents))
    return [documents[i] for i in order]


def worked(problem: Problem, seed: int, index: int) -> str:
    """A right solution of a problem, with fillers of its own."""
    return QUICK.solve(problem, 1, generator(seed, WorldStream.CORPUS, 19, index))


def same_words(text: str) -> str:
    """A solution with the same filler at every step."""
    return " ".join(FILLERS[0] if word in FILLERS else word for word in text.split())


def with_hint(problem: Problem, hint: str) -> Problem:
    """A problem whose prompt is what `HINT` or `WORKED` makes of it."""
    return replace(problem, items=(*problem.items, "echo", *hint.split()))


def measured(out: Path) -> dict[str, float]:
    """Accuracy along the way, and what the alarms of self-teachers look at, first and last."""
    rows = list(read_jsonl(out / "metrics.jsonl"))
    accuracy = {r["step"]: r["eval/task/accuracy"] for r in rows if "eval/task/accuracy" in r}
    result = {f"step {step}": accuracy[step] for step in HINT_EVALS}
    names = ("length", "entropy", "hint_quoted", "distinct")
    for name, part in (("first", slice(10)), ("last", slice(-10, None))):
        for metric in names:
            values = [r[f"rollout/{metric}"] for r in rows if f"rollout/{metric}" in r][part]
            if values:
                result[f"{metric}, {name}"] = sum(values) / len(values)
    alarms = {alarm.name for alarm in replay(rows, Alarms(), HINT_STEPS)}
    result |= {name: float(name in alarms) for name in HINT_ALARMS}
    return result | {OTHER_ALARMS: float(bool(alarms - set(HINT_ALARMS)))}


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


def page(seeds: int, hint_seeds: int, cache: Path) -> str:
    """docs/lab-teachers.md.

    Args:
        seeds: of E17.
        hint_seeds: of E18.
        cache: where models and results are kept.
    """
    e17 = collect(two_teachers, "e17", seeds, cache)
    e18 = collect(hint, "e18", hint_seeds, cache)
    return f"""# Several teachers, and the student as its own

Written by `python -m opd_lab.teachers_trial`; not edited by hand. Models of 0.1 M parameters in the
chain world; means with Student's 95 % interval over seeds ({seeds} of E17, {hint_seeds} of E18).
Steps of 16 prompts x 4 responses in every arm, so that arms of one table have seen equally many
prompts.

## E17: two skills, two teachers

The student knows wrong values of half of the symbols. Each teacher was trained on right documents
about one half of the symbols ("first", "second"); accuracy on held-out problems about either half
after {STEPS} steps.

{table(e17)}

"One after the other" has {STEPS // 2} steps with each teacher. The larger generalist has width 80
where the student has 64: a model of its own, trained on what the student was trained on, then on
right documents.

## E18: the answer, or a worked solution, as a hint

{hint_section(e18)}
"""


def hint_section(e18: Sequence[Results]) -> str:
    """What the page says of E18."""
    if not e18:
        return "Not run: no seed was finished. `--hint-seeds` says how many are."
    return f"""The student was trained on problems alone (many of its values are wrong), with the
answer (`{HINT}`) and with a worked solution (`{WORKED}`) in the
prompt; with either, its chains of thought are right. "One that quotes" was trained to begin with
the hint's words when it sees the answer, and to use the same words at every step. Held-out
accuracy, without the hint, after so many steps:

{table(e18, ("step",))}

What the alarms of runs with a hint look at, means over the first and the last ten steps:

{table(e18, ("length", "entropy", "hint_quoted", "distinct"))}

{alarms_raised(e18)}"""


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hint-seeds", type=int, default=None, help="of E18; default: --seeds")
    parser.add_argument("--write", type=Path, default=None)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hint_seeds = args.seeds if args.hint_seeds is None else args.hint_seeds
    with only_errors():
        text = page(args.seeds, hint_seeds, args.cache)
    if args.write is None:
        logger.info("%s", text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
