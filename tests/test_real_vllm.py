"""The real vLLM on loopback with SmolLM2: handshake, parity, training, a crash, an impostor.

`make test-vllm` installs vLLM into its own environment and runs this with `-s`, so that the
figures are seen. The teacher is SmolLM2; the student is SmolLM2 with noise in its weights, so that
there is something to learn.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from opd import config
from opd.errors import UserError
from opd.http import Endpoint, Http, Limits
from opd.models import tokenizers
from opd.models.lm import add_lora, load_lm
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.vllm import VllmSampler
from opd.samplers.weight_sync import Destination, WeightSync
from opd.setup.session import build
from opd.teachers.dialect import TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.local import LocalTeacher
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.types import Prompt, Want
from support.real_vllm import NOISE, QUESTIONS, RealVllm, report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(
        "OPD_VLLM_PYTHON" not in os.environ or "OPD_SMOLLM2" not in os.environ,
        reason="`make test-vllm` sets OPD_VLLM_PYTHON and OPD_SMOLLM2",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(os.environ["OPD_SMOLLM2"])


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenizers.load_tokenizer(str(base))


@pytest.fixture(scope="module")
def student(base, folder, tokenizer) -> Path:
    """The base with noise in its weights."""
    lm = load_lm(str(base), dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim >= 2:
                p += NOISE * p.std() * torch.randn(p.shape, generator=generator)
    lm.model.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def teacher_server(base, folder):
    server = RealVllm(os.environ["OPD_VLLM_PYTHON"], base, "smollm2", folder / "teacher.log")
    report(f"\nteacher server up after {server.start():.0f} s")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def rollout_server(student, folder):
    server = RealVllm(
        os.environ["OPD_VLLM_PYTHON"],
        student,
        "student",
        folder / "rollout.log",
        *("--enable-lora", "--max-lora-rank", "16"),
    )
    report(f"\nrollout server up after {server.start():.0f} s")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[Prompt]:
    rows = []
    for i, question in enumerate(QUESTIONS):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        rows.append(Prompt(i, tuple(ids), question))
    return rows


@pytest.fixture(scope="module")
def recorded(base, prompts, tokenizer):
    """What SmolLM2 itself samples, 32 tokens per prompt at temperature 1."""
    lm = load_lm(str(base), dtype="float32")
    stop = tokenizers.eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, Decoding(32), stop=stop, capture=16)
    return lm, sampler.sample(prompts, n=2, key=(0, 1))


def dialect_of(server: RealVllm) -> VllmDialect:
    http = Http(
        Endpoint(server.url.removesuffix("/v1"), "teacher", "teacher.url"),
        limits=Limits(answer=120),
    )
    return VllmDialect(http, server.name)


def test_handshake_and_parity(teacher_server, recorded, tokenizer, prompts):
    lm, rollouts = recorded
    dialect = dialect_of(teacher_server)
    encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    began = time.monotonic()
    handshake = run_handshake(
        dialect,
        HandshakeInputs(
            vocab=lm.vocab,
            encode=encode,
            material=[p.ids for p in prompts],
            topk=16,
            max_length=400,
            eos=[tokenizer.eos_token_id],
        ),
    )
    report(f"\nhandshake, {dialect.http.requests} requests, {time.monotonic() - began:.1f} s:")
    for probe in handshake.probes:
        report(f"  {probe.level:<5} {probe.name:<10} {probe.message}")
    handshake.require(teacher_server.url)
    timings: dict[str, float] = {}
    options = RemoteOptions(record=timings.__setitem__)
    teacher = RemoteTeacher(
        dialect, "smollm2", vocab=lm.vocab, expected=handshake.teacher, options=options
    )
    want = Want(sampled=True, topk=16)
    began = time.monotonic()
    theirs = teacher.score(rollouts, want)
    seconds = time.monotonic() - began
    ours = LocalTeacher(lm).score(rollouts, want)
    gaps = np.concatenate(
        [np.abs(a.sampled - b.sampled) for a, b in zip(ours, theirs, strict=True)]
    )
    tops = np.concatenate(
        [np.abs(a.topk_logp - b.topk_logp).ravel() for a, b in zip(ours, theirs, strict=True)]
    )
    ids = np.concatenate(
        [(a.topk_ids == b.topk_ids).ravel() for a, b in zip(ours, theirs, strict=True)]
    )
    report(f"parity with the local teacher, both float32, {len(gaps)} tokens:")
    for name, values in (("sampled", gaps), ("top-16", tops)):
        p95 = np.quantile(values, 0.95)
        report(f"  {name:<8} mean {values.mean():.2e}  p95 {p95:.2e}  max {values.max():.2e} nats")
    report(f"  top-16 ids equal in place: {ids.mean():.2%}")
    report(f"  {len(gaps) / seconds:.0f} scored tokens/s; {timings}")
    assert gaps.max() < 2e-3
    assert ids.mean() > 0.99
    dialect.http.close()


def test_parity_in_bfloat16(base, recorded, folder):
    """Emulated on a CPU without the instructions, hence four sequences only."""
    exact, rollouts = recorded
    rollouts, want = rollouts[:8:2], Want(sampled=True, topk=16)
    server = RealVllm(
        os.environ["OPD_VLLM_PYTHON"], base, "smollm2", folder / "bf16.log", dtype="bfloat16"
    )
    try:
        report(f"\nbfloat16 server up after {server.start():.0f} s")
        dialect = dialect_of(server)
        teacher = RemoteTeacher(
            dialect, "smollm2", vocab=exact.vocab, expected=TeacherRecord(dialect.identity())
        )
        began = time.monotonic()
        theirs = teacher.score(rollouts, want)
        report(
            f"  vLLM scored {sum(map(len, rollouts))} tokens in {time.monotonic() - began:.0f} s"
        )
        dialect.http.close()
    finally:
        server.kill()
    began = time.monotonic()
    near = LocalTeacher(load_lm(str(base), dtype="bfloat16")).score(rollouts, want)
    report(f"  transformers scored them in {time.monotonic() - began:.0f} s")
    true = LocalTeacher(exact).score(rollouts, want)
    pairs = {
        "vLLM bf16 - transformers bf16": (theirs, near),
        "vLLM bf16 - float32": (theirs, true),
        "transformers bf16 - float32": (near, true),
    }
    mean = {}
    for name, (a, b) in pairs.items():
        gaps = np.concatenate([np.abs(x.sampled - y.sampled) for x, y in zip(a, b, strict=True)])
        mean[name] = gaps.mean()
        p95 = np.quantile(gaps, 0.95)
        report(f"  {name:<30} mean {gaps.mean():.2e}  p95 {p95:.2e}  max {gaps.max():.2e} nats")
    # Two ways to round are about as far from each other as each is from the truth.
    assert max(mean.values()) < 0.1


def test_full_weights_reach_the_rollout_server(rollout_server, student, prompts, tokenizer, folder):
    lm = load_lm(str(student), dtype="float32")
    original = load_lm(str(student), dtype="float32")
    sampler = sampler_of(rollout_server, lm, tokenizer, folder / "sync-full")
    try:
        scale(lm, "layers")
        sampler.sync(5)
        rollouts = sampler.sample(prompts[:4], n=1, key=(0, 1, 5))
        gap, stale = drift(lm, rollouts), drift(original, rollouts)
        report(
            f"\nreload_weights, all layers changed: sampler/trainer gap {gap:.2e} nats per token"
        )
        report(f"  against the weights before the reload the gap would be {stale:.2e}")
        assert gap < 2e-3 < stale
        # A tied head is packed once by vLLM's CPU build and not again.
        scale(lm, "embed")
        try:
            sampler.sync(6)
            report("  the tied embedding arrived, too")
        except UserError as error:
            report(f"  with the tied embedding changed too: {error}")
    finally:
        sampler.weights.send(7, original)
        sampler.server.http.close()


def scale(lm, part: str) -> None:
    """Make the weights whose name contains `part` 3 % smaller."""
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if part in name:
                p *= 0.97


def sampler_of(server: RealVllm, lm, tokenizer, sync: Path) -> VllmSampler:
    http = Http(Endpoint(server.url.removesuffix("/v1"), "rollout server", "rollout.url"))
    stop = tokenizers.eos_ids(tokenizer, lm.causal.generation_config)
    sampling = SamplingServer(http, "student")
    weights = WeightSync(sampling, lm, tokenizer, Destination(sync))
    return VllmSampler(sampling, Decoding(24), stop=stop, logp=True, weights=weights)


def drift(lm, rollouts) -> float:
    """Mean gap between the sampler's log-probs and the model's own."""
    scores = LocalTeacher(lm).score(rollouts, Want(sampled=True))
    gaps = [np.abs(s.sampled - r.logp) for s, r in zip(scores, rollouts, strict=True)]
    return float(np.concatenate(gaps).mean())


def test_adapters_reach_the_rollout_server(rollout_server, student, prompts, tokenizer, folder):
    lm = load_lm(str(student), dtype="float32")
    lm = add_lora(lm, rank=8, alpha=16, target_modules="all-linear", seed=0)
    with torch.no_grad():
        for name, p in lm.parameters().items():
            if "lora_B" in name:
                p.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    sampler = sampler_of(rollout_server, lm, tokenizer, folder / "sync-lora")
    for version in (1, 2):
        sampler.sync(version)
        rollouts = sampler.sample(prompts[:4], n=2, key=(0, 1, version))
        gap = drift(lm, rollouts)
        report(f"\nadapter version {version}: sampler/trainer gap {gap:.2e} nats per token")
        assert gap < 2e-3
        assert {r.version for r in rollouts} == {version}
    again = sampler.sample(prompts[:4], n=2, key=(0, 1, 2))
    report(f"  same seeds, same tokens: {all(map(same_ids, rollouts, again))}")
    sampler.server.served = "opd-student-1"  # it is gone: the weights are sent again
    (rollout,) = sampler.sample(prompts[:1], n=1, key=(0, 1, 3))
    assert rollout.version == 2
    sampler.server.http.close()


def same_ids(a, b) -> bool:
    return np.array_equal(a.ids, b.ids)


def run_config(teacher, rollout, student, folder, prompts_file) -> dict:
    return {
        "student": {"model": str(student), "lora": {"rank": 8, "alpha": 16}},
        "teacher": {"url": teacher.url, "model": "smollm2", "patience": 600},
        "prompts": {"path": str(prompts_file)},
        "rollout": {
            "url": rollout.url,
            "model": "student",
            "n": 2,
            "max_new_tokens": 24,
        },
        "loss": {"support": "auto", "k": 16},
        "optim": {"lr": 1e-3},
        "train": {"steps": 6, "prompts_per_step": 4},
        "output": {"dir": str(folder), "save_every": 2},
    }


def test_training_survives_a_crash_of_the_teacher_and_refuses_an_impostor(
    teacher_server, rollout_server, student, folder
):
    prompts_file = folder / "prompts.jsonl"
    rows = [json.dumps({"prompt": [{"role": "user", "content": q}]}) for q in QUESTIONS]
    prompts_file.write_text("\n".join(rows))
    data = run_config(teacher_server, rollout_server, student, folder / "run", prompts_file)
    messages: list[str] = []
    console = Console("plain")
    console.print = lambda text: (messages.append(text), report(f"  opd: {text}"))  # type: ignore[method-assign]
    session, completions = build(config.parse(data), resume=False, overwrite=False, console=console)
    ask = session.source.teacher.score

    def crash_in_step_three(rollouts, want):
        if rollouts[0].version == 3:
            teacher_server.kill()
            report("  teacher server killed (SIGKILL)")
            threading.Thread(target=teacher_server.start, daemon=True).start()
        return ask(rollouts, want)

    session.source.teacher.score = crash_in_step_three
    distill(session, completions)
    session.folder.close()
    session.source.teacher.dialect.http.close()
    session.source.sampler.sampler.server.http.close()
    lines = read_jsonl(folder / "run" / "metrics.jsonl")
    times = read_jsonl(folder / "run" / "timings.jsonl")
    report("step  loss    overlap  drift/logp_gap  bytes/token  retries  step s")
    for line, clock in zip(lines, times, strict=True):
        report(
            f"{line['step']:>4}  {line['train/loss']:.4f}  {line['diag/overlap_ratio']:.3f}    "
            f"{line['drift/logp_gap']:.2e}        "
            f"{clock['teacher/bytes_received_per_token']:>6.0f}       "
            f"{clock['teacher/retries']:>3.0f}      {clock['time/step_s']:.1f}"
        )
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert max(line["drift/logp_gap"] for line in lines) < 5e-3
    assert any("answers again" in text for text in messages)

    teacher_server.kill()
    teacher_server.start(student)
    data["train"]["steps"] = 8
    with pytest.raises(UserError) as refused:
        build(config.parse(data), resume=True, overwrite=False, console=Console("quiet"))
    report(f"another model under the same name: {refused.value}")
