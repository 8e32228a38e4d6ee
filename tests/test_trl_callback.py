"""The example that puts opd's diagnostics into TRL's own trainer; needs trl, skipped without."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "trl_callback"


def test_its_settings_are_a_configuration(monkeypatch):
    """Without trl: keys that opd no longer has would stop the example at its first line."""
    fake = SimpleNamespace(DistillationTrainer=object)
    monkeypatch.setitem(sys.modules, "trl", fake)
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.delitem(sys.modules, "diagnosed", raising=False)
    from diagnosed import DiagnosedTrainer

    del sys.modules["diagnosed"]  # by monkeypatch it would be there again for the next test
    model = SimpleNamespace(config=SimpleNamespace(name_or_path="m"))
    args = SimpleNamespace(
        max_completion_length=8, temperature=1.0, learning_rate=1e-3, max_steps=4, seed=0
    )
    trainer = SimpleNamespace(model=model, teacher_model=model, args=args, k=4, positions=64)
    assert DiagnosedTrainer.settings(trainer, "runs/x")["train"]["steps"] == 4


STEPS, BATCH, WIDTH = 4, 2, 8


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(3, 40)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)


@pytest.fixture
def trained(tmp_path, monkeypatch, make_lm):
    """Four steps of TRL on two tiny random models, and the run folder they left."""
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    import torch

    monkeypatch.syspath_prepend(EXAMPLE)
    from diagnosed import DiagnosedTrainer
    from trl import DistillationConfig

    tokenizer = word_tokenizer()
    args = DistillationConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        max_completion_length=WIDTH,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = DiagnosedTrainer(
        model=make_lm(1, dtype=torch.float32).model,
        teacher_model=make_lm(2, dtype=torch.float32).model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["w3 w4 w5", "w6 w7"] * 8}),
        processing_class=tokenizer,
        run=tmp_path / "run",
        k=4,
    )
    trainer.train()
    trainer.close()
    yield tmp_path / "run", trainer
    sys.modules.pop("diagnosed", None)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL and datasets warn as they like
def test_trl_leaves_a_run_that_can_be_reported(trained):
    from opd.commands.report import report
    from opd.reports.read import read_run
    from opd.run import metric_names

    folder, trainer = trained
    run = read_run(folder)
    assert run.done == STEPS
    assert not run.is_running
    missing = set(metric_names.FULL + metric_names.OVERLAP + metric_names.SAMPLED) - run.names()
    assert not missing
    # The student's own entropy as TRL logs it, computed by its own code on the same tokens.
    theirs = [r["entropy"] for r in trainer.state.log_history if "entropy" in r]
    np.testing.assert_allclose(run.series("diag/student_entropy").values, theirs, rtol=1e-3)
    html = report(folder).read_text("utf-8")
    assert "The teacher&#39;s advantage of every token" in html
    assert 'class="t ' in html


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL and datasets warn as they like
def test_diagnostics_agree_with_a_direct_computation(trained):
    """Mean log q - log p of the kept tokens is the logged token reward: every rollout was kept."""
    from opd.reports.read import read_run
    from opd.reports.scored_rollouts import scored_rollouts

    folder, _ = trained
    run = read_run(folder)
    rewards = run.series("diag/token_reward")
    for step, logged in zip(rewards.steps, rewards.values, strict=True):
        advantage = np.concatenate([s.advantage for s in scored_rollouts(run, int(step))])
        np.testing.assert_allclose(advantage.mean(), logged, atol=1e-5)
