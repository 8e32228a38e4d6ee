"""From configuration to a session: the only place that knows both.

Order matters: whatever can be wrong with the input is found before the run folder exists.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from opd import config
from opd.alarms import Monitor, rules_of
from opd.config import Run
from opd.core.diagnostics import OVERLAP_K, position_edges
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.attention import attention_kernel
from opd.models.cache_support import require_cache
from opd.models.lm import load_lm
from opd.models.prefix_cache import supports_prefix_cache
from opd.models.token_text import token_texts
from opd.models.tokenizers import make_decoder
from opd.recipes.coldstart import CompletionSource
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.disk import require_space
from opd.run.folder import RunFolder
from opd.run.trackers import Trackers
from opd.samplers.vllm import StatisticsSampler
from opd.setup.coldstart_source import completion_source
from opd.setup.disk_estimate import bytes_needed
from opd.setup.inputs import Inputs
from opd.setup.launch import Servers, start_servers
from opd.setup.models import Models, open_models
from opd.setup.pair import Pair
from opd.setup.precision import is_sharded, prepare_weights, resolve_precision
from opd.setup.preflight import read_inputs, require_same_inputs
from opd.setup.problems import Problems
from opd.setup.prompts import load_sft_examples, training_grader
from opd.setup.run_folder import require_run_folder
from opd.setup.samplers import (
    eval_sampler,
    require_alone,
    student_samplers,
    student_scorer,
    training_sampler,
)
from opd.setup.settings import require_masters
from opd.setup.token_budget import token_budget
from opd.teachers.local import LocalTeacher
from opd.teachers.remote import RemoteTeacher
from opd.training.ahead import LookAhead
from opd.training.answer_kl import answer_kl
from opd.training.distributed import (
    SINGLE,
    Ranks,
    ShardedTeacher,
    check_accelerate_launcher,
    init_ranks,
    open_folder,
)
from opd.training.eval_task import EvalTask
from opd.training.experience import ExperienceSource, StepSize, step_want
from opd.training.hint_quotes import HintQuotes
from opd.training.horizon import Horizon, Pruning
from opd.training.interventions import Adjustable, Interventions
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer
from opd.training.session import Session
from opd.training.shared_grader import SharedGrader
from opd.types import Kind, Rollout, Sampler, Teacher

logger = logging.getLogger(__name__)


def build(
    cfg: Run, *, resume: bool, overwrite: bool, console: Console
) -> tuple[Session, CompletionSource | None]:
    """Everything `opd.recipes.distillation.distill` needs: a session, and a cold start's source.

    Raises:
        UserError: anything wrong with models, prompts, evaluation sets or the run folder.
    """
    ranks = init_ranks()
    check_accelerate_launcher(cfg.student.shard)
    problems = Problems()
    problems.attempt(require_alone, cfg, ranks)
    problems.attempt(require_masters, cfg, resolve_precision(cfg), processes=ranks.size)
    if ranks.is_main:
        problems.attempt(require_run_folder, cfg, resume=resume, overwrite=overwrite)
    inputs = read_inputs(cfg, console, problems=problems)
    if resume:
        require_same_inputs(cfg, inputs)
    servers = start_servers([cfg], console, Path(cfg.output.dir), ranks)
    try:
        return _assemble(cfg, inputs, ranks, servers, RunOpening(console, resume, overwrite))
    except BaseException:
        servers.stop()
        raise


class RunOpening(NamedTuple):
    """How a run folder is opened, and what people see."""

    console: Console
    resume: bool
    overwrite: bool


def _assemble(
    cfg: Run, inputs: Inputs, ranks: Ranks, servers: Servers, opening: RunOpening
) -> tuple[Session, CompletionSource | None]:
    """The session of inputs that were read, once its servers answer; see `build`."""
    console = opening.console
    prompts, evals = inputs.prompts, inputs.evals
    assert prompts is not None
    models = open_models(cfg, console, sharded=is_sharded(cfg, ranks))
    cfg, pair = models.cfg, models.pair
    require_prunable(models)
    if cfg.rollout.engine in ("hf", "replay"):
        require_cache(pair.student)  # before requests that a teacher may charge for
    for opened in (models, *models.members.values()):
        if evals and opened.pair.teacher is not None:
            require_cache(opened.pair.teacher)
    models = models.for_prompts(prompts)
    models.handshake(prompts)
    completions = completion_source(models, prompts, processes=ranks.size, resume=opening.resume)
    prepare_weights(cfg, pair.student, ranks)
    models = models.with_own_weights()
    optimizer = make_optimizer(pair.student, cfg.optim)
    out = Path(cfg.output.dir)
    make_student = student_samplers(cfg, pair, out, ranks)
    sampler = training_sampler(cfg, make_student, pair.student, ranks)
    source = experience_source(models, prompts, sampler)
    require_space(out, bytes_needed(cfg, pair.student, pair.teacher))
    resolved = config.dump(cfg)
    folder = open_folder(
        cfg.output.dir, resolved, ranks, resume=opening.resume, overwrite=opening.overwrite
    )
    servers.move_logs(folder.path)
    folder.record_attention(attention_kernels(pair))
    folder.save_inputs(inputs.record())
    folder.save_token_texts(partial(token_texts, pair.tokenizer, pair.student.vocab))
    clock = Clock(console.show_phase)
    source = replace(source, teacher=models.teacher(folder.path, console, clock))
    measure_answers = answer_kl(cfg, pair.student, source.teacher, ranks)
    source, evals = distribute(source, evals, ranks)
    trackers = Trackers(cfg.output.trackers if ranks.is_main else [], folder.path, resolved)
    session = Session(
        cfg=cfg,
        folder=folder,
        source=source,
        learner=make_learner(models, optimizer, ranks),
        tokenizer=pair.tokenizer,
        evals=evals,
        student_sampler=eval_sampler(make_student),
        teacher_sampler=models.teacher_eval_sampler(ranks),
        console=console,
        trackers=trackers,
        clock=clock,
        interventions=make_interventions(models, source.teacher, folder, console, trackers),
        close=servers.stop,
        measure_answers=measure_answers,
    )
    if cfg.rollout.ahead:
        return replace(session, ahead=look_ahead(cfg, pair, session)), completions
    score_early(session)
    return session, completions


def look_ahead(cfg: Run, pair: Pair, session: Session) -> LookAhead:
    """What samples the next step's rollouts while one is learnt."""
    sampler = session.source.sampler
    if isinstance(sampler, StatisticsSampler):
        sampler = sampler.sampler
    scorer = student_scorer(cfg, pair, cfg.rollout.temperature)
    k = min(cfg.loss.k, pair.student.vocab)
    return LookAhead(session.source, session.folder, sampler, scorer, k)


def score_early(session: Session) -> None:
    """Let a teacher server score rollouts while a rollout server still samples others."""
    source, adjustable = session.source, session.interventions.adjustable
    sampler, teacher = source.sampler, source.teacher
    if not isinstance(sampler, StatisticsSampler) or not isinstance(teacher, RemoteTeacher):
        return

    def arrived(rollouts: list[Rollout]) -> None:
        teacher.prefetch(rollouts, step_want(source, adjustable.objective))

    sampler.arrived = arrived


def attention_kernels(pair: Pair) -> dict[str, str]:
    """The kernel of each model's attention, and a warning where memory grows with its square."""
    kernels = {
        "student": attention_kernel(pair.student),
        "student_decoding": attention_kernel(pair.student, decoding=True),
    }
    if pair.teacher is not None:
        kernels["teacher"] = attention_kernel(pair.teacher)
    for model in ("student", "teacher"):
        if kernels.get(model) == "math":
            logger.warning(
                "The attention of the %s stores a matrix of all pairs of tokens: its memory grows "
                "with the square of the length (no fused kernel takes its heads and precision).",
                model,
            )
    return kernels


def experience_source(models: Models, prompts: PromptSet, sampler: Sampler) -> ExperienceSource:
    """Where rollouts and scores come from; its teacher is set once there is a run folder.

    Raises:
        UserError: a reference model or supervised examples that cannot be used.
    """
    cfg, pair = models.cfg, models.pair
    special = None
    if cfg.loss.terms.mask_special_tokens:
        special = torch.tensor(pair.tokenizer.all_special_ids, dtype=torch.int32)
    return ExperienceSource(
        prompts=prompts,
        sampler=sampler,
        teacher=None,
        reference=load_reference(models),
        grader=training_grader(cfg, prompts),
        special=special,
        stop=torch.tensor(sorted(pair.stop), dtype=torch.int32),
        sft_examples=load_sft_examples(cfg, pair),
        decode=make_decoder(pair.tokenizer),
        size=step_size(cfg),
        pruning=make_pruning(cfg),
        quotes=make_quotes(models),
    )


def make_quotes(models: Models) -> HintQuotes | None:
    """A finder of quotations from the teacher's own prompts; None where it sees the student's."""
    spec, seen = models.cfg.teacher, models.teacher_prompts
    if seen is None or spec is None or spec.prompt is None:
        return None
    return HintQuotes.of(seen, spec.prompt)


def make_pruning(cfg: Run) -> Pruning | None:
    """How tokens lose weight, as configured; None where they do not."""
    if cfg.horizon is None or cfg.horizon.prune is None:
        return None
    return Pruning(k=cfg.loss.k, threshold=cfg.horizon.prune.threshold)


def step_size(cfg: Run) -> StepSize:
    """How much experience a step takes."""
    return StepSize(
        seed=cfg.train.seed,
        prompts=cfg.train.prompts_per_step,
        responses=cfg.rollout.n,
        shuffle=cfg.prompts.shuffle,
        diagnosed_positions=cfg.diagnostics.positions,
        kept_rollouts=cfg.output.rollout_sample,
        by_tokens=cfg.prompts.by == "tokens",
    )


def load_reference(models: Models) -> LocalTeacher | None:
    """The model that loss.terms.reward_scale extrapolates from; None without.

    Raises:
        UserError: another tokenizer, or a loss that would keep its whole distribution.
    """
    cfg, objective, pair = models.cfg, models.objective, models.pair
    if objective.needs_reference and objective.needs_full_teacher:
        raise UserError(
            f"loss.terms.reward_scale={objective.reward_scale} with loss.support=full would keep "
            "the reference model's whole distribution too. Use loss.support=student_topk."
        )
    path, key = cfg.loss.terms.reference, "loss.terms.reference"
    if path is None:
        return None
    lm = load_lm(path, dtype="auto", device=str(pair.student.device), key=key)
    tokenizers.require_same(
        pair.tokenizer,
        tokenizers.load_tokenizer(path, key=key),
        student_vocab=pair.student.vocab,
        teacher_vocab=lm.vocab,
    )
    lm = replace(lm, vocab=pair.student.vocab)
    return LocalTeacher(lm, temperature=cfg.loss.teacher_temperature)


def require_prunable(models: Models) -> None:
    """Refuse horizon.prune with a teacher server that does not give its top tokens."""
    remote = models.remote
    if (
        make_pruning(models.cfg) is not None
        and remote is not None
        and Kind.TOPK not in remote.kinds
    ):
        raise UserError(
            "horizon.prune compares the top tokens of student and teacher, which this teacher "
            "server does not give. Leave it out, or use horizon.cap or horizon.grow."
        )


def make_learner(
    models: Models, optimizer: torch.optim.Optimizer, ranks: Ranks = SINGLE
) -> Learner:
    """What updates the student, as configured."""
    cfg, pair = models.cfg, models.pair
    # Processes that planned their micro-batches differently would train rows twice, or never.
    pair.student.prefix_cache_works = not ranks.any_rank(not supports_prefix_cache(pair.student))
    return Learner(
        student=pair.student,
        optimizer=optimizer,
        objective=models.objective,
        optim=cfg.optim,
        tokens_per_microbatch=ranks.smallest(token_budget(cfg)),
        teacher_logits=models.teacher_logits,
        routed_logits=models.routed_logits,
        teacher_temperature=cfg.loss.teacher_temperature,
        diagnostics_k=min(OVERLAP_K, pair.student.vocab),
        position_edges=position_edges(cfg.rollout.max_new_tokens),
        seed=cfg.train.seed,
        sft_weight=cfg.loss.terms.sft_weight,
        ranks=ranks,
        deterministic=cfg.train.deterministic,
        own_teacher=models.own,
    )


def make_interventions(
    models: Models,
    teacher: Teacher | None,
    folder: RunFolder,
    console: Console,
    trackers: Trackers,
) -> Interventions:
    """The alarms of a run, and what they may change."""
    cfg = models.cfg
    by_alarm = cfg.coldstart is not None and cfg.coldstart.when == "alarm"
    adjustable = Adjustable(
        horizon=Horizon(cfg.horizon, cfg.rollout.max_new_tokens, make_pruning(cfg)),
        objective=models.objective,
        kinds=None if teacher is None else teacher.kinds,
        cold_start="ready" if by_alarm else "never",
    )
    monitor = Monitor(cfg.alarms, cfg.train.steps, rules=rules_of(cfg.alarms))
    return Interventions(
        monitor, adjustable, folder, console, trackers, keeps_best=cfg.recipe == "auto"
    )


def distribute(
    source: ExperienceSource, evals: list[EvalTask], ranks: Ranks
) -> tuple[ExperienceSource, list[EvalTask]]:
    """Scoring and grading divided among processes."""
    if ranks.size == 1:
        return source, evals
    teacher, reference, grader = source.teacher, source.reference, source.grader
    source = replace(
        source,
        teacher=None if teacher is None else ShardedTeacher(teacher, ranks),
        reference=None if reference is None else ShardedTeacher(reference, ranks),
        grader=None if grader is None else SharedGrader(grader, ranks),
    )
    return source, [replace(task, grader=SharedGrader(task.grader, ranks)) for task in evals]
