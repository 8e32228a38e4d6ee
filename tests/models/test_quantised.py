"""Linear layers in 8 and 4 bits, weights that are there only while they are used, QLoRA."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from opd import config
from opd.data.routes import Route
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.models import away
from opd.models.away import AwayWeights
from opd.models.lm import add_lora, load_lm
from opd.models.quantised import BLOCK, NF4, QuantisedLinear, quantise, stored_bytes
from opd.models.saving import merged_copy
from opd.recipes.distillation import distill
from opd.reports.markdown import render_markdown
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.run.jsonl import read_jsonl
from opd.setup.pair import load_pair, load_teacher
from opd.teachers.local import LocalTeacher
from opd.teachers.routed import RoutedTeacher
from opd.types import Rollout, Want
from support.runs import digest, opened, run_config, run_to_end

TEACHER = str(PAIR / "teacher")


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_levels_are_the_nearest_and_scales_the_largest(scheme):
    torch.manual_seed(0)
    linear = nn.Linear(2 * BLOCK, 12)
    quantised = QuantisedLinear(linear, scheme)
    full, weight = quantised.full_weight(torch.float32), linear.weight.detach()
    if scheme == "int8":
        scale = (weight.abs().amax(1, keepdim=True) / 127).expand_as(weight)
        assert (full - weight).abs().le(scale / 2 * 1.001).all()
    else:
        scale = weight.view(-1, BLOCK).abs().amax(1).bfloat16().float()[:, None]
        candidates = torch.tensor(NF4) * scale[..., None]  # (blocks, 1, 16)
        nearest = (weight.view(-1, BLOCK, 1) - candidates).abs().amin(-1)
        torch.testing.assert_close((full - weight).abs().view(-1, BLOCK), nearest)
    stored = quantised.weight.nbytes + quantised.scale.nbytes
    assert stored == stored_bytes(linear, scheme)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_products_and_gradients_are_those_of_the_full_weight(scheme):
    torch.manual_seed(0)
    quantised = QuantisedLinear(nn.Linear(BLOCK, 12), scheme)
    x = torch.randn(3, 5, BLOCK, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out = quantised(x)
    expected = y @ quantised.full_weight(x.dtype).T + quantised.bias
    (out * torch.arange(12)).sum().backward()
    (expected * torch.arange(12)).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_the_noise_is_that_of_the_models_log_probs():
    plain, few = load_lm(TEACHER, dtype="float32"), load_lm(TEACHER, dtype="float32")
    ids = torch.arange(2, 60)[None]  # more than are compared at a time
    noise = quantise(few.model, "nf4", ids)
    with torch.no_grad():
        p, q = (lm.model(ids).logits[0, :-1].log_softmax(-1) for lm in (plain, few))
    assert noise.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    own = ids[0, 1:, None]
    assert noise.difference == pytest.approx(float((p - q).gather(1, own).abs().mean()), rel=1e-4)
    assert 0 < noise.kl < 1
    assert type(few.causal.get_output_embeddings()) is nn.Linear
    assert few.num_parameters() == plain.num_parameters()


def rollouts(lm, n=3):
    return [
        Rollout.of_ids(np.arange(2, 9, dtype=np.int32), np.arange(3 + i, 12 + i, dtype=np.int32))
        for i in range(n)
    ]


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_weights_that_go_away_score_the_same_bits(dtype):
    def scores(offload):
        spec = config.LocalTeacher(model=TEACHER, dtype=dtype, offload=offload)
        lm = load_teacher(spec, "cpu")
        teacher = LocalTeacher(lm)
        return lm, [teacher.score(rollouts(lm), Want(sampled=True)) for _ in range(2)]

    stays, expected = scores("none")
    lm, twice = scores("disk")
    for got in twice:
        for a, b in zip(got, expected[0], strict=True):
            np.testing.assert_array_equal(a.sampled, b.sampled)
    head = lm.head.weight.data_ptr()
    held = sum(p.nbytes for p in lm.model.parameters() if p.data_ptr() != head)
    assert held == 0
    assert lm.head.weight.numel() > 0
    assert lm.num_parameters() == stays.num_parameters()


@pytest.mark.parametrize("piece", [999, 2**30])
def test_weights_in_host_memory_are_the_same_bits(monkeypatch, piece):
    """In pieces, which their bytes may straddle, and without one for each of them."""
    monkeypatch.setattr(away, "PIECE", piece)
    lm = load_teacher(config.LocalTeacher(model=TEACHER, dtype="nf4"), "cpu")
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    gone = AwayWeights(lm.model, None)
    for _ in range(2):
        gone.release()
        assert sum(weight.numel() for weight in gone.weights.values()) == 0
        total = sum(before[name].nbytes for name in gone.weights)
        assert [len(x) for x in gone._host.pieces] == [
            min(piece, total - start) for start in range(0, total, piece)
        ]
        gone.bring()
    for name, weight in lm.model.named_parameters():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name]), name


def test_of_several_teachers_one_is_there_at_a_time(monkeypatch):
    spec = config.LocalTeacher(model=TEACHER, offload="disk")
    models = {name: load_teacher(spec, "cpu") for name in ("one", "other")}
    brought, bring = [], AwayWeights.bring

    def watched(self):
        bring(self)
        brought.append([name for name, lm in models.items() if lm.away.there])

    monkeypatch.setattr(AwayWeights, "bring", watched)
    routes = {i: Route(((name, 1.0),)) for i, name in enumerate(("one", "other", "one"))}
    routed = RoutedTeacher(
        {route.label: LocalTeacher(models[route.label]) for route in routes.values()}, routes
    )
    texts = [replace(r, prompt=replace(r.prompt, index=i)) for i, r in enumerate(rollouts(None))]
    assert len(routed.score(texts, Want(sampled=True))) == 3
    assert sorted({name for names in brought for name in names}) == ["one", "other"]
    assert all(len(names) == 1 for names in brought)


def test_what_was_freed_is_given_back_before_they_return(monkeypatch):
    """Freed gradients would stay in the heap beside them (2.3 GB of a student of 0.6 billion)."""
    lm = load_teacher(config.LocalTeacher(model=TEACHER, offload="disk"), "cpu")
    order, read = [], lm.away.read
    monkeypatch.setattr(away, "give_back", lambda: order.append("given back"))
    lm.away.read = lambda: order.append("read") or read()
    lm.away.bring()
    lm.away.bring()
    lm.away.release()
    assert order == ["given back", "read", "given back"]


def test_a_failed_scoring_sends_them_away_too():
    lm = load_teacher(config.LocalTeacher(model=TEACHER, offload="disk"), "cpu")
    unknown = Rollout.of_ids(np.array([10**6], np.int32), np.array([1, 2], np.int32))
    with pytest.raises(IndexError):
        LocalTeacher(lm).score([unknown], Want(sampled=True))
    assert not lm.away.there


def test_host_memory_is_no_place_to_go_without_a_gpu():
    spec = config.LocalTeacher(model=TEACHER, offload="cpu")
    with pytest.raises(UserError, match=r"no GPU\. Set teacher.offload=disk"):
        load_teacher(spec, "cpu")


@pytest.mark.slow
def test_a_run_with_an_offloaded_teacher_is_the_same_run(tmp_path):
    """Loss, diagnostics and the teacher's evaluation, to the bit."""
    folders = []
    for offload in ("none", "disk"):
        data = run_config(tmp_path / offload, steps=2)
        data["teacher"]["offload"] = offload
        run_to_end(data)
        hashes = digest(tmp_path / offload)  # files of rollouts name the configuration
        folders.append({n: h for n, h in hashes.items() if not n.startswith("rollouts/")})
    assert len(folders[0]) >= 8
    assert folders[0] == folders[1]


@pytest.mark.slow
def test_the_noise_of_a_quantised_teacher_is_told_beside_the_signal(tmp_path):
    data = run_config(tmp_path / "run", steps=2) | {"eval": []}
    data["teacher"]["dtype"] = "nf4"
    run_to_end(data)
    rows = [r for r in read_jsonl(tmp_path / "run" / "timings.jsonl") if "time/step_s" in r]
    assert all(0 < r["teacher/quantisation_kl"] < 1 for r in rows)
    text = render_markdown(run_document(read_run(tmp_path / "run")))
    assert "Quantising the teacher changes its distributions by a KL of" in text


def test_adapters_over_four_bits_train_and_are_merged_without_them(tmp_path):
    data = run_config(tmp_path / "run", steps=1) | {"eval": []}
    data["student"]["lora"] = {"rank": 4, "weights": "nf4"}
    with opened(data) as (session, completions):
        layers = session.learner.student.model.modules()
        assert any(isinstance(layer, QuantisedLinear) for layer in layers)
        distill(session, completions)
        student = session.learner.student
        ids = torch.arange(2, 20)[None]
        trained = student.causal(ids).logits
    final = load_lm(str(tmp_path / "run" / "final"), dtype="float32")
    assert not any(isinstance(layer, QuantisedLinear) for layer in final.model.modules())
    torch.testing.assert_close(final.model(ids).logits, trained, rtol=1e-3, atol=1e-3)
    base = load_pair(config.parse(data), trains=False).student
    assert any("lora_B" in name for name in base.parameters())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_a_quantised_model_leaves_its_file():
    """Else all of the file stays in memory as long as the embedding does."""
    before = Path("/proc/self/maps").read_text("utf-8").count("model.safetensors")
    models = [load_lm(TEACHER, device="cpu", quantised=("int8", None))]
    assert Path("/proc/self/maps").read_text("utf-8").count("model.safetensors") == before
    models.append(load_lm(TEACHER, device="cpu"))
    assert Path("/proc/self/maps").read_text("utf-8").count("model.safetensors") > before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_a_teacher_that_is_away_leaves_its_file():
    """Its head stays, and would keep all of it in memory."""

    def mapped():
        gc.collect()
        return Path("/proc/self/maps").read_text("utf-8").count("model.safetensors")

    before = mapped()
    teacher = load_teacher(config.LocalTeacher(model=TEACHER, offload="disk"), "cpu")
    assert mapped() == before
    with torch.no_grad():
        teacher.model(torch.tensor([[2, 3, 4]]))
    assert mapped() > before
    teacher.release()
    assert mapped() == before


@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_a_merged_copy_shares_what_no_adapter_changes_and_leaves_the_student_alone(scheme):
    """A copy of an embedding of a large vocabulary is half a gigabyte."""
    quantised = None if scheme is None else (scheme, None)
    lm = load_lm(TEACHER, dtype="float32", device="cpu", quantised=quantised)
    lm = add_lora(lm, rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.arange(2, 20)[None]
    before = lm.causal(ids).logits
    merged = merged_copy(lm)
    torch.testing.assert_close(merged(ids).logits, before, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.causal(ids).logits, before)
    own = {p.data_ptr() for p in lm.model.parameters()}
    shared = {name for name, p in merged.named_parameters() if p.data_ptr() in own}
    layers = {name for name in shared if "proj" in name and name.endswith("weight")}
    assert not layers
    assert any("embed" in name for name in shared)
