"""From configuration to a teacher server that may teach: reach it, probe it, know it again.

Everything here runs before the run folder exists, except `remember`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.config import LocalTeacher, Run, ServerTeacher
from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Transient, read_key
from opd.models.lm import LM
from opd.run.bad_answers import FOLDER, Quarantine
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.disk import write_json
from opd.samplers.hf import Decoding
from opd.samplers.vllm import VllmSampler
from opd.teachers.cache import CachedTeacher, OfflineTeacher, Store
from opd.teachers.dialect import Dialect, TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import OpdDialect, is_opd
from opd.teachers.probe_texts import missing_support_message
from opd.teachers.prober import Handshake
from opd.teachers.probes import probe_temperature
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.types import Kind, Teacher

logger = logging.getLogger(__name__)

TEACHER = "teacher.json"


@dataclass
class Remote:
    """A teacher behind HTTP, or its cache alone, on the way from configuration to `Teacher`."""

    spec: ServerTeacher | LocalTeacher
    dialect: Dialect | None  # None: offline, nobody is asked
    hands: Handshake | None = None

    @staticmethod
    def find(cfg: Run) -> Remote | None:
        """Find the server of the configuration; None for a teacher in this process or none."""
        spec = cfg.teacher
        if spec is None:
            return None
        if spec.cache is not None and spec.cache.offline:
            return Remote(spec, None)
        if isinstance(spec, LocalTeacher):
            return None
        return Remote(spec, reach(spec, temperature=cfg.loss.teacher_temperature))

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it can be asked for."""
        return OfflineTeacher.kinds if self.dialect is None else self.dialect.kinds

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end its completions, where the server tells."""
        return self.dialect.eos if isinstance(self.dialect, OpdDialect) else frozenset()

    @property
    def context(self) -> int | None:
        """Longest sequence it scores, where known."""
        return None if self.dialect is None else self.dialect.context

    def greet(
        self, cfg: Run, objective: Objective, vocab: int, tokenizer: Any, prompts: PromptSet
    ) -> None:
        """Refuse a loss it cannot serve, then probe it; see `greet`."""
        require_kinds(objective, self.kinds)
        if self.dialect is None or isinstance(self.spec, LocalTeacher):
            return
        self.hands = greet(
            cfg,
            self.spec,
            self.dialect,
            objective,
            vocab=vocab,
            encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
            material=[p.ids for p in prompts.prompts[:8]],
            ends=[tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [],
            longest=max(len(p.ids) for p in prompts.prompts) + cfg.rollout.max_new_tokens,
        )

    def teacher(
        self, cfg: Run, vocab: int, folder: Path, console: Console, clock: Clock
    ) -> Teacher:
        """The teacher of the run; the run folder remembers which one it is."""
        if self.dialect is None or self.hands is None or isinstance(self.spec, LocalTeacher):
            return offline_teacher(cfg, self.spec, vocab=vocab, clock=clock)
        made = make_teacher(
            cfg, self.spec, self.dialect, self.hands, vocab=vocab, console=console, clock=clock
        )
        made.quarantine = Quarantine(folder / FOLDER)
        try:
            remember(folder, made, self.hands)
        except UserError:
            self.dialect.http.close()
            raise
        return with_cache(cfg, self.spec, made, clock)

    @property
    def writes(self) -> bool:
        """Whether it completes prompts, beside scoring."""
        return isinstance(self.dialect, VllmDialect)

    def writer(
        self, student: LM, tokenizer: Any, decoding: Decoding, stop: frozenset[int]
    ) -> VllmSampler:
        """A sampler of the teacher's own completions.

        Raises:
            UserError: a server that only scores.
        """
        if not isinstance(self.dialect, VllmDialect) or isinstance(self.spec, LocalTeacher):
            raise UserError(
                "The teacher server scores and does not write, so it cannot make the completions "
                "of a cold start. Serve the teacher with vLLM, use a teacher in this process, or "
                "give completions in coldstart.path."
            )
        return VllmSampler(
            self.dialect.http,
            self.spec.model,
            student,
            tokenizer,
            decoding,
            stop=stop,
            capture=1,
            sync_dir=Path(),  # a teacher is never given weights
            concurrency=self.spec.concurrency,
        )


def reach(spec: ServerTeacher, *, temperature: float = 1.0) -> Dialect:
    """Find the server and which API it speaks.

    Raises:
        UserError: nobody answers, the key is missing or refused, or the model is not there.
    """
    http = Http(
        Endpoint(
            spec.url.rstrip("/").removesuffix("/v1"),
            role="teacher",
            key="teacher.url",
            api_key=read_key(spec.api_key_env, "teacher.api_key_env"),
        ),
        limits=Limits(answer=spec.timeout),
    )
    try:
        if spec.api == "opd" or (spec.api == "auto" and is_opd(http)):
            return OpdDialect(http, temperature=temperature)
        if temperature != 1.0:
            raise UserError(
                f"loss.teacher_temperature={temperature}: vLLM scores given tokens at temperature "
                "1 only. Set it to 1, or serve the teacher with `opd serve-teacher`."
            )
        return VllmDialect(http, spec.model)
    except UserError:
        http.close()
        raise
    except Transient as error:
        http.close()
        raise UserError(
            f"teacher.url={spec.url}: no teacher answers there ({error}). Start it, or correct the "
            "address."
        ) from None


def settle_support(cfg: Run, kinds: frozenset[Kind], console: Console) -> Run:
    """`loss.support: auto` as what the teacher can serve; a loss it cannot serve is refused.

    Raises:
        UserError: with the choices there are.
    """
    loss = cfg.loss
    if loss.support == "auto":
        if Kind.SUPPORT in kinds:
            chosen: dict[str, Any] = {"support": "student_topk"}
        else:
            mode = "tail" if loss.mode == "paper" else loss.mode
            chosen = {"support": "teacher_topk", "mode": mode}
            console.say(
                "loss.support=auto: this teacher server cannot score the student's own tokens; "
                f"training on teacher_topk with loss.mode={mode}."
            )
        return cfg.model_copy(update={"loss": loss.model_copy(update=chosen)})
    return cfg


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
    if objective.want.support and Kind.SUPPORT not in kinds:
        raise UserError(missing_support_message(kinds, objective.k))
    if objective.entropy_forward_kl is not None and Kind.SUPPORT not in kinds:
        raise UserError(
            "loss.terms.entropy_forward_kl needs the teacher's entropy at every position, which "
            "vLLM does not give. Serve the teacher with `opd serve-teacher`."
        )


def greet(
    cfg: Run,
    spec: ServerTeacher,
    dialect: Dialect,
    objective: Objective,
    *,
    vocab: int,
    encode: Callable[[str], list[int]],
    material: Sequence[Sequence[int]],
    longest: int,
    ends: Sequence[int],
) -> Handshake:
    """Probe the server for this run.

    Raises:
        UserError: every probe that failed, with its fix.
    """
    topk = max(objective.want.topk, diagnostics_topk(cfg, vocab))
    if isinstance(dialect, OpdDialect) and dialect.vocab != vocab:
        raise UserError(
            f"The teacher at {spec.url} has {dialect.vocab} tokens and the student {vocab}: other "
            "tokenizers. Serve a teacher of the student's family."
        )
    try:
        inputs = HandshakeInputs(vocab, encode, material, topk, max_length=longest, eos=ends)
        result = run_handshake(dialect, inputs)
        temperature = cfg.loss.teacher_temperature
        if isinstance(dialect, OpdDialect) and temperature != 1.0 and not result.fatal:
            probe_temperature(result, OpdDialect(dialect.http), dialect, material[0], temperature)
    except Transient as error:
        raise UserError(
            f"teacher.url={spec.url}: the teacher stopped answering during the handshake ({error})."
        ) from None
    if result.fatal:
        dialect.http.close()
    result.require(spec.url)
    for probe in result.probes:
        logger.log(
            logging.WARNING if probe.level == "note" else logging.INFO,
            "teacher %s: %s",
            probe.name,
            probe.message,
        )
    return result


def diagnostics_topk(cfg: Run, vocab: int) -> int:
    """How many of the teacher's own top tokens the diagnostics want instead of everything."""
    if not cfg.diagnostics.positions or cfg.loss.teacher_temperature != 1.0:
        return 0
    return min(cfg.diagnostics.k, vocab)


def make_teacher(
    cfg: Run,
    spec: ServerTeacher,
    dialect: Dialect,
    hands: Handshake,
    *,
    vocab: int,
    console: Console,
    clock: Clock,
) -> RemoteTeacher:
    """The teacher of a run, as the server gives it."""
    options = RemoteOptions(
        topk_for_diagnostics=diagnostics_topk(cfg, vocab),
        concurrency=spec.concurrency,
        patience=spec.patience,
        notify=console.say,
        record=clock.note,
    )
    return RemoteTeacher(dialect, spec.model, vocab=vocab, expected=hands.teacher, options=options)


def with_cache(cfg: Run, spec: ServerTeacher, teacher: RemoteTeacher, clock: Clock) -> Teacher:
    """The teacher behind its cache, if it has one."""
    if spec.cache is None:
        return teacher
    store = Store(Path(spec.cache.dir), int(spec.cache.max_gb * 1e9))
    return CachedTeacher(
        teacher,
        store,
        f"{teacher.expected.fingerprint} at {cfg.loss.teacher_temperature}",
        topk_for_diagnostics=teacher.options.topk_for_diagnostics,
        record=clock.note,
    )


def offline_teacher(
    cfg: Run, spec: ServerTeacher | LocalTeacher, *, vocab: int, clock: Clock
) -> Teacher:
    """A teacher that is only its cache; nobody is asked."""
    assert spec.cache is not None
    store = Store(Path(spec.cache.dir), int(spec.cache.max_gb * 1e9))
    return OfflineTeacher(
        store,
        spec.model,
        temperature=cfg.loss.teacher_temperature,
        topk_for_diagnostics=diagnostics_topk(cfg, vocab),
        record=clock.note,
    )


def remember(folder: Path, teacher: RemoteTeacher, hands: Handshake) -> None:
    """Write teacher.json, or hold the teacher of a resumed run against it.

    Raises:
        UserError: it is not the teacher this run began with.
    """
    path = folder / TEACHER
    if path.exists():
        teacher.expected = TeacherRecord.from_json(json.loads(path.read_text("utf-8")))
        try:
            teacher.verify()
        except Transient as error:
            raise UserError(f"The teacher stopped answering: {error}") from None
        return
    write_json(path, hands.to_json())


def vllm_sampler(
    cfg: Run, student: LM, tokenizer: Any, stop: frozenset[int], folder: Path
) -> VllmSampler:
    """Rollouts by a vLLM server that is given the student's weights after every step."""
    r = cfg.rollout
    assert r.url is not None
    assert r.model is not None
    http = Http(
        Endpoint(
            r.url.rstrip("/").removesuffix("/v1"),
            role="rollout server",
            key="rollout.url",
            api_key=read_key(r.api_key_env, "rollout.api_key_env"),
        ),
        limits=Limits(answer=r.timeout),
    )
    return VllmSampler(
        http,
        r.model,
        student,
        tokenizer,
        Decoding(r.max_new_tokens, r.temperature, r.top_p, r.top_k),
        stop=stop,
        capture=min(cfg.loss.k, student.vocab),
        sync_dir=folder / "sync" if r.sync_dir is None else Path(r.sync_dir),
        concurrency=r.concurrency,
        quarantine=Quarantine(folder / FOLDER),
    )
