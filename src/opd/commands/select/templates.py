"""Candidate prompt templates, measured on the same prompts with the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd import rng
from opd.commands.select.prepare import subsample
from opd.config import LocalTeacher, Run, Select
from opd.data.prompts import load_prompts
from opd.errors import UserError
from opd.models.tokenizers import load_tokenizer
from opd.recipes.select import (
    MeasurementSetup,
    TemplateResult,
    compare_templates,
    measure_prompts,
)
from opd.rng import Stream
from opd.run.console import Console
from opd.setup.pair import Pair
from opd.setup.prompts import max_prompt_tokens
from opd.types import Prompt

CONFIGURED = "prompts.template"
TEACHERS = "the teacher's chat template"
# Pairs that are compared; each costs 2 n completions per template. A difference that is smaller
# than the noise of so many is no reason to change a template.
TEMPLATE_PROMPTS = 64

Template = tuple[str | None, dict[str, Any] | None]  # prompts.template, prompts.chat


def choose_template(
    cfg: Run,
    spec: Select,
    pair: Pair,
    setup: MeasurementSetup,
    usable: Sequence[Prompt],
    console: Console,
) -> tuple[str, list[TemplateResult]]:
    """The name of the best template and the result of each; no results without candidates.

    Args:
        cfg: the run.
        spec: its select section.
        pair: student and teacher.
        setup: measures the prompts.
        usable: prompts of which some are measured.
        console: gets a line with their number.

    Raises:
        UserError: fewer than two prompts are short enough in every template.
    """
    candidates = _candidates(cfg, spec, pair)
    if len(candidates) == 1:
        return CONFIGURED, []
    prompts_by_template = {
        name: _load(cfg, pair, template) for name, template in candidates.items()
    }
    chosen = {p.index for p in subsample(usable, TEMPLATE_PROMPTS, cfg.train.seed)}
    for prompts in prompts_by_template.values():  # paired: those short enough in every template
        chosen &= {p.index for p in prompts}
    if len(chosen) < 2:
        raise UserError(
            "The candidate templates leave fewer than two prompts short enough to compare; raise "
            "prompts.max_tokens."
        )
    console.print(f"Comparing {len(candidates)} templates on {len(chosen)} prompts ...")
    key = rng.key(cfg.train.seed, Stream.SELECT_TEMPLATE)
    measurements = {
        name: measure_prompts(setup, [p for p in prompts if p.index in chosen], key)
        for name, prompts in prompts_by_template.items()
    }
    return compare_templates(measurements, spec.n)


def _candidates(cfg: Run, spec: Select, pair: Pair) -> dict[str, Template]:
    """The configured template first, then those of the select section and the teacher's own."""
    chat = cfg.prompts.chat
    candidates: dict[str, Template] = {CONFIGURED: (cfg.prompts.template, chat)}
    candidates |= {text: (text, chat) for text in spec.templates}
    teachers = _teachers_chat_template(cfg, pair)
    if teachers is not None and chat is not None:
        candidates[TEACHERS] = (cfg.prompts.template, chat | {"chat_template": teachers})
    return candidates


def _load(cfg: Run, pair: Pair, template: Template) -> Sequence[Prompt]:
    return load_prompts(
        cfg.prompts.source,
        pair.tokenizer,
        template=template[0],
        chat=template[1],
        max_tokens=max_prompt_tokens(
            cfg, pair, cfg.rollout.max_new_tokens, "rollout.max_new_tokens"
        ),
    ).prompts


def _teachers_chat_template(cfg: Run, pair: Pair) -> str | None:
    """The teacher's chat template, if there is one that differs from the student's."""
    if not isinstance(cfg.teacher, LocalTeacher):
        return None
    tokenizer = load_tokenizer(cfg.teacher.model, key="teacher.model")
    template = tokenizer.chat_template
    return None if template in (None, pair.tokenizer.chat_template) else str(template)
