"""Replay: training on recorded rollouts instead of sampling from the student.

For teachers whose scores are computed once, ahead of time. The further the student moves from the
policy that sampled the rollouts, the less on-policy they are: the metric `drift/ess` shows how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opd.errors import UserError
from opd.run.rollouts import decode
from opd.types import Prompt, Rollout


class ReplaySampler:
    """`opd.types.Sampler` that returns recorded rollouts, prompt by prompt."""

    def __init__(
        self, rollouts: Sequence[Rollout], path: Path, *, capture: int, max_length: int
    ) -> None:
        """Index rollouts by prompt.

        Args:
            rollouts: recorded rollouts.
            path: the file or folder they were read from, for messages.
            capture: top tokens per position the loss will ask for.
            max_length: maximum tokens of a completion (rollout.max_new_tokens).

        Raises:
            UserError: they record fewer top tokens than needed, or one is longer.
        """
        self.path, self.version = path, 0
        self.rollouts: dict[tuple[int, ...], list[Rollout]] = {}
        for rollout in rollouts:
            if rollout.topk_ids.shape[1] < capture:
                raise UserError(
                    f"rollout.path={path}: the rollouts record {rollout.topk_ids.shape[1]} top "
                    f"tokens per position, loss.k={capture} needs more. Lower loss.k."
                )
            if len(rollout) > max_length:
                longest = max(map(len, rollouts))
                raise UserError(
                    f"rollout.path={path}, rollout.max_new_tokens={max_length}: a recorded "
                    f"completion has {longest} tokens. Set rollout.max_new_tokens={longest}; to "
                    "train on the beginnings only, set horizon.cap as well."
                )
            self.rollouts.setdefault(rollout.prompt.ids, []).append(rollout)

    def sync(self, version: int) -> None:
        """Recorded rollouts do not change; they count as sampled by the current student."""
        self.version = version

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; a prompt's rollouts are used in turn, by the key's step.

        Raises:
            UserError: a prompt without recorded rollouts.
        """
        sampled = []
        for prompt in prompts:
            recorded = self.rollouts.get(prompt.ids)
            if recorded is None:
                raise UserError(
                    f"rollout.path={self.path} has no rollout of prompt {prompt.index}: "
                    f"{prompt.text[:60]!r}. Use the prompts, template and chat settings they were "
                    "made with; of a finished step a run keeps output.rollout_sample rollouts."
                )
            first = key[-1] * n
            sampled += [
                replace(
                    recorded[(first + i) % len(recorded)],
                    prompt=prompt,
                    sample=i,
                    version=self.version,
                )
                for i in range(n)
            ]
        return sampled if limit is None else [truncate_rollout(r, limit) for r in sampled]


def truncate_rollout(rollout: Rollout, limit: int) -> Rollout:
    """The first `limit` tokens of a rollout."""
    if len(rollout) <= limit:
        return rollout
    return replace(
        rollout,
        ids=rollout.ids[:limit],
        logp=rollout.logp[:limit],
        entropy=rollout.entropy[:limit],
        topk_ids=rollout.topk_ids[:limit],
        topk_logp=rollout.topk_logp[:limit],
        finish="length",
    )


def read_rollouts(path: Path, key: str = "rollout.path") -> list[Rollout]:
    """All rollouts of a file, or of a folder's files in order of their steps.

    Those that a run sampled ahead, for a step that it has not begun, are left out.

    Args:
        path: file or folder.
        key: configuration key named in errors.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    if not path.exists():
        raise UserError(f"{key}={path}: no such file or folder.")
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"), key=_step)
    rollouts: list[Rollout] = []
    for file in files:
        try:
            step = decode(file.read_bytes())
            rollouts += [] if step.waits else step.batch
        except (ValueError, OSError) as error:
            raise UserError(f"{key}: {file} is no rollout file of opd: {error}") from None
    if not rollouts:
        raise UserError(f"{key}={path} holds no rollouts.")
    return rollouts


def _step(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return (int(digits) if digits else 0, path.name)
