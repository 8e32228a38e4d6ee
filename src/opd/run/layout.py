"""Names of files, folders and phases of a run."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
ENV = "env.json"
JOURNALS = ("metrics.jsonl", "timings.jsonl", "alarms.jsonl")
FOLDERS = ("checkpoints", "rollouts", "eval")  # made at the start
REFUSED = "refused"  # rollouts of skipped updates
COLD_START = "coldstart"  # phase, and its folder
ON_POLICY = "on-policy"  # the other phase


def check_record(folder: str | Path) -> Path:
    """Where `opd check` leaves its record: beside the run folder, which does not exist yet."""
    folder = Path(folder)
    return folder.with_name(f"{folder.name}.check.json")
