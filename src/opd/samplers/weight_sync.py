"""The student's weights on their way to a vLLM server, and the proof that they arrived.

A LoRA student is sent as an adapter under a new name. A full one goes from memory to memory where
both are on GPUs (`weight_transfer`), else as files that the server reloads; a server that `opd`
started can also be started again on those files. After each of these the server completes a fixed
text, and its log-probs must be those of the student in this process.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from opd.errors import UserError
from opd.http import Refusal, Transient
from opd.models.lm import LM
from opd.models.saved_folder import SYNC_MARK, replaced_folder
from opd.samplers.completions import ServerLost
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.weight_check import PartlyStale, StaleWeights, WeightCheck
from opd.samplers.weight_chunks import weights_to_send
from opd.samplers.weight_transfer import Transfer, TransferFailed

logger = logging.getLogger(__name__)

ADAPTER = "opd-student"
TRIES = 2  # of each way to send weights
Way = Callable[[LM, Path, int], None]
Failure = Transient | StaleWeights | TransferFailed


@dataclass(frozen=True)
class Destination:
    """Where weights go.

    Attributes:
        folder: where they are written; the server must see the same path.
        dtype: of the server's arithmetic, where known; files of full weights have it.
        restart: starts the server again on a folder of full weights, where `opd` started it.
        transfer: hands full weights over without files, where server and trainer can.
    """

    folder: Path
    dtype: torch.dtype | None = None
    restart: Callable[[Path], None] | None = None
    transfer: Transfer | None = None


class WeightSync:
    """Sends the weights of a student to a server, and checks that they arrived."""

    def __init__(
        self, server: SamplingServer, student: LM, tokenizer: Any, destination: Destination
    ) -> None:
        """Nothing is sent yet.

        Args:
            server: of which the student is to be sampled.
            student: whose weights are sent.
            tokenizer: saved beside full weights, as vLLM requires.
            destination: where they go.
        """
        self.server, self.student, self.tokenizer = server, student, tokenizer
        server.vocab = student.vocab
        self.destination = destination
        self.sync_dir = destination.folder.absolute()
        self.untied = False  # whether the server keeps a tied head as weights of its own
        self._warned = False
        self._transfer = destination.transfer  # None from the push on that it failed in
        self._until_untied: Transfer | None = None
        self._sent = False
        self._head_known = False  # whether the server was seen to take a new tied head, or not to
        self._written: Path | None = None  # the folder of the weights that are sent
        self._started_on: Path | None = None  # the folder that the server was started on
        self.check = WeightCheck(server, tokenizer)

    def send(self, version: int, student: LM | None = None) -> None:
        """Make the server use the student's current weights, known as `version`.

        Args:
            version: number of optimizer steps.
            student: a copy to send instead: of a sharded student, all of it.

        Raises:
            UserError: the server does not take them, or answers with others; with the fix.
        """
        student = student or self.student
        folder = self.sync_dir / f"step-{version}"
        self._written = None
        if self._transfer is None or student.is_lora or self.student.sharded is not None:
            self._write(student, folder)
        self._load(student, folder, version)
        self._sent = True
        self.check.accept()
        for old in self.sync_dir.glob("step-*"):
            if old not in (folder, self._started_on) and (old / SYNC_MARK).is_file():
                shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> None:
        """Send the weights of the last `send` again: the server was started anew.

        Raises:
            UserError: as `send`.
        """
        version = self.server.version
        folder = self.sync_dir / f"step-{version}"
        if self._transfer is not None and self._sent:
            self._transfer.reset()
        elif not (folder / SYNC_MARK).is_file():
            raise UserError(
                f"The {self.server.http.role} came back before weights were sent to it."
            )
        self._load(self.student, folder, version)

    def _load(self, student: LM, folder: Path, version: int) -> None:
        """Try every way until the server answers with these weights."""
        ways = self._ways(student)
        if self._head_is_missed(ways[0], student, folder, version):
            ways = [self._restart] if self._restart in ways else ways
        failure: Failure | None = None
        for way in ways:
            if getattr(failure, "stuck", False) and way == self._reload and len(ways) > 2:
                continue  # the server answers nothing until it is started again
            failure = None if way == self._reload else failure
            for _ in range(TRIES):
                if failure is not None:
                    logger.warning(
                        "Weights of version %d: %s. Sending them again.", version, failure
                    )
                failure = self._try(way, student, folder, version)
                if failure is None:
                    return
                if isinstance(failure, TransferFailed):
                    break
            if way == self._hand_over:
                self._give_up_transfer(failure, version)
        if isinstance(failure, PartlyStale):  # what is allowed; drift/logp_gap watches it from here
            if not self._warned:
                logger.warning("Version %d is sampled from as it is: %s.", version, failure)
            self._warned = True
            return
        raise UserError(
            f"The {self.server.http.role} at {self.server.http.url} was sent the weights of "
            f"version {version} {TRIES * len(ways)} times, and still {failure}. Nothing was "
            f"sampled from it. {self._remedy(student)}"
        )

    def _head_is_missed(self, way: Way, student: LM, folder: Path, version: int) -> bool:
        """Whether the server keeps its old head when it is sent a new tied one.

        In bfloat16 a head that is a little old looks like noise, so a much smaller one is sent,
        once. In float32 it does not, and nothing is sent.
        """
        dtype = self.destination.dtype or self.server.dtype
        tied = bool(getattr(student.config, "tie_word_embeddings", False))
        if self._head_known or self.untied or not tied or student.is_lora:
            return False
        if dtype == torch.float32 or student.sharded is not None:
            return False
        with smaller_head(student):
            written, self._written = self._written, None
            failure = self._try(way, student, folder, version, self.check.require_near)
        if written is not None:
            self._write(student, folder)
        self._head_known = failure is None or isinstance(failure, StaleWeights)
        missed = isinstance(failure, StaleWeights)
        if missed and self.destination.restart is None:
            logger.warning(
                "The %s does not take a new tied head (%s). Its rollouts are a little off; "
                "rollout.launch starts a server whose head is not tied.",
                self.server.http.role,
                failure,
            )
        return missed

    def _try(
        self,
        way: Way,
        student: LM,
        folder: Path,
        version: int,
        check: Callable[[LM], object] | None = None,
    ) -> Failure | None:
        """Send weights in one way and check them; why they are not there, or None."""
        try:
            self.server.wake()
            way(student, folder, version)
            self.server.label(version)
            if student.sharded is None:
                (check or self.check.require)(student)
        except Transient as error:
            reason = f"the server went away while it took them ({error})"
            self.server.wait(reason)
            if self._transfer is not None:
                self._transfer.reset()
            return Transient(reason)
        except (StaleWeights, TransferFailed) as error:
            return error
        return None

    def _give_up_transfer(self, failure: Failure | None, version: int) -> None:
        """Send files from now on, or until the server has a head of its own, if that was it."""
        logger.warning(
            "Weights of version %d did not reach the %s from memory (%s): files are sent instead.",
            version,
            self.server.http.role,
            failure,
        )
        if isinstance(failure, StaleWeights) and not self.untied:
            self._until_untied = self._transfer
        self._transfer = None

    def _ways(self, student: LM) -> list[Way]:
        """How these weights can be sent, the fastest first."""
        if student.is_lora:
            return [self._load_adapter]
        ways: list[Way] = [self._reload]
        if self.destination.restart is not None:
            ways.append(self._restart)
        handed_over = self._transfer is not None and student.sharded is None
        return [self._hand_over, *ways] if handed_over else ways

    def _remedy(self, student: LM) -> str:
        if student.is_lora:
            return "Check that rollout.model is the student's base model."
        return (
            "Train a LoRA student (student.lora), or sample in this process (without rollout.url)."
        )

    def _load_adapter(self, student: LM, folder: Path, version: int) -> None:
        """A new adapter name per version: an answer from an old one is recognised by its name."""
        server, name = self.server, f"{ADAPTER}-{version}"
        loaded = server.require_model()
        if name in loaded:
            server.unload_adapter(name)
        try:
            server.load_adapter(name, folder)
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take LoRA adapters: {server.takes_adapters}."
            ) from None
        for old in loaded:
            if old.startswith(ADAPTER) and old != name:
                server.unload_adapter(old)
        server.served = name

    def _hand_over(self, student: LM, folder: Path, version: int) -> None:
        """All weights from memory to memory; the prefix cache of the old ones is reset."""
        assert self._transfer is not None
        server = self.server
        server.require_model()
        server.served = server.model
        try:
            server.require_version()
        except ServerLost:  # it was started again since, and knows of no transfer
            self._transfer.reset()
        weights = weights_to_send(student.model, untied=self.untied)
        self._transfer.send(weights, self.destination.dtype or server.dtype)
        server.reset_prefix_cache()

    def _reload(self, student: LM, folder: Path, version: int) -> None:
        """All weights from a folder; the prefix cache of the old ones is reset."""
        server = self.server
        if self._written != folder:
            self._write(student, folder)
        server.require_model()
        server.served = server.model
        try:
            server.reload(folder, version)
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take new weights: {server.takes_weights}."
            ) from None

    def _restart(self, student: LM, folder: Path, version: int) -> None:
        """Start the server again on the folder: slow, and right wherever a reload is not.

        A tied head is what reloads miss, so from now on the server has it as weights of its own.
        """
        assert self.destination.restart is not None
        logger.warning(
            "The %s does not reload version %d rightly: it is started again on those weights.",
            self.server.http.role,
            version,
        )
        self.untied = bool(getattr(student.config, "tie_word_embeddings", False))
        self._write(student, folder)
        self.destination.restart(folder)
        self._started_on = folder
        if self.untied and self._until_untied is not None:
            self._transfer, self._until_untied = self._until_untied, None
        self.server.wait("it is started again")
        self.server.served = self.server.model

    def _write(self, student: LM, folder: Path) -> None:
        """Write a folder of weights that appears by one rename.

        Raises:
            UserError: a folder of that name that no run has written for a server.
        """
        if folder.exists() and not (folder / SYNC_MARK).is_file():
            raise UserError(
                f"{folder} is there already and holds no weights that a run sent to a server; it "
                "stays as it is. Set rollout.sync_dir to a folder for such weights alone."
            )
        self.sync_dir.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new:
            dtype = self.destination.dtype or self.server.dtype
            save_for_server(student, self.tokenizer, new, dtype, untied=self.untied)
            (new / SYNC_MARK).touch()
        self._written = folder


@contextmanager
def smaller_head(student: LM) -> Iterator[None]:
    """A student with tied weights of half the size inside the block, and its own bits after it."""
    weight = student.causal.get_input_embeddings().weight
    kept = weight.data
    weight.data = kept * 0.5
    try:
        yield
    finally:
        weight.data = kept


def save_for_server(
    student: LM,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    untied: bool = False,
) -> None:
    """Write what a server loads: a LoRA student's adapter, or all weights and the tokenizer.

    Args:
        student: what to write.
        tokenizer: written beside full weights.
        folder: where.
        dtype: of full weights in floating point; None: as they are.
        untied: whether a tied head is written as weights of its own.
    """
    model: Any = student.model
    if student.is_lora:
        model.save_pretrained(folder)
        return
    if not untied and (dtype is None or dtype == student.causal.dtype):
        model.save_pretrained(folder)
    else:
        weights = {
            name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        model.save_pretrained(folder, state_dict=dict(weights))  # which empties what it is given
        if untied:
            _untie(weights, model.config, folder)
    tokenizer.save_pretrained(folder)


def _untie(weights: dict[str, torch.Tensor], config: Any, folder: Path) -> None:
    """Write the weights again with the tied ones twice, and a configuration that says so."""
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    config.save_pretrained(folder)
