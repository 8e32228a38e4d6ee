"""From configuration to a teacher server: connect, handshake, recognise it on resume.

Everything here runs before the run folder exists, except `recognise_or_record`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.config import LocalTeacher, PythonTeacher, Run, ServerTeacher
from opd.core.diagnostics import OVERLAP_K
from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.http import Endpoint, Http, Transient, read_key
from opd.http.launched import STARTUP
from opd.http.sglang import model_info
from opd.models.lm import LM
from opd.run.bad_answers import Quarantine
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.disk import write_json
from opd.run.layout import WRONG_ANSWERS
from opd.run.rollouts import FILE, read_step
from opd.samplers.decoding import Decoding
from opd.samplers.sampling import MakeSampler
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.sglang_server import SglangServer
from opd.samplers.vllm import VllmSampler
from opd.setup.own_teacher import OwnTeacher, find_own_teacher
from opd.teachers.cache import CachedTeacher, OfflineTeacher, Store
from opd.teachers.dialect import Dialect, TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import OpdDialect, is_opd
from opd.teachers.probe_texts import missing_support_message
from opd.teachers.prober import Handshake
from opd.teachers.probes import probe_temperature
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.repeats import RepeatChecks
from opd.teachers.sglang_api import SglangDialect
from opd.teachers.vllm_api import VllmDialect
from opd.training.distributed import SINGLE, Ranks, RankZeroSampler
from opd.types import Kind, Sampler, Teacher

logger = logging.getLogger(__name__)

TEACHER = "teacher.json"
REMEMBERED_STEPS = 4


@dataclass
class ServedTeacher:
    """A teacher behind HTTP, on the way from configuration to `Teacher`.

    Attributes:
        spec: the teacher section.
        dialect: of its server.
        hands: the result of its handshake; None before.
        record_file: name of the file in the run folder that remembers it.
    """

    spec: ServerTeacher
    dialect: Dialect
    hands: Handshake | None = None
    record_file: str = TEACHER

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of scores it gives."""
        return self.dialect.kinds

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end its completions, where the server tells."""
        return self.dialect.eos if isinstance(self.dialect, OpdDialect) else frozenset()

    @property
    def generates(self) -> bool:
        """Whether it completes prompts, beside scoring."""
        return isinstance(self.dialect, VllmDialect | SglangDialect)

    def handshake(
        self, cfg: Run, objective: Objective, vocab: int, tokenizer: Any, prompts: PromptSet
    ) -> None:
        """Refuse a loss it cannot serve, then probe it for this run.

        Raises:
            UserError: every probe that failed, with its fix.
        """
        require_kinds(objective, self.kinds)
        if isinstance(self.dialect, OpdDialect) and self.dialect.vocab != vocab:
            raise UserError(
                f"The teacher at {self.spec.address} has {self.dialect.vocab} tokens and the "
                f"student {vocab}: other tokenizers. Serve a teacher of the student's family."
            )
        material = [p.ids for p in prompts.prompts[:8]]
        try:
            inputs = HandshakeInputs(
                vocab,
                lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
                material,
                max(objective.want.topk, diagnostics_topk(cfg, vocab)),
                max_length=max(len(p.ids) for p in prompts.prompts) + cfg.rollout.max_new_tokens,
                eos=[tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [],
            )
            result = run_handshake(self.dialect, inputs)
            self._probe_temperature(result, material[0], cfg.loss.teacher_temperature)
        except Transient as error:
            raise UserError(
                f"teacher.url={self.spec.address}: the teacher stopped answering during the "
                f"handshake ({error}).{last_words(self.spec)}"
            ) from None
        if result.fatal:
            self.dialect.http.close()
        result.require(str(self.spec.address))
        for probe in result.probes:
            level = logging.WARNING if probe.level == "note" else logging.INFO
            logger.log(level, "teacher %s: %s", probe.name, probe.message)
        self.hands = result

    def _probe_temperature(self, result: Handshake, ids: Sequence[int], temperature: float) -> None:
        if isinstance(self.dialect, OpdDialect) and temperature != 1.0 and not result.fatal:
            plain = OpdDialect(self.dialect.http)
            probe_temperature(result, plain, self.dialect, ids, temperature)

    def teacher(
        self, cfg: Run, vocab: int, folder: Path, console: Console, clock: Clock
    ) -> Teacher:
        """The teacher of the run, behind its cache if it has one; the run folder remembers it.

        Raises:
            UserError: it is not the teacher this run began with.
        """
        hands = self.hands
        assert hands is not None, "handshake first"
        options = RemoteOptions(
            topk_for_diagnostics=diagnostics_topk(cfg, vocab),
            patience=self.spec.patience,
            notify=console.print,
            record=clock.note,
        )
        teacher = RemoteTeacher(
            self.dialect, self.spec.model, vocab=vocab, expected=hands.teacher, options=options
        )
        teacher.quarantine = Quarantine(folder / WRONG_ANSWERS)
        try:
            recognise_or_record(folder / self.record_file, teacher, hands, self._sees_more)
        except UserError:
            self.dialect.http.close()
            raise
        cache = self.spec.cache
        if cache is None:
            return teacher
        return CachedTeacher(
            teacher,
            Store(Path(cache.dir), int(cache.max_gb * 1e9)),
            f"{teacher.expected.fingerprint} at {cfg.loss.teacher_temperature}",
            topk_for_diagnostics=options.topk_for_diagnostics,
            record=clock.note,
        )

    @property
    def _sees_more(self) -> bool:
        return self.spec.prompt is not None or self.spec.tokenizer is not None

    def samplers(self, student: LM, stop: frozenset[int], ranks: Ranks = SINGLE) -> MakeSampler:
        """What generates with the teacher, where it `generates`.

        Args:
            student: of the run; needed by name only.
            stop: token ids that end a completion.
            ranks: the processes that share the work: rank zero asks the server.
        """
        assert self.generates, "a server that only scores"
        launched = self.spec.launched
        kind = SglangServer if isinstance(self.dialect, SglangDialect) else SamplingServer
        server = kind(self.dialect.http, self.spec.model, patience=self.spec.patience)
        if launched is not None:
            server.patience, server.given_up = STARTUP, launched.ended

        def make(decoding: Decoding, k: int | None) -> Sampler:
            sampler = VllmSampler(server, decoding, stop=stop)
            return sampler if ranks.size == 1 else RankZeroSampler(sampler, ranks, student)

        return make


@dataclass
class CachedScores:
    """A teacher that is only its cache (teacher.cache.offline): nobody is asked."""

    spec: ServerTeacher | LocalTeacher

    kinds = OfflineTeacher.kinds
    eos: frozenset[int] = frozenset()
    generates = False

    def handshake(
        self, cfg: Run, objective: Objective, vocab: int, tokenizer: Any, prompts: PromptSet
    ) -> None:
        """Refuse a loss that a cache cannot serve."""
        require_kinds(objective, self.kinds)

    def teacher(
        self, cfg: Run, vocab: int, folder: Path, console: Console, clock: Clock
    ) -> Teacher:
        """The cache as a teacher."""
        cache = self.spec.cache
        assert cache is not None
        return OfflineTeacher(
            Store(Path(cache.dir), int(cache.max_gb * 1e9)),
            self.spec.model,
            temperature=cfg.loss.teacher_temperature,
            topk_for_diagnostics=diagnostics_topk(cfg, vocab),
            record=clock.note,
        )


TeacherSource = ServedTeacher | CachedScores | OwnTeacher


def find_remote_teacher(cfg: Run) -> TeacherSource | None:
    """The configuration's teacher if it is not in this process; a server is contacted.

    Raises:
        UserError: see `connect`.
    """
    spec = cfg.teacher
    if spec is None:
        return None
    if spec.cache is not None and spec.cache.offline:
        return CachedScores(spec)
    if isinstance(spec, PythonTeacher):
        return find_own_teacher(spec)
    if not isinstance(spec, ServerTeacher):
        return None
    return ServedTeacher(spec, connect(spec, temperature=cfg.loss.teacher_temperature))


def connect(spec: ServerTeacher, *, temperature: float = 1.0) -> Dialect:
    """Find the server and which API it speaks.

    Raises:
        UserError: nobody answers, the key is missing or refused, or the model is not there.
    """
    address = spec.address
    if address is None:
        raise UserError(
            "teacher.launch: this command starts no servers. Start the teacher yourself and give "
            "teacher.url."
        )
    http = Http(
        Endpoint(
            address.rstrip("/").removesuffix("/v1"),
            role="teacher",
            key="teacher.url",
            api_key=read_key(spec.api_key_env, "teacher.api_key_env"),
        )
    )
    try:
        if is_opd(http):
            return OpdDialect(http, temperature=temperature)
        if temperature != 1.0:
            raise UserError(
                f"loss.teacher_temperature={temperature}: vLLM and SGLang score given tokens at "
                "temperature 1 only. Set it to 1, or serve the teacher with `opd serve-teacher`."
            )
        if model_info(http) is not None:
            return SglangDialect(http, spec.model)
        return VllmDialect(http, spec.model)
    except UserError:
        http.close()
        raise
    except Transient as error:
        http.close()
        raise UserError(
            f"teacher.url={address}: no teacher answers there ({error}). Start it, or correct the "
            f"address.{last_words(spec)}"
        ) from None


def last_words(spec: ServerTeacher) -> str:
    """What a teacher that `opd` has started wrote into its log; empty for others."""
    return "" if spec.launched is None else f" {spec.launched.last_words()}"


def require_kinds(objective: Objective, kinds: frozenset[Kind]) -> None:
    """Refuse a loss the teacher server cannot serve, before anything is paid for.

    Raises:
        UserError: with the choices and what each costs.
    """
    if objective.needs_full_teacher:
        raise UserError(
            "loss.support=full needs the teacher's whole distribution, which no server sends. Use "
            "a teacher in this process (teacher.model without teacher.url), or "
            "loss.support=student_topk."
        )
    if objective.other_tokenizer and objective.want.support and Kind.SUPPORT not in kinds:
        raise UserError(
            "loss.support=student_topk: this server cannot score tokens of the student's choice. "
            "Use loss.support=sampled, which compares chunks of text alone, or serve the teacher "
            "with `opd serve-teacher`."
        )
    if objective.want.support and Kind.SUPPORT not in kinds:
        raise UserError(missing_support_message(kinds, objective.k))
    if objective.entropy_forward_kl is not None and Kind.SUPPORT not in kinds:
        raise UserError(
            "loss.terms.entropy_forward_kl needs the teacher's entropy at every position, which "
            "vLLM does not give. Serve the teacher with `opd serve-teacher`."
        )


def diagnostics_topk(cfg: Run, vocab: int) -> int:
    """How many of the teacher's own top tokens the diagnostics want instead of everything."""
    if not cfg.diagnostics.positions or cfg.loss.teacher_temperature != 1.0:
        return 0
    return min(OVERLAP_K, vocab)


def recognise_or_record(
    path: Path, teacher: RemoteTeacher, hands: Handshake, sees_more: bool = False
) -> None:
    """Write teacher.json, or compare the teacher of a resumed run with it.

    Args:
        path: of the file.
        teacher: of the run.
        hands: the result of its handshake.
        sees_more: its prompts are not the student's, which are in the rollouts of earlier steps.

    Raises:
        UserError: it is not the teacher this run began with.
    """
    if path.exists():
        teacher.expected = TeacherRecord.from_json(json.loads(path.read_text("utf-8")))
        teacher.checks = RepeatChecks(teacher.expected.noise)
        try:
            teacher.verify()
        except Transient as error:
            raise UserError(f"The teacher stopped answering: {error}") from None
        if not sees_more and path.name == TEACHER:  # else others have scored some of them
            remember_earlier_steps(path.parent, teacher)
        return
    write_json(path, hands.to_json())


def remember_earlier_steps(folder: Path, teacher: RemoteTeacher) -> None:
    """Rollouts that an earlier process of the run kept with their scores: scored again, too."""
    steps = folder / "rollouts"
    if not steps.is_dir():
        return
    files = sorted((int(m[1]), p) for p in steps.iterdir() if (m := FILE.fullmatch(p.name)))
    for _, path in files[-REMEMBERED_STEPS:]:
        try:
            teacher.checks.remember(*read_step(path))
        except (OSError, ValueError):
            logger.debug("%s cannot be read", path)  # whoever needs it will say so
