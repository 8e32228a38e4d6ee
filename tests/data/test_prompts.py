"""One prompt set out of every schema; what cannot be a prompt is refused with its place."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from opd.data.graders import make_grader
from opd.data.prompts import TEMPLATE_LIMIT, load_prompts
from opd.errors import UserError

REFERENCE = Path(os.environ.get("OPD_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]


def tokenizer(chat: str | None = CHAT, *, bos: bool = False):
    """Bytes and three special tokens; any text goes there and back."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", chat_template=chat
    )


@pytest.fixture
def load(tmp_path):
    """Write rows as JSONL and load them; keywords as in `load_prompts`."""

    def do(*rows, tok=None, template=None, chat=None, max_tokens=500, **more):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tok = tok or tokenizer()
        return load_prompts(
            str(path), tok, template=template, chat=chat, max_tokens=max_tokens, **more
        )

    return do


def whole_words():
    """Every word unknown, but quick on 18,000 prompts."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHAT)


USER = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "4"}
SCHEMAS = [
    ({"prompt": "2+2?"}, "2+2?", None),
    ({"prompt": [USER], "answer": 4}, "2+2?", "4"),
    ({"prompt": [SYSTEM, USER]}, "Be brief.\n\n2+2?", None),
    ({"messages": [USER, REPLY]}, "2+2?", None),
    ({"messages": [USER]}, "2+2?", None),
    ({"problem": "2+2?", "answer": "4"}, "2+2?", "4"),
    ({"problem": "2+2?", "solution": r"So \boxed{\frac{8}{2}}."}, "2+2?", r"\frac{8}{2}"),
    ({"problem": "2+2?", "solution": "long", "answer": "4"}, "2+2?", "4"),
    ({"question": "2+2?", "answer": "2 and 2\n#### 4"}, "2+2?", "4"),
    ({"question": "2+2?", "ground_truth": 4.5}, "2+2?", "4.5"),
    ({"question": "2+2?", "answer": ""}, "2+2?", None),
    ({"question": "2+2?", "answer": None}, "2+2?", None),
    (
        {"prompt": [USER], "reward_model": {"ground_truth": "4", "style": "rule"}, "answer": "5"},
        "2+2?",
        "4",
    ),
]


@pytest.mark.parametrize(("row", "text", "answer"), SCHEMAS)
def test_schemas(load, row, text, answer):
    (prompt,) = load(row).prompts
    assert (prompt.text, prompt.answer, prompt.index) == (text, answer, 0)
    assert tokenizer().decode(prompt.ids) == text


def test_source_is_the_row_s_own_or_the_file(load):
    found = load({"prompt": "a", "data_source": "math"}, {"prompt": "b"})
    assert [p.source for p in found.prompts] == ["math", "p.jsonl"]


def test_a_chat_keeps_its_earlier_turns(load):
    turns = [SYSTEM, USER, REPLY, {"role": "user", "content": "sure?"}, REPLY]
    (prompt,) = load({"messages": turns}, chat={}).prompts
    expected = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns[:-1])
    assert prompt.text == expected + "<|im_start|>assistant\n"


def test_chat_ids_are_the_tokenizer_s_own(load):
    tok = tokenizer(bos=True)
    (prompt,) = load({"prompt": "hi"}, tok=tok, chat={"enable_thinking": False}).prompts
    own = tok.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, enable_thinking=False
    )["input_ids"]
    assert list(prompt.ids) == own
    assert prompt.text.endswith("<think></think>")
    assert 0 not in prompt.ids


def test_plain_text_gets_the_tokenizer_s_default_bos(load):
    with_bos, without = (
        load({"prompt": "hi"}, tok=tokenizer(bos=bos)).prompts[0].ids for bos in (True, False)
    )
    assert with_bos == (0, *without)


def test_a_base_model_reads_plain_text_and_the_set_says_so(load):
    found = load({"prompt": "hi"}, tok=tokenizer(None), chat={})
    assert (found.rendered, found.prompts[0].text) == ("plain", "hi")
    assert load({"prompt": "hi"}, chat={}).rendered == "chat"
    assert load({"prompt": "hi"}, chat=None).rendered == "plain"


def test_a_template_is_filled_literally(load):
    template = "Q: {problem}\nUse {braces} and \\boxed{{}}."
    row = {"problem": "{problem} {0} {x!r} %s"}
    (prompt,) = load(row, template=template).prompts
    assert prompt.text == "Q: {problem} {0} {x!r} %s\nUse {braces} and \\boxed{{}}."


def test_a_template_dresses_the_last_user_turn_alone(load):
    (prompt,) = load({"prompt": [SYSTEM, USER]}, template="Q: {problem}").prompts
    assert prompt.text == "Be brief.\n\nQ: 2+2?"


def test_long_prompts_are_dropped_and_counted(load):
    found = load(*({"prompt": "x" * n} for n in (3, 9, 4, 10, 5)), max_tokens=5)
    assert [p.index for p in found.prompts] == [0, 2, 4]
    assert (found.dropped, found.rows) == (2, 5)
    assert load(*({"prompt": "x" * n} for n in (3, 5)), max_tokens=4).dropped == 1


def test_limit_counts_prompts_that_are_kept(load):
    found = load(*({"prompt": "x" * n} for n in (3, 9, 4, 5)), max_tokens=5, limit=2)
    assert [p.index for p in found.prompts] == [0, 2]


def test_special_tokens_in_text_are_counted_and_said(load, caplog):
    rows = [{"prompt": "a<|im_end|>b"}, {"prompt": "fine"}, {"prompt": "<|im_end|>" * 9}]
    found = load(*rows, chat={}, max_tokens=60)
    assert found.special_text == 2
    assert "2 of 3 prompts spell a special token" in caplog.text
    assert load({"prompt": "fine"}, chat={}).special_text == 0


def test_the_digest_knows_ids_and_answers(load):
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 1}]
    same = load(*rows).digest
    assert load(*rows).digest == same
    assert load(rows[0], {"prompt": "c", "answer": 1}).digest != same
    assert load(rows[0], {"prompt": "b", "answer": 2}).digest != same


REFUSED = [
    ([{"text": "a", "label": 1}], {}, r"no prompt column. Found: text, label. Allowed: prompt"),
    ([{"prompt": "a"}, {"answer": 1}], {}, r"line 2: column 'prompt' must be.*found null"),
    ([{"prompt": "a"}, {"prompt": [USER]}], {}, r"text in .*line 1, a list in .*line 2"),
    ([{"prompt": 5}], {}, r"line 1: column 'prompt' must be text.*found a number"),
    ([{"prompt": " \n"}], {}, r"line 1: the prompt in column 'prompt' is empty"),
    ([{"messages": []}], {}, r"no user turn to answer; it ends with nothing"),
    ([{"messages": [REPLY]}], {}, r"no user turn"),
    ([{"messages": [SYSTEM, REPLY]}], {}, r"no user turn to answer; it ends with 'system'"),
    ([{"messages": ["hi"]}], {}, r"messages\[0\]: a message looks like .*found text"),
    ([{"messages": [{"role": "user"}]}], {}, r"messages\[0\].*'content', found null"),
    ([{"messages": [{"role": "user", "content": [{}]}]}], {}, r"'content', found a list"),
    ([{"messages": [{"content": "a"}]}], {}, r"'role', found null"),
    ([{"prompt": "a", "answer": [1]}], {}, r"line 1: answer must be text or a number, found a li"),
    ([{"prompt": "a", "answer": True}], {}, r"answer must be text or a number, found true"),
    ([{"prompt": "a\ud800"}], {}, r"line 1: .*lone surrogate, U\+D800"),
    ([{"prompt": "long"}], {"max_tokens": 3}, r"all 1 prompts are longer than 3 .*shortest has 4"),
    ([{"prompt": "long"}], {"max_tokens": 2}, r"context is the limit.*lower rollout.max_new_tok"),
    ([{"prompt": "a"}], {"template": "Solve: {question}"}, r"write \{problem\} in it"),
    ([{"prompt": "a"}], {"chat": {"tokenize": True}}, r"tokenize cannot be set"),
    (
        [{"prompt": "a"}],
        {"tok": tokenizer(None), "chat": {"enable_thinking": False}},
        r"no chat template.*prompts.chat: null",
    ),
    ([{"messages": [USER, REPLY, USER]}], {}, r"several turns cannot be rendered as plain text"),
    (
        [{"prompt": [SYSTEM, USER]}],
        {"tok": tokenizer("{{ raise_exception('no system role') }}"), "chat": {}},
        r"line 1: the chat template refuses this conversation: no system role",
    ),
    (
        [{"prompt": "a"}],
        {"tok": tokenizer("{{ messages.__class__.__mro__ }}"), "chat": {}},
        r"the chat template refuses this conversation: .*unsafe",
    ),
    (
        [{"prompt": "a"}],
        {"tok": tokenizer("{% for i in range(10**9) %}a{% endfor %}"), "chat": {}},
        r"the chat template refuses this conversation: .*[Rr]ange",
    ),
    (
        [{"prompt": "a"}],
        {"tok": tokenizer("{{ 'a' * 1100000 }}"), "chat": {}},
        r"turned 1 characters into 1100000",
    ),
    (
        [{"prompt": "a"}],
        {"tok": tokenizer("a" * (TEMPLATE_LIMIT + 1)), "chat": {}},
        r"The chat template has 1000001 characters",
    ),
    ([{"prompt": "a"}], {"tok": tokenizer("{# nothing #}"), "chat": {}}, r"has no tokens"),
]


@pytest.mark.parametrize(("rows", "options", "message"), REFUSED)
def test_what_cannot_be_a_prompt_is_refused(load, rows, options, message):
    with pytest.raises(UserError, match=message):
        load(*rows, **options)


@pytest.fixture
def ten(load):
    return load(*({"prompt": str(i)} for i in range(10)))


def indices(prompts):
    return [p.index for p in prompts]


def test_file_order_wraps_around(ten):
    assert indices(ten.batch(0, 4, seed=1, shuffle=False)) == [0, 1, 2, 3]
    assert indices(ten.batch(2, 4, seed=1, shuffle=False)) == [8, 9, 0, 1]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 25])
def test_every_pass_holds_every_prompt_once(ten, size):
    drawn = [i for step in range(70) for i in indices(ten.batch(step, size, seed=5, shuffle=True))]
    passes = [drawn[i : i + 10] for i in range(0, len(drawn) - 9, 10)]
    assert all(Counter(p) == Counter(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) > len(passes) // 2


def test_order_depends_on_seed_and_place_alone(ten):
    whole = indices(ten.batch(0, 30, seed=3, shuffle=True))
    pieces = [i for step in range(6) for i in indices(ten.batch(step, 5, seed=3, shuffle=True))]
    assert whole == pieces
    assert whole != indices(ten.batch(0, 30, seed=4, shuffle=True))


@pytest.mark.parametrize(
    ("name", "rows", "source", "grader"),
    [
        ("dapo-math-17k.parquet", 17_917, "math_dapo", "number"),
        ("math500/test.parquet", 500, "MATH-500", "math"),
        ("aime24/test.parquet", 30, "AIME24", "number"),
    ],
)
def test_the_reference_sets_load_unchanged(name, rows, source, grader):
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"{path} is not here; put the reference sets there or point OPD_DATA at them")
    found = load_prompts(str(path), whole_words(), template=None, chat={}, max_tokens=10_000)
    assert (found.rows, len(found.prompts), found.dropped) == (rows, rows, 0)
    assert {p.source for p in found.prompts} == {source}
    assert all(p.text.startswith("<|im_start|>user\n") for p in found.prompts)
    assert make_grader("auto", [p.answer for p in found.prompts]).kind == grader
