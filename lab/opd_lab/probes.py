"""Measurements on a pair without training: accuracy, overlap, continuation gain, reward's AUROC.

All of them are the product's sampler, teacher, diagnostics and statistics on a few rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opd.core import diagnostics, stats
from opd.core.batch import Batch
from opd.core.distributions import DenseDistribution
from opd.data.graders import make_grader
from opd.data.prompts import PromptSet, load_prompts
from opd.models.lm import LM, load_lm
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.rng import key
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.training.eval_task import EvalTask
from opd.training.evaluate import Evaluation, evaluate
from opd.types import Metrics, Prompt, Rollout, Scores, Want, add_means
from opd_lab.runs import EXTRA_TOKENS, Task, one_thread
from opd_lab.streams import LabStream
from opd_lab.worlds import detect_pattern

TOKENS_PER_BATCH = 8192  # padded tokens per forward
OVERLAP_PROMPTS = 256
ANSWER_TOKENS = 3  # last tokens of a rollout that no prefix holds: the answer is there


@dataclass(frozen=True)
class Accuracy:
    """Held-out accuracy with its interval, and the fraction of answers in pattern 2."""

    accuracy: stats.Estimate
    pattern_2: float


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint that can sample."""

    lm: LM
    tokenizer: Any
    stop: frozenset[int]

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Load a checkpoint."""
        lm = load_lm(str(folder), dtype="float32", device="cpu")
        tokenizer = load_tokenizer(str(folder))
        lm = replace(lm, vocab=min(lm.vocab, len(tokenizer)))
        return cls(lm, tokenizer, eos_ids(tokenizer, lm.causal.generation_config))

    def sampler(self, max_new_tokens: int) -> HFSampler:
        """A sampler at temperature 1."""
        return HFSampler(self.lm, Decoding(max_new_tokens), stop=self.stop, capture=1, batch=1024)

    def decode(self, ids: Any) -> str:
        """Token ids as text, special tokens left out."""
        return make_decoder(self.tokenizer)(ids)


def load_task(task: Task, model: Model, seed: int, cache: Path) -> PromptSet:
    """The held-out prompts of a task."""
    path = task.files(seed, cache)["task"]
    return load_prompts(str(path), model.tokenizer, template=None, chat={}, max_tokens=128)


def evaluate_model(
    model: Model, prompts: PromptSet, max_new_tokens: int, n: int, seed: int
) -> Evaluation:
    """The product's evaluation at temperature 1, `n` samples per prompt."""
    grader = make_grader("exact", [p.answer or "" for p in prompts.prompts])
    task = EvalTask("probe", prompts, grader, Decoding(max_new_tokens), n, 0)
    with one_thread():
        return evaluate(model.sampler(max_new_tokens), task, model.decode, seed=seed)


def measure_accuracy(folder: Path, task: Task, *, seed: int) -> Accuracy:
    """Held-out accuracy of a checkpoint at temperature 1, and how often it follows pattern 2."""
    model = Model.load(folder)
    prompts = load_task(task, model, seed, folder.parent)
    evaluation = evaluate_model(model, prompts, task.max_new_tokens, 1, seed)
    patterns = [detect_pattern(graded.text) for graded in evaluation.graded]
    return Accuracy(evaluation.accuracy, float(np.mean([p == 2 for p in patterns])))


def measure_overlap(
    student: Path, teacher: Path, task: Task, ks: Sequence[int], *, seed: int, cache: Path
) -> dict[int, dict[str, float]]:
    """The paper's diagnostics on held-out student rollouts, for each support size."""
    pair = Model.load(student), Model.load(teacher)
    prompts = load_task(task, pair[0], seed, cache).prompts[:OVERLAP_PROMPTS]
    return overlap_on_prompts(pair, prompts, task.max_new_tokens, ks, seed=seed)


def overlap_on_prompts(
    pair: tuple[Model, Model],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    ks: Sequence[int],
    *,
    seed: int,
) -> dict[int, dict[str, float]]:
    """Diagnostics of (student, teacher) on one student rollout per prompt.

    Returns:
        For each support size of `ks`: means over all completion tokens by metric name.
    """
    student, teacher = pair
    with one_thread(), torch.no_grad():
        rollouts, scores = sample_and_score(pair, prompts, max_new_tokens, 1, seed=seed)
        batch = Batch(rollouts, scores)
        sums: dict[int, Metrics] = {k: {} for k in ks}
        for part in batch.split(TOKENS_PER_BATCH):
            micro = batch.microbatch(part, student.lm.device, k=1)
            assert micro.teacher_hidden is not None
            hidden = student.lm.hidden(micro.input_ids)[micro.rows, micro.cols][micro.diagnosed]
            p = DenseDistribution(student.lm.head.logits(hidden)).log_probs()
            q = DenseDistribution(teacher.lm.head.logits(micro.teacher_hidden)).log_probs()
            for k, total in sums.items():
                add_means(
                    total, diagnostics.overall(diagnostics.full_metrics(p, q, k=min(k, p.shape[1])))
                )
    return {k: {name: mean.value for name, mean in total.items()} for k, total in sums.items()}


def sample_and_score(
    pair: tuple[Model, Model],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    n: int,
    *,
    seed: int,
) -> tuple[list[Rollout], list[Scores]]:
    """Student rollouts, `n` per prompt, with the teacher's scores and hidden states everywhere."""
    student, teacher = pair
    rollouts = student.sampler(max_new_tokens).sample(prompts, n=n, key=key(seed, LabStream.PROBE))
    want = Want(sampled=True, full=[np.arange(len(r)) for r in rollouts])
    return rollouts, LocalTeacher(teacher.lm).score(rollouts, want)


def reward_auroc(
    student: Path, teacher: Path, task: Task, *, seed: int, cache: Path
) -> stats.Estimate:
    """AUROC of a rollout's mean reward, log q - log p per token, for right against wrong answers.

    Four rollouts of each held-out prompt; the prompt is the cluster (paper section 6.2).
    """
    pair = Model.load(student), Model.load(teacher)
    prompts = load_task(task, pair[0], seed, cache).prompts
    with one_thread():
        rollouts, scores = sample_and_score(pair, prompts, task.max_new_tokens, 4, seed=seed)
    answers = [r.prompt.answer or "" for r in rollouts]
    texts = [pair[0].decode(r.ids.tolist()) for r in rollouts]
    grades = make_grader("exact", answers).grade(texts, answers)
    rewards = []
    for rollout, score in zip(rollouts, scores, strict=True):
        assert score.sampled is not None
        rewards.append(float((score.sampled - rollout.logp).mean()))
    labels = [float(grade.correct) for grade in grades]
    return stats.auroc(rewards, labels, [r.prompt.index for r in rollouts])


def continuation_gain(
    student: Path,
    teacher: Path,
    task: Task,
    cuts: Sequence[int],
    *,
    seed: int,
    cache: Path,
) -> list[stats.Estimate]:
    """Teacher minus student accuracy when both continue the same prefixes of student rollouts.

    Both continue with the same random numbers, so that the difference is paired by problem (paper
    section 6.1). A prefix never holds the answer: a rollout that ends before the cut is cut at its
    last word but two.

    Args:
        student: samples the prefixes, and continues them.
        teacher: continues them as well.
        task: held-out problems.
        cuts: prefix lengths in tokens.
        seed: of the samples.
        cache: where prompts are kept.

    Returns:
        An estimate per cut.
    """
    pair = Model.load(student), Model.load(teacher)
    prompts = load_task(task, pair[0], seed, cache)
    with one_thread():
        sampler = pair[0].sampler(task.max_new_tokens)
        rollouts = sampler.sample(prompts.prompts, n=1, key=key(seed, LabStream.PROBE))
    gains = []
    for cut in cuts:
        started = replace(prompts, prompts=tuple(prefix_prompt(r, cut) for r in rollouts))
        new_tokens = task.max_new_tokens - cut + EXTRA_TOKENS
        by_student, by_teacher = (
            evaluate_model(model, started, new_tokens, 1, seed).correct.mean(1) for model in pair
        )
        gains.append(stats.mean(by_teacher - by_student))
    return gains


def prefix_prompt(rollout: Rollout, cut: int) -> Prompt:
    """A rollout's prompt followed by its first `cut` tokens, never by the answer."""
    length = min(cut, max(0, len(rollout) - ANSWER_TOKENS))
    ids = (*rollout.prompt.ids, *rollout.ids[:length].tolist())
    return replace(rollout.prompt, ids=ids)
