"""Off-policy cold start: imitate the teacher until the student can be taught on its own rollouts.

Paper section 5.1 and appendix C.1. In rounds: the teacher writes, what is not worth imitating is
left out, the student imitates the rest (`sft_step`), and a few of its own rollouts say how far the
two overlap by now. It ends when the overlap suffices or rises no more; on-policy training then
starts with a fresh optimizer. A round is all or nothing, and its completions are on disk before
they are learned.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from opd import rng
from opd.config import Coldstart
from opd.data.duplicates import without
from opd.data.filters import REASONS, sift
from opd.data.graders import Grader
from opd.errors import UserError
from opd.recipes.measure import measure
from opd.recipes.sft import rate, sft_step
from opd.rng import Stream
from opd.run import checkpoint as store
from opd.run import rollouts as rollout_files
from opd.run.disk import make_folder, remove, sweep, write_bytes, write_json
from opd.run.layout import COLD_START, ON_POLICY
from opd.training.loop import Parts, evaluated, save
from opd.training.resume import checkpoint, restore, restore_phase
from opd.training.step import Learner, Refused, make_optimizer
from opd.types import Prompt, Rollout, Sampler, Scores

logger = logging.getLogger(__name__)

FOLDER, RECORD = COLD_START, "coldstart.json"
MASS, TOP1 = "diag/overlap_mass_student", "diag/top1_agreement"


@dataclass(frozen=True)
class Supply:
    """Where completions come from.

    Attributes:
        prompts: that the teacher answers, in order of use; empty where completions are given.
        given: completions in order of use; empty where the teacher writes.
        writer: the teacher's sampler; None where completions are given.
        probe: prompts on which the student is looked at; none of them is learned from.
        grader: for prompts with ground truths.
        stop: tokens that end the student's rollouts.
        end: what a completion ends with if the teacher's end token is not among those.
    """

    prompts: Sequence[Prompt]
    given: Sequence[Rollout]
    writer: Sampler | None
    probe: Sequence[Prompt]
    grader: Grader | None
    stop: frozenset[int]
    end: int

    def rounds(self, cfg: Coldstart) -> int:
        """How many rounds there is material for."""
        return min(cfg.max_rounds, -(-len(self._material) // self._size(cfg)))

    def prompts_of(self, number: int, cfg: Coldstart) -> Sequence[Prompt]:
        """The prompts of a round."""
        part = self._part(number, cfg)
        return [r.prompt for r in self.given[part]] if self.writer is None else self.prompts[part]

    def given_of(self, number: int, cfg: Coldstart) -> Sequence[Rollout]:
        """The given completions of a round."""
        return self.given[self._part(number, cfg)]

    @property
    def _material(self) -> Sequence[Prompt] | Sequence[Rollout]:
        return self.given if self.writer is None else self.prompts

    def _size(self, cfg: Coldstart) -> int:
        each = 1 if self.writer is None else cfg.n
        return max(1, cfg.completions_per_round // each)

    def _part(self, number: int, cfg: Coldstart) -> slice:
        return slice(number * self._size(cfg), (number + 1) * self._size(cfg))


@dataclass(frozen=True)
class Look:
    """Overlap with the teacher on the student's own rollouts."""

    mass: float
    top1: float


@dataclass(frozen=True)
class Progress:
    """What the phase has done; part of its checkpoints."""

    rounds: int = 0
    steps: int = 0
    tokens: int = 0  # completion tokens learned from
    written_tokens: int = 0  # of all completions, those left out included
    probe_tokens: int = 0  # that the student wrote to be looked at
    completions: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    looks: tuple[Look, ...] = ()

    @staticmethod
    def of(record: dict[str, Any]) -> Progress:
        """The inverse of `asdict`."""
        return Progress(**record | {"looks": tuple(Look(**look) for look in record["looks"])})


def warm_up(parts: Parts, supply: Supply) -> Parts:
    """Run the phase, or find that it is done; see the module.

    Returns:
        What on-policy training starts from: weights in place and in checkpoints/step-0, prompts
        without those used here, and the phase's record among the facts.

    Raises:
        UserError: nothing worth imitating, or no prompt left for on-policy training.
        KeyboardInterrupt: `parts.stop` was set; the round is saved.
    """
    cfg = parts.cfg.coldstart
    assert cfg is not None
    if store.newest(parts.folder.checkpoints) is None:
        with parts.clock("evaluate"):
            for task in parts.evals:  # before saved weights are put back: the student as it came
                evaluated(parts, task, 0, task.label, parts.student_sampler(task))
        write_json(parts.folder.path / RECORD, _phase(parts, supply, cfg, 0), parts.folder.ops)
        checkpoint(parts.folder, parts.learner, 0, keep=parts.cfg.output.keep)
    return handed_over(parts, supply, cfg)


def interlude(parts: Parts, step: int, supply: Supply) -> Parts:
    """The phase in the middle of a run, because of an alarm after `step` updates; or it is done.

    It begins with the weights of that moment, and training goes on with a fresh optimizer. Until
    the checkpoint of `step` is written anew, a resumed run begins again where the phase was.

    A phase that cannot be made (nothing worth imitating, say) is told and leaves the run as it was.

    Returns:
        As `warm_up`.

    Raises:
        KeyboardInterrupt: as `warm_up`.
    """
    cfg, guard = parts.cfg.coldstart, parts.guard
    assert cfg is not None
    if guard.course.cold_start == "made":
        return handed_over(parts, supply, cfg)
    parts.learner.optimizer.state.clear()  # it is in the checkpoint; two at a time may not fit
    try:
        write_json(parts.folder.path / RECORD, _phase(parts, supply, cfg, step), parts.folder.ops)
        begun = handed_over(parts, supply, cfg)
    except UserError as why:
        restore(parts.folder, parts.learner)
        logger.warning("%s The run goes on without it.", why)
        guard.course = replace(guard.course, cold_start="failed")
        save(parts, step)
        return parts
    optimizer = make_optimizer(begun.learner.student, begun.cfg.optim)
    begun = replace(begun, learner=replace(begun.learner, optimizer=optimizer))
    guard.course = replace(guard.course, cold_start="made")
    guard.monitor.reset()
    save(begun, step)
    return begun


def handed_over(parts: Parts, supply: Supply, cfg: Coldstart) -> Parts:
    """The parts of a run whose cold start is done: prompts left, and the record among the facts."""
    done = json.loads((parts.folder.path / RECORD).read_text("utf-8"))
    old = parts.folder.path / FOLDER / "checkpoints"
    if old.exists():
        remove(old, parts.folder.ops)
    source = parts.source
    if cfg.disjoint:
        used = [p for i in range(done["rounds"]) for p in supply.prompts_of(i, cfg)]
        left = without(source.prompts.prompts, used)
        if not left:
            raise UserError(
                f"The cold start used every question of {parts.cfg.prompts.path}. Give it prompts "
                "of its own (coldstart.prompts), lower coldstart.share, or set "
                "coldstart.disjoint=false."
            )
        source = replace(source, prompts=replace(source.prompts, prompts=left))
        done |= {"prompts_left": len(left)}
    return replace(parts, source=source, facts={**parts.facts, "coldstart": done})


def _phase(parts: Parts, supply: Supply, cfg: Coldstart, at: int) -> dict[str, Any]:
    """The rounds after `at` updates, from the last saved one on; returns the record."""
    run, place = parts.folder, parts.folder.path / FOLDER
    for folder in (place, place / "rollouts"):
        make_folder(folder, run.ops)
        sweep(folder, exclusive=True, ops=run.ops)
    optimizer = make_optimizer(
        parts.learner.student, parts.cfg.optim.model_copy(update={"lr": cfg.lr})
    )
    learner = replace(parts.learner, optimizer=optimizer)
    if store.newest(place / "checkpoints") is not None:
        _, state = restore_phase(run, learner, place / "checkpoints")
        progress = Progress.of(state["facts"])
    else:
        if at == 0:
            run.truncate_to({})  # rows of a process that was killed in the first round
        progress = looked(parts, supply, Progress())
        tell(parts, progress, cfg, at)
    while (why := enough(progress.looks, cfg)) is None and progress.rounds < supply.rounds(cfg):
        progress = one_round(parts, learner, supply, cfg, progress, at)
        tell(parts, progress, cfg, at)
        checkpoint(
            run,
            learner,
            progress.steps,
            keep=1,
            folder=place / "checkpoints",
            facts=asdict(progress),
        )
        if parts.stop.is_set():
            raise KeyboardInterrupt("saved")
    reason = why or (
        f"coldstart.max_rounds={cfg.max_rounds} were made"
        if progress.rounds == cfg.max_rounds
        else "its completions are used up"
    )
    run.log(at, {"phase": ON_POLICY})
    parts.console.say(f"Cold start ends after {progress.rounds} rounds: {reason}.")
    accuracy = {}
    for task in parts.evals:
        name = f"{FOLDER}-{task.label}"
        with parts.clock("evaluate"):
            found = evaluated(parts, task, at, name, parts.student_sampler(task)).accuracy
        parts.console.evaluated(at, task.label, found, who="after the cold start")
        accuracy[task.label] = asdict(found)
    return asdict(progress) | {"reason": reason, "sets": accuracy, "after_step": at}


def one_round(
    parts: Parts, learner: Learner, supply: Supply, cfg: Coldstart, progress: Progress, at: int
) -> Progress:
    """Write, sift, imitate, look."""
    number, seed = progress.rounds, parts.cfg.train.seed
    with parts.clock("rollout"):
        written = completions(parts, supply, cfg, number)
    kept, counts = sift(
        written,
        parts.source.decode,
        answer=cfg.answer,
        most_repetition=cfg.repetition,
        grader=supply.grader,
    )
    left_out = {why: progress.left_out[why] + counts[why] for why in REASONS}
    if not kept and not progress.completions:
        raise UserError(
            f"Cold start: none of the {len(written)} completions of the first round is worth "
            f"imitating ({', '.join(f'{n} {why}' for why, n in counts.items() if n)}). Raise "
            "coldstart.max_new_tokens if they are truncated, or set coldstart.answer=ignore."
        )
    step = progress.steps
    with parts.clock("update"):
        for chosen in portions(kept, cfg.batch):
            try:
                made = sft_step(
                    learner.student,
                    learner.optimizer,
                    chosen,
                    lr=cfg.lr * rate(step, 0, cfg.warmup, "constant"),
                    grad_clip=learner.optim.grad_clip,
                    tokens_per_microbatch=learner.tokens_per_microbatch,
                    key=(seed, step),
                    memory=learner.memory,
                )
            except Refused as why:
                raise UserError(
                    f"Cold start: {why}. The last whole round is saved; lower coldstart.lr "
                    f"({cfg.lr:g})."
                ) from None
            step += 1
            parts.folder.log(at, {"phase": FOLDER, **step_values(step, made._asdict())})
    learned = replace(
        progress,
        rounds=number + 1,
        steps=step,
        tokens=progress.tokens + sum(map(len, kept)),
        written_tokens=progress.written_tokens + sum(map(len, written)),
        completions=progress.completions + len(kept),
        left_out=left_out,
    )
    return looked(parts, supply, learned)


def step_values(step: int, made: dict[str, float]) -> dict[str, float]:
    """One supervised step for metrics.jsonl, whose own `step` counts on-policy ones."""
    return {
        "coldstart/step": step,
        "coldstart/loss": made["loss"],
        "coldstart/grad_norm": made["grad_norm"],
    }


def completions(parts: Parts, supply: Supply, cfg: Coldstart, number: int) -> list[Rollout]:
    """The teacher's completions of a round: given, from disk, or written now."""
    if supply.writer is None:
        return [ended(r, supply) for r in supply.given_of(number, cfg)]
    path = parts.folder.path / FOLDER / "rollouts" / f"step-{number}.parquet"
    key = parts.folder.key(number, 0)
    saved = rollout_files.load(path, key)
    if saved is not None:
        return saved[0]
    prompts = supply.prompts_of(number, cfg)
    stream = rng.key(parts.cfg.train.seed, Stream.COLDSTART_COMPLETIONS, number)
    written = supply.writer.sample(prompts, n=cfg.n, key=stream)
    found = [ended(r, supply) for r in written]
    texts = [parts.source.decode(r.ids.tolist()) for r in found]
    file = rollout_files.StepFile(found, [Scores()] * len(found), texts, key)
    write_bytes(path, rollout_files.encode(file), parts.folder.ops)
    return found


def ended(rollout: Rollout, supply: Supply) -> Rollout:
    """A finished completion with an end token that ends the student's rollouts too."""
    if rollout.finish != "stop" or not len(rollout) or int(rollout.ids[-1]) in supply.stop:
        return rollout
    ids = rollout.ids.copy()
    ids[-1] = supply.end
    return replace(rollout, ids=ids)


def portions(examples: Sequence[Rollout], batch: int) -> list[list[Rollout]]:
    """About `batch` examples a step, as even as can be, all of them used once."""
    if not examples:
        return []
    steps = max(1, round(len(examples) / batch))
    parts = np.array_split(np.arange(len(examples)), steps)
    return [[examples[i] for i in part] for part in parts]


def looked(parts: Parts, supply: Supply, progress: Progress) -> Progress:
    """Progress with one more look at the student: the same prompts and random numbers each time."""
    source = parts.source
    assert source.teacher is not None
    source.sampler.sync(progress.steps)
    with parts.clock("score"):
        rollouts = source.sampler.sample(
            supply.probe, n=1, key=rng.key(parts.cfg.train.seed, Stream.COLDSTART_PROBE)
        )
        k = min(parts.learner.diagnostics_k, parts.learner.objective.k)
        found = measure(rollouts, teacher=source.teacher, k=k)
    look = Look(found[MASS].value, found[TOP1].value)
    return replace(
        progress,
        looks=(*progress.looks, look),
        probe_tokens=progress.probe_tokens + sum(map(len, rollouts)),
    )


def enough(looks: Sequence[Look], cfg: Coldstart) -> str | None:
    """Why the phase should end now, or None.

    Looks are compared by their best so far, so one noisy look neither ends nor prolongs it.
    """
    last = looks[-1]
    if last.mass >= cfg.mass and last.top1 >= cfg.top1:
        return (
            f"overlap mass {last.mass:.3f} and top-1 agreement {last.top1:.3f} have reached "
            f"coldstart.mass={cfg.mass:g} and coldstart.top1={cfg.top1:g}"
        )
    if len(looks) <= cfg.patience:
        return None
    before, since = looks[: -cfg.patience], looks[-cfg.patience :]
    values: list[Callable[[Look], float]] = [lambda x: x.mass, lambda x: x.top1]
    if any(max(map(of, since)) > max(map(of, before)) + cfg.min_rise for of in values):
        return None
    return (
        f"neither overlap mass ({last.mass:.3f}) nor top-1 agreement ({last.top1:.3f}) has risen "
        f"by more than coldstart.min_rise={cfg.min_rise:g} in {cfg.patience} rounds"
    )


def tell(parts: Parts, progress: Progress, cfg: Coldstart, at: int) -> None:
    """A round for metrics.jsonl, timings.jsonl and people, after `at` on-policy updates."""
    look, left = progress.looks[-1], sum(progress.left_out.values())
    parts.folder.log(
        at,
        {
            "phase": FOLDER,
            "coldstart/step": progress.steps,
            "coldstart/overlap_mass_student": look.mass,
            "coldstart/top1_agreement": look.top1,
            "coldstart/tokens": progress.tokens,
            "coldstart/completions": progress.completions,
            "coldstart/left_out": left,
        },
    )
    parts.folder.time(at, parts.clock.take(progress.tokens) | {"phase": FOLDER})
    parts.console.say(
        f"cold start, round {progress.rounds}: {progress.completions} completions learned, {left} "
        f"left out, {progress.tokens} tokens; overlap mass {look.mass:.3f} of {cfg.mass:g}, top-1 "
        f"{look.top1:.3f} of {cfg.top1:g}"
    )
