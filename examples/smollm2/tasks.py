"""Prompts with verifiable answers: the task that is distilled, and an off-task set.

The task: sort five different two-digit numbers. The base model cannot: 0 of 50 correct with 160
tokens to think, 3 of 100 after two solved examples. The off-task set holds short facts that the
base model mostly knows; accuracy lost there is forgetting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
SPLITS = {"train": 0, "teacher": 1, "heldout": 2}
"""Each has its own random keys; `train` is for distillation, `teacher` for SFT of the teacher."""

COUNT = 5
CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing,
Russia Moscow, Egypt Cairo, Greece Athens, Portugal Lisbon, Ireland Dublin, Austria Vienna,
Poland Warsaw, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Canada Ottawa,
Cuba Havana, Peru Lima, Chile Santiago, Turkey Ankara, Iran Tehran, Iraq Baghdad, Kenya Nairobi,
Hungary Budapest, Belgium Brussels, Thailand Bangkok, Vietnam Hanoi, Australia Canberra"""
OPPOSITES = """hot cold, big small, tall short, fast slow, happy sad, light dark, hard soft,
wet dry, rich poor, full empty, young old, early late, open closed, strong weak, up down,
left right, good bad, clean dirty, high low, near far, loud quiet, heavy light, thick thin,
wide narrow, first last, day night, love hate, win lose, buy sell, true false"""
CONTINENTS = """Kenya Africa, France Europe, Japan Asia, Egypt Africa, Nigeria Africa, Italy Europe,
India Asia, China Asia, Germany Europe, Spain Europe, Ghana Africa, Thailand Asia, Poland Europe,
Vietnam Asia, Greece Europe, Morocco Africa, Sweden Europe, Nepal Asia, Ethiopia Africa,
Norway Europe"""
LANGUAGES = """France French, Spain Spanish, Germany German, Italy Italian, Japan Japanese,
China Chinese, Russia Russian, Portugal Portuguese, Greece Greek, Poland Polish, Sweden Swedish,
Norway Norwegian, Denmark Danish, Turkey Turkish, Hungary Hungarian, Finland Finnish, Brazil
Portuguese, Mexico Spanish, England English, Thailand Thai"""
QUESTIONS = {
    "What is the capital of {}?": ("Romania Bucharest", CAPITALS),
    "What is the opposite of {}?": ("wrong right", OPPOSITES),
    "On which continent is {}?": ("Austria Europe", CONTINENTS),
    "What is the main language of {}?": ("Romania Romanian", LANGUAGES),
}
"""Question, a solved example shown before it (it asks for one-word replies), and the pairs."""


def sorting(split: str, count: int, seed: int) -> list[Row]:
    """`count` different sorting problems; splits and seeds have different random keys."""
    rows: dict[str, Row] = {}
    index = 0
    while len(rows) < count:
        key = np.random.SeedSequence((seed, SPLITS[split], index))
        rng = np.random.Generator(np.random.Philox(key))
        numbers = (10 + rng.choice(90, COUNT, replace=False)).tolist()
        question = f"Sort these numbers from smallest to largest: {', '.join(map(str, numbers))}."
        answer = ", ".join(map(str, sorted(numbers)))
        rows.setdefault(question, _row(question, answer))
        index += 1
    return list(rows.values())


def facts() -> list[Row]:
    """The off-task set: 100 one-word questions, each after one solved example of its kind."""
    rows = []
    for question, (example, pairs) in QUESTIONS.items():
        subject, reply = example.split()
        shot = [_user(question.format(subject)), {"role": "assistant", "content": reply}]
        for subject, answer in (pair.split() for pair in pairs.split(",")):
            rows.append(_row(question.format(subject), answer, shot))
    return rows


def _row(question: str, answer: str, shot: Sequence[dict[str, str]] = ()) -> Row:
    # An empty system message keeps the template from adding its 16-token default to every prompt.
    system = {"role": "system", "content": ""}
    return {"prompt": [system, *shot, _user(question)], "answer": answer}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def without(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Rows whose prompt is not among `others`."""
    excluded = {json.dumps(row["prompt"]) for row in others}
    return [row for row in rows if json.dumps(row["prompt"]) not in excluded]


def write_jsonl(path: Path, rows: Iterable[Row]) -> Path:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
