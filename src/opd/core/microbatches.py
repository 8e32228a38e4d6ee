"""Which rows are fed together: micro-batches of least padding, and prompts run once.

A row is one completion: a prompt of P tokens and the tokens fed after it (all but the last, which
predicts nothing). Costs and budgets are counted in padded tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

# Padded tokens that a pass more is worth: it reads every weight and adds every gradient. That is
# the ratio of arithmetic to memory, small on a processor (12 to 21 measured in fp32, at most 20 in
# bf16, at 135M parameters).
PASS_COST = 256
PASS_COST_CPU = 24
COPY_COST = 1 / 16  # of a token's work, for its keys and values copied to one response
COPY_ROOM = 1 / 4  # of a token's memory, for the same
MASK = 1 / 8192  # of a token, for one element of the mask that responses on shared prompts need


@dataclass(frozen=True, slots=True)
class Share:
    """What one process holds at a time: micro-batches, and the prompts they stand on.

    Attributes:
        parts: the rows of each micro-batch.
        groups: the rows of each prompt that is run once for all of them; empty where every row is
            fed whole, behind its own copy of the prompt.
    """

    parts: list[list[int]]
    groups: list[list[int]] = field(default_factory=list)

    def owners(self, part: Sequence[int]) -> list[int]:
        """For each row of a part, which of the groups it belongs to."""
        group_of = {row: group for group, rows in enumerate(self.groups) for row in rows}
        return [group_of[row] for row in part]

    def halves(self) -> list[Share]:
        """This share with half the rows at a time and half the prompts; itself at one row.

        A response alone is fed whole: on a prompt run before it, it takes more.
        """
        most = (max(map(len, self.parts)) + 1) // 2
        if not self.groups or most == max(map(len, self.parts)) == 1:
            return [Share([part]) for part in _cut(self.parts, most)]
        middle = (len(self.groups) + 1) // 2
        return [
            Share(_cut(self._parts_of(groups), most), groups)
            for groups in (self.groups[:middle], self.groups[middle:])
            if groups
        ]

    def _parts_of(self, groups: list[list[int]]) -> list[list[int]]:
        rows = {row for group in groups for row in group}
        return [mine for part in self.parts if (mine := [row for row in part if row in rows])]


def _cut(parts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Parts of at most so many rows, as even as can be."""
    found = []
    for part in parts:
        size = -(-len(part) // -(-len(part) // most))
        found += [part[first : first + size] for first in range(0, len(part), size)]
    return found


def pass_cost(device: torch.device) -> int:
    """What a pass is worth on a device."""
    return PASS_COST_CPU if device.type == "cpu" else PASS_COST


def plan(
    prompts: Sequence[tuple[int, ...]],
    fed: Sequence[int],
    budget: int,
    *,
    shared: bool,
    processes: int = 1,
    each: int = PASS_COST,
    kept: int = 1,
) -> list[Share]:
    """Rows in micro-batches of at most `budget` padded tokens: whole, or on prompts run once.

    Then equal prompts run once, and their keys and values are copied to every response instead of
    computed anew; micro-batches hold responses alone, bucketed by length. The cheaper of the two is
    taken, unless prompts run once need more memory than the budget and whole rows.

    Args:
        prompts: the token ids of each row's prompt.
        fed: tokens each row is fed after its prompt.
        budget: most padded tokens held at a time; what cannot be divided may exceed it.
        shared: whether prompts may be run once at all.
        processes: shares are dealt out to so many in turn; the longest hand counts.
        each: what a pass costs (`pass_cost`).
        kept: tokens of the budget that a token of a shared prompt takes. Without a gradient more
            than one: keys and values of all layers stay, where a pass holds one layer's.
    """
    whole = [
        Share([part])
        for part in buckets([len(p) + t for p, t in zip(prompts, fed, strict=True)], budget, each)
    ]
    rows_of = siblings(prompts)
    if not shared or len(rows_of) == len(prompts):
        return whole
    once = _prompts_once(rows_of, fed, budget, each, kept)

    def cost(shares: Sequence[Share]) -> float:
        costs = [_cost(share, prompts, fed, each) for share in shares]
        return max(sum(costs[first::processes]) for first in range(processes))

    def room(shares: Sequence[Share]) -> float:
        return max(_room(share, prompts, fed, kept) for share in shares)

    fits = room(once) <= max(budget, room(whole))
    return once if fits and cost(once) < cost(whole) else whole


def siblings(prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The rows of each prompt, in order of first appearance."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(prompts):
        rows_of.setdefault(ids, []).append(row)
    return rows_of


def _prompts_once(
    rows_of: dict[tuple[int, ...], list[int]],
    fed: Sequence[int],
    budget: int,
    each: int,
    kept: int,
) -> list[Share]:
    """As many prompts at a time as fit into the budget with all of their responses."""
    prompts, groups = list(rows_of), list(rows_of.values())
    responses = len(fed) / len(groups)
    answer = sum(fed) / len(fed)

    def held(longest: int) -> float:
        return kept * longest + responses * _response(answer, longest, COPY_ROOM)

    found = []
    for chosen in buckets([len(p) for p in prompts], budget, each, held=held):
        longest = max(len(prompts[i]) for i in chosen)
        rows = [row for i in chosen for row in groups[i]]
        parts = buckets(
            [fed[row] for row in rows],
            budget - kept * len(chosen) * longest,
            each,
            held=partial(_response, prompt=longest, copied=COPY_ROOM),
        )
        found.append(
            Share([[rows[j] for j in part] for part in parts], [groups[i] for i in chosen])
        )
    return found


def _response(fed: float, prompt: int, copied: float) -> float:
    """Tokens that a response on a shared prompt is worth, with its copies and its mask."""
    return fed + copied * prompt + MASK * fed * (prompt + fed)


def _longest(share: Share, prompts: Sequence[tuple[int, ...]]) -> int:
    return max(len(prompts[rows[0]]) for rows in share.groups)


def _cost(share: Share, prompts: Sequence[tuple[int, ...]], fed: Sequence[int], each: int) -> float:
    """Padded tokens a share is worth: what is fed, copied and masked, and its passes."""
    if not share.groups:
        return sum(
            each + len(part) * max(len(prompts[i]) + fed[i] for i in part) for part in share.parts
        )
    longest = _longest(share, prompts)
    return (each + len(share.groups) * longest) + sum(
        each + len(part) * _response(max(fed[i] for i in part), longest, COPY_COST)
        for part in share.parts
    )


def _room(share: Share, prompts: Sequence[tuple[int, ...]], fed: Sequence[int], kept: int) -> float:
    """Padded tokens a share holds at most."""
    if not share.groups:
        return max(len(part) * max(len(prompts[i]) + fed[i] for i in part) for part in share.parts)
    longest = _longest(share, prompts)
    return kept * len(share.groups) * longest + max(
        len(part) * _response(max(fed[i] for i in part), longest, COPY_ROOM) for part in share.parts
    )


def buckets(
    lengths: Sequence[int],
    budget: float,
    each: int = PASS_COST,
    *,
    held: Callable[[int], float] | None = None,
) -> list[list[int]]:
    """Indices in micro-batches of least padding, longest first.

    Splits the sorted lengths where that saves more padded tokens than a further pass costs
    (`each`); exact, by dynamic programming over the places to split.

    Args:
        lengths: tokens a row is fed as.
        budget: most padded tokens of a micro-batch; a longer row stands alone.
        each: what a pass costs (`pass_cost`).
        held: tokens a row takes of the budget, from the longest of its micro-batch; that length
            itself if not given.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best = [0] + [0] * len(order)  # least cost of the first so many
    first = [0] * (len(order) + 1)  # where the last micro-batch of that split begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        room = longest if held is None else held(longest)
        starts = range(max(0, end - max(1, int(budget // max(1, room)))), end)
        costs = [best[b] + (end - b) * longest + each for b in starts]
        best[end] = min(costs)
        first[end] = starts[costs.index(best[end])]
    found, end = [], len(order)
    while end:
        found.append(order[first[end] : end])
        end = first[end]
    return found


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length so that rows x longest stays within `budget` (at least one row)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
