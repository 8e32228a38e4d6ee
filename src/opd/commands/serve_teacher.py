"""What `opd serve-teacher` does: serve the configured teacher, or score rollouts ahead of time."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from opd.config import LocalTeacher, Run
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import LM, load_lm
from opd.run.clock import Clock
from opd.run.console import Console
from opd.samplers.replay import read_rollouts
from opd.setup import remote_teacher
from opd.teachers.cache import CachedTeacher, Store, offline_name
from opd.types import Kind, Teacher

logger = logging.getLogger(__name__)

TOKEN_ENV = "OPD_TEACHER_TOKEN"
TOKENS = 8192  # padded tokens a forward
AT_ONCE = 64  # rollouts scored between two lines of progress


def serve(cfg: Run, *, host: str, port: int) -> None:
    """Serve the teacher of a run.yaml until interrupted.

    Raises:
        UserError: the run has no teacher in this process, or a package is missing.
    """
    console = Console("plain")
    spec = _local(cfg)
    from opd.teachers.scoring_server import Scorer, TeacherServer, make_app

    console.say(f"Loading {spec.model} ...")
    lm, tokenizer = _load(spec)
    token = os.environ.get(TOKEN_ENV) or secrets.token_urlsafe(24)
    eos = tokenizers.eos_ids(tokenizer, lm.causal.generation_config)
    scorer = Scorer(lm, tokens_per_batch=TOKENS)
    app = make_app(lm, tokenizer, token=token, eos=sorted(eos), scorer=scorer)
    console.say(
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


def score_ahead(cfg: Run, path: Path) -> tuple[int, int]:
    """Score recorded rollouts into teacher.cache.dir for a run with teacher.cache.offline=true.

    Returns:
        (rollouts scored, of which were there already).

    Raises:
        UserError: no cache configured, no rollouts, or a teacher that fails its handshake.
    """
    from opd.setup.pair import load_pair
    from opd.setup.session import load_training_prompts, local_teacher, make_objective

    console, clock = Console("plain"), Clock()
    spec = cfg.teacher
    if spec is None or spec.cache is None:
        raise UserError(
            "--score puts scores into teacher.cache.dir, which run.yaml does not set. Write "
            "teacher: {..., cache: {dir: FOLDER, offline: true}}."
        )
    rollouts = read_rollouts(path)
    online = cfg.model_copy(update={"teacher": spec.model_copy(update={"cache": None})})
    remote = remote_teacher.Remote.find(online)
    online = remote_teacher.settle_support(
        online, remote.kinds if remote else frozenset(Kind), console
    )
    objective = make_objective(online)
    pair = load_pair(online, remote)
    store = Store(Path(spec.cache.dir), int(spec.cache.max_gb * 1e9))
    teacher: Teacher | None = local_teacher(online, pair)
    if remote is not None:
        prompts = load_training_prompts(online, pair, console)
        remote.greet(online, objective, pair.student.vocab, pair.tokenizer, prompts)
        teacher = remote.teacher(online, pair.student.vocab, store.folder, console, clock)
    assert teacher is not None
    cached = CachedTeacher(
        teacher,
        store,
        offline_name(spec.model, cfg.loss.teacher_temperature),
        topk_for_diagnostics=remote_teacher.diagnostics_topk(cfg, pair.student.vocab),
        record=clock.note,
    )
    known = 0.0
    for start in range(0, len(rollouts), AT_ONCE):
        part = rollouts[start : start + AT_ONCE]
        cached.score(part, objective.want._replace(full=[np.arange(len(r)) for r in part]))
        known += clock.take(1)["teacher/cache_hits"] * len(part)
        console.say(f"{start + len(part)} of {len(rollouts)} rollouts scored")
    console.say(f"{round(known)} were there already. Scores are in {store.folder}.")
    return len(rollouts), round(known)


def _local(cfg: Run) -> LocalTeacher:
    if not isinstance(cfg.teacher, LocalTeacher):
        raise UserError(
            "opd serve-teacher serves the model of teacher.model; this run.yaml names "
            f"{'no teacher' if cfg.teacher is None else 'a server itself (teacher.url)'}. Write "
            "teacher: {model: FOLDER_OR_HUB_NAME}."
        )
    return cfg.teacher


def _load(spec: LocalTeacher) -> tuple[LM, Any]:
    tokenizer = tokenizers.load_tokenizer(spec.model, spec.revision, key="teacher.model")
    lm = load_lm(
        spec.model,
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.device,
        key="teacher.model",
    )
    return replace(lm, vocab=min(lm.vocab, tokenizers.vocab_size(tokenizer))), tokenizer
