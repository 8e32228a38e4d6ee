"""The same findings on a real model: SmolLM2-135M and the teacher that the example makes of it.

Run examples/smollm2/run.py first and name its output folder in OPD_REAL_RUN; about half an hour on
two cores. What holds on one pair of one run is asserted loosely, and kept
with its interval (`pytest --junitxml FILE`).
"""

import os
from pathlib import Path

import pytest

from opd import config
from opd.data.prompts import load_prompts
from opd.faces import run_train
from opd.lab.probes import Model, overlap_on

FOLDER = os.environ.get("OPD_REAL_RUN")
KS = (1, 4, 16, 64)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(FOLDER is None, reason="OPD_REAL_RUN names no folder of the example"),
]


def spec(*changes):
    return config.load(Path(FOLDER) / "run.yaml", changes)


def accuracies(cfg, record_property):
    found = run_train(cfg, overwrite=True, style="quiet")["sets"]["heldout"]
    for who in ("before", "after", "teacher"):
        record_property(who, found[who])
    return found


def test_compatible_teacher_is_learned_from(tmp_path, record_property):
    found = accuracies(spec(f"output.dir={tmp_path / 'run'}"), record_property)
    assert found["after"]["low"] > found["before"]["high"]


def test_reverse_distillation_undoes_the_skill(tmp_path, record_property):
    """The improved model, taught by its own base, loses what it had."""
    cfg = spec()
    found = accuracies(
        spec(
            f"student.model={cfg.teacher.model}",
            f"teacher.model={cfg.student.model}",
            f"output.dir={tmp_path / 'run'}",
        ),
        record_property,
    )
    assert found["after"]["high"] < found["before"]["low"]


def test_mass_on_the_common_top_k(record_property):
    """Paper: .97 to .99 at k = 16."""
    cfg = spec()
    pair = Model.load(Path(cfg.student.model)), Model.load(Path(cfg.teacher.model))
    prompts = load_prompts(
        cfg.prompts.path, pair[0].tokenizer, template=None, chat={}, max_tokens=1024, limit=64
    ).prompts
    found = overlap_on(pair, prompts, cfg.rollout.max_new_tokens, KS, seed=0)
    masses = [found[k]["diag/overlap_mass_student"] for k in KS]
    record_property("mass", dict(zip(KS, masses, strict=True)))
    assert masses == sorted(masses)
    assert masses[KS.index(16)] > 0.9
