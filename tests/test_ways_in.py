"""The three ways in from other code: each at most 60 lines, and each runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import opd
from opd import losses
from opd.core.objective import Objective
from opd.demo.run_config import PAIR, PROMPTS

EXAMPLES = Path(__file__).parents[1] / "examples" / "ways_in"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def prompts():
    lines = (PROMPTS / "train.jsonl").read_text("utf-8").splitlines()[:16]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_each_has_at_most_sixty_lines(file):
    assert len(file.read_text("utf-8").splitlines()) <= 60


def test_the_loss_for_trl_is_the_default_loss():
    from trl_loss import K, support_loss

    student = torch.arange(2 * 5 * 40.0).sin().reshape(2, 5, 40).requires_grad_()
    teacher = torch.arange(2 * 5 * 40.0).cos().reshape(2, 5, 40)
    labels = torch.tensor([[-100, 3, 4, 5, -100], [-100, -100, 6, 7, 8]])
    loss = support_loss(student, teacher, labels, beta=0.5)
    support = student.topk(K).indices
    p, q = (losses.renormalise(x.gather(-1, support)) for x in (student, teacher))
    valid = labels != -100
    assert loss.item() == pytest.approx((losses.reverse_kl(p, q)[valid]).mean().item())
    loss.backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, valid)
    assert Objective().k == K


def test_micro_batches_of_trl_divide_by_the_tokens_of_the_update():
    from trl_loss import support_loss

    student, teacher = torch.arange(60.0).sin(), torch.arange(60.0).cos()
    args = [x.reshape(1, 3, 20) for x in (student, teacher)], torch.tensor([[-100, 1, 2]])
    whole = support_loss(*args[0], args[1], reduction="sum")
    part = support_loss(*args[0], args[1], num_items_in_batch=torch.tensor(8))
    assert part.item() == pytest.approx(whole.item() / 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL and datasets warn as they like
def test_the_trainer_of_trl_trains_with_the_loss(tmp_path, prompts):
    gkd = pytest.importorskip("trl.experimental.gkd")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer
    from trl_loss import support_loss

    class Trainer(gkd.GKDTrainer):
        generalized_jsd_loss = staticmethod(support_loss)

    messages = [
        [
            {"role": "user", "content": p["problem"]},
            {"role": "assistant", "content": f"ANS {p['answer']}"},
        ]
        for p in prompts
    ]
    args = gkd.GKDConfig(
        output_dir=str(tmp_path),
        lmbda=1.0,
        max_new_tokens=24,
        max_steps=12,
        learning_rate=5e-4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        seed=0,
    )
    trainer = Trainer(
        model=str(PAIR / "student"),
        teacher_model=str(PAIR / "teacher"),
        args=args,
        train_dataset=datasets.Dataset.from_dict({"messages": messages}),
        processing_class=AutoTokenizer.from_pretrained(PAIR / "student"),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_rollouts_of_verl_are_replayed(tmp_path, prompts):
    from replay_verl import main

    dump = tmp_path / "1.jsonl"
    rows = [
        {"input": f"<s> <user> {p['problem']} <assistant>", "output": "so pig 1 ANS 1", "gts": "1"}
        for p in prompts
    ]
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "rollouts"
    main(str(PAIR / "student"), dump, out)
    run = opd.Run(
        str(PAIR / "student"),
        str(PAIR / "teacher"),
        {"path": str(out / "prompts.jsonl"), "chat": None},
        output=tmp_path / "run",
        rollout={"path": str(out), "n": 1, "max_new_tokens": 32},
        optim={"lr": 1e-4},
        train={"steps": 2, "prompts_per_step": 8},
    )
    run.train(style="quiet")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rollout/length"] == 6.0
    # Weights did not move yet: the student that scored the dump is the one that trains.
    assert lines[0]["drift/ess"] == pytest.approx(1.0, abs=1e-4)


def test_a_plain_loop_learns(prompts):
    from torch_loop import distil

    texts = [f"<s> <user> {p['problem']} <assistant>" for p in prompts]
    torch.manual_seed(0)
    steps = list(distil(str(PAIR / "student"), str(PAIR / "teacher"), texts, steps=12))
    first, last = (sum(s["loss"] for s in part) / 3 for part in (steps[:3], steps[-3:]))
    assert last < 0.8 * first
