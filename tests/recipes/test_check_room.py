"""Answers and continuations of a check end where the models' context does."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from opd.commands.check import candidates
from opd.commands.check.candidates import shortest_context
from opd.data.graders import Grader
from opd.models.lm import LM
from opd.recipes.check.probe import ProbeConfig, ProbeModel, probe_student, probe_teacher
from opd.recipes.check.room import sample_in_room
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.setup.remote_teacher import ServedTeacher
from opd.types import Prompt

CONTEXT, VOCAB, STOP = 32, 40, frozenset[int]()


def learned_positions(seed):
    """A model that cannot read a token beyond its context."""
    torch.manual_seed(seed)
    shape = GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2)
    return LM(GPT2LMHeadModel(shape).eval(), VOCAB, "gpt2")


def prompts_of(*lengths):
    rng = np.random.default_rng(0)
    return [
        Prompt(i, tuple(rng.integers(3, VOCAB, n).tolist()), "text", answer="w3")
        for i, n in enumerate(lengths)
    ]


def test_a_prompt_and_a_completion_that_just_fit_can_be_checked():
    """A prefix of 15 tokens was to be continued by 20: GPT-2 ended the check, vLLM refuses it."""
    student, teacher = (ProbeModel(learned_positions(seed), STOP) for seed in (0, 1))
    prompts = prompts_of(12, 5)
    with Grader("exact") as grader:
        config = ProbeConfig(Decoding(20), str, grader, n=2, m=1, k=4, tokens_per_batch=64)
        config = replace(config, context=CONTEXT)
        for evaluation in (None, Decoding(28)):  # held-out answers may be longer than rollouts
            each = replace(config, evaluation=evaluation)
            side = probe_student(student, prompts, each)
            theirs = probe_teacher(teacher, student, side, each)
            assert [len(r) for r in side.rollouts] == [20] * 4
            assert theirs.continued.shape == (2, 3)
            assert (theirs.answers.lengths + np.array([[12], [5]])).max() <= CONTEXT


def test_only_completions_without_room_are_shorter():
    sampler = HFSampler(learned_positions(0), Decoding(20), stop=STOP, capture=1)
    prompts = prompts_of(5, 20, 12, 31)
    whole = sampler.sample(prompts[::2], n=2, key=(1,))
    some = sample_in_room(sampler, prompts, n=2, key=(1,), limit=20, context=CONTEXT)
    assert [r.prompt.index for r in some] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [len(r) for r in some] == [20, 20, 12, 12, 20, 20, 1, 1]
    for ours, alone in zip(some[:2] + some[4:6], whole, strict=True):
        assert ours.ids.tolist() == alone.ids.tolist()
    unknown = sample_in_room(sampler, prompts[:1], n=1, key=(1,), limit=20, context=None)
    assert len(unknown[0]) == 20


@pytest.mark.parametrize(("served", "shortest"), [(30, 30), (None, CONTEXT), (50, CONTEXT)])
def test_a_served_teachers_context_counts(served, shortest):
    """docs/scale.md asks for a server of the longest prompt and rollout: no prefix besides."""
    remote = ServedTeacher(Mock(), Mock(context=served))
    models = Mock(remote=remote, pair=Mock(student=learned_positions(0), teacher=None))
    assert shortest_context(models) == shortest


@pytest.mark.parametrize(("served", "shortest"), [(30, 30), (None, CONTEXT), (50, CONTEXT)])
def test_a_rollout_servers_context_counts(monkeypatch, served, shortest):
    """It would refuse a rollout's beginning with a whole answer after it."""
    monkeypatch.setattr(candidates, "require_rollout_server", lambda cfg: Mock(tokens=served))
    pair = Mock(student=learned_positions(0), teacher=None)
    models = Mock(remote=None, pair=pair)
    models.cfg.rollout.engine = "vllm"
    assert shortest_context(models) == shortest
