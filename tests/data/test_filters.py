"""Each rejection rule at its published boundary: what just passes, and what just fails."""

from __future__ import annotations

import random
import string
import time

import numpy as np
import pytest

from opd.data.duplicates import exclude_questions, question_key
from opd.data.filters import filter_completions, find_repetition
from opd.data.graders import make_grader
from opd.data.sft_examples import make_example
from opd.types import Prompt


def prose(count: int, seed: int = 0) -> str:
    """Random letters without line breaks: nothing in it repeats."""
    rng = random.Random(seed)
    return "".join(rng.choice(string.ascii_lowercase + " ") for _ in range(count))


LINE = "this line has 20 chr"
CASES = {
    "a line four times": ("\n".join([LINE] * 4), None),
    "a line five times": ("\n".join([LINE] * 5), "a line"),
    "a line of nineteen characters": ("\n".join([LINE[:19]] * 9)[:99], None),
    # windows start at multiples of 10, so copies 150 apart give equal windows
    "a hundred characters twice": (prose(100) + prose(50, 1) + prose(100) + prose(50, 2), None),
    "a hundred characters three times": (
        prose(100) + prose(50, 1) + prose(100) + prose(50, 2) + prose(100),
        "100 characters",
    ),
    "prose": (prose(20_000), None),
}


@pytest.mark.parametrize("name", CASES)
def test_published_rules(name):
    text, why = CASES[name]
    found = find_repetition(text)
    assert found is None if why is None else found.startswith(why)


def test_a_block_on_end_counts_in_long_texts_alone():
    # 3 x 50 characters: two equal windows of a hundred at most, so the other rules are silent
    block = prose(50, 9) * 3
    assert find_repetition(prose(4849) + block) is None
    assert find_repetition(prose(4851) + block).startswith("50 characters")
    assert find_repetition(prose(4951) + block[:149]) is None


def test_what_compresses_tenfold_counts_when_very_long():
    rng = random.Random(1)
    words = [prose(5, i) for i in range(2)]  # a bit in six characters, yet no window comes thrice
    text = " ".join(rng.choice(words) for _ in range(3000))
    assert find_repetition(text).startswith("the text compresses")
    assert find_repetition(text[:10_000]) is None


def test_linear_in_the_length():
    began = time.monotonic()
    find_repetition(prose(400_000))
    assert time.monotonic() - began < 5


TEXTS = {
    1: "so 3 ANS 3",
    2: "so 3 ANS 4",
    3: "I do not know",
    4: "",
    5: "\n".join([LINE] * 5) + "\nANS 3",
    6: "so 3 and then",
}


def filtered(answer, grader):
    examples = []
    for name in TEXTS:
        made = make_example(name, [5], [name, 1])
        examples.append(_with(made, answer="3", finish="length" if name == 6 else "stop"))
    kept, counts = filter_completions(
        examples,
        lambda ids: TEXTS[ids[0]],
        answer=answer,
        grader=grader,
    )
    return [int(r.ids[0]) for r in kept], {why: n for why, n in counts.items() if n}


def _with(rollout, *, answer, finish):
    from dataclasses import replace

    return replace(rollout, prompt=replace(rollout.prompt, answer=answer), finish=finish)


NUMBER = make_grader("number", ["3"])


@pytest.mark.parametrize(
    ("answer", "grader", "kept", "counts"),
    [
        ("ignore", NUMBER, [1, 2, 3, 4], {"truncated": 1, "repetitive": 1}),
        ("found", NUMBER, [1, 2], {"truncated": 1, "repetitive": 1, "no_answer": 2}),
        ("found", None, [1, 2, 3], {"truncated": 1, "repetitive": 1, "no_answer": 1}),
        ("marked", None, [1, 2], {"truncated": 1, "repetitive": 1, "no_answer": 2}),
        (
            "auto",
            make_grader("exact", ["3"]),
            [1, 2, 3],
            {"truncated": 1, "repetitive": 1, "no_answer": 1},
        ),
        ("right", NUMBER, [1], {"truncated": 1, "repetitive": 1, "no_answer": 2, "incorrect": 1}),
    ],
)
def test_counts_by_the_first_reason(answer, grader, kept, counts):
    assert filtered(answer, grader) == (kept, counts)


def test_same_question_in_other_dress():
    assert question_key("What is\n 2+2 ?") == question_key("what is 2 + 2?")
    assert question_key("2+2") != question_key("2+3")
    assert question_key("?!") == "?!" != question_key("!?")
    prompts = [Prompt(i, (i,), text) for i, text in enumerate(["Ask A.", "ask b", "ASK  A"])]
    assert [p.index for p in exclude_questions(prompts, [Prompt(9, (9,), "ask a")])] == [1]


def test_empty_rollouts_are_left_out():
    empty = make_example(0, [5], np.zeros(0, dtype=np.int32))
    kept, counts = filter_completions([empty], lambda ids: "", answer="ignore", grader=None)
    assert (kept, counts["truncated"]) == ([], 1)
