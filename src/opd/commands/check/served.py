"""A check that waits for servers: progress is shown and the deadline holds while they work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd.commands.check.candidates import Candidate
from opd.commands.check.watch import Watch
from opd.config import ServerTeacher
from opd.samplers.decoding import Decoding
from opd.samplers.sampling import MakeSampler
from opd.types import Prompt, Rollout, Sampler, Scores, Teacher, Want


class WatchedTeacher:
    """A teacher server, waited for under a watch."""

    def __init__(self, teacher: Teacher, watch: Watch) -> None:
        """Wrap it.

        Args:
            teacher: the server.
            watch: of the check.
        """
        self.name, self.kinds = teacher.name, teacher.kinds
        self._teacher, self._watch = teacher, watch

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`.

        Raises:
            OutOfTime: the deadline passed meanwhile.
        """
        return self._watch.during(lambda: self._teacher.score(rollouts, want))


@dataclass(frozen=True)
class WatchedSampler:
    """A server that generates, waited for under a watch.

    Attributes:
        sampler: of the server.
        watch: of the check.
    """

    sampler: Sampler
    watch: Watch

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`.

        Raises:
            OutOfTime: the deadline passed meanwhile.
        """
        return self.watch.during(lambda: self.sampler.sample(prompts, n=n, key=key, limit=limit))

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.sampler.sync(version)


def watched(candidate: Candidate, watch: Watch) -> Candidate:
    """The candidate with its servers under a watch; models in this process have hooks."""
    cfg = candidate.cfg
    if cfg.rollout.engine == "vllm":
        make = watched_samplers(candidate.student_samplers, watch)
        candidate = replace(candidate, student_samplers=make)
    if isinstance(cfg.teacher, ServerTeacher) and candidate.server is not None:
        candidate = replace(
            candidate,
            server=WatchedTeacher(candidate.server, watch),
            teacher_samplers=watched_samplers(candidate.teacher_samplers, watch),
        )
    return candidate


def watched_samplers(make: MakeSampler | None, watch: Watch) -> MakeSampler | None:
    """What generates on a server, under a watch where no model of this process looks at the clock.

    With top tokens (k), which the student in this process computes whenever completions arrive, its
    own hooks do.
    """
    if make is None:
        return None

    def make_watched(decoding: Decoding, k: int | None) -> Sampler:
        sampler = make(decoding, k)
        return WatchedSampler(sampler, watch) if k is None else sampler

    return make_watched
