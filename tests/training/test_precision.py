"""bf16_mixed: what moves, what a checkpoint holds, what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd import config
from opd.config import Optim
from opd.core.objective import Objective
from opd.data.sft_examples import make_example
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models.lm import LM, add_lora
from opd.models.master_weights import add_master_weights, fraction_that_cannot_move
from opd.setup.precision import loading_dtype, prepare_weights, resolve_precision
from opd.setup.settings import require_masters
from opd.testing import tiny_model
from opd.training.checkpoints import load_weights
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer
from opd.training.step import supervised_update, update
from opd.types import Prompt
from support.mistakes import run_yaml
from support.updates import experience, learner_of

LR = 1e-5


def student(seed: int = 0) -> LM:
    model = tiny_model(seed, dtype=torch.float32, vocab=9000)  # large enough for sparse gradients
    return LM(model, 9000, "tiny")


def trained(lm: LM, batch, teacher: LM, *, steps: int = 5) -> dict[str, torch.Tensor]:
    """The change of every weight after some updates on one batch."""
    before = {n: w.detach().double().clone() for n, w in lm.weights().items()}
    learner = learner_of(lm, teacher, Objective(k=4), lr=LR)
    for step in range(steps):
        update(learner, batch, step)
    return {n: w.detach().double() - before[n] for n, w in lm.weights().items()}


@pytest.fixture(scope="module")
def changes(request):
    """The same updates in float32, and in bf16 with masters."""
    base, teacher = student(0), student(1)
    make_prompts = request.getfixturevalue("prompts")
    batch = experience(base, teacher, Objective(k=4), make_prompts)
    found = {}
    for name in ("float32", "bf16_mixed"):
        lm = LM(copy.deepcopy(base.model), base.vocab, name)
        if name == "bf16_mixed":
            add_master_weights(lm)
        found[name] = trained(lm, batch, teacher)
    return found


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [
        Prompt(i, tuple(rng.integers(3, 9000, n).tolist()), "") for i, n in enumerate((3, 8, 5))
    ]


def flat(change: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([change[name].flatten() for name in sorted(change)])


def test_masters_move_as_float32_moves(changes):
    wide, mixed = flat(changes["float32"]), flat(changes["bf16_mixed"])
    moved_wide, moved_mixed = (wide != 0).sum(), (mixed != 0).sum()
    assert moved_mixed >= 0.99 * moved_wide
    cosine = torch.nn.functional.cosine_similarity(wide, mixed, dim=0)
    assert cosine >= 0.93


def test_the_model_holds_its_masters_rounded():
    lm = student()
    add_master_weights(lm)
    teacher = student(1)
    batch = experience(student(), teacher, Objective(k=4), [Prompt(0, (3, 4, 5), "")])
    trained(lm, batch, teacher, steps=2)
    for name, parameter in lm.parameters().items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter.detach(), lm.masters[name].detach().bfloat16())


def test_gradients_of_bf16_weights_are_summed_in_float32():
    lm = student()
    add_master_weights(lm)
    weight = next(iter(lm.parameters().values()))
    (weight.float().sum()).backward()
    (weight.float() * 2**-10).sum().backward()  # would vanish beside 1 in bf16
    assert weight.grad.dtype == torch.float32
    assert torch.all(weight.grad == 1 + 2**-10)


def test_buffers_keep_their_precision():
    lm = student()
    before = {n: b.clone() for n, b in lm.model.named_buffers()}
    add_master_weights(lm)
    for name, buffer in lm.model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


def test_plain_bf16_is_refused_below_the_rate_at_which_it_loses_updates():
    lm = student()
    for parameter in lm.model.parameters():
        parameter.data = parameter.data.bfloat16()
    assert fraction_that_cannot_move(lm.weights().values(), 1e-6) > 0.99
    with pytest.raises(UserError, match=r"student\.precision=bf16_mixed"):
        make_optimizer(lm, Optim(lr=1e-6))
    assert fraction_that_cannot_move(lm.weights().values(), 1.0) == 0.0
    make_optimizer(lm, Optim(lr=1.0))


@pytest.mark.parametrize("lr", [1e-6, 1e-4, 1e-2])
def test_the_estimate_is_what_happens_to_a_weight(lr):
    weights = torch.randn(4096, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    up = (weights.float() + lr).bfloat16() == weights
    down = (weights.float() - lr).bfloat16() == weights
    measured = float((up & down).float().mean())
    assert fraction_that_cannot_move([weights], lr) == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize(
    ("precision", "resolved", "processes", "said"),
    [
        ("auto", "float32", 1, r"optim\.offload=cpu changes nothing .*auto, which is float32"),
        ("bf16_mixed", "bf16_mixed", 2, r"changes nothing with student\.shard=fsdp2 of 2"),
    ],
)
def test_offloading_what_is_not_there_is_refused(precision, resolved, processes, said):
    """On a CPU, and beside FSDP2, it was taken and nothing was moved."""
    cfg = config.parse(run_yaml(), [f"student.precision={precision}", "optim.offload=cpu"])
    sharded = config.parse(config.dump(cfg), ["student.shard=fsdp2"])
    with pytest.raises(UserError, match=said):
        require_masters(sharded, resolved, processes=processes)
    require_masters(cfg, "bf16_mixed", processes=2)


def test_a_lora_student_needs_no_masters():
    lm = student()
    lm.model.to(torch.bfloat16)
    lm = add_lora(lm, rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    assert {p.dtype for p in lm.parameters().values()} == {torch.float32}
    assert lm.weights() == lm.parameters()
    make_optimizer(lm, Optim(lr=1e-6))


def test_offloaded_masters_step_to_the_same_bits():
    results = []
    for on_cpu in (False, True):
        lm = student()
        add_master_weights(lm, on_cpu=on_cpu)
        optim = Optim(lr=1e-3)
        learner = Learner.supervised(
            lm, make_optimizer(lm, optim), optim, tokens_per_microbatch=64, seed=0
        )
        for step in range(3):
            supervised_update(learner, [make_example(0, [3, 4], [7, 8, 9, 1])], step, lr=1e-3)
        results.append({n: w.detach().clone() for n, w in lm.weights().items()})
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_a_checkpoint_gives_back_masters_and_model():
    lm, other = student(0), student(1)
    add_master_weights(lm)
    add_master_weights(other)
    load_weights(other, {n: w.detach().clone() for n, w in lm.weights().items()})
    for name, master in lm.masters.items():
        assert torch.equal(other.masters[name], master)
        assert torch.equal(other.parameters()[name], master.bfloat16())


def settings(tmp_path, **student_keys):
    data = demo_config(tmp_path / "run")
    data["student"] |= student_keys
    return config.parse(data)


def test_auto_is_float32_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = settings(tmp_path)
    assert resolve_precision(cfg) == "float32"
    assert loading_dtype(cfg, trains=True) == "float32"


@pytest.mark.parametrize(("major", "resolved"), [(7, "float32"), (8, "bf16_mixed")])
def test_auto_is_mixed_on_a_gpu_that_computes_in_bf16(tmp_path, monkeypatch, major, resolved):
    """A T4 or V100 was taken for one: torch emulates bf16 there and calls that support."""
    properties = SimpleNamespace(major=major, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert resolve_precision(settings(tmp_path)) == resolved


def test_mixed_loads_what_its_masters_need(tmp_path):
    assert loading_dtype(settings(tmp_path, precision="bf16_mixed"), trains=True) == "float32"
    assert loading_dtype(settings(tmp_path, precision="bf16_mixed"), trains=False) == "bfloat16"
    lora = settings(tmp_path, precision="bf16_mixed", lora={"rank": 2})
    assert loading_dtype(lora, trains=True) == "bfloat16"


def test_weights_are_prepared_once(tmp_path):
    lm = student()
    cfg = settings(tmp_path, precision="bf16_mixed")
    prepare_weights(cfg, lm)
    masters = dict(lm.masters)
    prepare_weights(cfg, lm)
    assert all(lm.masters[n] is m for n, m in masters.items())
