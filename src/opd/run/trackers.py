"""Optional copies of `metrics.jsonl`, which stays authoritative: tensorboard, wandb, trackio."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from opd.config.python_objects import PREFIX, load_object
from opd.errors import MissingDependency, UserError
from opd.run.redact import redact, redact_text

log = logging.getLogger(__name__)

Value = float | int | str | None


@dataclass(frozen=True)
class Results:
    """What a finished run leaves: its report and a table of rollouts.

    Attributes:
        report: the HTML file.
        columns: of the table.
        rows: of the table.
    """

    report: Path
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


class Sink(Protocol):
    """A destination that metrics are copied to; what raises is dropped, and training goes on.

    One of your own: `output.trackers: [python:pkg.mod:make]`, called with the run folder and the
    resolved configuration.
    """

    def log(self, step: int, values: dict[str, Value]) -> None:
        """Send the metrics of one step."""
        ...

    def log_results(self, results: Results) -> None:
        """Send what a finished run leaves."""
        ...

    def close(self) -> None:
        """Finish sending."""
        ...


class TensorBoard:
    """Scalars into `<run folder>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, Value]) -> None:
        """See `Sink.log`; texts are left out."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def log_results(self, results: Results) -> None:
        """See `Sink.log_results`: the table as text; a report cannot be attached."""
        lines = [results.columns, ["---"] * len(results.columns), *results.rows]
        text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        self._writer.add_text("rollouts", text)
        self._writer.add_text("report", str(results.report.resolve()))

    def close(self) -> None:
        """See `Sink.close`."""
        self._writer.close()


def _cell(value: Value) -> str:
    """A cell of a Markdown table, as code so that text of models stays text."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/")[:500] + "`"


class Hosted:
    """wandb and trackio, which share their calls; WANDB_MODE=offline works as usual."""

    def __init__(self, package: str, name: str, config: dict[str, Any], **options: str) -> None:
        self._module = importlib.import_module(package)
        self._name = name
        self._run = self._module.init(project="opd", name=name, config=config, **options)

    def log(self, step: int, values: dict[str, Value]) -> None:
        """See `Sink.log`."""
        self._run.log(values, step=step)

    def log_results(self, results: Results) -> None:
        """See `Sink.log_results`."""
        rows = [list(row) for row in results.rows]
        table = self._module.Table(columns=list(results.columns), data=rows)
        self._run.log({"rollouts": table})
        name = re.sub(r"[^\w.-]", "-", f"report-{self._name}")
        self._module.log_artifact(str(results.report), name=name, type="report")

    def close(self) -> None:
        """See `Sink.close`."""
        self._run.finish()


class Trackers:
    """All sinks of a run; one that fails is dropped with a warning, and training goes on.

    Args:
        names: of tensorboard, wandb, trackio; python:pkg.mod:make for one of the user's own.
        folder: the run folder; its name names the run.
        config: the resolved configuration, sent without secrets.

    Raises:
        MissingDependency: when a package is not installed, before anything else happens.
        UserError: the user's own cannot be imported, or is no `Sink`.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        for name in names:
            _require(name)
        self._sinks: dict[str, Sink] = {}
        public_config = redact(dict(config))
        for name in names:
            if name.startswith(PREFIX):
                self._sinks[name] = own_sink(name, folder, public_config)
            else:
                self._guard(name, partial(self._open, name, folder, public_config))

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Send one step to every sink that still works."""
        public_values: dict[str, Value] = redact({group(n): v for n, v in values.items()})
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.log, step, public_values))

    def log_results(self, results: Results) -> None:
        """Send report and rollouts to every sink that still works."""
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.log_results, results))

    @property
    def is_open(self) -> bool:
        """Whether any sink still works."""
        return bool(self._sinks)

    def close(self) -> None:
        """Finish every sink."""
        for name, sink in list(self._sinks.items()):
            self._guard(name, sink.close)
        self._sinks = {}

    def _open(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        if name == "tensorboard":
            self._sinks[name] = TensorBoard(folder)
        elif name == "wandb":
            self._sinks[name] = Hosted(name, folder.name, config, dir=str(folder))
        else:
            self._sinks[name] = Hosted(name, folder.name, config)

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """Run `action`; a sink whose action raises is dropped."""
        try:
            action()
        # Sinks use networks and may raise anything; none of it may stop a training run.
        except Exception as error:  # noqa: BLE001
            self._sinks.pop(name, None)
            log.warning("Tracker %s failed and is dropped: %s", name, redact_text(str(error)))


def group(name: str) -> str:
    """The name under which a metric is sent: trackers make a section of its first part.

    Metrics by position have one of their own, which would otherwise bury those of the whole step.
    """
    prefix, _, rest = name.partition("/")
    return f"position/{rest}" if rest and "@" in rest and prefix == "diag" else name


def own_sink(name: str, folder: Path, config: dict[str, Any]) -> Sink:
    """A tracker of the user's own: the object, or what a function of (folder, config) returns.

    Raises:
        UserError: it cannot be imported, or lacks a part of the contract `Sink`.
    """
    key = "output.trackers"
    value = load_object(name.removeprefix(PREFIX), key=key, group="opd.trackers")
    if isinstance(value, type) or (callable(value) and not hasattr(value, "log")):
        value = value(folder, config)
    missing = [part for part in ("log", "log_results", "close") if not hasattr(value, part)]
    if missing:
        raise UserError(
            f"{key}={name} gives a {type(value).__name__} without {', '.join(missing)}. A tracker "
            "has log(step, values), log_results(results) and close(); see opd.run.trackers.Sink."
        )
    return value  # type: ignore[no-any-return]


def _require(name: str) -> None:
    if name.startswith(PREFIX):
        return
    try:
        importlib.import_module(name)
    except ImportError:
        raise MissingDependency(name, needed_for=f"output.trackers={name}", extra=name) from None
