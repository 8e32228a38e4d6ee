"""Chunks and values against TRL's GOLD, wherever both define the same thing.

TRL is no dependency: without it everything here skips. GOLD's sorted part (tokens that only one
vocabulary has) has no counterpart here, nor has its first-position ("observed") merging.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl")
gold = pytest.importorskip("trl.experimental.gold.gold_trainer")

from opd.core.losses import renormalise, reverse_kl  # noqa: E402
from opd.teachers.translate import Translator  # noqa: E402
from support.foreign import TEXTS, byte_tokenizer  # noqa: E402

COARSE = byte_tokenizer(vocab=400, special=("<|begin|>", "<|end|>", "<think>"))
FINE = byte_tokenizer(vocab=280, special=("<s>", "</s>", "<think>"), splits=False)
TEXT = " ".join(TEXTS)


@pytest.fixture(scope="module")
def pair():
    settings = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=True,
        uld_hybrid_matched_weight=1.0,
        uld_hybrid_unmatched_weight=0.0,
        beta=1.0,
    )
    theirs = gold.ULDLoss(settings, student_tokenizer=FINE, teacher_tokenizer=COARSE)
    ours = Translator(FINE, COARSE, {FINE.eos_token_id}, vocab=len(FINE))
    ids = [*FINE.encode(TEXT, add_special_tokens=False), FINE.eos_token_id]
    return theirs, ours.read(ids, ended=True), ours, ids


def probabilities(count, vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocab, generator=generator, dtype=torch.float64).softmax(-1)


def test_chunks_are_golds_groups(pair):
    theirs, reading, _, _ = pair
    sides = (FINE, COARSE)
    encoded = [gold.encode_with_byte_offsets(t.backend_tokenizer, [TEXT])[0] for t in sides]
    assert encoded[1][0] == reading.ids[:-1].tolist()
    groups = theirs._align_by_byte_offsets(*(offsets for _, offsets in encoded))
    chunks = reading.chunks[:-1]  # ours has the end token as a chunk of its own
    assert [list(range(c.student.start, c.student.stop)) for c in chunks] == groups[0]
    assert [list(range(c.teacher.start, c.teacher.stop)) for c in chunks] == groups[1]


def test_a_chunks_probability_is_golds_merged_one(pair):
    """GOLD's at the last token of a group: the product of the conditional probabilities."""
    theirs, reading, _, ids = pair
    probs = probabilities(len(ids), len(FINE), 0)
    groups = [list(range(c.student.start, c.student.stop)) for c in reading.chunks]
    merged = theirs._merge_probabilities_with_alignment_groups(probs, groups, ids)
    logp = probs.log()[range(len(ids)), ids]
    for row, chunk in zip(merged, reading.chunks, strict=True):
        last = ids[chunk.student.stop - 1]
        assert float(row[last].log()) == pytest.approx(float(logp[chunk.student].sum()), rel=1e-9)


def test_the_vocabularies_in_common_are_golds(pair):
    """But for special tokens: GOLD matches those of one name, ours the two ends as well."""
    theirs, _, ours, _ = pair
    matched = {s: t for t, s in theirs._vocab_mapping.items()}
    special = {*FINE.all_special_ids}
    same = {s: int(t) for s, t in enumerate(ours.same_token) if t >= 0}
    assert {s: t for s, t in same.items() if s not in special} == {
        s: t for s, t in matched.items() if s not in special
    }


def test_the_matched_part_is_ours_and_the_masses(pair):
    """GOLD does not renormalise: sum p log(p/q) over S = P (KL(p_S || q_S) + log(P / Q))."""
    theirs, _, _, _ = pair
    p, q = probabilities(6, len(FINE), 1), probabilities(6, len(COARSE), 2)
    teachers = torch.tensor(sorted(theirs._vocab_mapping))
    students = theirs.mapping_tensor[teachers]
    theirs._compute_hybrid_uld_loss(p, q)
    ours = reverse_kl(renormalise(p[:, students].log()), renormalise(q[:, teachers].log()))
    mass_p, mass_q = p[:, students].sum(-1), q[:, teachers].sum(-1)
    expected = (mass_p * (ours + (mass_p / mass_q).log())).mean()
    np.testing.assert_allclose(float(theirs.last_matched_loss), float(expected), rtol=1e-9)
