"""Run folders written by hand: every text chosen by the test, numbers from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from opd import config
from opd.core import stats
from opd.run.folder import RunFolder
from opd.types import Graded, Prompt, Rollout, Scores

STEPS, PROMPTS, K, VOCAB, T = 20, 30, 4, 12, 6
Text = Callable[[str], str]


def plain(field: str) -> str:
    """The text of a field is its name."""
    return field


def write_run(
    path: Path,
    *,
    text: Text = plain,
    accuracy: dict[int, float] | None = None,
    teacher: float = 0.9,
    series: dict[str, Callable[[int], float]] | None = None,
    seed: int = 0,
    sampled: bool = False,
    planned: int = STEPS,
    steps: int = STEPS,
    alarm_steps: Sequence[int] = (5, 6, 12),
    settings: dict | None = None,
) -> None:
    raw = raw_config(path, text, planned, seed) | (settings or {})
    settings = config.dump(config.parse(raw))
    rng = np.random.default_rng(seed)
    with RunFolder.create(path, settings) as run:
        run.save_token_texts(lambda: [text(f"token{i}") for i in range(VOCAB)])
        for step, right in (accuracy or {0: 0.2, steps: 0.8}).items():
            write_eval(run, step, "task", right, text)
        write_eval(run, 0, "teacher-task", teacher, text)
        for step in range(1, steps + 1):
            values = {name: f(step) for name, f in (series or good_run()).items()}
            if step == 4:
                run.log_metrics(step, {"phase": text("phase")})
            run.log_metrics(step, values)
            times = {"time/rollout_s": 0.5, "time/score_s": 0.2, "time/step_s": 1.0}
            run.log_timings(step, times | {"time/tokens_per_s": 100.0, "memory/peak_rss_mib": 50.0})
            batch = [rollout(rng, step, i, text) for i in range(3)]
            scores = [score(rng, sampled) for _ in batch]
            texts = [text("completion") for _ in batch]
            run.save_rollouts(step, batch, scores, key={}, texts=texts)
        for step in alarm_steps:
            run.log_alarm(alarm(step, text))
    (path / "check.json").write_text(json.dumps(check(text)), encoding="utf-8")


def alarm(step: int, text: Text) -> dict:
    return {
        "step": step,
        "name": text("alarm"),
        "message": text("message"),
        "evidence": {text("seen"): 0.625},
        "remedy": text("remedy"),
        "action": text("acted"),
    }


def check(text: Text) -> dict:
    return {
        "verdict": "go with changes",
        "reasons": [text("reason")],
        "advice": [{"text": text("advice"), "set": {text("key"): text("setting")}}],
        "numbers": {text("number"): {"value": 0.25, "low": 0.125, "high": 0.5, "n": 77}},
    }


def raw_config(path: Path, text: Text, planned: int, seed: int) -> dict:
    return {
        "student": {"model": text("student")},
        "teacher": {"model": text("teacher")},
        "prompts": {"path": text("prompts.jsonl"), "template": text("template") + "{problem}"},
        "train": {"steps": planned, "seed": seed},
        "eval": [{"path": text("task.jsonl"), "name": "task", "n": 2}],
        "output": {"dir": str(path)},
    }


def good_run() -> dict[str, Callable[[int], float]]:
    return {
        "train/loss": lambda s: 1 / s,
        "train/tokens": lambda s: 100.0,
        "train/grad_norm": lambda s: 1.0 + 0.01 * (s % 3),
        "diag/overlap_ratio": lambda s: 0.7 + 0.01 * s,
        "diag/overlap_mass_student": lambda s: 0.98 + 0.001 * (s % 2),
        "diag/overlap_mass_teacher": lambda s: 0.98,
        "diag/overlap_advantage": lambda s: -1 / s,
        "diag/reverse_kl": lambda s: 1 - 0.03 * s,
        "diag/entropy_gap_abs": lambda s: 1 / s,
        "diag/student_entropy": lambda s: 1.0,
        "diag/student_entropy@pos0-2": lambda s: 0.5 + 0.01 * s,
        "diag/student_entropy@pos3-5": lambda s: 0.7,
        "rollout/length": lambda s: 6.0,
        "rollout/truncated": lambda s: 0.0,
        "rollout/repetition": lambda s: 0.0,
    }


def write_eval(run: RunFolder, step: int, name: str, right: float, text: Text) -> None:
    """The same prompts are right first, so that runs are paired as real ones are."""
    correct = np.zeros((PROMPTS, 2), dtype=int)
    correct[: round(right * PROMPTS)] = 1
    graded = [
        Graded(
            i,
            j,
            bool(correct[i, j]),
            5,
            "stop",
            text(f"answer-{step}"),
            {} if j else {"prompt": text("question"), "answer": text("truth")},
        )
        for i in range(PROMPTS)
        for j in range(2)
    ]
    record = {
        "label": name,
        "accuracy": _dict(stats.avg_at_n(correct)),
        "pass_at": {"2": _dict(stats.pass_at_k(correct, 2))},
        "length": _dict(stats.mean(np.full(PROMPTS, 5.0))),
        "truncated": 0.0,
        "response_entropy": _dict(stats.mean(np.full(PROMPTS, 0.5))),
        "correct": correct.tolist(),
    }
    run.save_eval(step, name, record, graded, key={"prompts": "digest", "n": 2, "seed": 0})


def _dict(e: stats.Estimate) -> dict:
    return {"value": e.value, "low": e.low, "high": e.high, "n": e.n}


def rollout(rng: np.random.Generator, step: int, index: int, text: Text) -> Rollout:
    logits = rng.normal(size=(T, VOCAB)) * 2
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    top = np.argsort(-logp, axis=1)[:, :K]
    ids = np.array([rng.choice(VOCAB, p=np.exp(row)) for row in logp])
    return Rollout(
        prompt=Prompt(index, (1, 2), text("prompt"), text("truth"), text("source")),
        sample=0,
        ids=ids.astype(np.int32),
        logp=logp[np.arange(T), ids].astype(np.float32),
        entropy=-(np.exp(logp) * logp).sum(1).astype(np.float32),
        topk_ids=top.astype(np.int32),
        topk_logp=np.take_along_axis(logp, top, 1).astype(np.float32),
        finish="stop",
        version=step - 1,
    )


def write_long_rollouts(path: Path, step: int, count: int, tokens: int) -> None:
    """A step of long completions."""
    rng = np.random.default_rng(step)
    short = [rollout(rng, step, i, plain) for i in range(count)]
    scale = -(-tokens // T)
    fields = ("ids", "logp", "entropy", "topk_ids", "topk_logp")
    batch = [
        replace(r, **{n: np.concatenate([getattr(r, n)] * scale)[:tokens] for n in fields})
        for r in short
    ]
    scores = [Scores(support=rng.normal(size=(tokens, K)).astype(np.float32)) for _ in batch]
    texts = [" ".join(map(str, rng.integers(0, 1000, tokens))) for _ in batch]
    settings = json.loads((path / "config.json").read_text())
    with RunFolder.create(path, settings, resume=True) as run:
        run.save_rollouts(step, batch, scores, key={}, texts=texts)


def score(rng: np.random.Generator, sampled: bool) -> Scores:
    own = rng.normal(size=(T, K)).astype(np.float32)
    if not sampled:
        return Scores(support=own)
    top = np.tile(np.arange(K, dtype=np.int32), (T, 1))
    logp = np.log(np.full((T, K), 0.2, dtype=np.float32))
    drawn = rng.normal(size=T).astype(np.float32) - 3
    return Scores(support=own, sampled=drawn, topk_ids=top, topk_logp=logp)
