"""Optional copies of `metrics.jsonl`, which stays authoritative: tensorboard, wandb, trackio."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from opd.errors import MissingDependency
from opd.run.redact import redact, redact_text

log = logging.getLogger(__name__)

Value = float | int | str | None


class Sink(Protocol):
    """A destination that metrics are copied to."""

    def log(self, step: int, values: dict[str, Value]) -> None:
        """Send the metrics of one step."""
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

    def close(self) -> None:
        """See `Sink.close`."""
        self._writer.close()


class Hosted:
    """wandb and trackio, which share their calls; WANDB_MODE=offline works as usual."""

    def __init__(self, package: str, name: str, config: dict[str, Any], **options: str) -> None:
        module = importlib.import_module(package)
        self._run = module.init(project="opd", name=name, config=config, **options)

    def log(self, step: int, values: dict[str, Value]) -> None:
        """See `Sink.log`."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """See `Sink.close`."""
        self._run.finish()


class Trackers:
    """All sinks of a run; one that fails is dropped with a warning, and training goes on.

    Args:
        names: of tensorboard, wandb, trackio.
        folder: the run folder; its name names the run.
        config: the resolved configuration, sent without secrets.

    Raises:
        MissingDependency: when a package is not installed, before anything else happens.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        for name in names:
            _require(name)
        self._sinks: dict[str, Sink] = {}
        public_config = redact(dict(config))
        for name in names:
            self._guard(name, partial(self._open, name, folder, public_config))

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Send one step to every sink that still works."""
        public_values: dict[str, Value] = redact(dict(values))
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.log, step, public_values))

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


def _require(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        raise MissingDependency(name, needed_for=f"output.trackers={name}", extra=name) from None
