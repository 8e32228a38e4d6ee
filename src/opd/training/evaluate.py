"""Held-out accuracy: before, during, after; student and teacher by the same code.

One evaluation samples n completions per prompt and grades them. The random key is the same at every
step, so two evaluations differ by the models alone and can be compared prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from opd.core import stats
from opd.rng import Stream, key
from opd.training.eval_task import EvalTask
from opd.types import Graded, Rollout, Sampler


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation; every number with its interval over prompts."""

    label: str
    accuracy: stats.Estimate
    pass_at: dict[int, stats.Estimate]
    length: stats.Estimate
    truncated: float
    entropy: stats.Estimate
    correct: np.ndarray  # (prompts, n) bool
    graded: list[Graded]
    teachers: tuple[str, ...] = ()  # of several, who teaches each prompt; "": none is named

    def values(self) -> dict[str, float]:
        """Numbers for metrics.jsonl: eval/<set>/..., and of each teacher's prompts alone."""
        values = _accuracies(self.accuracy, self.pass_at) | {
            "length": self.length.value,
            "truncated": self.truncated,
            "response_entropy": self.entropy.value,
        }
        named = {f"eval/{self.label}/{name}": value for name, value in values.items()}
        for teacher in self.names:
            part = self.of_teacher(teacher)
            own = _accuracies(part.accuracy, part.pass_at)
            named |= {f"teachers/{teacher}/eval/{self.label}/{n}": v for n, v in own.items()}
        return named

    @property
    def names(self) -> list[str]:
        """The teachers whose prompts are among these."""
        return sorted({*self.teachers} - {""})

    def of_teacher(self, teacher: str) -> Evaluation:
        """Accuracy and pass@k on the prompts of one teacher; the rest stays that of all."""
        correct = self.correct[[name == teacher for name in self.teachers]]
        return replace(
            self,
            correct=correct,
            accuracy=stats.avg_at_n(correct),
            pass_at={k: stats.pass_at_k(correct, k) for k in self.pass_at},
            teachers=(teacher,) * len(correct),
        )

    @staticmethod
    def of_record(record: Mapping[str, Any], graded: Sequence[Graded]) -> Evaluation:
        """The inverse of `record`."""
        return Evaluation(
            label=record["label"],
            accuracy=stats.Estimate(**record["accuracy"]),
            pass_at={int(k): stats.Estimate(**e) for k, e in record["pass_at"].items()},
            length=stats.Estimate(**record["length"]),
            truncated=record["truncated"],
            entropy=stats.Estimate(**record["response_entropy"]),
            correct=np.array(record["correct"], dtype=bool),
            graded=list(graded),
            teachers=tuple(record.get("teachers", ())),
        )

    def record(self) -> dict[str, Any]:
        """Everything but the texts, for eval/*.json."""
        record = {
            "label": self.label,
            "accuracy": asdict(self.accuracy),
            "pass_at": {str(k): asdict(e) for k, e in self.pass_at.items()},
            "length": asdict(self.length),
            "truncated": self.truncated,
            "response_entropy": asdict(self.entropy),
            "correct": self.correct.astype(int).tolist(),
        }
        return record | ({"teachers": list(self.teachers)} if self.teachers else {})


def _accuracies(
    accuracy: stats.Estimate, pass_at: Mapping[int, stats.Estimate]
) -> dict[str, float]:
    values = {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
    }
    return values | {f"pass@{k}": e.value for k, e in pass_at.items()}


def evaluate(
    sampler: Sampler,
    task: EvalTask,
    decode: Callable[[Sequence[int]], str],
    *,
    seed: int,
    measure: Callable[[Sequence[Rollout]], Mapping[int, float]] | None = None,
) -> Evaluation:
    """Sample and grade one held-out set.

    Args:
        sampler: samples completions with the task's decoding.
        task: the set.
        decode: token ids to text, special tokens left out.
        seed: train.seed; the same for every step and model.
        measure: KL to the teacher of some of the rollouts, by position; kept with the answers.
    """
    rollouts = sampler.sample(task.prompts.prompts, n=task.n, key=key(seed, Stream.EVALUATION))
    texts = [decode(r.ids.tolist()) for r in rollouts]
    grades = task.grader.grade(texts, [r.prompt.answer or "" for r in rollouts])
    kl = {} if measure is None else measure(rollouts)
    extras = [prompt_text(r) | ({"kl": kl[i]} if i in kl else {}) for i, r in enumerate(rollouts)]
    graded = [
        Graded(r.prompt.index, r.sample, g.correct, len(r), r.finish, text, extra)
        for r, g, text, extra in zip(rollouts, grades, texts, extras, strict=True)
    ]
    return summarise(task, rollouts, graded)


def prompt_text(rollout: Rollout) -> dict[str, Any]:
    """Prompt and answer for people, once per prompt."""
    prompt = rollout.prompt
    return {} if rollout.sample else {"prompt": prompt.text, "answer": prompt.answer or ""}


def summarise(task: EvalTask, rollouts: Sequence[Rollout], graded: Sequence[Graded]) -> Evaluation:
    """Intervals over prompts: responses to one prompt are not independent."""
    shape = (len(task.prompts.prompts), task.n)
    correct = np.array([g.correct for g in graded]).reshape(shape)
    lengths = np.array([g.length for g in graded], dtype=float).reshape(shape)
    entropies = np.array([r.entropy.mean() if len(r) else 0.0 for r in rollouts]).reshape(shape)
    return Evaluation(
        label=task.label,
        accuracy=stats.avg_at_n(correct),
        pass_at={k: stats.pass_at_k(correct, k) for k in _ks(task.n)},
        length=stats.mean(lengths.mean(1)),
        truncated=float(np.mean([r.finish == "length" for r in rollouts])),
        entropy=stats.mean(entropies.mean(1)),
        correct=correct,
        graded=list(graded),
        teachers=task.teachers,
    )


def _ks(n: int) -> list[int]:
    """Powers of two up to n, and n itself."""
    return sorted({k for k in (2, 4, 8, 16, 32, 64) if k < n} | ({n} if n > 1 else set()))


def recovery_by_teacher(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """`recovery` on the prompts of each of several teachers; empty for one."""
    names = sorted({name for e in evaluations.values() for name in e.names})
    return {n: recovery({who: e.of_teacher(n) for who, e in evaluations.items()}) for n in names}


def recovery(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Accuracy before, after and of the teacher, and the fraction of the gap that was recovered.

    The fraction is None where there is no distinguishable gap: a teacher that is not better leaves
    nothing to recover, and a fraction of nothing has no bounds.
    """
    summary: dict[str, Any] = {who: asdict(e.accuracy) for who, e in evaluations.items()}
    if {"before", "after"} <= set(evaluations):
        pair = [evaluations[who].correct.mean(1) for who in ("before", "after")]
        summary["change"] = asdict(stats.paired(*pair).difference)
    if set(evaluations) == {"before", "after", "teacher"}:
        before, after, teacher = (
            evaluations[who].correct.mean(1) for who in ("before", "after", "teacher")
        )
        gap = teacher.mean() - before.mean()
        fraction = stats.gap_recovery(before, after, teacher) if gap > 0 else None
        if fraction is not None and not math.isfinite(fraction.high - fraction.low):
            fraction = None
        summary["gap_recovery"] = None if fraction is None else asdict(fraction)
    return summary
