"""Lists of texts to browse: held-out answers, those of several runs, rollouts of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from opd.reports.browse import Browse, BrowsedPrompt, BrowsedRow, BrowsedText
from opd.reports.eval_sets import EvalResult, EvalSet
from opd.reports.formatting import minus
from opd.reports.scored_rollouts import ScoredRollout
from opd.types import Graded

MAX_ROWS = 2000  # of one list
MAX_CHARACTERS = 3_000_000  # of all texts of one list
MIN_TEXT, MAX_TEXT = 240, 6000  # characters of one text

KINDS = (
    ("fixed", "fixed"),
    ("broken", "broken"),
    ("wrong", "still wrong"),
    ("right", "still right"),
    ("teacher", "teacher wrong"),
)
SORTS = (
    ("", "as in the set"),
    ("-length", "longest answer first"),
    ("length", "shortest answer first"),
    ("-growth", "grew most first"),
)
KL_SORTS = (("-kl", "largest KL first"), ("kl", "smallest KL first"))
ROLLOUT_SORTS = (
    ("", "by prompt, then step"),
    ("step", "by step"),
    ("-kl", "largest KL first"),
    ("kl", "smallest KL first"),
    ("-length", "longest first"),
)


def held_out_answers(task: EvalSet) -> Browse | None:
    """Every answer of a set before and after training, beside the teacher's; None without both."""
    if not task.student or task.student[0].step == task.final.step:
        return None
    first, final = task.student[0], task.final
    evaluations = [first, final, *([] if task.teacher is None else [task.teacher])]
    columns = ["before", f"after {final.step:,} steps", "teacher"][: len(evaluations)]
    answers = [{(g.prompt_index, g.sample): g for g in e.graded} for e in evaluations]
    keys = sorted(answers[0].keys() & answers[1].keys())
    if not keys:  # of one teacher's prompts: shown with the whole set
        return None
    prompts = _prompts(evaluations)
    position = {index: i for i, index in enumerate(prompts)}
    shown = _selected(keys, answers)
    limit = text_limit(len(shown) * len(columns))
    rows = [
        BrowsedRow(
            name=f"{prompt}-{sample}",
            prompt=position[prompt],
            label=f"prompt {prompt}, sample {sample}",
            tags=_kinds(*(by_key.get((prompt, sample)) for by_key in answers)),
            texts=[_text(by_key.get((prompt, sample)), limit) for by_key in answers],
            values=_lengths(answers[0][prompt, sample], answers[1][prompt, sample]),
        )
        for prompt, sample in shown
    ]
    filters = KINDS if task.teacher is not None else KINDS[:-1]
    sorts = [*SORTS, *(KL_SORTS if any("kl" in row.values for row in rows) else ())]
    note = "Samples are paired: the same prompt and the same random numbers before and after."
    if len(shown) < len(keys):
        note += (
            f" Of {len(keys):,} answers {len(shown):,} are shown, those that changed first; all "
            "are in the folder eval/ of the run."
        )
    if len(sorts) > len(SORTS):
        note += (
            " KL is the mean of log p \u2013 log q over the tokens of an answer after training, at "
            "temperature 1: an estimate from one answer, made for one sample of a prompt."
        )
    title = f"All answers on {task.label}"
    name = f"answers-{anchor(task.label)}"
    return Browse(name, title, note, columns, filters, sorts, list(prompts.values()), rows)


def answers_of_runs(label: str, names: Sequence[str], tasks: Sequence[EvalSet]) -> Browse:
    """The final answers of several runs on one set; those on which they disagree come first.

    Args:
        label: of the set.
        names: of the runs.
        tasks: the set in each run; same prompts, same decoding.
    """
    evaluations = [task.final for task in tasks]
    answers = [{(g.prompt_index, g.sample): g for g in e.graded} for e in evaluations]
    keys = sorted(set.intersection(*({*by_key} for by_key in answers)))

    def tags(key: tuple[int, int]) -> list[str]:
        right = [i for i, by_key in enumerate(answers) if by_key[key].correct]
        if len(right) in (0, len(answers)):
            return ["right" if right else "wrong"]
        return ["differ", *([f"only-{right[0]}"] if len(right) == 1 else [])]

    kept = sorted(keys, key=lambda key: "differ" not in tags(key))[:MAX_ROWS]
    prompts = _prompts(evaluations)
    position = {index: i for i, index in enumerate(prompts)}
    limit = text_limit(len(kept) * len(names))
    rows = [
        BrowsedRow(
            name=f"{prompt}-{sample}",
            prompt=position[prompt],
            label=f"prompt {prompt}, sample {sample}",
            tags=tags((prompt, sample)),
            texts=[_text(by_key[prompt, sample], limit) for by_key in answers],
            values=_lengths(answers[0][prompt, sample], answers[-1][prompt, sample]),
        )
        for prompt, sample in kept
    ]
    filters = [
        ("differ", "disagree"),
        *((f"only-{i}", f"only {name} right") for i, name in enumerate(names)),
        ("right", "all right"),
        ("wrong", "all wrong"),
    ]
    note = "Answers that differ in their grade come first."
    if len(kept) < len(keys):
        note += f" Of {len(keys):,} answers {len(kept):,} are shown."
    sorts = (("", "disagreements first"), *SORTS[1:3])
    return Browse(
        f"answers-{anchor(label)}",
        f"Answers on {label}",
        note,
        names,
        filters,
        sorts,
        list(prompts.values()),
        rows,
    )


def training_rollouts(rollouts: Sequence[ScoredRollout]) -> Browse | None:
    """Rollouts that are in the run folder, with the KL estimate of each; None without any."""
    kept = sorted(
        rollouts[-MAX_ROWS:], key=lambda r: (r.rollout.prompt.index, r.step, r.rollout.sample)
    )
    if not kept:
        return None
    prompts: dict[tuple[int, str], BrowsedPrompt] = {}
    for r in kept:
        prompt = r.rollout.prompt
        shown = BrowsedPrompt(prompt.index, prompt.text, prompt.answer or "")
        prompts.setdefault((prompt.index, prompt.text), shown)
    position = {key: i for i, key in enumerate(prompts)}
    limit = text_limit(len(kept))
    rows = [
        BrowsedRow(
            name=f"{r.step}-{r.rollout.prompt.index}-{r.rollout.sample}-{i}",
            prompt=position[r.rollout.prompt.index, r.rollout.prompt.text],
            label=f"prompt {r.rollout.prompt.index}, step {r.step}",
            tags=["cut"] if r.rollout.finish == "length" else ["ended"],
            texts=[BrowsedText(shortened(r.text, limit), None, _remark(r))],
            values={"step": r.step, "length": len(r.rollout)}
            | ({"kl": round(-r.mean, 4)} if math.isfinite(r.mean) else {}),
        )
        for i, r in enumerate(kept)
    ]
    note = (
        "The rollouts that the run folder keeps of the steps above; sorted by prompt, the same "
        "prompt is seen over the steps. KL is the mean of log p \u2013 log q over the sampled "
        "tokens: an estimate from one completion, which can be negative."
    )
    filters = (("ended", "ended by the student"), ("cut", "truncated by the token limit"))
    return Browse(
        "rollouts-kept",
        "Rollouts that were trained on",
        note,
        ["completion"],
        filters,
        ROLLOUT_SORTS,
        list(prompts.values()),
        rows,
    )


def _remark(scored: ScoredRollout) -> str:
    known = math.isfinite(scored.mean)
    kl = minus(f", KL {-scored.mean:.3f} nats per token") if known else ""
    return f"{_tokens(len(scored.rollout))}{kl}"


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def text_limit(texts: int) -> int:
    """Characters that each of `texts` texts may have."""
    return max(MIN_TEXT, min(MAX_TEXT, MAX_CHARACTERS // max(1, texts)))


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and its end with the number of characters between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def anchor(label: str) -> str:
    """A name as part of an HTML anchor."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in label)


def _prompts(evaluations: Iterable[EvalResult]) -> dict[int, BrowsedPrompt]:
    """Prompts by index; a text is kept with the first sample of each."""
    prompts: dict[int, BrowsedPrompt] = {}
    for evaluation in evaluations:
        for g in evaluation.graded:
            if "prompt" in g.extra:
                text, truth = str(g.extra["prompt"]), str(g.extra.get("answer", ""))
                prompts[g.prompt_index] = BrowsedPrompt(g.prompt_index, text, truth)
            else:
                prompts.setdefault(g.prompt_index, BrowsedPrompt(g.prompt_index, "", ""))
    return dict(sorted(prompts.items()))


def _selected(
    keys: Sequence[tuple[int, int]], answers: Sequence[Mapping[tuple[int, int], Graded]]
) -> list[tuple[int, int]]:
    """At most `MAX_ROWS` keys in order: first those whose grade changed, then wrong ones."""
    if len(keys) <= MAX_ROWS:
        return list(keys)

    def rank(key: tuple[int, int]) -> int:
        before, after = answers[0][key].correct, answers[1][key].correct
        return 0 if before is not after else 2 if after else 1

    return sorted(sorted(keys, key=rank)[:MAX_ROWS])


def _kinds(before: Graded | None, after: Graded | None, teacher: Graded | None = None) -> list[str]:
    if before is None or after is None:
        return []
    kinds = {
        (False, True): "fixed",
        (True, False): "broken",
        (False, False): "wrong",
        (True, True): "right",
    }
    kind = kinds[bool(before.correct), bool(after.correct)]
    return [kind, *(["teacher"] if teacher is not None and not teacher.correct else [])]


def _text(graded: Graded | None, limit: int) -> BrowsedText | None:
    if graded is None:
        return None
    cut = ", truncated by the token limit" if graded.finish == "length" else ""
    kl = _kl(graded)
    shown = "" if kl is None else minus(f", KL {kl:.3f} nats per token")
    note = f"{_tokens(graded.length)}{cut}{shown}"
    return BrowsedText(shortened(graded.text, limit), bool(graded.correct), note)


def _lengths(before: Graded, after: Graded) -> dict[str, float]:
    kl = _kl(after)
    lengths = {"length": after.length, "growth": after.length - before.length}
    return lengths | ({} if kl is None else {"kl": kl})


def _kl(graded: Graded) -> float | None:
    """KL to the teacher that was kept with an answer of the last evaluation."""
    value = graded.extra.get("kl")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
