"""The sampler against `generate`, against exact distributions, and against itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from opd.errors import UserError
from opd.samplers.hf import (
    ROWS,
    SHORT_ROWS,
    Decoding,
    HFSampler,
    batch_rows,
    observe_samples,
)
from opd.samplers.sampling import draw, invert_cdf, truncate
from opd.types import Prompt
from support.default_device import DefaultDevice

END = 1


def sampler(lm, *, length=12, temperature=1.0, stop=frozenset({END}), **kwargs):
    decoding = {k: kwargs.pop(k) for k in ("top_p",) if k in kwargs}
    return HFSampler(lm, Decoding(length, temperature, **decoding), stop=stop, capture=5, **kwargs)


def fresh_logp(lm, rollout):
    """Log-distribution (T, V) at each completion position by one plain forward."""
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]])
    first = len(rollout.prompt.ids) - 1
    with torch.no_grad():
        logits = lm.causal(ids).logits[0, first : first + len(rollout)]
    return torch.log_softmax(logits.double(), -1)


@pytest.mark.parametrize("tie", [True, False])
def test_greedy_ids_equal_generate(make_lm, make_prompts, tie):
    lm = make_lm(3, tie=tie)
    prompts = make_prompts(2, 9, 5, 7)
    rollouts = sampler(lm, temperature=0.0).sample(prompts, n=1, key=(0,))
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt.ids])
        out = lm.causal.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=END,
            eos_token_id=END,
        )[0, ids.shape[1] :]
        assert rollout.ids.tolist() == out.tolist()


def test_ids_do_not_depend_on_the_batch(make_lm, make_prompts):
    lm, prompts = make_lm(1), make_prompts(3, 11, 6, 4, 8)
    together = sampler(lm, batch=64).sample(prompts, n=3, key=(7, 1))
    apart = {
        (r.prompt.index, r.sample): r
        for batch, order in ((1, prompts[::-1]), (4, prompts[2:] + prompts[:2]))
        for r in sampler(lm, batch=batch).sample(order, n=3, key=(7, 1))
    }
    for rollout in together:
        other = apart[rollout.prompt.index, rollout.sample]
        assert rollout.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(rollout.logp, other.logp, atol=1e-12)


def test_order_is_prompts_then_samples(make_lm, make_prompts):
    rollouts = sampler(make_lm(1)).sample(make_prompts(9, 2, 5), n=2, key=(0,))
    assert [(r.prompt.index, r.sample) for r in rollouts] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip


def test_another_key_writes_something_else(make_lm, make_prompts):
    one, two = (sampler(make_lm(1)).sample(make_prompts(4), n=4, key=(k,)) for k in (0, 1))
    assert [r.ids.tolist() for r in one] != [r.ids.tolist() for r in two]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_records_equal_a_fresh_forward(make_lm, make_prompts, dtype, tolerance):
    # fp32: one decode step rounds differently from a whole forward; logits here reach about 10.
    lm = make_lm(2, dtype=dtype)
    for r in sampler(lm, length=20).sample(make_prompts(3, 10), n=3, key=(0,)):
        logp = fresh_logp(lm, r)
        sampled = logp.gather(1, torch.from_numpy(r.ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(r.logp, sampled, atol=tolerance)
        np.testing.assert_allclose(r.entropy, -(logp.exp() * logp).sum(-1), atol=tolerance)
        np.testing.assert_allclose(r.topk_logp, logp.topk(5).values, atol=tolerance)
        if dtype == torch.float64:
            assert (r.topk_ids == logp.topk(5).indices.cpu().numpy()).all()


def test_short_rows_are_decoded_more_at_a_time(make_prompts):
    assert batch_rows(make_prompts(6, 4), 24) == SHORT_ROWS
    assert batch_rows(make_prompts(56), 72) == 256
    assert batch_rows(make_prompts(6), 7168) == ROWS


def test_samples_follow_the_exact_distribution(make_lm):
    # Both first tokens of 20,000 two-token completions against the enumerated joint distribution.
    # Cells expecting under 5 are pooled; false alarm rate 1e-4 by construction of the test.
    lm = make_lm(4)
    prompt = Prompt(0, (5, 9, 20), "")
    count = 20_000
    rollouts = sampler(lm, length=2, stop=frozenset(), batch=4000).sample(
        [prompt], n=count, key=(3,)
    )
    seen = np.zeros((40, 40))
    for r in rollouts:
        seen[r.ids[0], r.ids[1]] += 1
    with torch.no_grad():
        first = lm.causal(torch.tensor([prompt.ids])).logits[0, -1].double().softmax(-1)
        ids = torch.tensor([[*prompt.ids, v] for v in range(40)])
        second = lm.causal(ids).logits[:, -1].double().softmax(-1)
    expected = (first[:, None] * second).cpu().numpy() * count
    big = expected >= 5
    observed = np.append(seen[big], seen[~big].sum())
    assert chisquare(observed, np.append(expected[big], expected[~big].sum())).pvalue > 1e-4


def test_truncation_keeps_the_most_probable_tokens():
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(50, 12, generator=generator, dtype=torch.float64).log_softmax(-1)
    kept = truncate(logp.exp(), 0.6)
    for row, full in zip(kept, logp.exp(), strict=True):
        order = full.argsort(descending=True)
        count = int((row > 0).sum())
        assert (row[order[:count]] == full[order[:count]]).all()
        assert (row[order[count:]] == 0).all()
        # the smallest set whose mass reaches top_p
        assert full[order[:count]].sum() >= 0.6 > full[order[: count - 1]].sum()


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("top_p", [0.5, 0.95, 0.999])
def test_top_p_among_the_most_probable_draws_as_from_the_whole_row(scale, top_p):
    # bf16 logits have many equal values, also where the set ends; flat rows need the whole row.
    g = torch.Generator().manual_seed(1)
    logits = (torch.randn(256, 9001, generator=g) * scale).bfloat16().float()
    probs, uniforms = logits.softmax(-1), torch.rand(256, generator=g, dtype=torch.float64)
    whole = invert_cdf(truncate(probs, top_p), uniforms)
    assert torch.equal(draw(probs, uniforms, top_p), whole)
    for row in (0, 100):  # a row's token depends on that row alone
        assert draw(probs[row : row + 1], uniforms[row : row + 1], top_p) == whole[row]


def test_top_p_leaves_out_some_of_equally_probable_tokens_by_id():
    probs = torch.zeros(1, 9000)
    probs[0, 7], probs[0, 100:300] = 0.5, 0.5 / 200
    drawn = [
        draw(probs, torch.tensor([u]).double(), 0.6).item() for u in np.linspace(0, 1, 500)[:-1]
    ]
    assert set(drawn) == {7, *range(100, 140)}


def test_tokens_are_where_their_probabilities_are():
    """Tests of the suite on a GPU make what names no device there; sampling on the CPU broke."""
    probs = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).softmax(-1)
    uniforms = torch.linspace(0, 0.9, 4, dtype=torch.float64)
    with DefaultDevice("meta"):
        drawn = draw(probs, uniforms, 0.6)
    assert drawn.device.type == "cpu"


def test_inverse_cdf_never_draws_an_impossible_token():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    edges = torch.tensor([0.0, 0.2499999, 0.25, 1 - 2**-53], dtype=torch.float64)
    sampled = [invert_cdf(probs, u[None]).item() for u in edges]
    assert sampled == [1, 1, 3, 3]


@pytest.mark.parametrize("vocab", [1, 5, 127, 128, 129, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_by_blocks_is_that_of_the_whole_row(vocab, dtype):
    g = torch.Generator().manual_seed(vocab)
    probs = (torch.randn(64, vocab, generator=g, dtype=dtype) * 4).softmax(-1)
    probs[::2] = torch.where(probs[::2] < probs[::2].mean(-1, keepdim=True), 0, probs[::2])
    u = torch.rand(64, generator=g, dtype=torch.float64)
    u[0], u[1] = 0, 1 - 2**-53
    cdf = probs.cumsum(-1, dtype=torch.float64)
    expected = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).squeeze(1)
    tokens = invert_cdf(probs, u)
    assert torch.equal(tokens, expected.clamp(max=vocab - 1))
    assert (probs.gather(1, tokens[:, None]) > 0).all()


def test_stop_token_ends_and_is_part_of_the_completion(make_lm, make_prompts):
    rollouts = sampler(make_lm(0), length=40).sample(make_prompts(4, 6), n=16, key=(0,))
    ended = [r for r in rollouts if r.finish == "stop"]
    assert 0 < len(ended) < len(rollouts)  # the fixture must show both
    for r in rollouts:
        assert (r.ids[:-1] != END).all()
        assert (r.ids[-1] == END) == (r.finish == "stop")
        assert r.finish == "stop" or len(r) == 40


def test_one_token_completions(make_lm, make_prompts):
    lm = make_lm(0)
    for r in sampler(lm, length=1).sample(make_prompts(1, 5), n=2, key=(0,)):
        assert len(r) == 1
        expected = fresh_logp(lm, r)[0, r.ids[0]]
        np.testing.assert_allclose(r.logp[0], expected, atol=1e-10)


def test_end_token_inside_a_prompt_does_not_matter(make_lm):
    # pad == eos models: the id says nothing about where a prompt ends.
    lm = make_lm(1)
    inside = Prompt(0, (END, 7, END, 9), "")
    (alone,) = sampler(lm).sample([inside], n=1, key=(0,))
    (beside, _) = sampler(lm).sample([inside, Prompt(1, (3,) * 9, "")], n=1, key=(0,))
    assert alone.ids.tolist() == beside.ids.tolist()


def test_sync_marks_rollouts_with_the_version(make_lm, make_prompts):
    hf_sampler = sampler(make_lm(0))
    hf_sampler.sync(17)
    assert {r.version for r in hf_sampler.sample(make_prompts(3), n=2, key=(0,))} == {17}


def test_an_observer_gets_what_any_sampler_samples_while_it_observes(make_lm, make_prompts):
    lm, prompts, seen = make_lm(), make_prompts(4, 5), []
    with observe_samples(lambda rollouts, key: seen.append((list(rollouts), key))):
        first = sampler(lm).sample(prompts, n=2, key=(0, 1))
        second = sampler(lm, length=3).sample(prompts, n=1, key=(2,))
    sampler(lm).sample(prompts, n=1, key=(3,))
    assert [key for _, key in seen] == [(0, 1), (2,)]
    assert [rollouts for rollouts, _ in seen] == [first, second]


def test_a_prompt_that_comes_twice_is_sampled_anew(make_lm, make_prompts):
    # A step may cross from one pass over the prompts into the next.
    prompt, other = make_prompts(4, 6)
    rollouts = sampler(make_lm(1)).sample([prompt, other, prompt], n=2, key=(0,))
    assert [r.sample for r in rollouts] == [0, 1, 0, 1, 2, 3]
    written = [tuple(r.ids.tolist()) for r in rollouts if r.prompt.index == 0]
    assert len(set(written)) == 4


def test_logits_that_are_not_finite_are_an_error(make_lm, make_prompts):
    lm = make_lm(0)
    lm.causal.get_input_embeddings().weight.data[7] = torch.nan
    poisoned = Prompt(0, (5, 7), "")
    with pytest.raises(UserError, match="not finite"):
        sampler(lm).sample([*make_prompts(3), poisoned], n=1, key=(0,))
