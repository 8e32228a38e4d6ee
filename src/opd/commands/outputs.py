"""What commands write beside run folders, and where they listen: checked first; needs no torch."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

from opd import config
from opd.config import Run, Select, input_paths
from opd.errors import UserError
from opd.reports.html import require_report_path
from opd.run.layout import check_record
from opd.run.outputs import require_free, require_no_input, require_writable_parent


def require_check_outputs(cfgs: Sequence[Run], file: Path, apply: Path | None) -> None:
    """Check that the record, its report and the file with the advice may be written.

    Args:
        cfgs: one per teacher.
        file: run.yaml.
        apply: file to write with the advice followed; None: none.

    Raises:
        UserError: one of them is an input, or a file that no check has made.
    """
    inputs = {"the file": file}
    for cfg in cfgs:
        inputs |= config.input_paths(config.dump(cfg))
    if apply is not None:
        require_free(apply, inputs, key="--apply", replace="")
    path, report = record_paths(cfgs[0])
    how = f"Move it, or set output.dir to another folder than {cfgs[0].output.dir}."
    require_no_input(path, inputs, key="the record of the check")
    if path.exists() and not is_record(path):
        raise UserError(f"{path} exists and is no record of a check; it stays as it is. {how}")
    require_writable_parent(path, "output.dir")
    require_report_path(report, inputs, replace=True, how=how)


def is_record(path: Path) -> bool:
    """Whether a file is a record of an earlier check."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"verdict", "pair", "numbers"} <= set(record)


def record_paths(cfg: Run) -> tuple[Path, Path]:
    """Where the record of a check and its report are written: beside the run folder."""
    path = check_record(cfg.output.dir)
    return path, path.with_name(f"{Path(cfg.output.dir).name}.checked.html")


def require_section(cfg: Run) -> Select:
    """The section that `opd select` follows.

    Raises:
        UserError: there is none.
    """
    if cfg.select is None:
        raise UserError("There is no `select` section. Add `select: {output: selected.jsonl}`.")
    return cfg.select


def require_selection_outputs(cfg: Run, spec: Select, *, overwrite: bool) -> None:
    """Check that prompt file and report may be written.

    Raises:
        UserError: they exist and `overwrite` is False, or are inputs.
    """
    output, inputs = Path(spec.output), input_paths(config.dump(cfg))
    replace = None if overwrite else "--overwrite"
    require_free(output, inputs, key="select.output", replace=replace)
    how = "Set select.output to another name, or give --overwrite to replace an older report."
    require_report_path(output.with_suffix(".html"), inputs, replace=overwrite, how=how)


def require_address(host: str, port: int) -> None:
    """Check that an address can be listened on, before a model is loaded for it.

    Raises:
        UserError: naming the option.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host}: no such address ({error}).") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise UserError(
                f"--port={port}: cannot listen on {host}:{port} ({error.strerror}). Give another "
                "one with --port."
            ) from None
