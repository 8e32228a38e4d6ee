"""The rounds of a cold start, before the first on-policy step or in the middle of a run.

Paper section 5.1 and appendix C.1. In rounds: the teacher generates, what is not worth imitating is
left out, the student imitates the rest (`supervised_update`), and a few of its own rollouts show
how far the two overlap by now. It ends when the overlap suffices or rises no more; on-policy
training then starts with a fresh optimizer. A round is all or nothing, and its completions are on
disk before they are learned.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from opd.config import Coldstart
from opd.data.duplicates import exclude_questions
from opd.data.filters import REASONS, filter_completions
from opd.errors import UserError
from opd.recipes.coldstart.completions import CompletionSource, completions_of_round
from opd.recipes.coldstart.progress import (
    Progress,
    measure_overlap,
    reason_to_stop,
    report_progress,
)
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.disk import make_folder, remove, write_json
from opd.run.layout import COLD_START, ON_POLICY
from opd.run.own_files import sweep_own
from opd.training.checkpoints import restore, restore_phase, write_checkpoint
from opd.training.evaluations import evaluate_once, mean_accuracy
from opd.training.learner import Learner
from opd.training.optimizer import NonFiniteStep, learning_rate, make_optimizer
from opd.training.session import Session
from opd.training.step import SupervisedStep, supervised_update
from opd.types import Rollout

logger = logging.getLogger(__name__)

RECORD = "coldstart.json"
# Completions per optimizer step, and steps of linear warm-up: coldstart.lr is made for both. Which
# batch trains best was not measured; the rate is the key that repairs a bad one.
BATCH, WARMUP = 32, 10


def before_training(session: Session, source: CompletionSource) -> Session:
    """Run the phase before the first on-policy step, or find that it is done; see the module.

    Returns:
        What on-policy training starts from: weights in place and in checkpoints/step-0, prompts
        without those used here, and the phase's record among the facts.

    Raises:
        UserError: nothing worth imitating.
        KeyboardInterrupt: `session.stop` was set; the round is saved.
    """
    cfg = session.cfg.coldstart
    assert cfg is not None
    if find_newest_checkpoint(session.folder.checkpoints) is None:
        with session.clock("evaluate"):
            session.source.sampler.sync(0)
            for task in session.evals:  # the student as it came, before saved weights are restored
                evaluate_once(session, task, 0, task.label, session.student_sampler(task))
        _keep_student(session)
        record = run_rounds(session, source, cfg, 0)
        write_json(session.folder.path / RECORD, record, session.folder.ops)
        keep, facts = session.cfg.output.keep, session.interventions.state()
        write_checkpoint(session.folder, session.learner, 0, keep=keep, facts=facts)
    return replace(hand_over(session, source, cfg), warm_started=True)


def _keep_student(session: Session) -> None:
    """Keep the student as it came, where a run that does harm is to end with it."""
    accuracy = mean_accuracy(session, 0)
    if not session.interventions.keeps_best or accuracy is None:
        return
    restored = find_newest_checkpoint(session.folder.path / COLD_START / "checkpoints")
    session.interventions.record_accuracy(0, accuracy)
    if restored is None:  # a resumed phase would keep a student that it has trained
        session.save_best(0)


def during_training(session: Session, source: CompletionSource, step: int) -> Session:
    """The phase in the middle of a run, because of an alarm after `step` updates; or it is done.

    It begins with the weights of that moment, and training goes on with a fresh optimizer. Until
    the checkpoint of `step` is written anew, a resumed run begins again where the phase was.

    A phase that cannot be made (nothing worth imitating, say) warns and leaves the run as it was.

    Returns:
        As `before_training`.

    Raises:
        KeyboardInterrupt: as `before_training`.
    """
    cfg, interventions = session.cfg.coldstart, session.interventions
    assert cfg is not None
    if interventions.adjustable.cold_start == "made":
        return hand_over(session, source, cfg)
    session.learner.optimizer.state.clear()  # it is in the checkpoint; two at a time may not fit
    try:
        record = run_rounds(session, source, cfg, step)
        write_json(session.folder.path / RECORD, record, session.folder.ops)
        changed = hand_over(session, source, cfg)
    except UserError as reason:
        restore(session.folder, session.learner)
        logger.warning("%s The run goes on without it.", reason)
        interventions.set_cold_start("failed")
        session.save_checkpoint(step)
        return session
    optimizer = make_optimizer(changed.learner.student, changed.cfg.optim)
    changed = replace(changed, learner=replace(changed.learner, optimizer=optimizer))
    interventions.set_cold_start("made")
    changed.save_checkpoint(step)
    return changed


def hand_over(session: Session, source: CompletionSource, cfg: Coldstart) -> Session:
    """The session after the phase: prompts left, its record among the facts, its files removed."""
    folder = session.folder
    record = json.loads((folder.path / RECORD).read_text("utf-8"))
    checkpoints = folder.path / COLD_START / "checkpoints"
    if checkpoints.exists():
        remove(checkpoints, folder.ops)
    experience = session.source
    used = [p for i in range(record["rounds"]) for p in source.prompts_of(i, cfg)]
    left = exclude_questions(experience.prompts.prompts, used)
    if not left:  # nothing that was learned is lost over it
        logger.warning(
            "The cold start used every question of %s, so on-policy training asks them again. More "
            "prompts, coldstart.prompts or a smaller coldstart.max_rounds keep the two apart.",
            session.cfg.prompts.path,
        )
        left = experience.prompts.prompts
    experience = replace(experience, prompts=replace(experience.prompts, prompts=left))
    record |= {"prompts_left": len(left)}
    return replace(session, source=experience, facts={**session.facts, "coldstart": record})


def run_rounds(
    session: Session, source: CompletionSource, cfg: Coldstart, after_step: int
) -> dict[str, Any]:
    """The rounds after `after_step` updates, from the last saved one on; returns the record."""
    run, folder = session.folder, session.folder.path / COLD_START
    for path in (folder, folder / "rollouts"):
        make_folder(path, run.ops)
        sweep_own(path, run.path, run.ops)
    optim = session.cfg.optim.model_copy(update={"lr": cfg.lr})
    optimizer = make_optimizer(session.learner.student, optim)
    learner = replace(session.learner, optimizer=optimizer)
    if find_newest_checkpoint(folder / "checkpoints") is not None:
        _, state = restore_phase(run, learner, folder / "checkpoints")
        progress = Progress.of_record(state["facts"])
        session.source.sampler.sync(progress.steps)  # a server has the student as it came
    else:
        if after_step == 0:
            run.truncate_logs({})  # rows of a process that was killed in the first round
        progress = measure_overlap(session, source, Progress())
        report_progress(session, progress, cfg, after_step)
    while (reason := reason_to_stop(progress.looks, cfg)) is None:
        if progress.rounds >= source.rounds(cfg):
            break
        progress = run_round(session, learner, source, progress, after_step)
        report_progress(session, progress, cfg, after_step)
        write_checkpoint(
            run,
            learner,
            progress.steps,
            keep=1,
            folder=folder / "checkpoints",
            facts=asdict(progress),
        )
        if session.stop.is_set():
            raise KeyboardInterrupt("saved")
    reason = reason or (
        f"coldstart.max_rounds={cfg.max_rounds} were made"
        if progress.rounds == cfg.max_rounds
        else "its completions are used up"
    )
    run.log_metrics(after_step, {"phase": ON_POLICY})
    session.console.print(f"Cold start ends after {progress.rounds} rounds: {reason}.")
    sets = evaluate_after(session, after_step)
    return asdict(progress) | {"reason": reason, "sets": sets, "after_step": after_step}


def evaluate_after(session: Session, after_step: int) -> dict[str, Any]:
    """Held-out accuracy after the phase, by set."""
    accuracies = {}
    for task in session.evals:
        name = f"{COLD_START}-{task.label}"
        with session.clock("evaluate"):
            sampler = session.student_sampler(task)
            accuracy = evaluate_once(session, task, after_step, name, sampler).accuracy
        session.console.show_evaluation(
            after_step, task.label, accuracy, who="after the cold start"
        )
        accuracies[task.label] = asdict(accuracy)
    return accuracies


def run_round(
    session: Session,
    learner: Learner,
    source: CompletionSource,
    progress: Progress,
    after_step: int,
) -> Progress:
    """Generate, filter, imitate, measure."""
    cfg = session.cfg.coldstart
    assert cfg is not None
    with session.clock("rollout"):
        completions = completions_of_round(session, source, cfg, progress.rounds)
    kept, counts = filter_completions(
        completions,
        session.source.decode,
        answer=cfg.answer,
        grader=source.grader,
    )
    left_out = {reason: progress.left_out[reason] + counts[reason] for reason in REASONS}
    if not kept and not progress.completions:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
        raise UserError(
            f"Cold start: none of the {len(completions)} completions of the first round is worth "
            f"imitating ({reasons}). Raise coldstart.max_new_tokens if they are truncated, or set "
            "coldstart.answer=ignore."
        )
    step = progress.steps
    with session.clock("update"):
        for batch in even_batches(kept, BATCH):
            imitated = imitate(learner, batch, step, cfg)
            step += 1
            values = {
                "coldstart/step": step,  # the row's own `step` counts on-policy updates
                "coldstart/loss": imitated.loss,
                "coldstart/grad_norm": imitated.grad_norm,
            }
            session.folder.log_metrics(after_step, {"phase": COLD_START, **values})
    progress = replace(
        progress,
        rounds=progress.rounds + 1,
        steps=step,
        tokens=progress.tokens + sum(map(len, kept)),
        written_tokens=progress.written_tokens + sum(map(len, completions)),
        completions=progress.completions + len(kept),
        left_out=left_out,
    )
    return measure_overlap(session, source, progress)


def imitate(
    learner: Learner, batch: Sequence[Rollout], step: int, cfg: Coldstart
) -> SupervisedStep:
    """One supervised step of the phase.

    Raises:
        UserError: the step was not finite.
    """
    try:
        lr = learning_rate(cfg.lr, step, WARMUP)
        return supervised_update(learner, batch, step, lr=lr)
    except NonFiniteStep as reason:
        raise UserError(
            f"Cold start, {reason}. The last whole round is saved; lower coldstart.lr ({cfg.lr:g})."
        ) from None


def even_batches(examples: Sequence[Rollout], size: int) -> list[list[Rollout]]:
    """Batches of about `size` examples, as even as can be, all of them used once."""
    if not examples:
        return []
    count = max(1, round(len(examples) / size))
    parts = np.array_split(np.arange(len(examples)), count)
    return [[examples[i] for i in part] for part in parts]
