"""Same questions in other dress: keys, frames, near duplicates, and the leaks of a real set."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.data.duplicates import (
    BANDS,
    ROWS,
    NearDuplicateIndex,
    exclude_questions,
    find_leaks,
    find_repeats,
    question_key,
    similarity,
    sketch_texts,
    strip_common_frame,
)
from opd.types import Prompt

SHARED = Path(__file__).parents[3] / "shared" / "data"


def prompts(*texts, answers=None):
    given = answers or [None] * len(texts)
    return [Prompt(10 + i, (i,), t, a) for i, (t, a) in enumerate(zip(texts, given, strict=True))]


def test_letters_and_digits_are_the_question():
    assert question_key("What is\n 2+2 ?") == question_key("what is 2 + 2?")
    assert question_key("2+2") != question_key("2+3")
    assert question_key("?!") == "?!" != question_key("!?")
    kept = exclude_questions(prompts("Ask A.", "ask b", "ASK  A"), prompts("ask a"))
    assert [p.index for p in kept] == [11]


@pytest.mark.parametrize(
    ("texts", "bare"),
    [
        (["Solve: a b\n\nBe brief.", "Solve: c\n\nBe brief."], ["a b", "c"]),
        # a word that merely begins alike is not cut
        (["go north", "go northeast"], ["north", "northeast"]),
        (["x one", "x one"], ["x one", "x one"]),  # nothing but frame: left alone
        (["only"], ["only"]),
        (["a a", "a a a"], ["a", "a a"]),
    ],
)
def test_what_all_share_is_a_frame(texts, bare):
    assert [t.strip() for t in strip_common_frame(texts, min_texts=2)] == bare
    assert strip_common_frame(texts) == texts


def test_shingles_are_runs_of_six_as_a_set():
    def naive(a, b):
        sets = [{k[i : i + 6] for i in range(max(1, len(k) - 5))} for k in (a, b)]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    for a, b in (
        ("abcdefgh", "abcdefgx"),
        ("abc", "abc"),
        ("abc", "abd"),
        ("aaaaaaaaaa", "aaaaaa"),
    ):
        assert similarity(*(s.shingles for s in sketch_texts([a, b]))) == naive(a, b)


def nearest(index, text):
    return index.find(*sketch_texts([text]))


def test_texts_are_sketched_together_as_alone(monkeypatch):
    texts = ["", "abc", TEXT, TEXT.upper(), "\ud800 lone surrogates", "x" * 400, "1 + 2", TEXT * 9]
    alone = [sketch_texts([text])[0] for text in texts]
    for at_once in (1, 100, 10**6):
        monkeypatch.setattr("opd.data.duplicates.SKETCHED_AT_ONCE", at_once)
        for sketch, expected in zip(sketch_texts(texts), alone, strict=True):
            assert sketch.shingles.tolist() == expected.shingles.tolist()
            assert sketch.buckets == expected.buckets
    assert sketch_texts([]) == []


TEXT = "A farmer has 12 cows and sells a third of them; how many cows does the farmer still have?"


def test_near_means_similar_with_the_same_numbers():
    index = NearDuplicateIndex(0.8)
    index.add(5, *sketch_texts([TEXT]))
    assert nearest(index, TEXT.replace("still have", "still own")) == 5
    assert nearest(index, TEXT.replace("12", "15")) is None
    assert nearest(index, "A baker has 12 loaves and eats them all.") is None
    assert nearest(NearDuplicateIndex(0.99), TEXT) is None
    strict = NearDuplicateIndex(1.0)
    strict.add(5, *sketch_texts([TEXT]))
    assert nearest(strict, TEXT.replace("still have", "still own")) is None
    assert nearest(strict, TEXT.upper()) == 5


def test_similar_pairs_are_hardly_ever_missed():
    assert (1 - 0.8**ROWS) ** BANDS < 1 / 5000 * 1.3
    missed = 0
    for i in range(60):
        words = [f"word{chr(97 + (i * 7 + j * 3) % 26)}{j}x" for j in range(60)]
        words = [
            "".join(c for c in w if not c.isdigit()) * 1 + chr(97 + k % 26) * 2
            for k, w in enumerate(words)
        ]
        changed = [*words[:-2], "other", "ending"]
        index = NearDuplicateIndex(0.8)
        index.add(0, *sketch_texts([" ".join(words)]))
        missed += nearest(index, " ".join(changed)) is None
    assert missed == 0


NAMING = ("Name", "Find", "Give", "Tell", "Write", "Say")


def test_leaks_see_through_templates_on_both_sides():
    train = prompts(
        "Solve it.\n\nWhat is 2+2 in base ten?\n\nAnswer last.",
        f"Solve it.\n\n{TEXT}\n\nAnswer last.",
        *(f"Solve it.\n\n{word} a prime above 90.\n\nAnswer last." for word in NAMING),
    )
    held_out = prompts(
        "what is 2+2 in base ten? Think.",
        TEXT.replace("cows?", "cows ?") + " Think.",
        *(f"{word} is it? Think." for word in ("Why", *NAMING)),
    )
    found = find_leaks(train, [("set", held_out)], near=0.8)
    assert [(x.row, x.label, x.eval_row, x.exact) for x in found] == [
        (10, "set", 10, True),
        (11, "set", 11, True),
    ]
    changed = prompts(TEXT.replace("still have", "still own"), "Why?")
    (near,) = find_leaks(train, [("set", changed)], near=0.8)
    assert (near.row, near.exact) == (11, False)
    assert find_leaks(train, [("set", changed)], near=1.0) == []


def test_a_question_with_another_answer_is_no_repeat():
    texts = ["Find x in A.", "find x in a", "Find x in A!", "Find y in B."]
    found = find_repeats(prompts(*texts, answers=["1", "1", "2", "1"]), near=1.0)
    assert found == {11: 10}
    changed = prompts(TEXT, TEXT.replace("still have", "still own"))
    assert find_repeats(changed, near=0.8) == {11: 10}
    other = find_repeats(prompts(TEXT, TEXT.replace("have", "own"), answers=["8", "9"]), near=0.8)
    assert other == {}


def test_another_task_on_the_same_words_is_no_leak():
    words = [f"{a} {b} fox" for a in ("hen", "elk", "ram") for b in ("owl", "cat", "dog")]
    train = prompts(*(f"sum {w}" for w in words), answers=[str(i) for i in range(9)])
    echo = prompts(*(f"echo {w}" for w in words), answers=words)
    assert find_leaks(train, [("echo", echo)], near=0.8) == []
    # Without answers to tell them apart, or with the same ones, the frame is a template's.
    for answers in (None, [f"\\boxed{{{i}}}" for i in range(9)]):
        framed = prompts(*(f"Think: {w}" for w in words), answers=answers)
        found = find_leaks(train, [("set", framed)], near=None)
        assert [x.row for x in found] == [p.index for p in train]
    # Letter for letter the same question is one, whatever the answers say.
    same = prompts(*(f"sum {w}" for w in words), answers=words)
    assert len(find_leaks(train, [("set", same)], near=None)) == 9


def test_a_sign_makes_another_question_where_the_answers_say_so():
    train = prompts(
        *(f"What is {i} - 2?" for i in range(9)), answers=[str(i - 2) for i in range(9)]
    )
    for answers, leaks in (([str(i + 20) for i in range(9)], 0), (None, 9)):
        held_out = prompts(*(f"What is {i} + 2?" for i in range(9)), answers=answers)
        assert len(find_leaks(train, [("set", held_out)], near=None)) == leaks


def dapo(rows=None):
    import pyarrow.parquet as pq

    path = SHARED / "dapo-math-17k.parquet"
    if not path.exists():
        pytest.skip("the prompt sets of the reference code are not here")
    table = pq.read_table(path)
    found = []
    for name in (
        table if rows is None else table.take(rows),
        pq.read_table(SHARED / "math500" / "test.parquet"),
    ):
        found.append(
            [
                Prompt(i, (i,), row["prompt"][-1]["content"], row["reward_model"]["ground_truth"])
                for i, row in enumerate(name.to_pylist())
            ]
        )
    return found


def test_six_problems_of_math_500_stand_in_the_dapo_set_and_one_with_another_sign():
    rows = [5742, 5840, 6090, 6170, 6216, 9454, 16667, 17762, *range(0, 17_900, 60)]
    train, held_out = dapo(rows)
    found = [x for x in find_leaks(train, [("math500", held_out)], near=1.0) if x.exact]
    assert len({x.eval_row for x in found}) == 6
    # One of the six stands there twice. z^4 - z^2 + 1 (12) and z^4 + z^2 + 1 (6) are two questions.
    (other,) = set(range(8)) - {x.row for x in found}
    assert "z^4 - z^2 + 1" in train[other].text
    assert len(found) == 7


@pytest.mark.slow
def test_no_other_of_the_whole_dapo_set():
    train, held_out = dapo()
    found = find_leaks(train, [("math500", held_out)], near=0.8)
    assert len({x.eval_row for x in found if x.exact}) == 6
    assert len([x for x in found if not x.exact]) == 6
    again = find_repeats(train, near=1.0)
    assert 1400 < len(again) < 1900
