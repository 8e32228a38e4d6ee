"""Generated worlds: functions of a seed, right answers, two patterns, tokenizers without loss."""

from dataclasses import replace

import numpy as np
import pytest

from opd_lab.corpus import Corpus, encode
from opd_lab.pairs.setting import SETTINGS
from opd_lab.worlds.generated import FAMILIES, TOKENIZATIONS, sample_world
from opd_lab.worlds.generated.sampling import CORRUPT
from opd_lab.worlds.rambling import RamblingWorld

PATTERNS = [1, 2]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_tokenization = pytest.mark.parametrize("tokenization", TOKENIZATIONS)


def final(text):
    return text.rpartition("ANS")[2].strip(" :")


def joined(answer):
    return answer.replace(" ", "")


@each_family
@pytest.mark.parametrize("seed", [1, 2])
def test_a_world_is_a_function_of_family_and_seed(family, seed):
    world, again, other = (sample_world(family, s) for s in (seed, seed, seed + 1))
    assert world == again
    assert [p.text for p in world.problems(20, 3)] == [p.text for p in again.problems(20, 3)]
    assert world != other


@each_family
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clean_chains_of_thought_end_in_the_right_answer(family, pattern, seed):
    """The answer is computed without the chain of thought."""
    world = sample_world(family, seed, "word")
    rng = np.random.default_rng(0)
    for problem in world.problems(60, 1):
        assert final(world.solve(problem, pattern, rng)) == problem.answer


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_a_base_corpus_is_right_now_and_then(setting):
    """Lapses leave about the fraction that the world was made for: some headroom, some skill."""
    world = replace(setting.world, tokenization="word")
    rng = np.random.default_rng(1)
    problems = world.problems(400, 2)
    right = [final(world.solve(p, 1, rng, corrupt=CORRUPT)) == p.answer for p in problems]
    assert 0.05 < np.mean(right) < 0.75


@each_family
def test_patterns_differ_in_words(family):
    """What a student of one pattern never saw: most lines of the other are new to it."""
    world = sample_world(family, 1, "word")
    rng = np.random.default_rng(2)
    problems = world.problems(200, 3)
    first, second = (
        {world.solve(p, pattern, rng).partition("ANS")[0] for p in problems} for pattern in PATTERNS
    )
    assert len(first & second) < 10


@each_family
@each_tokenization
def test_tokenizers_lose_nothing_and_lengths_fit(family, tokenization, tmp_path):
    world = sample_world(family, 1, tokenization)
    tokenizer = world.tokenizer()
    rng = np.random.default_rng(3)
    for i, problem in enumerate(world.problems(40, 4)):
        text = world.solve(problem, 1 + i % 2, rng)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < world.max_tokens() + 3
    longest = max(len(e) for e in encode(Corpus(60).generate(world, 0), tokenizer))
    assert longest <= tokenizer.model_max_length


@each_family
def test_held_out_problems_are_never_trained_on(family):
    world = sample_world(family, 1)
    trained = {p.text for p in world.problems(300, 5)}
    assert not trained & {p.text for p in world.problems(100, 5, held_out=True)}


def test_vocabularies_of_tokenizations_differ_in_size():
    sizes = [len(sample_world("maze", 1, name).tokenizer()) for name in TOKENIZATIONS]
    assert len(set(sizes)) == len(sizes)


def test_a_rambling_world_repeats_its_steps_and_answers_at_last():
    world = sample_world("records", 1, "word")
    rambling = RamblingWorld(world)
    (problem,) = world.problems(1, 0)
    text = rambling.solve(problem, 1, np.random.default_rng(0))
    plain = world.solve(problem, 1, np.random.default_rng(0))
    assert text.endswith(plain)
    assert len(text.split()) > world.max_tokens()


def test_another_depth_is_refused():
    world = sample_world("graph", 1)
    with pytest.raises(ValueError, match="depth"):
        world.problems(1, 0, depth=world.depth + 1)
