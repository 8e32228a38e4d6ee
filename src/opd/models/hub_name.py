"""Names of models: a folder, or a name on the hub that may carry a revision."""

from __future__ import annotations

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """Divide owner/name@revision at its last @; a path that exists is a folder as it stands.

    Args:
        name: local folder, or hub name with or without a branch, tag or commit.

    Returns:
        Folder or hub name, and the revision; None for the newest.
    """
    if "@" not in name or Path(name).expanduser().exists():
        return name, None
    model, _, revision = name.rpartition("@")
    return model, revision
