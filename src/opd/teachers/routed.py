"""Several teachers as one: each prompt goes to its own, or to a mixture of some.

The mixture is exact on the tokens that are asked for, from every teacher's normalised log-probs:
log sum_k w_k q_k(v). Its own most probable tokens are not known from theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from opd.data.routes import Route
from opd.teachers.remote import TeacherDown
from opd.types import Kind, Rollout, Scores, Teacher, Want

LogitsOf = Callable[[Tensor], Tensor]
Part = tuple[float, Teacher]


class MixedTeacher:
    """`opd.types.Teacher` whose distribution is the weighted mean of several teachers'."""

    def __init__(self, label: str, parts: Sequence[Part]) -> None:
        """Make a mixture.

        Args:
            label: its name.
            parts: weights that sum to 1, and teachers.
        """
        self.name, self.parts = label, list(parts)
        common = frozenset.intersection(*(teacher.kinds for _, teacher in parts))
        self.kinds = common - {Kind.TOPK}

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; the mixture's own top tokens are never among the scores.

        Raises:
            TeacherDown: a teacher stays away; with the mixtures of which every part is known.
            ValueError: a teacher gave no normaliser.
        """
        asked = want._replace(sampled=True, topk=0, view=None)
        each: list[list[Scores]] = []
        logs = np.log([weight for weight, _ in self.parts])
        for _, teacher in self.parts:
            try:
                each.append(teacher.score(rollouts, asked))
            except TeacherDown as down:
                known = zip(*each, down.partial, strict=True)
                is_last = len(each) + 1 == len(self.parts)
                partial = [
                    self._mix(logs, [*others, last], want) if is_last and last else None
                    for *others, last in known
                ]
                raise TeacherDown(str(down), partial) from None
        return [self._mix(logs, parts, want) for parts in zip(*each, strict=True)]

    def _mix(self, logs: np.ndarray, parts: Sequence[Scores], want: Want) -> Scores:
        sampled = [p.sampled for p in parts]
        if any(x is None for x in sampled):
            raise ValueError(f"a teacher of {self.name} gave no normalised log-probs")
        support = log_z = None
        if want.support:
            support = _log_mean(logs, [_normalised(p) for p in parts])
            log_z = np.zeros(len(support), support.dtype)
        hidden = [p.hidden for p in parts if p.hidden is not None]
        together = len(hidden) == len(parts)
        return Scores(
            sampled=_log_mean(logs, [x for x in sampled if x is not None]),
            support=support,
            log_z=log_z,
            positions=parts[0].positions,
            hidden=torch.cat([h.to(hidden[0]) for h in hidden], dim=1) if together else None,
        )


def mixed_logits(parts: Sequence[tuple[float, int, LogitsOf]]) -> LogitsOf:
    """Log-probs (n, V) of a mixture, from the hidden states of its teachers side by side.

    Args:
        parts: weight, width of the hidden states, and head of each teacher.
    """

    def logits_of(hidden: Tensor) -> Tensor:
        pieces = torch.split(hidden, [width for _, width, _ in parts], dim=1)
        logs = [
            head(piece).float().log_softmax(-1) + float(np.log(weight))
            for piece, (weight, _, head) in zip(pieces, parts, strict=True)
        ]
        return torch.stack(logs).logsumexp(0)

    return logits_of


class RoutedTeacher:
    """`opd.types.Teacher` that sends each rollout to the teacher of its prompt."""

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        routes: Mapping[int, Route],
        *,
        parallel: bool = False,
    ) -> None:
        """Make a teacher.

        Args:
            teachers: by the label of a route, mixtures included.
            routes: by `Prompt.index`.
            parallel: ask them at once; for servers.
        """
        self.teachers, self.routes, self.parallel = teachers, routes, parallel
        self.name = ", ".join(teachers)
        self.kinds = frozenset.intersection(*(t.kinds for t in teachers.values()))

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`.

        Raises:
            TeacherDown: one of them stays away; what the others scored is in it.
        """
        groups: dict[str, list[int]] = {}
        for i, rollout in enumerate(rollouts):
            groups.setdefault(self.routes[rollout.prompt.index].label, []).append(i)
        scores: list[Scores | None] = [None] * len(rollouts)
        failures: list[TeacherDown] = []

        def ask(label: str) -> None:
            indices = groups[label]
            answers: Sequence[Scores | None]
            try:
                answers = self.teachers[label].score(
                    [rollouts[i] for i in indices], want.of_rollouts(indices)
                )
            except TeacherDown as down:
                failures.append(down)
                answers = down.partial
            for i, answer in zip(indices, answers, strict=False):
                scores[i] = answer

        if self.parallel and len(groups) > 1:
            with ThreadPoolExecutor(len(groups)) as pool:
                list(pool.map(ask, groups))
        else:
            for label in groups:
                ask(label)
        if failures:
            raise TeacherDown(str(failures[0]), scores)
        return [score for score in scores if score is not None]


def _normalised(scores: Scores) -> np.ndarray:
    if scores.support is None or scores.log_z is None:
        raise ValueError("a teacher gave no normalised log-probs on the student's tokens")
    return np.asarray(scores.support - scores.log_z[:, None])


def _log_mean(logs: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the weighted mean of probabilities, in the dtype of the first."""
    stacked = np.stack([p.astype(np.float64) + w for p, w in zip(parts, logs, strict=True)])
    return np.asarray(np.logaddexp.reduce(stacked, axis=0).astype(parts[0].dtype))
