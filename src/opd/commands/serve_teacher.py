"""`opd serve-teacher`: serve the configured teacher over HTTP."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace
from typing import Any

from opd.commands.outputs import require_address
from opd.config import LocalTeacher, Run
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import LM, resolve_device
from opd.models.model_files import read_facts
from opd.run.console import Console
from opd.setup.pair import load_teacher

logger = logging.getLogger(__name__)

TOKEN_ENV = "OPD_TEACHER_TOKEN"
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
    console.print(
        f"Serving on http://{host}:{port}/v1 (stop with Ctrl-C). Where the student trains:\n"
        f"  export {TOKEN_ENV}={token}\n"
        "and in run.yaml:\n"
        f"  teacher: {{url: http://{host}:{port}/v1, model: {lm.name}, api_key_env: {TOKEN_ENV}}}"
    )
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(
            "Listening on %s: the token and all tokens travel unencrypted. Use a private network "
            "or a TLS proxy.",
            host,
        )
    TeacherServer(app, host, port).serve()


def _local(cfg: Run) -> LocalTeacher:
    if not isinstance(cfg.teacher, LocalTeacher):
        raise UserError(
            "opd serve-teacher serves the model of teacher.model; this run.yaml names "
            f"{'no teacher' if cfg.teacher is None else 'a server itself (teacher.url)'}. Write "
            "teacher: {model: FOLDER_OR_HUB_NAME}."
        )
    return cfg.teacher


def _load(spec: LocalTeacher) -> tuple[LM, Any]:
    tokenizer = tokenizers.load_tokenizer(spec.model, key="teacher.model")
    lm = load_teacher(spec, None)
    return replace(lm, vocab=min(lm.vocab, tokenizers.vocab_size(tokenizer))), tokenizer
