"""The run folder: everything a run writes, complete or absent, with one writer at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opd.errors import UserError
from opd.run import evals, rollouts, token_texts
from opd.run.crash import note_folder
from opd.run.disk import (
    DISK,
    READ_ONLY,
    FileOps,
    make_folder,
    remove,
    write_bytes,
    write_json,
)
from opd.run.env import environment
from opd.run.jsonl import Journal, json_safe
from opd.run.layout import (
    COLD_START,
    CONFIG,
    ENV,
    FOLDERS,
    INPUTS,
    JOURNALS,
    REFUSED,
    check_record,
)
from opd.run.lock import Lock
from opd.run.own_files import clear, describe_left, sweep_own
from opd.run.preflight import (
    check_folder,
    check_name,
    config_hash,
    require_safe_name,
    stored_and_new,
)
from opd.run.redact import redact
from opd.run.stale import may_act_otherwise, remove_later

if TYPE_CHECKING:
    from opd.types import Graded, Rollout, Scores

log = logging.getLogger(__name__)


class RunFolder:
    """A run folder; `create` opens one for writing, `read_only` one that another process writes.

    Where `writes` is False no method changes the disk: `READ_ONLY` does nothing. The methods that
    look at `writes` themselves only save work.

    Attributes:
        path: the folder.
        config: the resolved configuration, as in `config.json`.
        ops: the disk operations that everything in this folder is written with.
        checkpoints: where `opd.run.checkpoint` saves.
        fresh: nothing of an earlier part of this run was here.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], ops: FileOps, lock: Lock | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.ops = ops
        self.checkpoints = path / "checkpoints"
        self.fresh = True
        self._lock = lock
        self._journals: dict[str, Journal] = {}
        self._config_hash = config_hash(config)

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        ops: FileOps = DISK,
    ) -> RunFolder:
        """Open a run folder, new or to continue, and write `config.json` and `env.json`.

        Args:
            path: the folder, created with its parents.
            config: resolved configuration, plain JSON values.
            resume: continue what is there; an absent or empty folder starts afresh.
            overwrite: delete the run that is there first; files that no run writes stay.
            ops: the disk.

        Raises:
            UserError: the folder has content and neither flag is set, or both are; another
                process writes it; it is no run folder; the configuration changed in keys that
                affect the numbers; the name is not a plain file name.
        """
        path = Path(path)
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other: continue, or start over?")
        check_name(path)
        resolved = _resolved(config)
        check_folder(path, resolved, resume, overwrite)
        make_folder(path, ops)
        lock = Lock(path)
        try:
            check_folder(path, resolved, resume, overwrite)  # it may have changed before the lock
            folder = cls(path, resolved, ops, lock)
            folder._prepare(overwrite)
            note_folder(path.absolute())
        except BaseException:
            lock.release()
            raise
        return folder

    @classmethod
    def read_only(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """A run folder that another process has created and writes; it may be absent here.

        Args:
            path: the folder.
            config: as given to `create` by that process.
        """
        return cls(Path(path), _resolved(config), READ_ONLY)

    @property
    def writes(self) -> bool:
        """Whether this process writes the folder."""
        return self.ops.writes

    def _prepare(self, overwrite: bool) -> None:
        for name in (".", *FOLDERS, REFUSED, COLD_START):
            sweep_own(self.path / name, self.path, self.ops)
        self.fresh = overwrite or not (self.path / CONFIG).exists()
        if overwrite and (left := clear(self.path, self.ops)):
            log.warning(describe_left(left))
        for name in FOLDERS:
            make_folder(self.path / name, self.ops)
        self._write_env()
        self._adopt_check()
        if not self.fresh and may_act_otherwise(*stored_and_new(self.path, self.config)):
            remove_later(self.path, self.ops)
        # Last: a folder without it holds nothing yet, so an interrupted start can be repeated.
        write_json(self.path / CONFIG, self.config, self.ops)
        for name in JOURNALS:
            self._journals[name] = Journal(self.path / name, self.ops)
        self.ops.sync_folder(self.path)

    def _write_env(self) -> None:
        now = environment(self.config.get("train", {}).get("seed"))
        path = self.path / ENV
        if self.fresh or not path.exists():
            write_json(path, now | {"resumed": []}, self.ops)
            return
        first = json.loads(path.read_text("utf-8"))
        if first["versions"] != now["versions"]:
            log.warning(
                "Resuming on other versions than the run started with (%s): the numbers may differ "
                "from an uninterrupted run.",
                _version_changes(first["versions"], now["versions"]),
            )
        write_json(path, first | {"resumed": [*first["resumed"], now]}, self.ops)

    def record_attention(self, kernels: Mapping[str, str]) -> None:
        """Add to `env.json` which attention kernel each model uses for what."""
        if not self.writes:
            return
        env = json.loads((self.path / ENV).read_text("utf-8"))
        if env.get("attention") != kernels:
            write_json(self.path / ENV, env | {"attention": dict(kernels)}, self.ops)

    def log_metrics(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append a step to `metrics.jsonl`: only values that seed and data determine."""
        self._append_step("metrics.jsonl", step, values)

    def log_timings(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append a step to `timings.jsonl`: clocks, tokens per second, memory."""
        self._append_step("timings.jsonl", step, values)

    def log_alarm(self, record: Mapping[str, Any]) -> None:
        """Append to `alarms.jsonl`."""
        self._append("alarms.jsonl", record)

    def _append_step(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if "step" in values:
            raise ValueError("'step' is an argument of its own")
        self._append(name, {"step": step, **values})

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self.writes:
            self._journals[name].append(record)

    def sync_logs(self) -> dict[str, int]:
        """Flush the logs to disk and return their lengths in bytes, for a checkpoint's state."""
        return {name: journal.sync() for name, journal in self._journals.items()}

    def log_digests(self) -> dict[str, str]:
        """sha256 of each log as far as it is written, for a checkpoint's state."""
        return {name: journal.digest for name, journal in self._journals.items()}

    def truncate_logs(
        self, offsets: Mapping[str, int], digests: Mapping[str, str] | None = None
    ) -> None:
        """Cut the logs to their lengths at a checkpoint; `{}` empties them (no checkpoint yet).

        Args:
            offsets: bytes, by name.
            digests: of `log_digests` then; a log that is another now is warned of.
        """
        for name, journal in self._journals.items():
            journal.truncate(offsets.get(name, 0), (digests or {}).get(name))

    def rollout_key(self, step: int, version: int) -> dict[str, Any]:
        """The key of a step's rollouts: seed, step, updates before it, configuration."""
        return {
            "seed": self.config.get("train", {}).get("seed"),
            "step": step,
            "version": version,
            "config": self._config_hash,
        }

    def save_rollouts(
        self,
        step: int,
        batch: Sequence[Rollout],
        scores: Sequence[Scores],
        *,
        key: Mapping[str, Any],
        texts: Sequence[str] | None = None,
    ) -> None:
        """Write `rollouts/step-N.parquet`; `texts` are the decoded completions.

        Without texts and scores these are rollouts of a step that has not begun.
        """
        if not self.writes:
            return
        completions = None if texts is None else list(texts)
        waits = texts is None and not any(s.arrays() for s in scores)
        file = rollouts.StepFile(list(batch), list(scores), completions, dict(key), waits=waits)
        write_bytes(self._rollout_path(step), rollouts.encode(file), self.ops)

    def load_rollouts(
        self, step: int, key: Mapping[str, Any]
    ) -> tuple[list[Rollout], list[Scores]] | None:
        """Load the rollouts and scores of a step.

        Returns:
            None when the file is absent, thinned, broken or of another key; a warning names broken
            files and other keys.
        """
        return rollouts.load(self._rollout_path(step), key)

    def thin_rollouts(self, upto_step: int, keep: int) -> None:
        """Shrink the files of steps up to `upto_step` to `keep` rollouts without hidden states.

        Call it when a valid checkpoint has made those steps final. Which rollouts are kept depends
        on the step alone. Broken files are removed with a warning.
        """
        if self.writes:
            rollouts.thin(self.path / "rollouts", upto_step, keep, self.ops)

    def forget(self, phase: str, after: int) -> None:
        """Remove what is stale when a phase begins after a step.

        That is: checkpoints of an earlier attempt at the phase, and rollouts of later steps, which
        were sampled from the student before the phase.

        Args:
            phase: its name, and that of its folder.
            after: updates made before the phase.
        """
        old = self.path / phase / "checkpoints"
        if old.exists():
            remove(old, self.ops)
        for path in (self.path / "rollouts").glob("step-*.parquet"):
            match = rollouts.FILE.fullmatch(path.name)
            if match and int(match[1]) > after:
                remove(path, self.ops)

    def keep_rollouts(self, step: int) -> Path:
        """Copy the file of a skipped update to `refused/`, where it is not thinned.

        Raises:
            FileNotFoundError: when `save_rollouts` never wrote that step.
        """
        source = self._rollout_path(step)
        copy = self.path / REFUSED / source.name
        if self.writes:
            make_folder(copy.parent, self.ops)
            write_bytes(copy, source.read_bytes(), self.ops)
        return copy

    def save_token_texts(self, texts: Callable[[], Sequence[str]]) -> None:
        """Write the text of every token id, unless an earlier part of the run did."""
        if self.writes and not (self.path / token_texts.TOKENS).exists():
            token_texts.save(self.path, texts(), self.ops)

    def save_inputs(self, record: Mapping[str, Any]) -> None:
        """Write `inputs.json`: what the run reads, with hashes that a resumed run compares."""
        write_json(self.path / INPUTS, json_safe(record), self.ops)

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, the final numbers of the run."""
        write_json(self.path / "summary.json", json_safe(summary), self.ops)

    def _adopt_check(self) -> None:
        """Copy the record of an `opd check` of the same two models, so that reports can show it."""
        try:
            record = json.loads(check_record(self.path).read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return
        models = {
            role: (self.config.get(role) or {}).get("model") for role in ("student", "teacher")
        }
        if isinstance(record, dict) and record.get("pair") == models:
            write_json(self.path / "check.json", record, self.ops)

    def save_eval(
        self,
        step: int,
        name: str,
        result: Mapping[str, Any],
        samples: Sequence[Graded],
        *,
        key: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `eval/step-N-name.json` and `.parquet`.

        Raises:
            UserError: when `name` is not a plain file name.
        """
        require_safe_name(name, "eval set", "eval.N.name")
        identity = {"step": step, "name": name, "key": dict(key or {})}
        evals.save(self._eval_path(step, name), identity, result, samples, self.ops)

    def load_eval(
        self, step: int, name: str, *, key: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Graded]] | None:
        """Load what `save_eval` wrote; None when absent, broken (warned of) or of another key."""
        return evals.load(self._eval_path(step, name), dict(key or {}))

    def _eval_path(self, step: int, name: str) -> Path:
        return self.path / "eval" / f"step-{step}-{name}.json"

    def _rollout_path(self, step: int) -> Path:
        return self.path / "rollouts" / f"step-{step}.parquet"

    def close(self) -> None:
        """Release files and lock."""
        for journal in self._journals.values():
            journal.close()
        self._journals = {}
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain JSON values, without secrets."""
    resolved: dict[str, Any] = json.loads(json.dumps(redact(dict(config)), allow_nan=False))
    return resolved


def _version_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    return ", ".join(f"{k} {before.get(k)} -> {now.get(k)}" for k in changed)
