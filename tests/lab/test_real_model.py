"""The same findings on a real model: SmolLM2-135M and the teacher that the example makes of it.

Run examples/smollm2/run.py first and name its output folder in OPD_REAL_RUN; about half an hour on
two cores. What holds on one pair of one run is asserted loosely, and kept
with its interval (`pytest --junitxml FILE -o junit_family=xunit1`).
"""

import json
import os
from pathlib import Path

import pytest

from opd import config
from opd.commands.train import run_train
from opd.config import Optim
from opd.data.prompts import load_prompts
from opd.data.sft_examples import make_example
from opd.models.lm import load_lm
from opd.models.saving import save_final
from opd.models.tokenizers import load_tokenizer
from opd.recipes.sft import sft
from opd_lab.probes import Model, overlap_on_prompts

FOLDER = os.environ.get("OPD_REAL_RUN")
KS = (1, 4, 16, 64)
HALF = 10  # of the 24 steps of supervised training that make a teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(FOLDER is None, reason="OPD_REAL_RUN names no folder of the example"),
]


def spec(*changes):
    return config.load(Path(FOLDER) / "run.yaml", changes)


def accuracies(cfg, record_property):
    accuracy = run_train(cfg, overwrite=True, style="quiet")["sets"]["heldout"]
    for model in ("before", "after", "teacher"):
        record_property(model, accuracy[model])
    return accuracy


def test_compatible_teacher_is_learned_from(tmp_path, record_property):
    accuracy = accuracies(spec(f"output.dir={tmp_path / 'run'}"), record_property)
    assert accuracy["after"]["low"] > accuracy["before"]["high"]


def test_reverse_distillation_undoes_the_skill(tmp_path, record_property):
    """The improved model, taught by its own base, loses what it had."""
    cfg = spec()
    accuracy = accuracies(
        spec(
            f"student.model={cfg.teacher.model}",
            f"teacher.model={cfg.student.model}",
            f"output.dir={tmp_path / 'run'}",
        ),
        record_property,
    )
    assert accuracy["after"]["high"] < accuracy["before"]["low"]


@pytest.fixture(scope="module")
def mismatched(tmp_path_factory):
    """A student that half knows how to sort, and a teacher of another thinking pattern.

    The student sorts in one line; the teacher first sorts downwards, with other signs, and answers
    then.
    """
    home, cfg = tmp_path_factory.mktemp("mismatched"), spec()
    lines = (Path(FOLDER) / "data/teacher.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    other_rows = [row | {"answer": downwards(row["answer"])} for row in rows]
    half = train_supervised(cfg.student.model, rows[: 16 * HALF], home / "half")
    return half, train_supervised(cfg.student.model, other_rows, home / "other")


def mismatched_run(student, teacher, out, *changes):
    models = (f"student.model={student}", f"teacher.model={teacher}", f"output.dir={out}")
    return spec(*models, "rollout.max_new_tokens=48", *changes)


def test_an_incompatible_pattern_is_not_learned(mismatched, tmp_path, record_property):
    """Paper E1: of two able teachers, the one of another pattern teaches less."""
    half, other = mismatched
    accuracy = {}
    for pattern, teacher in (("same", spec().teacher.model), ("other", str(other))):
        run = mismatched_run(half, teacher, tmp_path / pattern)
        accuracy[pattern] = run_train(run, overwrite=True, style="quiet")["sets"]["heldout"]
        record_property(pattern, accuracy[pattern])
    assert accuracy["other"]["teacher"]["low"] > accuracy["other"]["before"]["high"]
    assert accuracy["same"]["after"]["low"] > accuracy["other"]["after"]["high"]


def test_recipe_auto_rescues_a_mismatched_pair(mismatched, tmp_path, record_property):
    """The pair of the test before, which plain training ruins: the check asks for a cold start."""
    cfg = mismatched_run(*mismatched, tmp_path / "auto", "recipe=auto", "train.steps=12")
    summary = run_train(cfg, overwrite=True, style="quiet")
    accuracy = summary["sets"]["heldout"]
    record_property("auto", accuracy)
    record_property("coldstart", summary["coldstart"])
    assert accuracy["after"]["low"] > accuracy["before"]["high"]


def downwards(answer):
    numbers = answer.split(", ")
    return f"{' > '.join(reversed(numbers))}. Answer: {answer}"


def train_supervised(base, rows, out):
    """The base after one pass over rows of prompt and answer, 16 a step."""
    prompts_file = out.with_suffix(".jsonl")
    prompts_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, lm = load_tokenizer(base), load_lm(base, dtype="float32")
    prompts = load_prompts(
        str(prompts_file), tokenizer, template=None, chat={}, max_tokens=128
    ).prompts
    examples = [
        make_example(p.index, p.ids, [*tokenizer(p.answer).input_ids, tokenizer.eos_token_id])
        for p in prompts
    ]
    optim = Optim(lr=1e-4, warmup=3)
    fit = {"steps": len(rows) // 16, "batch": 16, "schedule": "cosine", "seed": 0}
    for _ in sft(lm, examples, optim=optim, **fit):
        pass
    save_final(lm, tokenizer, out)
    return out


def test_mass_on_the_common_top_k(record_property):
    """Before training: .44, .72, .87, .93 at k = 1, 4, 16, 64 (paper, k = 16: .97 to .99).

    The run of the example ends at 1.000 for k = 16.
    """
    cfg = spec()
    pair = Model.load(Path(cfg.student.model)), Model.load(Path(cfg.teacher.model))
    prompts = load_prompts(
        cfg.prompts.path, pair[0].tokenizer, template=None, chat={}, max_tokens=1024, limit=64
    ).prompts
    by_k = overlap_on_prompts(pair, prompts, cfg.rollout.max_new_tokens, KS, seed=0)
    masses = [by_k[k]["diag/overlap_mass_student"] for k in KS]
    record_property("mass", dict(zip(KS, masses, strict=True)))
    assert masses == sorted(masses)
    assert masses[KS.index(16)] > 0.8
