"""Pairs of tokenizers: 24 that must be refused, 12 that must not; loading; end tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from opd.errors import UserError
from opd.models.tokenizers import compare, eos_ids, load_tokenizer, require_same, resolve_stop

WORDS = ["<s>", "</s>", "<unk>", "<pad>", "<end>", *"abcdefghij", "The", "quick", "fox"]
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g")]


def words(
    vocab=None, *, added=(), plain=(), normalizer=None, pre=None, post=None, model="WordLevel", **kw
):
    """A word-level tokenizer over WORDS, with whatever a case changes."""
    vocab = numbered(*WORDS) if vocab is None else vocab
    backend = Tokenizer(getattr(models, model)(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre or pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        backend.normalizer = normalizer
    if post is not None:
        backend.post_processor = post
    backend.add_special_tokens([AddedToken(t, special=True) for t in added])
    backend.add_tokens([AddedToken(t) for t in plain])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(names | kw))


def bpe(merges=MERGES, *, space=False, normalizer=None):
    """A byte-level tokenizer with a few merges."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "in", "ing"]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def numbered(*tokens):
    return {token: i for i, token in enumerate(tokens)}


def swapped(a, b):
    vocab = numbered(*WORDS)
    vocab[a], vocab[b] = vocab[b], vocab[a]
    return vocab


def renamed(old, new):
    return {new if w == old else w: i for i, w in enumerate(WORDS)}


def bos_first():
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


BAD = {
    "two ids swapped": lambda: (words(), words(swapped("a", "b"))),
    "all ids shifted": lambda: (words(), words({w: i + 1 for i, w in enumerate(WORDS)})),
    "ids reversed": lambda: (words(), words({w: i for i, w in enumerate(reversed(WORDS))})),
    "one token renamed": lambda: (words(), words(renamed("fox", "dog"))),
    "one letter's case": lambda: (words(), words(renamed("The", "the"))),
    "teacher has one more": lambda: (words(), words(numbered(*WORDS, "dog"))),
    "student has one more": lambda: (words(numbered(*WORDS, "dog")), words()),
    "last token missing": lambda: (words(), words(numbered(*WORDS[:-1]))),
    "a hole in the ids": lambda: (words(), words(renamed("fox", "fox") | {"fox": 40})),
    "added special token": lambda: (words(), words(added=["<think>"])),
    "added plain token": lambda: (words(plain=["<tool>"]), words()),
    "added in another order": lambda: (words(added=["<x>", "<y>"]), words(added=["<y>", "<x>"])),
    "added, other name": lambda: (words(added=["<x>"]), words(added=["<z>"])),
    "special for one only": lambda: (words(added=["<x>"]), words(plain=["<x>"])),
    "word made special": lambda: (words(), words(added=["fox"])),
    "bos another token": lambda: (words(), words(bos_token="<end>")),
    "bos missing": lambda: (words(), words(bos_token=None)),
    "unk another token": lambda: (words(), words(unk_token="<end>")),
    "one merge missing": lambda: (bpe(), bpe(MERGES[:-1])),
    "merges in another order": lambda: (bpe(), bpe(MERGES[2:] + MERGES[:2])),
    "prefix space": lambda: (bpe(), bpe(space=True)),
    "lower-casing": lambda: (words(), words(normalizer=normalizers.Lowercase())),
    "splits punctuation": lambda: (words(), words(pre=pre_tokenizers.Split("h", "isolated"))),
    "words against bytes": lambda: (words(), bpe()),
}
FINE = {
    "the same": lambda: (words(), words(), 0, 0),
    "the same, bytes": lambda: (bpe(), bpe(), 0, 0),
    "wider student head": lambda: (words(), words(), 14, 0),
    "wider teacher head": lambda: (words(), words(), 0, 46),
    "both heads wider": lambda: (words(), words(), 14, 110),
    "other pad token": lambda: (words(), words(pad_token="<end>"), 0, 0),
    "pad is the end": lambda: (words(pad_token="</s>"), words(pad_token="</s>"), 0, 0),
    "other end token": lambda: (words(), words(eos_token="<pad>"), 0, 0),
    "other chat template": lambda: (words(), words(chat_template="{{ messages }}"), 0, 0),
    "other padding side": lambda: (words(padding_side="left"), words(padding_side="right"), 0, 0),
    "other length limit": lambda: (words(model_max_length=64), words(model_max_length=9999), 0, 0),
    "one adds bos": lambda: (words(added=["<s>"]), words(added=["<s>"], post=bos_first()), 0, 0),
}


def width(tokenizer):
    return max(tokenizer.get_vocab().values()) + 1


def test_the_promised_number_of_pairs():
    assert (len(BAD), len(FINE)) == (24, 12)


@pytest.mark.parametrize("name", BAD)
def test_bad_pairs_are_refused_with_their_reason(name):
    student, teacher = BAD[name]()
    with pytest.raises(UserError, match=r"different tokenizers[\s\S]*teacher.model"):
        require_same(student, teacher, student_vocab=width(student), teacher_vocab=width(teacher))


@pytest.mark.parametrize("name", FINE)
def test_fine_pairs_pass_with_the_width_to_mask(name):
    student, teacher, more_s, more_t = FINE[name]()
    usable = require_same(
        student,
        teacher,
        student_vocab=width(student) + more_s,
        teacher_vocab=width(teacher) + more_t,
    )
    assert usable == width(student)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_head_too_narrow_for_its_tokens_is_refused(who):
    widths = {"student_vocab": len(WORDS), "teacher_vocab": len(WORDS)}
    widths[f"{who}_vocab"] -= 1
    with pytest.raises(UserError, match=rf"the {who}'s head has 17 rows for 18.*'fox'"):
        require_same(words(), words(), **widths)


def test_differences_are_counted_and_the_first_three_shown():
    teacher = words({w: i for i, w in enumerate(["<s>", *reversed(WORDS[1:])])})
    (ids,) = (
        f for f in compare(words(), teacher, student_vocab=18, teacher_vocab=18) if f.kind == "ids"
    )
    moved = [w for i, w in enumerate(WORDS) if i and i != 18 - i]
    assert ids.message.startswith(f"{len(moved)} tokens differ")
    assert ids.message.count("for the student") == 3
    assert f"and {len(moved) - 3} more" in ids.message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("other end token", "eos"),
        ("other pad token", "pad"),
        ("pad is the end", "pad"),
        ("other chat template", "template"),
        ("wider teacher head", "head"),
        ("one adds bos", "wrapping"),
    ],
)
def test_harmless_differences_are_findings(name, kind):
    student, teacher, more_s, more_t = FINE[name]()
    differences = compare(
        student,
        teacher,
        student_vocab=width(student) + more_s,
        teacher_vocab=width(teacher) + more_t,
    )
    assert kind in {d.kind for d in differences}
    assert not any(d.fatal for d in differences)


def test_equal_tokenizers_have_no_findings():
    assert compare(words(), words(), student_vocab=18, teacher_vocab=18) == []


@pytest.mark.parametrize(
    ("listed", "expected"),
    [(None, {1}), (1, {1}), (4, {1, 4}), ([3, 4], {1, 3, 4}), ([], {1})],
)
def test_end_tokens_are_the_tokenizers_and_the_models(listed, expected):
    assert eos_ids(words(), SimpleNamespace(eos_token_id=listed)) == expected


def test_a_model_that_never_ends_is_refused():
    tokenizer = words(eos_token=None)
    with pytest.raises(UserError, match=r"no end token.*generation_config"):
        eos_ids(tokenizer, None)


@pytest.mark.parametrize(
    ("choice", "expected"), [("student", {1}), ("teacher", {4, 3}), ("union", {1, 3, 4})]
)
def test_stop_follows_the_choice(choice, expected):
    assert resolve_stop(words(), frozenset({1}), frozenset({3, 4}), choice) == expected


@pytest.mark.parametrize("choice", [None, "student", "teacher", "union"])
def test_equal_ends_need_no_choice(choice):
    assert resolve_stop(words(), frozenset({1}), frozenset({1}), choice) == {1}


def test_differing_ends_are_shown_with_what_each_choice_does():
    with pytest.raises(UserError) as caught:
        resolve_stop(words(), frozenset({1}), frozenset({4}), None)
    message = str(caught.value)
    assert "student: 1 '</s>'" in message
    assert "teacher: 4 '<end>'" in message
    for choice in ("student", "teacher", "union"):
        assert f"rollout.stop={choice}" in message


def test_a_saved_tokenizer_loads_again(tmp_path):
    words().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), key="student.model")
    assert compare(words(), loaded, student_vocab=18, teacher_vocab=18) == []


def _only_config(folder):
    (folder / "config.json").write_text('{"model_type": "qwen3"}')


def _broken(folder):
    words().save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')


def _not_a_tokenizer(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"hello": 1}))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda folder: None, "has no tokenizer.*save_pretrained"),
        (_only_config, "has no tokenizer.*save_pretrained"),
        (_broken, "cannot be read"),
        (_not_a_tokenizer, "cannot be read"),
    ],
)
def test_folders_without_a_usable_tokenizer(tmp_path, fill, message):
    fill(tmp_path)
    with pytest.raises(UserError, match=f"student.model=.*{message}"):
        load_tokenizer(str(tmp_path), key="student.model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./models/none", "no such folder"),
        ("/models/none", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nobody-here/nothing", "neither a local folder nor a model that the hub returns"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=f"teacher.model={name}: {message}"):
        load_tokenizer(name, key="teacher.model")


def test_a_file_is_not_a_model(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="is a file"):
        load_tokenizer(str(file))
