"""Notes about settings that are allowed and often mistakes: said where they are true alone."""

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
        return " ".join(find_notes(cfg, prompts, (None, None)))

    assert "answer" in notes("exact")
    assert "answer" not in notes("python:pkg.mod:reward")
