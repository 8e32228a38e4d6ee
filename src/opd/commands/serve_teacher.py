"""`opd serve-teacher`: serve the configured teacher over HTTP."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace
from typing import Any

from opd.commands.outputs import require_address
from opd.config import LocalTeacher, Run, SelfTeacher, ServerTeacher
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import LM, resolve_device
from opd.models.model_files import read_facts
from opd.run.console import Console
from opd.setup.pair import load_teacher

logger = logging.getLogger(__name__)

TOKEN_ENV = "OPD_TEACHER_TOKEN"
EVERY_ADDRESS = ("0.0.0.0", "::", "")
TOKENS = 8192  # padded tokens per forward


def serve(cfg: Run, *, host: str, port: int) -> None:
    """Serve the teacher of a run.yaml until interrupted.

    Raises:
        UserError: the run has no teacher in this process, or a package is missing.
    """
    console = Console("plain")
    spec = _local(cfg)
    require_address(host, port)
    read_facts(spec.model, "teacher.model")
    resolve_device(spec.device, "teacher.device")
    from opd.teachers.scoring_server import Scorer, TeacherServer, make_app

    console.print(f"Loading {spec.model} ...")
    lm, tokenizer = _load(spec)
    token = os.environ.get(TOKEN_ENV) or secrets.token_urlsafe(24)
    eos = tokenizers.eos_ids(tokenizer, lm.causal.generation_config)
    scorer = Scorer(lm, tokens_per_batch=TOKENS)
    app = make_app(lm, tokenizer, token=token, eos=sorted(eos), scorer=scorer)
    console.print(announcement(host, port, token, lm.name))
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(
            "Listening on %s: the token and all tokens travel unencrypted. Use a private network "
            "or a TLS proxy.",
            host,
        )
    TeacherServer(app, host, port).serve()


def announcement(host: str, port: int, token: str, model: str) -> str:
    """What the trainer's side sets to reach this server.

    An address that stands for all of this machine's cannot be connected to: HOST takes its place.
    """
    listens = f"[{host}]" if ":" in host else host
    name = "HOST" if host in EVERY_ADDRESS else listens
    of_host = ", with HOST the name or address of this machine" if name == "HOST" else ""
    return (
        f"Serving on http://{listens}:{port}/v1 (stop with Ctrl-C). Where the student trains:\n"
        f"  export {TOKEN_ENV}={token}\n"
        f"and in run.yaml{of_host}:\n"
        f"  teacher: {{url: http://{name}:{port}/v1, model: {model}, api_key_env: {TOKEN_ENV}}}"
    )


def _local(cfg: Run) -> LocalTeacher:
    if isinstance(cfg.teacher, LocalTeacher):
        return cfg.teacher
    named = "several teachers" if cfg.teachers else "no teacher"
    if isinstance(cfg.teacher, ServerTeacher):
        named = "a server itself (teacher.url or teacher.launch)"
    elif isinstance(cfg.teacher, SelfTeacher):
        named = "the student itself (teacher.from)"
    elif cfg.teacher is not None:
        named = "a Python object (teacher.python)"
    raise UserError(
        f"opd serve-teacher serves the model of teacher.model; this run.yaml names {named}. Write "
        "teacher: {model: FOLDER_OR_HUB_NAME}."
    )


def _load(spec: LocalTeacher) -> tuple[LM, Any]:
    tokenizer = tokenizers.load_tokenizer(spec.model, key="teacher.model")
    lm = load_teacher(spec, None)
    return replace(lm, vocab=min(lm.vocab, tokenizers.vocab_size(tokenizer))), tokenizer
