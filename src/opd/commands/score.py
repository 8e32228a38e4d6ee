"""`opd serve-teacher --score`: score recorded rollouts ahead of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.outputs import require_folders_apart
from opd.samplers.replay import read_rollouts
from opd.setup.models import Models, open_models
from opd.setup.prompts import load_training_prompts
from opd.setup.remote_teacher import diagnostics_topk
from opd.setup.self_teacher import require_ordinary_teacher
from opd.teachers.cache import CachedTeacher, Store, offline_name

BATCH = 64  # rollouts scored between two lines of progress


def score_ahead(cfg: Run, path: Path) -> tuple[int, int]:
    """Score recorded rollouts into teacher.cache.dir for a run with teacher.cache.offline=true.

    Returns:
        (rollouts scored, of which were there already).

    Raises:
        UserError: no cache configured, no rollouts, or a teacher that fails its handshake.
    """
    console, clock = Console("plain"), Clock()
    spec = cfg.teacher
    if spec is None or spec.cache is None:
        raise UserError(
            "--score puts scores into teacher.cache.dir, which run.yaml does not set. Write "
            "teacher: {..., cache: {dir: FOLDER, offline: true}}."
        )
    require_ordinary_teacher(cfg, "Scoring ahead of time")
    require_folders_apart(config.dump(cfg))
    rollouts = read_rollouts(path)
    online = cfg.model_copy(update={"teacher": spec.model_copy(update={"cache": None})})
    models = open_models(online, console)
    if models.remote is not None:
        models.handshake(load_training_prompts(models.cfg, models.pair, console))
    store = Store(Path(spec.cache.dir), int(spec.cache.max_gb * 1e9))
    cached = _cached_teacher(models, store, console, clock)
    hits = 0.0
    for start in range(0, len(rollouts), BATCH):
        batch = rollouts[start : start + BATCH]
        full = [np.arange(len(r)) for r in batch]
        cached.score(batch, models.objective.want._replace(full=full))
        hits += clock.take(1)["teacher/cache_hits"] * len(batch)
        console.print(f"{start + len(batch)} of {len(rollouts)} rollouts scored")
    console.print(f"{round(hits)} were there already. Scores are in {store.folder}.")
    return len(rollouts), round(hits)


def _cached_teacher(models: Models, store: Store, console: Console, clock: Clock) -> CachedTeacher:
    teacher, spec = models.teacher(store.folder, console, clock), models.cfg.teacher
    assert teacher is not None
    assert spec is not None
    return CachedTeacher(
        teacher,
        store,
        offline_name(spec.model, models.cfg.loss.teacher_temperature),
        topk_for_diagnostics=diagnostics_topk(models.cfg, models.pair.student.vocab),
        record=clock.note,
    )
