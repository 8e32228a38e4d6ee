"""Prompts as people read them: turns instead of markers, and the question in sight."""

from __future__ import annotations

import json

import pytest

from opd.commands.report import report
from opd.reports.chat_turns import MAX_SHOWN, Turn, chat_turns, readable_prompt
from support.html_reports import browsed

TURNS = [
    Turn("system", "Be brief."),
    Turn("user", "Hi"),
    Turn("assistant", "Hello"),
    Turn("user", "2+2?"),
]
TEMPLATES = {
    "chatml": "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in TURNS)
    + "<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|>"
    + "".join(f"<|start_header_id|>{r}<|end_header_id|>\n\n{t}<|eot_id|>" for r, t in TURNS)
    + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "zephyr": "".join(f"<|{r}|>\n{t}</s>\n" for r, t in TURNS) + "<|assistant|>\n",
    "granite": "".join(f"<|start_of_role|>{r}<|end_of_role|>{t}<|end_of_text|>\n" for r, t in TURNS)
    + "<|start_of_role|>assistant<|end_of_role|>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_are_those_that_were_put_in(name):
    assert chat_turns(TEMPLATES[name])[:4] == TURNS
    shown = readable_prompt(TEMPLATES[name])
    assert (shown.question, shown.role, shown.later) == ("2+2?", "user", [])
    assert shown.earlier_roles == "system, user, assistant"


def test_gemma_mistral_and_deepseek_have_no_system_turn_of_their_own():
    gemma = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert chat_turns(gemma)[0] == Turn("user", "Hi")
    mistral = "<s>[INST] Hi [/INST] Hello</s>[INST] 2+2? [/INST]"
    assert [t for t in chat_turns(mistral) if t.text] == [
        Turn("user", "Hi"),
        Turn("assistant", " Hello"),
        Turn("user", "2+2?"),
    ]
    begin, user, assistant = "begin\u2581of\u2581sentence", "User", "Assistant"
    begin, user, assistant = (f"<\uff5c{name}\uff5c>" for name in (begin, user, assistant))
    deepseek = f"{begin}Be brief.{user}2+2?{assistant}"
    assert chat_turns(deepseek)[:2] == [Turn("system", "Be brief."), Turn("user", "2+2?")]


def test_plain_text_is_shown_as_it_is():
    text = "Q: what is < 3?\nA: [2]\n\nQ: 2+2?\nA:"
    shown = readable_prompt(text)
    assert (shown.earlier, shown.start, shown.question, shown.role) == ([], "", text, "")


@pytest.mark.parametrize("text", ["x" * 5000, "line of text\n" * 500, "x" * MAX_SHOWN])
def test_of_a_long_turn_the_end_is_shown_and_nothing_is_lost(text):
    shown = readable_prompt(text)
    assert shown.start + shown.question == text
    assert MAX_SHOWN / 2 <= len(shown.question) <= MAX_SHOWN


def test_an_answer_that_the_template_begins_is_kept():
    shown = readable_prompt(TEMPLATES["chatml"] + "<think>\n\n</think>\n\n")
    assert [t.text.strip() for t in shown.later] == ["<think>\n\n</think>"]


def test_the_page_shows_question_and_truth_and_no_markers(make_run):
    """As with SmolLM2: the question stood below the fold, above it an example with its answer."""
    few_shot = "\n".join(f"What is the capital of country {i}? City {i}" for i in range(40))
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n"
    prompt += f"<|im_start|>user\n{few_shot}\nOf Spain?<|im_end|>\n"

    def text(field):
        return {"question": prompt, "prompt": prompt, "truth": "Madrid"}.get(field, field)

    page = report(make_run(text=text))
    html = page.read_text("utf-8")
    assert "Of Spain?</div>" in html
    assert "im_start" not in html.split('id="token-data"')[0]
    answers = browsed(html)[0]["prompts"][0]
    assert answers["q"].endswith("Of Spain?")
    assert answers["a"] == "Madrid"
    assert prompt in json.dumps(
        json.loads(page.with_suffix(".json").read_text()), ensure_ascii=False
    ).replace("\\n", "\n")
