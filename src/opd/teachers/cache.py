"""A cache of scores on disk, keyed by teacher, tokens and request: read-through, or offline.

An entry is one file named by a hash of teacher, token ids and request, so that any number of
processes may read and write: two writers of one entry write the same bytes, a file appears whole
or not at all, and a damaged one is scored again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.errors import UserError
from opd.teachers import wire
from opd.teachers.remote import TeacherDown, replace_full, set_positions
from opd.types import SCORE_FIELDS, Kind, Rollout, Scores, Teacher, Want

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
SHRINK_EVERY = 256  # writes
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors(\.tmp-\d+-\d+)?$")
_serial = itertools.count()


class Store:
    """A folder of scores with a size limit; the least recently used entries are removed first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open a store; the folder is made if it is missing.

        Raises:
            UserError: the folder cannot be made.
        """
        self.folder, self.max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"teacher.cache.dir={folder}: {error.strerror or error}") from None
        self._writes = 0

    def read(self, key: str) -> Scores | None:
        """An entry, or None when it is absent or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("Teacher cache: cannot read %s: %s.", path, error)
            return None
        try:
            header, arrays = wire.unpack(data, SCORE_FIELDS)
            if header.get("key") != key or header.get("sum") != _checksum(arrays):
                raise wire.WireError("key or checksum differ")
        except wire.WireError as error:
            logger.warning("Teacher cache: %s is damaged (%s); scoring again.", path, error)
            path.unlink(missing_ok=True)
            return None
        try:
            os.utime(path)
        except OSError:
            logger.debug("%s was removed while it was read", path)
        fields: dict[str, Any] = {name: array.copy() for name, array in arrays.items()}
        return Scores(**fields)

    def write(self, key: str, scores: Scores) -> None:
        """Write an entry; a full or failing disk costs the entry, not the run."""
        arrays = scores.arrays()
        path = self._path(key)
        tmp = path.with_name(f"{path.name}.tmp-{os.getpid()}-{next(_serial)}")
        try:
            path.parent.mkdir(exist_ok=True)
            tmp.write_bytes(wire.pack({"key": key, "sum": _checksum(arrays)}, arrays))
            tmp.replace(path)
        except OSError as error:
            logger.warning("Teacher cache: cannot write %s: %s.", path, error)
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)
            return
        self._writes += 1
        if self._writes % SHRINK_EVERY == 1:
            self.shrink()

    def shrink(self) -> None:
        """Remove the least recently used entries until the size limit is kept."""
        entries = []
        for path in self.folder.glob("??/*"):
            if not _ENTRY.match(path.name) or path.name[:2] != path.parent.name:
                continue  # not of a cache
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process removed it
            entries.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda e: e[:2]):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"


class CachedTeacher:
    """`opd.types.Teacher` that asks another one only for scores that are not in the store."""

    def __init__(
        self,
        teacher: Teacher,
        store: Store,
        fingerprint: str,
        *,
        topk_for_diagnostics: int = 0,
        record: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        """Put a store before a teacher.

        Args:
            teacher: computes missing scores.
            store: where scores are kept.
            fingerprint: distinguishes this teacher, at its temperature, from every other one.
            topk_for_diagnostics: see `opd.teachers.remote.RemoteOptions`.
            record: takes the hit rate for the step's timings.
        """
        self.teacher, self.store, self.fingerprint = teacher, store, fingerprint
        self.name, self.kinds = teacher.name, teacher.kinds
        self._topk, self._record = topk_for_diagnostics, record

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`."""
        request = replace_full(want, self._topk)
        keys = [entry_key(self.fingerprint, r, request) for r in rollouts]
        scores = [self.store.read(key) for key in keys]
        missing = [i for i, s in enumerate(scores) if s is None]
        self._record("teacher/cache_hits", 1 - len(missing) / max(1, len(rollouts)))
        if missing:
            try:
                answer = self.teacher.score([rollouts[i] for i in missing], request)
            except TeacherDown as down:
                for i, new in zip(missing, down.partial, strict=True):
                    scores[i] = new
                    if new is not None:
                        self.store.write(keys[i], new)
                raise TeacherDown(str(down), scores) from None
            for i, new in zip(missing, answer, strict=True):
                scores[i] = new
                self.store.write(keys[i], new)
        return set_positions([s for s in scores if s is not None], want)


class OfflineTeacher:
    """`opd.types.Teacher` that reads a store filled earlier; no model is loaded.

    Entries are keyed by the name the teacher had when they were written (`offline_name`).
    """

    kinds = frozenset({Kind.SAMPLED, Kind.SUPPORT, Kind.TOPK})

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        temperature: float = 1.0,
        topk_for_diagnostics: int = 0,
        record: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        """Make a teacher from a store; arguments as of `CachedTeacher`."""
        self.store, self.name = store, name
        self._fingerprint = offline_name(name, temperature)
        self._topk, self._record = topk_for_diagnostics, record

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`.

        Raises:
            UserError: a rollout without scores in the store.
        """
        request = replace_full(want, self._topk)
        scores = [self.store.read(entry_key(self._fingerprint, r, request)) for r in rollouts]
        missing = sum(s is None for s in scores)
        self._record("teacher/cache_hits", 1 - missing / max(1, len(rollouts)))
        if missing:
            raise UserError(
                f"teacher.cache.offline=true: {missing} of {len(rollouts)} rollouts of this step "
                f"have no scores of {self.name} for this loss in {self.store.folder}. Score them "
                "with `opd serve-teacher run.yaml --score ROLLOUTS`, or set "
                "teacher.cache.offline=false."
            )
        return set_positions([s for s in scores if s is not None], want)


def entry_key(fingerprint: str, rollout: Rollout, want: Want) -> str:
    """The key of an entry: a hash of teacher, tokens and request."""
    digest = hashlib.sha256()
    digest.update(f"{fingerprint}\n{want.sampled} {want.support} {want.topk}\n".encode())
    prompt = np.array(rollout.prompt.ids, dtype="<i4")
    digest.update(f"{len(prompt)} {len(rollout)} {rollout.topk_ids.shape}\n".encode())
    digest.update(prompt.tobytes())
    digest.update(rollout.ids.astype("<i4").tobytes())
    if want.support:
        digest.update(np.ascontiguousarray(rollout.topk_ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def offline_name(model: str, temperature: float) -> str:
    """Replaces the teacher's fingerprint where no teacher is running."""
    return f"offline {model} at {temperature}"


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()[:32]
