"""Tables of the configuration and the environment of a run."""

from __future__ import annotations

from typing import Any

from opd import config
from opd.errors import UserError
from opd.reports.document import Cell, Table
from opd.reports.formatting import NONE, setting
from opd.run.jsonl import flatten


def config_table(settings: dict[str, Any]) -> Table:
    """What a run set; every key where the defaults of this version do not fit it."""
    columns = ("key", "this run", "default")
    try:
        rows = config_rows(settings)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        note = f"Defaults of this version of opd do not fit this configuration: {error}"
        rows = [[key, setting(value), ""] for key, value in flatten(settings).items()]
        return Table("Configuration", columns, rows, note)
    return Table("Configuration: what differs from the defaults", columns, rows)


def config_rows(settings: dict[str, Any]) -> list[list[Cell]]:
    """Keys that a run set, with the value and the default ("required" where there is none)."""
    teacher, prompts = settings["teacher"], settings["prompts"]
    keys = ("model", "url", "from", "prompt")
    required = {
        "student": {"model": settings["student"]["model"]},
        "teacher": teacher and {k: teacher[k] for k in keys if k in teacher},
        "teachers": settings.get("teachers") or {},
        "prompts": {k: prompts[k] for k in ("path", "files") if prompts.get(k)},
        "eval": [{"path": e["path"], "name": e.get("name")} for e in settings["eval"]],
        "output": {"dir": settings["output"]["dir"]},
    }
    defaults = {key: removed.default for key, removed in config.REMOVED.items()}
    defaults |= flatten(config.dump(config.parse(required)))
    given = flatten(required)
    rows: list[list[Cell]] = []
    for key, value in flatten(settings).items():
        if given.get(key) is not None:
            rows.append([key, setting(value), "required"])
        elif defaults.get(key, ...) != value:
            default = setting(defaults[key]) if key in defaults else "unset"
            rows.append([key, setting(value), default])
    return rows


def environment_table(env: dict[str, Any]) -> Table:
    """Versions and machine, folded."""
    flat = {k: v for k, v in flatten(env).items() if not k.startswith("command")}
    rows = [[key, NONE if value is None else setting(value)] for key, value in flat.items()]
    return Table("Environment", ("", ""), rows, folded=True)
