"""How the rows of a step are put into micro-batches: least padding, shared prompts computed once.

A row is one completion: a prompt of P tokens and the response tokens that are inputs (all but the
last, which predicts nothing). Costs and budgets are counted in padded tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

# Padded tokens that one more forward-backward costs: it reads every weight and adds every gradient.
# That is the ratio of arithmetic to memory bandwidth, small on a CPU (12 to 21 measured in fp32, at
# most 20 in bf16, at 135M parameters).
PASS_OVERHEAD = 256
PASS_OVERHEAD_CPU = 24
COPY_COST = 1 / 16  # of a token's work, for its keys and values copied to one response
COPY_MEMORY = 1 / 4  # of a token's memory, for the same
MASK_ELEMENT = 1 / 8192  # of a token, for an element of the mask that shared prompts need


class Budget(NamedTuple):
    """Limit and costs of micro-batches, in padded tokens.

    Attributes:
        tokens: most tokens held at a time; what cannot be divided may exceed it.
        overhead: what one more forward-backward costs (`pass_overhead`).
        cached_token: what a token of a shared prompt takes of `tokens`. Without a gradient more
            than one: keys and values of all layers stay, where a pass holds those of one layer.
    """

    tokens: int
    overhead: int = PASS_OVERHEAD
    cached_token: int = 1


@dataclass(frozen=True, slots=True)
class MicroBatchGroup:
    """What one process holds at a time: micro-batches, and the prompts that they share.

    Attributes:
        microbatches: the rows of each micro-batch.
        prompt_rows: the rows of each prompt that is computed once for all of them; empty where
            every row holds its own copy of the prompt.
    """

    microbatches: list[list[int]]
    prompt_rows: list[list[int]] = field(default_factory=list)

    def prompt_index(self, rows: Sequence[int]) -> list[int]:
        """For each of some rows, which of `prompt_rows` it belongs to."""
        prompt_of = {row: index for index, own in enumerate(self.prompt_rows) for row in own}
        return [prompt_of[row] for row in rows]

    def split(self) -> list[MicroBatchGroup]:
        """This group with half the rows at a time and half the prompts; itself at one row.

        A single response holds its own prompt: a shared one would take more memory.
        """
        largest = max(map(len, self.microbatches))
        half = (largest + 1) // 2
        if not self.prompt_rows or half == largest == 1:
            return [MicroBatchGroup([rows]) for rows in _chunks(self.microbatches, half)]
        middle = (len(self.prompt_rows) + 1) // 2
        return [
            MicroBatchGroup(_chunks(self._microbatches_of(prompt_rows), half), prompt_rows)
            for prompt_rows in (self.prompt_rows[:middle], self.prompt_rows[middle:])
            if prompt_rows
        ]

    def _microbatches_of(self, prompt_rows: list[list[int]]) -> list[list[int]]:
        chosen = {row for rows in prompt_rows for row in rows}
        parts = [[row for row in rows if row in chosen] for rows in self.microbatches]
        return [rows for rows in parts if rows]


def _chunks(microbatches: Sequence[list[int]], max_rows: int) -> list[list[int]]:
    """Micro-batches of at most `max_rows` rows, as even as can be."""
    chunks = []
    for rows in microbatches:
        size = -(-len(rows) // -(-len(rows) // max_rows))
        chunks += [rows[first : first + size] for first in range(0, len(rows), size)]
    return chunks


def pass_overhead(device: torch.device) -> int:
    """What one more forward-backward costs on a device, in padded tokens."""
    return PASS_OVERHEAD_CPU if device.type == "cpu" else PASS_OVERHEAD


def plan_microbatches(
    prompts: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    budget: Budget,
    *,
    share_prompts: bool,
    processes: int = 1,
) -> list[MicroBatchGroup]:
    """Rows in micro-batches within a budget: each with its own prompt, or with shared prompts.

    Equal prompts are then computed once, and their keys and values copied to every response;
    micro-batches hold responses alone, bucketed by length. The cheaper of the two is taken, unless
    shared prompts need more memory than both the budget and rows with their own prompts.

    Args:
        prompts: the token ids of each row's prompt.
        lengths: number of input tokens of each row after its prompt.
        budget: limit and costs.
        share_prompts: whether prompts may be shared at all.
        processes: groups are dealt to so many in turn; the slowest counts.
    """
    totals = [len(p) + t for p, t in zip(prompts, lengths, strict=True)]
    separate = [MicroBatchGroup([rows]) for rows in buckets(totals, budget.tokens, budget.overhead)]
    rows_of = rows_by_prompt(prompts)
    if not share_prompts or len(rows_of) == len(prompts):
        return separate
    shared = _with_shared_prompts(rows_of, lengths, budget)

    def cost(groups: Sequence[MicroBatchGroup]) -> float:
        costs = [_cost(group, prompts, lengths, budget) for group in groups]
        return max(sum(costs[first::processes]) for first in range(processes))

    def memory(groups: Sequence[MicroBatchGroup]) -> float:
        return max(_memory(group, prompts, lengths, budget) for group in groups)

    fits = memory(shared) <= max(budget.tokens, memory(separate))
    return shared if fits and cost(shared) < cost(separate) else separate


def rows_by_prompt(prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The rows of each prompt, in order of first appearance."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(prompts):
        rows_of.setdefault(ids, []).append(row)
    return rows_of


def _with_shared_prompts(
    rows_of: dict[tuple[int, ...], list[int]], lengths: Sequence[int], budget: Budget
) -> list[MicroBatchGroup]:
    """As many prompts at a time as fit into the budget with all of their responses."""
    prompts, rows_of_prompt = list(rows_of), list(rows_of.values())
    responses = len(lengths) / len(prompts)
    mean_length = sum(lengths) / len(lengths)

    def prompt_memory(longest: int) -> float:
        response = _response_tokens(mean_length, longest, COPY_MEMORY)
        return budget.cached_token * longest + responses * response

    groups = []
    prompt_lengths = [len(p) for p in prompts]
    for chosen in buckets(prompt_lengths, budget.tokens, budget.overhead, memory=prompt_memory):
        longest = max(prompt_lengths[i] for i in chosen)
        rows = [row for i in chosen for row in rows_of_prompt[i]]
        microbatches = buckets(
            [lengths[row] for row in rows],
            budget.tokens - budget.cached_token * len(chosen) * longest,
            budget.overhead,
            memory=partial(_response_tokens, prompt=longest, copied=COPY_MEMORY),
        )
        groups.append(
            MicroBatchGroup(
                [[rows[j] for j in microbatch] for microbatch in microbatches],
                [rows_of_prompt[i] for i in chosen],
            )
        )
    return groups


def _response_tokens(length: float, prompt: int, copied: float) -> float:
    """Tokens that a response to a shared prompt counts as, with its copied keys and its mask."""
    return length + copied * prompt + MASK_ELEMENT * length * (prompt + length)


def _longest_prompt(group: MicroBatchGroup, prompts: Sequence[tuple[int, ...]]) -> int:
    return max(len(prompts[rows[0]]) for rows in group.prompt_rows)


def _cost(
    group: MicroBatchGroup,
    prompts: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    budget: Budget,
) -> float:
    """The work of a group in padded tokens: inputs, copies, masks and passes."""
    overhead = budget.overhead
    if not group.prompt_rows:
        return sum(
            overhead + len(rows) * max(len(prompts[i]) + lengths[i] for i in rows)
            for rows in group.microbatches
        )
    longest = _longest_prompt(group, prompts)
    return (overhead + len(group.prompt_rows) * longest) + sum(
        overhead + len(rows) * _response_tokens(max(lengths[i] for i in rows), longest, COPY_COST)
        for rows in group.microbatches
    )


def _memory(
    group: MicroBatchGroup,
    prompts: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    budget: Budget,
) -> float:
    """Most padded tokens that a group holds at a time."""
    if not group.prompt_rows:
        return max(
            len(rows) * max(len(prompts[i]) + lengths[i] for i in rows)
            for rows in group.microbatches
        )
    longest = _longest_prompt(group, prompts)
    return budget.cached_token * len(group.prompt_rows) * longest + max(
        len(rows) * _response_tokens(max(lengths[i] for i in rows), longest, COPY_MEMORY)
        for rows in group.microbatches
    )


def buckets(
    lengths: Sequence[int],
    max_tokens: float,
    overhead: int = PASS_OVERHEAD,
    *,
    memory: Callable[[int], float] | None = None,
) -> list[list[int]]:
    """Row indices in micro-batches of least padding, longest first.

    Splits the sorted lengths where that saves more padded tokens than one more pass costs; exact,
    by dynamic programming over the indices to split at.

    Args:
        lengths: input tokens of each row.
        max_tokens: most padded tokens of a micro-batch; a longer row is alone.
        overhead: what one more pass costs (`pass_overhead`).
        memory: tokens that a row takes of `max_tokens`, from the longest length of its micro-batch;
            None: that length.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best = [0] + [0] * len(order)  # least cost of the first so many rows
    first = [0] * (len(order) + 1)  # index where the last micro-batch of that split begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        per_row = longest if memory is None else memory(longest)
        starts = range(max(0, end - max(1, int(max_tokens // max(1, per_row)))), end)
        costs = [best[start] + (end - start) * longest + overhead for start in starts]
        best[end] = min(costs)
        first[end] = starts[costs.index(best[end])]
    microbatches, end = [], len(order)
    while end:
        microbatches.append(order[first[end] : end])
        end = first[end]
    return microbatches


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices, by length, in batches of rows x longest <= `max_tokens` (at least one row)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
