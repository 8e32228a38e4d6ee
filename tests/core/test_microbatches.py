"""Plans of micro-batches: every row once, within the budget, prompts shared where cheaper."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from opd.core.microbatches import Budget, MicroBatchGroup, plan_microbatches, token_batches


@st.composite
def steps(draw):
    group = st.tuples(st.integers(1, 300), st.integers(1, 6))
    groups = draw(st.lists(group, min_size=1, max_size=8))
    prompts, inputs = [], []
    for i, (length, n) in enumerate(groups):
        prompts += [tuple([i] * length)] * n
        inputs += draw(st.lists(st.integers(0, 400), min_size=n, max_size=n))
    order = draw(st.permutations(range(len(inputs))))
    return [prompts[i] for i in order], [inputs[i] for i in order]


@given(steps(), st.sampled_from([1, 300, 1000, 8192]), st.booleans(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_a_plan_holds_every_row_once_beside_its_prompt(step, max_tokens, shared, processes):
    prompts, inputs = step
    groups = plan_microbatches(
        prompts, inputs, Budget(max_tokens), share_prompts=shared, processes=processes
    )
    assert sorted(rows_of(groups)) == list(range(len(inputs)))
    for group in groups:
        check(group, prompts, inputs, max_tokens)
        halves, largest = group.split(), max(map(len, group.microbatches))
        assert max(len(p) for h in halves for p in h.microbatches) <= max(1, (largest + 1) // 2)
        assert sorted(rows_of(halves)) == sorted(rows_of([group]))
        for half in halves:
            check(half, prompts, inputs, max_tokens)


def rows_of(groups: list[MicroBatchGroup]) -> list[int]:
    return [row for group in groups for part in group.microbatches for row in part]


def check(group: MicroBatchGroup, prompts, inputs, max_tokens) -> None:
    for part in group.microbatches:
        assert part
        if not group.prompt_rows:
            longest = max(len(prompts[i]) + inputs[i] for i in part)
            assert len(part) == 1 or len(part) * longest <= max_tokens
            continue
        for row, prompt in zip(part, group.prompt_index(part), strict=True):
            assert prompts[row] == prompts[group.prompt_rows[prompt][0]]
        held = len(group.prompt_rows) * max(len(prompts[g[0]]) for g in group.prompt_rows)
        held += len(part) * max(inputs[i] for i in part)
        alone = max(len(prompts[i]) + inputs[i] for i in range(len(inputs)))
        assert held <= max(max_tokens, alone)


def test_prompts_run_once_where_that_is_cheaper_and_only_there():
    def once(prompt, n, length, **given):
        prompts = [tuple([i] * prompt) for i in range(8) for _ in range(n)]
        groups = plan_microbatches(prompts, [length] * len(prompts), Budget(8192), **given)
        (kind,) = {bool(g.prompt_rows) for g in groups}
        return kind

    assert once(100, 4, 100, share_prompts=True)
    assert not once(100, 4, 100, share_prompts=False)
    assert not once(100, 1, 100, share_prompts=True)  # nothing to share
    assert not once(4, 4, 16, share_prompts=True)  # a pass more costs more
    assert not once(20, 2, 2000, share_prompts=True)  # prompts are next to nothing


def test_groups_are_dealt_out_so_that_nobody_is_idle():
    # One group of everything is the least work, and leaves the second process without any.
    prompts = [tuple([i] * 100) for i in range(8) for _ in range(4)]
    alone, two = (
        plan_microbatches(
            prompts, [100] * len(prompts), Budget(4000), share_prompts=True, processes=n
        )
        for n in (1, 2)
    )
    work = [len(rows_of(two[rank::2])) for rank in (0, 1)]
    assert alone[0].prompt_rows
    assert min(work) > 0
    assert all(a >= b for a, b in pairwise(work))


def test_token_batches_keep_the_budget_unless_one_row_exceeds_it():
    lengths = [5, 3, 30, 8, 8, 2]
    for part in token_batches(lengths, 16):
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 16
