"""Notes about settings that are allowed and often mistakes: said where they are true alone."""

import jinja2
import pytest

from opd import config
from opd.data.prompts import PromptSet
from opd.setup.notes import find_notes
from opd.types import Prompt


@pytest.mark.parametrize("answers", [(None, None), ("1", None)])
def test_a_grader_of_ones_own_grades_prompts_without_answers(answers, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "q"}\n' * 2)
    prompts = PromptSet(
        tuple(Prompt(i, (1,), "q", answer) for i, answer in enumerate(answers)), 0, 2, "plain", ""
    )

    def notes(grader):
        cfg = config.parse(
            {
                "student": {"model": "s"},
                "teacher": {"model": "t"},
                "prompts": {"path": str(file), "grader": grader},
                "train": {"prompts_per_step": 2},
                "output": {"dir": "out"},
            }
        )
        return " ".join(find_notes(cfg, prompts, (None, None), None))

    assert "answer" in notes("exact")
    assert "answer" not in notes("python:pkg.mod:reward")


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ stop() }}{% endif %}" + TURNS
TOOLS = "{% if tools %}Tools: {{ tools }}{% endif %}" + TURNS


class Renders:
    """A tokenizer of which templates alone are asked."""

    chat_template = TURNS

    def apply_chat_template(self, turns, *, chat_template, **words):
        return jinja2.Template(chat_template).render(messages=turns, stop=stop, **words)


def stop():
    raise jinja2.TemplateError("no system turn")


@pytest.mark.parametrize(
    ("teacher", "prompts", "warned"),
    [
        (TURNS, {}, False),
        (TOOLS, {}, False),  # sizes of one family that differ in the part for tools
        (TOOLS, {"chat": {"tools": ["add"]}}, True),
        (TURNS.replace("<assistant>", "<model>"), {}, True),
        (TURNS.replace("<assistant>", "<model>"), {"teacher_template": True}, False),
        (TURNS.replace("<assistant>", "<model>"), {"chat": None}, False),
        (NO_SYSTEM, {}, True),
        (None, {}, False),
    ],
)
def test_templates_are_compared_by_what_they_make_of_prompts(teacher, prompts, warned, tmp_path):
    assert warns_of_templates((TURNS, teacher), prompts, tmp_path) == warned


@pytest.mark.parametrize(
    ("other", "warned"),
    [
        (NO_SYSTEM, False),
        (NO_SYSTEM + "{% if tools %}t{% endif %}", False),
        (NO_SYSTEM + "!", True),
    ],
)
def test_what_both_templates_refuse_is_no_difference(other, warned, tmp_path):
    """Two of Gemma's, which take no system turn, were said to differ."""
    assert warns_of_templates((NO_SYSTEM, other), {}, tmp_path) == warned


def warns_of_templates(templates, prompts, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "q", "answer": "1"}\n')
    cfg = config.parse(
        {
            "student": {"model": "s"},
            "teacher": {"model": "t"},
            "prompts": {"path": str(file), **prompts},
            "train": {"prompts_per_step": 1},
            "output": {"dir": "out"},
        }
    )
    read = PromptSet((Prompt(0, (1,), "q", "1"),), 0, 1, "chat", "")
    notes = " ".join(find_notes(cfg, read, templates, Renders()))
    return "chat templates of student and teacher differ" in notes
