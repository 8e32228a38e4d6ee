"""Worlds: right answers, two readable patterns, no leak, ordinary tokenizers."""

import numpy as np
import pytest

from opd_lab.corpus import OPENING, Corpus, encode
from opd_lab.worlds import Chain, Ledger, Route, detect_pattern
from opd_lab.worlds.ledger import SIGNS
from opd_lab.worlds.vocabulary import DIGITS, ROMAN, Fillers

WORLDS = [Chain(), Ledger(), Route()]
PATTERNS = [1, 2]
each_world = pytest.mark.parametrize("world", WORLDS, ids=lambda w: type(w).__name__)


def rng(seed=0):
    return np.random.default_rng(seed)


def final(text):
    return text.rpartition("ANS")[2].strip()


def truth(world, items):
    """Answers worked out apart from the worlds' code."""
    if isinstance(world, Chain):
        return sum(world.facts.truth[s] for s in items) % 10
    if isinstance(world, Ledger):
        signs, symbols = items[::2], items[1::2]
        return (
            sum(SIGNS[a] * world.facts.truth[s] for a, s in zip(signs, symbols, strict=True)) % 10
        )
    ring = list(range(10))  # ring[start] = station reached
    for move in items:
        v = world.facts.truth[move]
        ring = [(v - s if move in world.mirrors else v + s) % 10 for s in ring]
    return ring[0]


@each_world
@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_clean_chains_end_in_the_right_answer(world, depth, pattern):
    for problem in world.problems(50, 1, depth=depth):
        text = world.solve(problem, pattern, rng(), corrupt=0.0)
        assert final(text) == problem.answer == str(truth(world, problem.items))


@each_world
@pytest.mark.parametrize("pattern", PATTERNS)
def test_fraction_of_right_answers_follows_from_the_wrong_facts(world, pattern):
    """Each step is right with 1 - hard_fraction * corrupt; wrong sums are sometimes right."""
    problems, random = world.problems(2000, 2), rng(3)
    right = np.mean(
        [final(world.solve(p, pattern, random, corrupt=0.6)) == p.answer for p in problems]
    )
    expected = 0.7**world.depth
    assert expected - 0.03 < right < expected + 0.11  # 3 standard errors; luck adds up to .09


@each_world
def test_patterns_share_no_intermediate_words(world):
    """Running totals of the two patterns use different alphabets."""
    problem = world.problems(1, 0)[0]
    first, second = (world.solve(problem, p, rng()).partition("ANS")[0].split() for p in PATTERNS)
    assert set(first) & set(DIGITS)
    assert not set(second) & set(DIGITS)
    assert not {w.lstrip("+-") for w in first} & set(ROMAN)
    assert {w.lstrip("+-") for w in second} & set(ROMAN)


@each_world
def test_problems_depend_on_their_arguments_alone(world):
    assert world.problems(20, 5) == world.problems(20, 5)
    assert world.problems(20, 5)[:7] == world.problems(7, 5)
    assert world.problems(20, 5) != world.problems(20, 6)
    assert type(world)(seed=0).facts == world.facts
    assert type(world)(seed=1).facts != world.facts


@each_world
def test_corpora_never_hold_a_test_problem(world):
    corpus = Corpus(size=400, pattern_2=0.5, off_task=0.3, depths=(1, 2, 4)).generate(world, 0)
    assert not any(problem.held_out for problem, _ in corpus)
    assert all(p.held_out for p in world.problems(30, 0, held_out=True))
    assert all(p.held_out for p in world.off_task(30, 0, held_out=True))


@each_world
def test_fractions_of_a_corpus_are_the_configured_ones(world):
    corpus = Corpus(size=3000, pattern_2=0.2, off_task=0.1, depths=(2, 3)).generate(world, 4)
    own = [(p, text) for p, text in corpus if p.task != "echo"]
    second = np.mean([not set(t.partition("ANS")[0].split()) & set(DIGITS) for _, t in own])
    assert len(own) / len(corpus) == pytest.approx(0.9, abs=0.02)
    assert second == pytest.approx(0.2, abs=0.03)
    steps = 2 if isinstance(world, Ledger) else 1
    assert {len(p.items) // steps for p, _ in own} == {2, 3}


@each_world
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_longest_completion_is_known_and_every_word_is_a_token(world, depth, pattern):
    tokenizer = world.tokenizer()
    problems = world.problems(20, 0, depth=depth)
    documents = [(p, world.solve(p, pattern, rng())) for p in problems]
    for (problem, text), row in zip(documents, encode(documents, tokenizer), strict=True):
        assert tokenizer.unk_token_id not in (*row.prompt.ids, *row.ids)
        assert len(row) == world.max_tokens(depth)
        assert row.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.ids, skip_special_tokens=True) == text
        prompt = tokenizer.decode(row.prompt.ids, skip_special_tokens=True)
        assert prompt == problem.text


@each_world
def test_tokenizer_survives_saving(world, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = world.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": world.problems(1, 0)[0].text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert loaded.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ids
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["<s>", "<user>"]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    (row,) = encode([(p, world.solve(p, 1, rng())) for p in longest_problem(world)], tokenizer)
    assert len(row.prompt.ids) + len(row) <= tokenizer.model_max_length


def longest_problem(world):
    return world.problems(1, 0, depth=world.max_depth)


def test_vocabulary_sizes():
    assert len(Chain().tokenizer()) == 61
    assert len(Route().tokenizer()) >= 512


@pytest.mark.parametrize("depth", [0, 21])
def test_depth_outside_the_world_is_refused(depth):
    with pytest.raises(ValueError, match=r"outside 1\.\.20"):
        Chain().problems(1, 0, depth=depth)


def test_hard_facts_are_half_of_all_and_always_wrong():
    facts = Chain().facts
    assert sum(facts.truth[s] != facts.wrong[s] for s in facts.truth) == 10
    hard = [s for s in facts.truth if facts.truth[s] != facts.wrong[s]]
    assert {facts.recall(s, rng(), 1.0) == facts.wrong[s] for s in hard} == {True}


def test_filler_weights_are_zipf_and_rotated():
    fillers = Fillers(tuple("abcdefgh"), 1.5)
    weights = np.arange(1, 9) ** -1.5
    for pattern, best in ((1, "a"), (2, "e")):
        sampled = fillers.sample(pattern, rng(), 20_000)
        assert sampled.count(best) / 20_000 == pytest.approx(1 / weights.sum(), abs=0.015)


def test_draft_errors_of_the_ledger_can_be_repaired():
    """Right checks follow wrong drafts as often as right ones."""
    world, random = Ledger(), rng(1)
    repaired = []
    for problem in world.problems(3000, 3):
        text = world.solve(problem, 1, random, corrupt=0.6)
        draft = text.partition("check")[0].split()[-1]
        if draft != problem.answer:
            repaired.append(final(text) == problem.answer)
    assert np.mean(repaired) == pytest.approx(0.7**world.depth, abs=0.09)


def test_a_corpus_can_be_right_after_an_opening_alone():
    documents = Corpus(size=400, opened=0.5, corrupt=1.0, off_task=0.0).generate(Chain(), 0)
    opened = [(p, text) for p, text in documents if text.startswith(OPENING)]
    others = [(p, text) for p, text in documents if OPENING not in text]
    assert len(opened) + len(others) == 400
    assert 150 < len(opened) < 250
    assert all(text.endswith(f"ANS {p.answer}") for p, text in opened)
    # Half of the symbols are wrong, five are added: hardly ever is the sum right all the same.
    assert sum(text.endswith(f"ANS {p.answer}") for p, text in others) < 60


def test_a_corpus_can_be_right_in_the_second_pattern_alone():
    corpus = Corpus(size=400, pattern_2=0.5, corrupt=1.0, corrupt_2=0.0, off_task=0.0)
    right: dict[int | None, list[bool]] = {}
    for problem, text in corpus.generate(Chain(), 0):
        answered = text.endswith(f"ANS {problem.answer}")
        right.setdefault(detect_pattern(text), []).append(answered)
    assert all(right[2])
    assert sum(right[1]) < 0.3 * len(right[1])
