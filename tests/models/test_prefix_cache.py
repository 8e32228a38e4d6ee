"""Shared prompts: the same states, scores and gradients as rows with their own prompts."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from opd import config
from opd.core.batch import Batch
from opd.data.sft_examples import make_example
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models.lm import LM, add_lora, enable_checkpointing
from opd.models.prefix_cache import PrefixCache, supports_prefix_cache
from opd.setup.models import Models
from opd.setup.session import make_learner
from opd.teachers.local import LocalTeacher
from opd.testing import TINY_VOCAB as VOCAB
from opd.training.distributed import Ranks
from opd.training.gradient import accumulate
from opd.training.gradient import plan_microbatches as planned
from opd.training.step import accumulate_within_memory, update
from opd.types import Want
from support.everyday import everyday
from support.updates import (
    CPU_OOM,
    OBJECTIVES,
    clone,
    close,
    experience,
    gradients,
    learner_of,
    run_out_of_memory,
)

# Most families normalise in float32, whatever their dtype: a last bit of float64 may flip one of
# its bits. A token that attended to the wrong prompt, or to none, is off by a tenth and more.
FLOAT32_NORMS = 3e-6
FLOAT32 = 3e-4

PROMPTS = (7, 3, 8, 5)  # uneven: left padding, and three responses each


@pytest.fixture
def cheap_passes(monkeypatch):
    """So cheap that prompts are shared even where everything is tiny."""
    monkeypatch.setattr("opd.core.microbatches.PASS_OVERHEAD_CPU", 9)


def unshared(lm: LM) -> LM:
    """The same model, which may not share prompts."""
    other = clone(lm)
    other.prefix_cache_works = False
    return other


def assert_near(gradients, expected, tolerance=FLOAT32_NORMS):
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        near = tolerance * value.abs().max().item()
        torch.testing.assert_close(gradients[name], value, atol=near, rtol=0)


def shares_all_prompts(learner, batch) -> bool:
    groups = planned(learner, batch)
    lengths = [{len(batch.rollouts[rows[0]].prompt.ids) for rows in g.prompt_rows} for g in groups]
    return all(g.prompt_rows for g in groups) and (
        learner.tokens_per_microbatch < 100 or max(map(len, lengths)) > 2  # prompts are padded
    )


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "llama": ("Llama", SMALL),
    "qwen3": ("Qwen3", SMALL),
    "gemma3-window-4": ("Gemma3", SMALL | SLIDING | {"num_hidden_layers": 4}),
    "gemma2-softcap": ("Gemma2", SMALL | SLIDING | {"num_hidden_layers": 4}),
    "mistral-window-4": ("Mistral", SMALL | {"sliding_window": 4}),
    "cohere": ("Cohere", {k: v for k, v in SMALL.items() if k != "head_dim"}),
    "qwen3-moe": (
        "Qwen3Moe",
        SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4,
         "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    ),
}  # fmt: skip


def family(name: str, attention: str) -> LM:
    kind, given_ = FAMILIES[name]
    text = "Text" if kind == "Gemma3" else ""
    config = getattr(transformers, f"{kind}{text}Config")(**given_, attn_implementation=attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}{'LMHead' if kind == 'GPT2' else 'ForCausalLM'}"
                        f"{'Model' if kind == 'GPT2' else ''}")(config)  # fmt: skip
    return LM(model.to(torch.float64 if name == "gpt2" else torch.float32).eval(), VOCAB, name)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "eager") for name in FAMILIES if name != "gpt2"]
    + [(name, "sdpa") for name in FAMILIES if name != "gemma2-softcap"],
)
@pytest.mark.usefixtures("cheap_passes")
def test_gradients_of_every_family_are_those_of_separate_rows(make_prompts, name, attention):
    student, teacher, objective = (
        family(name, attention),
        family(name, attention),
        OBJECTIVES["paper"],
    )
    noise = torch.Generator().manual_seed(1)
    for p in teacher.model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    batch = experience(student, teacher, objective, make_prompts(*PROMPTS))
    a, b = (
        learner_of(unshared(student), teacher, objective),
        learner_of(student, teacher, objective),
    )
    assert shares_all_prompts(b, batch)
    assert not shares_all_prompts(a, batch)
    expected, actual = accumulate(a, batch, 0), accumulate(b, batch, 0)
    if name == "gpt2":  # float64 throughout
        close(gradients(b.student), gradients(a.student))
    assert_near(gradients(b.student), gradients(a.student), FLOAT32)
    assert actual[1].item() == pytest.approx(expected[1].item(), rel=1e-5)


@pytest.mark.parametrize("budget", [10**6, 60])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("cheap_passes")
def test_any_objective_and_budget_is_the_same_update(make_lm, make_prompts, name, budget):
    base, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES[name]
    batch = experience(base, teacher, objective, make_prompts(*PROMPTS))
    a, b = unshared(base), clone(base)
    expected = update(learner_of(a, teacher, objective), batch, 0)
    learner = learner_of(b, teacher, objective, budget=budget)
    assert shares_all_prompts(learner, batch)
    actual = update(learner, batch, 0)
    for key, value in a.parameters().items():
        # Adam's first step is +-lr wherever the gradient is far from 0.
        torch.testing.assert_close(b.parameters()[key], value, atol=1e-4, rtol=0)
    assert actual.keys() == expected.keys()
    for key, mean in expected.items():
        assert actual[key].count == pytest.approx(mean.count), key
        assert actual[key].value == pytest.approx(mean.value, rel=1e-5, abs=1e-6), key


@pytest.mark.usefixtures("cheap_passes")
def test_adapters_in_some_layers_only(make_lm, make_prompts):
    # The first layer's keys and values then need no gradient, the others' do.
    base, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(base, teacher, objective, make_prompts(*PROMPTS))
    lora = {"rank": 2, "alpha": 4, "target_modules": ".*layers.1.*(q|v)_proj"}
    a, b = (add_lora(clone(base), **lora, seed=0) for _ in range(2))
    for student in (a, b):
        for name, p in student.parameters().items():
            p.data += 0.1 if "lora_B" in name else 0
    a.prefix_cache_works = False
    for student in (a, b):
        accumulate(learner_of(student, teacher, objective), batch, 0)
    assert shares_all_prompts(learner_of(b, teacher, objective), batch)
    assert_near(gradients(b), gradients(a))
    assert all(g.abs().sum() > 0 for g in gradients(b).values())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.usefixtures("cheap_passes")
def test_sparse_gradients_are_the_same(make_lm, make_prompts, monkeypatch, tie):
    base, teacher, objective = make_lm(0, tie=tie), make_lm(1, tie=tie), OBJECTIVES["paper"]
    batch = experience(base, teacher, objective, make_prompts(*PROMPTS))
    a, b = unshared(base), clone(base)
    accumulate(learner_of(a, teacher, objective), batch, 0)
    for module in ("head", "lm"):
        monkeypatch.setattr(f"opd.models.{module}.SPARSE_VOCAB", 1)
    learner = learner_of(b, teacher, objective, budget=80)
    assert shares_all_prompts(learner, batch)
    accumulate(learner, batch, 0)
    assert_near(gradients(b), gradients(a))


@pytest.mark.usefixtures("cheap_passes")
def test_scores_of_a_teacher_are_those_of_separate_rows(make_lm, make_prompts):
    lm = make_lm(1)
    rollouts = list(experience(lm, lm, OBJECTIVES["full"], make_prompts(*PROMPTS)).rollouts)
    empty = {f: getattr(rollouts[4], f)[:0] for f in
             ("ids", "logp", "entropy", "topk_ids", "topk_logp")}  # fmt: skip
    rollouts[4] = replace(rollouts[4], **empty)
    full = [np.arange(len(r)) for r in rollouts]
    want = Want(sampled=True, support=True, topk=4, full=full)
    seen = []
    hook = lm.causal.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["use_cache"]), with_kwargs=True
    )
    actual = LocalTeacher(lm, tokens_per_batch=70).score(rollouts, want)
    hook.remove()
    assert seen.count(True) > 3  # the trial's two calls, and prompts with responses
    expected = LocalTeacher(unshared(lm)).score(rollouts, want)
    for a, b in zip(actual, expected, strict=True):
        for field in ("sampled", "support", "log_z", "entropy", "topk_ids", "topk_logp", "hidden"):
            torch.testing.assert_close(
                torch.as_tensor(getattr(a, field)), torch.as_tensor(getattr(b, field)),
                rtol=1e-6, atol=1e-6,
            )  # fmt: skip


@pytest.mark.parametrize("rows", everyday([2, 1], 1))
@pytest.mark.parametrize("where", everyday(["forward", "backward"], 1))
@pytest.mark.usefixtures("cheap_passes")
def test_out_of_memory_ends_at_separate_rows(make_lm, make_prompts, where, rows):
    base, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(base, teacher, objective, make_prompts(*PROMPTS))
    a, b = unshared(base), clone(base)
    expected = accumulate(learner_of(a, teacher, objective), batch, 0)
    learner = learner_of(b, teacher, objective)
    assert shares_all_prompts(learner, batch)
    seen = run_out_of_memory(b, RuntimeError(CPU_OOM), rows, where)
    actual = accumulate_within_memory(learner, batch, 0)
    assert_near(gradients(b), gradients(a))
    assert actual[1].item() == pytest.approx(expected[1].item(), rel=1e-6)
    assert max(seen) > rows
    failed = len(seen)
    accumulate_within_memory(learner, batch, 1)
    assert max(seen[failed:]) <= rows


def test_out_of_memory_without_rollouts_is_a_message(make_lm, make_prompts):
    student, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(student, teacher, objective, make_prompts(3))
    empty = [
        replace(r, ids=r.ids[:0], logp=r.logp[:0], entropy=r.entropy[:0],
                topk_ids=r.topk_ids[:0], topk_logp=r.topk_logp[:0])
        for r in batch.rollouts
    ]  # fmt: skip
    batch = Batch(empty, sft_examples=[make_example(0, (3, 4), [7, 8, 1])])
    learner = learner_of(student, teacher, objective)
    run_out_of_memory(student, RuntimeError(CPU_OOM), 0, "forward")
    with pytest.raises(UserError, match="Out of memory"):
        update(learner, batch, 0)


def test_out_of_memory_in_the_measurement_is_not_a_result(make_lm):
    lm = make_lm(0)
    run_out_of_memory(lm, RuntimeError(CPU_OOM), 0, "forward")
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        supports_prefix_cache(lm)
    assert lm.prefix_cache_works is None


def test_processes_agree_before_they_plan(make_lm, tmp_path):
    class Two(Ranks):
        def any_rank(self, condition: bool) -> bool:
            wishes.append(condition)
            return True  # the other one cannot

        def smallest(self, value: int) -> int:
            return value

    cfg = config.parse(demo_config(tmp_path))
    lm, wishes = make_lm(0), []
    pair = SimpleNamespace(student=lm, teacher=None)
    learner = make_learner(Models(cfg, OBJECTIVES["paper"], pair, None), None, Two(0, 2))
    assert wishes == [False]
    assert not supports_prefix_cache(learner.student)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_embeddings_that_depend_on_the_call_are_refused(kind):
    # Prompt and response are two calls: where the second exceeds the original context, its keys are
    # rotated in another way than the prompt's. No short measurement shows that.
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                 "original_max_position_embeddings": 16}  # fmt: skip
    given_ = SMALL | {"rope_parameters": rope, "max_position_embeddings": 16}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given_)).eval()
    assert not supports_prefix_cache(LM(model, VOCAB, kind))


def test_longrope_ends_where_rows_would_depend_on_their_micro_batch():
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0,
            "short_factor": [1.0] * 4, "long_factor": [9.0] * 4,
            "original_max_position_embeddings": 16}  # fmt: skip
    given_ = SMALL | {"rope_parameters": rope, "max_position_embeddings": 64}
    lm = LM(transformers.LlamaForCausalLM(transformers.LlamaConfig(**given_)).eval(), VOCAB, "long")

    def first_row(width: int) -> torch.Tensor:
        ids = torch.arange(2 * width).reshape(2, width) % VOCAB
        ids[0, :12] = torch.arange(12)
        with torch.no_grad():
            return lm.hidden(ids)[0, :12]

    assert lm.context_length == 16
    torch.testing.assert_close(first_row(16), first_row(13))
    assert (first_row(17) - first_row(16)).abs().max() > 0.01  # what is kept out


def test_checkpointing_and_sharded_weights_do_not_share_prompts(make_lm):
    lm = make_lm(0)
    assert supports_prefix_cache(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers warns of deprecated names
        enable_checkpointing(lm)
        assert not supports_prefix_cache(lm)
    lm = make_lm(0)
    lm.sharded = lm.model
    assert not supports_prefix_cache(lm)


def test_a_model_that_counts_positions_by_itself_is_detected(make_lm):
    lm = make_lm(0)
    plain = lm.causal.base_model.forward

    def from_zero(*args, **kwargs):  # ignores where a response begins
        kwargs.pop("position_ids", None)
        length = kwargs["input_ids"].shape[1]
        return plain(*args, position_ids=torch.arange(length)[None], **kwargs)

    lm.causal.base_model.forward = from_zero
    assert not supports_prefix_cache(lm)


def test_a_state_space_model_does_not_share_prompts():
    config = transformers.FalconH1Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, mamba_d_ssm=16, mamba_n_heads=2,
        mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8,
    )  # fmt: skip
    model = transformers.FalconH1ForCausalLM(config).eval()
    assert not supports_prefix_cache(LM(model, VOCAB, "falcon"))


def test_gradients_of_responses_are_summed_until_the_prompts_backward(make_lm):
    lm = make_lm(0)
    prompts = PrefixCache(lm, [[3, 4, 5], [6, 7]])
    for prompt_index in ([0, 0, 1], [1, 0]):
        ids = torch.full((len(prompt_index), 4), 9)
        prompts.hidden(torch.tensor(prompt_index), ids).square().sum().backward()
    left = [x.grad for x in prompts._states]
    assert all(g is not None and g.abs().sum() > 0 for g in left)
    before = copy.deepcopy(gradients(lm)["model.embed_tokens.weight"][4])
    assert before.abs().sum() == 0  # a prompt's token: not reached yet
    prompts.backward()
    assert gradients(lm)["model.embed_tokens.weight"][4].abs().sum() > 0
