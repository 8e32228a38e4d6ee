"""The supervised step against a naive float64 reference; splits, order and refusal."""

import itertools
import logging
from itertools import islice

import numpy as np
import pytest
import torch

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.microbatches import PASS_OVERHEAD, buckets
from opd.data.sft_examples import make_example
from opd.errors import UserError
from opd.recipes.sft import sft
from opd.training.gradient import completion_loss
from opd.training.optimizer import NonFiniteStep, learning_rate
from support.updates import CPU_OOM, run_out_of_memory

FLOAT64_SUM = 1e-10  # a few hundred float64 terms, head and backbone in two orders
LENGTHS = [(1, 1), (7, 2), (3, 9), (2, 4), (5, 1)]  # prompt, completion


def examples(seed=0, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    return [
        make_example(i, rng.integers(3, 40, p).tolist(), rng.integers(3, 40, c).tolist())
        for i, (p, c) in enumerate(lengths)
    ]


def naive_loss(model, rows):
    """Mean of -log p over completion tokens, one sequence at a time, in probability space."""
    terms = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.ids, *row.ids.tolist()]])
        probabilities = model(input_ids=ids).logits[0].softmax(-1)
        for place in range(len(row.prompt.ids), ids.shape[1]):
            terms.append(-probabilities[place - 1, ids[0, place]].log())
    return torch.stack(terms).mean()


def test_loss_and_gradient_equal_the_naive_ones(make_lm):
    lm = make_lm()
    batch = Batch(examples())
    (indices,) = batch.split(10**6)
    loss = completion_loss(lm, batch.microbatch(indices, lm.device, k=1)) / batch.num_tokens
    loss.backward()
    found = {name: p.grad.clone() for name, p in lm.parameters().items()}
    lm.model.zero_grad()
    expected = naive_loss(lm.model, examples())
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=FLOAT64_SUM)
    for name, p in lm.parameters().items():
        torch.testing.assert_close(found[name], p.grad, rtol=0, atol=FLOAT64_SUM)


def test_prompt_tokens_are_read_but_not_learned(make_lm):
    """Changing a prompt changes the loss; its own tokens add no term to it."""
    lm = make_lm()
    (loss,) = sft(lm, examples(lengths=[(6, 1)]), steps=1, batch=1, optim=Optim(lr=1e-12))
    (row,) = examples(lengths=[(6, 1)])
    ids = torch.tensor([row.prompt.ids])
    expected = -lm.model(input_ids=ids).logits[0, -1].log_softmax(-1)[row.ids[0]].item()
    assert loss == pytest.approx(expected, abs=1e-9)
    (other,) = examples(seed=1, lengths=[(6, 1)])
    moved = make_example(0, other.prompt.ids, row.ids.tolist())
    (changed,) = sft(make_lm(), [moved], steps=1, batch=1, optim=Optim(lr=1e-12))
    assert abs(changed - loss) > 0.01


@pytest.mark.parametrize("budget", [1, 12, 30, 10**6])
def test_no_split_into_microbatches_changes_the_update(make_lm, budget):
    def trained(tokens):
        lm = make_lm()
        losses = list(
            sft(
                lm, examples(), steps=3, batch=5, optim=Optim(lr=1e-2), tokens_per_microbatch=tokens
            )
        )
        return losses, lm.parameters()

    losses, weights = trained(budget)
    expected_losses, expected = trained(25)
    assert losses == pytest.approx(expected_losses, abs=FLOAT64_SUM)
    for name, weight in weights.items():
        # AdamW divides by a root of the squared gradient: 1e-10 there may be 1e-8 here.
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-8)


def every_split(count):
    """All ways to cut `count` things in a row into pieces."""
    for cuts in itertools.product([False, True], repeat=count - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), count]
        yield [range(a, b) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [40, 700, 10**6])
def test_buckets_pad_least_of_all_splits(seed, budget):
    lengths = np.random.default_rng(seed).integers(1, 300, 8).tolist()
    ordered = sorted(lengths)

    def cost(parts):
        return sum(len(p) * max(p) + PASS_OVERHEAD for p in parts)

    allowed = [
        [[ordered[i] for i in part] for part in split]
        for split in every_split(8)
        if all(len(part) == 1 or len(part) * ordered[part[-1]] <= budget for part in split)
    ]
    found = buckets(lengths, budget)
    assert sorted(i for part in found for i in part) == [*range(8)]
    assert cost([[lengths[i] for i in part] for part in found]) == min(map(cost, allowed))
    assert all(len(p) == 1 or len(p) * max(lengths[i] for i in p) <= budget for p in found)


def test_learns_and_is_the_same_run_twice(make_lm):
    def run():
        lm = make_lm(dtype=torch.float32)
        return list(sft(lm, examples(), steps=40, optim=Optim(lr=1e-2, warmup=4), batch=3))

    first, second = run(), run()
    assert first == second
    assert first[-1] < first[0] / 10


def test_leaving_early_equals_a_shorter_run(make_lm):
    early, short = make_lm(), make_lm()
    optim = Optim(lr=1e-2)
    losses = list(islice(sft(early, examples(), steps=50, optim=optim), 3))
    assert losses == list(sft(short, examples(), steps=3, optim=optim))
    for name, weight in early.parameters().items():
        assert torch.equal(weight, short.parameters()[name])


def test_rate_warms_up_then_falls_to_zero():
    warm = [learning_rate(1.0, s, 4, "cosine", 104) for s in range(105)]
    assert warm[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm[54] == pytest.approx(0.5)
    assert warm[104] == pytest.approx(0.0)
    assert learning_rate(1.0, 90, 4) == 1.0


def test_nonfinite_loss_never_reaches_the_weights(make_lm):
    lm = make_lm()
    with torch.no_grad():
        lm.head.weight[7] = float("inf")
    before = {name: p.detach().clone() for name, p in lm.parameters().items()}
    with pytest.raises(NonFiniteStep, match="supervised step 1"):
        list(sft(lm, examples(), steps=2, optim=Optim(lr=1e-2)))
    for name, weight in lm.parameters().items():
        assert torch.equal(weight, before[name])


def test_memory_that_runs_out_cuts_micro_batches_for_good(make_lm, caplog):
    plain, cut = make_lm(), make_lm()
    given = {"steps": 2, "batch": 8, "optim": Optim(lr=1e-2)}
    wanted = list(sft(plain, examples(), **given))
    seen = run_out_of_memory(cut, RuntimeError(CPU_OOM), 2, "backward")
    with caplog.at_level(logging.WARNING):
        found = list(sft(cut, examples(), **given))
    assert found == pytest.approx(wanted, rel=1e-9)
    for name, weight in plain.parameters().items():
        torch.testing.assert_close(cut.parameters()[name], weight, atol=1e-9, rtol=1e-9)
    assert max(seen) > 2
    assert [r.message.count("supervised step 1") for r in caplog.records] == [1] * len(
        caplog.records
    )
    run_out_of_memory(cut, RuntimeError(CPU_OOM), 0, "forward")
    with pytest.raises(UserError, match="Out of memory in supervised step 1, at 1 rows"):
        list(sft(cut, examples(), **given))


@pytest.mark.parametrize("wrong", [[], [make_example(0, [3], [])]])
def test_nothing_to_learn_is_an_error(make_lm, wrong):
    with pytest.raises(ValueError, match="non-empty completion"):
        list(sft(make_lm(), wrong, steps=1, optim=Optim(lr=1e-2)))
