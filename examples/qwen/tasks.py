"""Verifiable tasks with short answers: candidates for a gap between the two sizes.

Each task is a function from a random generator to question and answer. Splits and seeds draw with
keys of their own, and a question occurs once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

Row = dict[str, Any]
SPLITS = {"train": 0, "heldout": 1, "search": 2}
ONLY = " Reply with the answer only."
WORDS = """strawberry committee mississippi banana parallel balloon bookkeeper occurrence
professor necessary tomorrow coffee letter address success assessment possession embarrass
millennium accommodate cinnamon mammal pepper raccoon scissors tattoo umbrella vacuum whisper
yellow zigzag cabbage dolphin elephant flamingo giraffe hamster iguana jaguar kangaroo"""
LISTED = WORDS.split()
NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")
CITIES = (
    "Rome",
    "Oslo",
    "Paris",
    "Berlin",
    "Madrid",
    "Vienna",
    "Lisbon",
    "Athens",
    "Prague",
    "Dublin",
)
# A unit, how many of the smaller one it holds, and the smaller one.
UNITS = (
    ("hours", 60, "minutes"),
    ("days", 24, "hours"),
    ("weeks", 7, "days"),
    ("metres", 100, "centimetres"),
    ("dozens", 12, "pieces"),
    ("feet", 12, "inches"),
)
LETTER_ODDS = (0.22, 0.22, 0.22, 0.22, 0.06, 0.06)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def sorting(rng: np.random.Generator) -> tuple[str, str]:
    """Sort six numbers."""
    numbers = (10 + rng.choice(90, 6, replace=False)).tolist()
    listed = ", ".join(map(str, numbers))
    return f"Sort these numbers from smallest to largest: {listed}.", ", ".join(
        map(str, sorted(numbers))
    )


def addition(rng: np.random.Generator) -> tuple[str, str]:
    """Add three numbers of three digits."""
    numbers = rng.integers(100, 1000, 3).tolist()
    return f"What is {' + '.join(map(str, numbers))}?", str(sum(numbers))


def product(rng: np.random.Generator) -> tuple[str, str]:
    """Multiply two numbers of two digits."""
    a, b = rng.integers(11, 100, 2).tolist()
    return f"What is {a} * {b}?", str(a * b)


def letters(rng: np.random.Generator) -> tuple[str, str]:
    """Count a letter in two words."""
    words = [LISTED[i] for i in rng.choice(len(LISTED), 2, replace=False)]
    letter = str(rng.choice(sorted(set("".join(words)))))
    text = " ".join(words)
    return f'How often does the letter "{letter}" occur in "{text}"?', str(text.count(letter))


def reversal(rng: np.random.Generator) -> tuple[str, str]:
    """Reverse a list of words."""
    words = [LISTED[i] for i in rng.choice(len(LISTED), 5, replace=False)]
    listed = ", ".join(words)
    return f"Write these words in reverse order, separated by commas: {listed}.", ", ".join(
        words[::-1]
    )


def weekday(rng: np.random.Generator) -> tuple[str, str]:
    """The day of the week some days later."""
    day, ahead = int(rng.integers(7)), int(rng.integers(8, 60))
    question = f"Today is {DAYS[day]}. Which day of the week is it in {ahead} days?"
    return question, DAYS[(day + ahead) % 7]


def loop(rng: np.random.Generator) -> tuple[str, str]:
    """What a short loop prints."""
    start, step, count, modulus = (int(rng.integers(*r)) for r in ((1, 9), (2, 9), (3, 7), (5, 12)))
    code = f"x = {start}\nfor i in range({count}):\n    x = (x * 2 + {step}) % {modulus}\nprint(x)"
    x = start
    for _ in range(count):
        x = (x * 2 + step) % modulus
    return f"What does this Python program print?\n\n{code}\n", str(x)


def indexing(rng: np.random.Generator) -> tuple[str, str]:
    """What an expression on a list is."""
    numbers = rng.integers(1, 30, 6).tolist()
    a, b = sorted(rng.choice(6, 2, replace=False).tolist())
    code = f"sum({numbers}[{a}:{b + 1}]) - max({numbers})"
    return f"What is the value of this Python expression?\n\n{code}\n", str(
        sum(numbers[a : b + 1]) - max(numbers)
    )


def logic(rng: np.random.Generator) -> tuple[str, str]:
    """The values of three Boolean expressions of three terms."""
    texts, values = [], []
    for _ in range(3):
        text, value = "", False
        for term in range(3):
            truth, negated = (bool(rng.integers(2)) for _ in range(2))
            word = f"not {truth}" if negated else str(truth)
            other, joined = truth != negated, "and" if rng.integers(2) else "or"
            text = f"({text}) {joined} {word}" if term else word
            value = other if not term else (value and other if joined == "and" else value or other)
        texts.append(text)
        values.append(str(value))
    code = "\n".join(f"print({text})" for text in texts)
    question = f"What does this Python program print? Separate by commas.\n\n{code}\n"
    return question, ", ".join(values)


def regex(rng: np.random.Generator) -> tuple[str, str]:
    """Which of five strings a regular expression matches, one at least."""
    low, high, digits = int(rng.integers(1, 3)), int(rng.integers(3, 5)), int(rng.integers(1, 4))
    pattern = f"[a-d]{{{low},{high}}}-[0-9]{{{digits}}}"
    matching: list[str] = []
    while not matching:
        texts = []
        for _ in range(5):
            first = "".join(rng.choice(list("abcdef"), int(rng.integers(1, 5)), p=LETTER_ODDS))
            number = rng.integers(0, 10, max(1, digits + int(rng.choice((0, 0, 1, -1)))))
            texts.append(f"{first}-{''.join(map(str, number))}")
        matching = [text for text in texts if re.fullmatch(pattern, text)]
    question = f"Which of these does the regular expression {pattern} match as a whole? "
    return question + f"{', '.join(texts)}. Separate by commas.", ", ".join(matching)


def units(rng: np.random.Generator) -> tuple[str, str]:
    """A length, a time or a number of things in the smaller unit."""
    large, factor, small = UNITS[int(rng.integers(len(UNITS)))]
    whole, rest = int(rng.integers(3, 30)), int(rng.integers(1, factor))
    return f"How many {small} are {whole} {large} and {rest} {small}?", str(whole * factor + rest)


def record(rng: np.random.Generator) -> tuple[str, str]:
    """A sentence as JSON, on one line."""
    name, other = (NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False))
    age, city = int(rng.integers(18, 90)), CITIES[int(rng.integers(len(CITIES)))]
    sentence = f"{other} wrote to {name}, who is {age} and has lived in {city} since school."
    question = (
        "Who was written to? Give a JSON object with the keys city, age, name in this order, on "
        f"one line and without a code block. {sentence}"
    )
    return question, json.dumps({"city": city, "age": age, "name": name})


TASKS: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {
    "sorting": sorting,
    "addition": addition,
    "product": product,
    "letters": letters,
    "reversal": reversal,
    "weekday": weekday,
    "loop": loop,
    "indexing": indexing,
    "logic": logic,
    "regex": regex,
    "units": units,
    "record": record,
}
# Where the answer is a number, the last number counts; elsewhere the whole line.
NUMBERS = ("addition", "product", "letters", "loop", "indexing", "units")


def grader_of(task: str) -> Literal["number", "exact"]:
    """The grader of a task."""
    return "number" if task in NUMBERS else "exact"


def rows(task: str, split: str, count: int, seed: int) -> list[Row]:
    """`count` different questions of a task."""
    unique: dict[str, Row] = {}
    index = 0
    while len(unique) < count:
        key = (seed, list(TASKS).index(task), SPLITS[split], index)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        question, answer = TASKS[task](rng)
        unique.setdefault(question, {"problem": question + ONLY, "answer": answer})
        index += 1
    return list(unique.values())


def without(some: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Rows whose question is not among those of others."""
    taken = {row["problem"] for row in others}
    return [row for row in some if row["problem"] not in taken]


def write_jsonl(path: Path, some: Iterable[Row]) -> Path:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return path


def write_sets(task: str, offtask: str, seed: int, folder: Path) -> None:
    """Training prompts, 300 held-out ones of the same task, and 100 of another."""
    held_out = rows(task, "heldout", 300, seed)
    write_jsonl(folder / "heldout.jsonl", held_out)
    write_jsonl(folder / "train.jsonl", without(rows(task, "train", 1000, seed), held_out))
    write_jsonl(folder / "offtask.jsonl", rows(offtask, "heldout", 100, seed))
