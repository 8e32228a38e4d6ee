"""Which teacher scores which prompt: by its file, or by its row's own column.

A route is one teacher, or several with weights: their mixture on the same prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd.data.readers import Row
from opd.errors import UserError

COLUMN = "teacher"

Named = str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Route:
    """Who scores a prompt.

    Attributes:
        parts: (name, weight) by name; the weights sum to 1.
    """

    parts: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """Name in metrics: of the teacher, or of all with their weights."""
        if len(self.parts) == 1:
            return self.parts[0][0]
        return "+".join(f"{name}:{weight:g}" for name, weight in self.parts)


def make_route(named: Named, known: Collection[str], location: str) -> Route:
    """A route from a name, or from names with weights.

    Args:
        named: as in the configuration or a row; None where neither says anything.
        known: names of the teachers.
        location: of what named them, for messages.

    Raises:
        UserError: nobody is named, a name is unknown, or a weight is none.
    """
    choices = ", ".join(known)
    if named is None or named == "" or named == {}:
        if len(known) == 1:
            return Route(((next(iter(known)), 1.0),))
        raise UserError(
            f"{location}: no teacher is named, and there are {len(known)} ({choices}). Give "
            "prompts.files.N.teacher, or the row a column `teacher`."
        )
    weights = {named: 1.0} if isinstance(named, str) else named
    if not isinstance(weights, Mapping):
        raise UserError(
            f"{location}: a teacher is a name, or names with weights such as "
            f'{{"math": 0.5, "code": 0.5}}; found {json.dumps(named)[:80]}.'
        )
    for name, weight in weights.items():
        if name not in known:
            raise UserError(f"{location}: {name!r} is no teacher of this run. It has {choices}.")
        positive = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not positive or not 0 < weight < float("inf"):
            raise UserError(
                f"{location}: the weight of {name!r} is {weight!r}; it must be above 0."
            )
    total = sum(weights.values())
    return Route(tuple((name, float(w) / total) for name, w in sorted(weights.items())))


def route_rows(
    rows: Sequence[Row], default: Named, known: Collection[str], location: str
) -> dict[int, Route]:
    """The route of every row of a file, by its index.

    Raises:
        UserError: see `make_route`.
    """
    routes = {}
    for row in rows:
        own = row.values.get(COLUMN)
        named, where = (own, row.location) if own is not None else (default, location)
        routes[row.index] = make_route(named, known, where)
    return routes


def digest_routes(routes: Mapping[int, Route]) -> str:
    """sha256 over index and route of every prompt."""
    plain = [[index, route.parts] for index, route in sorted(routes.items())]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
