"""Names of models: a folder, or a name on the hub that may carry a revision."""

from __future__ import annotations

from pathlib import Path


def same_model(a: str, b: str) -> bool:
    """Whether two names are of one model: the same folder, or the same name and revision."""
    if a == b:
        return True
    paths = [Path(split_revision(name)[0]).expanduser() for name in (a, b)]
    return all(p.is_dir() for p in paths) and paths[0].resolve() == paths[1].resolve()


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
