"""The shipped pair and its run, and the zoo that builds it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd import config
from opd.demo.run_config import PAIR, PROMPTS, demo_config
from opd.errors import UserError
from opd.models.lm import load_lm
from opd_lab import demo_pair, zoo
from opd_lab.checkpoints import RECIPES
from opd_lab.corpus import Corpus, encode
from opd_lab.training_recipes import SupervisedRecipe
from opd_lab.worlds import Chain

MEGABYTE = 2**20


def test_shipped_files_are_the_recorded_ones_and_small():
    card = json.loads((PAIR / demo_pair.CARD).read_text())
    assert demo_pair.differing_files(demo_pair.hash_files(PAIR), card["sha256"]) == []
    assert card["recipes"] == {role: repr(RECIPES[n]) for role, n in demo_pair.ROLES.items()}
    for role in demo_pair.ROLES:
        assert sum(p.stat().st_size for p in (PAIR / role).iterdir()) < MEGABYTE


def test_shipped_prompts_are_those_of_the_world(tmp_path):
    demo_pair.write_demo_prompts(tmp_path)
    shipped = {p.name: p.read_bytes() for p in PROMPTS.iterdir()}
    assert shipped == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_differences_names_changed_and_missing_files():
    assert demo_pair.differing_files({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == [
        "b",
        "c",
    ]


def test_config_is_a_valid_run_whose_prompts_fit(tmp_path):
    run = config.parse(demo_config(tmp_path / "run"))
    tokenizer = AutoTokenizer.from_pretrained(run.student.model)
    assert not (tmp_path / "run").exists()
    texts = {}
    for path in [run.prompts.path, *(e.path for e in run.eval)]:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        texts[path] = {row["problem"] for row in rows}
        chats = [[{"role": "user", "content": row["problem"]}] for row in rows]
        ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
        assert max(map(len, ids)) <= run.prompts.max_tokens
        assert not any(tokenizer.unk_token_id in row for row in ids)
    assert not texts[run.prompts.path] & texts[run.eval[0].path]
    assert run.rollout.max_new_tokens >= demo_pair.WORLD.max_tokens()


@pytest.mark.parametrize(
    ("role", "sum_range", "min_echo"),
    [("student", (0.12, 0.25), 0.9), ("teacher", (0.85, 1), 0.9)],
)
def test_accuracy_of_the_pair(role, sum_range, min_echo):
    """Greedy-free check with transformers alone: 256 held-out problems at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(PAIR / role)
    tokenizer = AutoTokenizer.from_pretrained(PAIR / role)

    def accuracy(problems):
        chats = [[{"role": "user", "content": p.text}] for p in problems]
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=24)
        texts = tokenizer.batch_decode(
            out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right = [
            text.rpartition("ANS")[2].strip() == p.answer
            for text, p in zip(texts, problems, strict=True)
        ]
        return sum(right) / len(right)

    low, high = sum_range
    assert low <= accuracy(demo_pair.WORLD.problems(256, 7, held_out=True)) <= high
    assert accuracy(demo_pair.WORLD.off_task(64, 7, held_out=True)) >= min_echo


@pytest.fixture
def tiny_recipes(monkeypatch):
    """Two recipes that train in a moment."""
    small = Chain(depth=1)
    recipes = {
        "a": SupervisedRecipe(small, Corpus(size=64), lr=1e-2, width=16),
        "b": SupervisedRecipe(small, Corpus(size=32, corrupt=0.0), lr=1e-2, parent="a"),
    }
    monkeypatch.setattr(zoo, "RECIPES", recipes)
    return recipes


def weights(folder):
    return load_lm(str(folder), dtype="float32").model.state_dict()


def test_building_twice_gives_equal_weights_and_uses_the_cache(tiny_recipes, tmp_path):
    first = zoo.build("b", 0, tmp_path / "one")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert zoo.build("b", 0, tmp_path / "one") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    again = zoo.build("b", 0, tmp_path / "two")
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert {p.name[:2] for p in (tmp_path / "one").iterdir()} == {"a-", "b-"}


def test_hash_follows_everything_that_decides_the_weights(tiny_recipes):
    hashes = {zoo.content_hash("b", 0), zoo.content_hash("b", 1), zoo.content_hash("a", 0)}
    tiny_recipes["a"] = SupervisedRecipe(Chain(depth=1), Corpus(size=64), lr=2e-2, width=16)
    assert len(hashes | {zoo.content_hash("b", 0)}) == 4


def test_a_child_starts_from_its_parent(tiny_recipes, tmp_path):
    before = weights(zoo.build("a", 0, tmp_path))
    after = weights(zoo.build("b", 0, tmp_path))
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < moved < 0.05  # one step of AdamW moves a weight by about the learning rate


def test_random_weights_come_from_the_seed_alone():
    tokenizer = Chain().tokenizer()
    torch.manual_seed(1)
    first = zoo.tiny_qwen3(tokenizer, seed=0).state_dict()
    torch.manual_seed(2)
    second, other = (zoo.tiny_qwen3(tokenizer, seed=s).state_dict() for s in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_unknown_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="chain-base"):
        zoo.build("nonsense", 0, tmp_path)


def test_sum_chains_fit_the_demo_models():
    documents = Corpus(size=50).generate(demo_pair.WORLD, 0)
    longest = max(len(r) for r in encode(documents, demo_pair.WORLD.tokenizer()))
    assert longest == demo_pair.WORLD.max_tokens()
