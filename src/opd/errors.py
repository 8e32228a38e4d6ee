"""The exceptions of opd: mistakes that the user can fix.

Everything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

# What torch says of exhausted memory where the type of the error does not: of the host's, of the
# driver's (graphs, pinned memory, libraries), of a workspace.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


class UserError(Exception):
    """A mistake the user can correct.

    Say what is wrong, the value seen, what is allowed, and the key or command that fixes it. The
    command line prints the message without a traceback and exits with code 2.
    """


class MissingDependency(UserError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed.\n"
            f"Install it with: pip install 'opd[{extra}]'"
        )
