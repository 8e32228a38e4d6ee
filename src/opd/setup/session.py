"""Configuration to objects: the only place that knows both.

Order matters: whatever can be wrong with the input is found before the run folder exists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from opd import config
from opd.alarms import Monitor
from opd.config import EvalSet, Run
from opd.core.diagnostics import position_edges
from opd.core.objective import Objective
from opd.data.graders import Grader, grader_for
from opd.data.prompts import PromptSet, load_prompts
from opd.data.sft_examples import load_gold
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.fsdp import shard_model
from opd.models.lm import LM, load_lm, rope_parameters
from opd.models.prefix_cache import supports_prefix_cache
from opd.models.token_text import token_texts
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.disk import require_space
from opd.run.trackers import Trackers
from opd.samplers.hf import Decoding, HFSampler
from opd.samplers.replay import ReplaySampler, read_rollouts
from opd.samplers.vllm import VllmSampler
from opd.setup import remote_teacher
from opd.setup.coldstart_source import warm_up_of
from opd.setup.disk_estimate import bytes_needed
from opd.setup.pair import Pair, load_pair
from opd.teachers.local import LocalTeacher
from opd.training.distributed import (
    ALONE,
    LedSampler,
    Ranks,
    SharedSampler,
    SharedTeacher,
    heed_accelerate,
    join,
    open_folder,
)
from opd.training.evaluate import EvalTask
from opd.training.experience import Source
from opd.training.guard import Guard
from opd.training.horizon import Horizon
from opd.training.interventions import Course
from opd.training.loop import Parts
from opd.training.step import Learner, make_optimizer
from opd.types import Kind, Rollout, Sampler

logger = logging.getLogger(__name__)

AUTO_TOKENS = 8192  # padded tokens per forward-backward when train.tokens_per_microbatch is auto


def build(cfg: Run, *, resume: bool, overwrite: bool, console: Console) -> Parts:
    """Everything `opd.training.loop.train` needs.

    Raises:
        UserError: anything wrong with models, prompts, evaluation sets or the run folder.
    """
    ranks = join()
    heed_accelerate(cfg.student.shard)
    remote = remote_teacher.Remote.find(cfg)
    cfg = remote_teacher.settle_support(cfg, remote.kinds if remote else frozenset(Kind), console)
    objective = make_objective(cfg)
    pair = load_pair(cfg, remote)
    prompts = load_training_prompts(cfg, pair, console)
    evals = [load_eval_task(cfg, e, i, pair) for i, e in enumerate(cfg.eval)]
    judge = make_judge(cfg, prompts)
    gold = load_gold_of(cfg, pair)
    reference = None
    if objective.needs_reference and objective.needs_full_teacher:
        raise UserError(
            f"loss.terms.reward_scale={objective.reward_scale} with loss.support=full would keep "
            "the reference model's whole distribution too. Use loss.support=student_topk."
        )
    if cfg.loss.terms.reference is not None:
        lm = load_lm(
            cfg.loss.terms.reference,
            dtype="auto",
            device=str(pair.student.device),
            key="loss.terms.reference",
        )
        tokenizers.require_same(
            pair.tokenizer,
            tokenizers.load_tokenizer(cfg.loss.terms.reference, key="loss.terms.reference"),
            student_vocab=pair.student.vocab,
            teacher_vocab=lm.vocab,
        )
        reference = LocalTeacher(
            replace(lm, vocab=pair.student.vocab), temperature=cfg.loss.teacher_temperature
        )
    prune = None if cfg.horizon is None else cfg.horizon.prune
    if remote is not None and prune is not None and Kind.TOPK not in remote.kinds:
        raise UserError(
            "horizon.prune compares the top tokens of student and teacher, which this teacher "
            "server does not tell. Leave it out, or use horizon.cap or horizon.grow."
        )
    if remote is not None:
        remote.greet(cfg, objective, pair.student.vocab, pair.tokenizer, prompts)
    cold_start = warm_up_of(cfg, pair, remote, prompts, processes=ranks.size)
    waits = cfg.coldstart is not None and cfg.coldstart.when == "alarm"
    if ranks.size > 1 and cfg.student.shard == "fsdp2":
        shard_model(pair.student, ranks.size)
    optimizer = make_optimizer(pair.student, cfg.optim)
    sampler = student_sampler(cfg, pair, Path(cfg.output.dir))
    require_space(Path(cfg.output.dir), bytes_needed(cfg, pair.student, pair.teacher))
    folder = open_folder(
        cfg.output.dir, config.dump(cfg), ranks, resume=resume, overwrite=overwrite
    )
    folder.save_tokens(partial(token_texts, pair.tokenizer, pair.student.vocab))
    learner = make_learner(cfg, pair, objective, optimizer, ranks)
    clock = Clock(console.phase)
    source = Source(
        prompts=prompts,
        sampler=sampler,
        teacher=remote.teacher(cfg, pair.student.vocab, folder.path, console, clock)
        if remote is not None
        else local_teacher(cfg, pair),
        reference=reference,
        judge=judge,
        special=torch.tensor(pair.tokenizer.all_special_ids, dtype=torch.int32)
        if cfg.loss.terms.mask_special_tokens
        else None,
        stop=torch.tensor(sorted(pair.stop), dtype=torch.int32),
        gold=gold,
        decode=tokenizers.make_decoder(pair.tokenizer),
    )
    if ranks.size > 1:
        source = shared(source, ranks, pair.student)
    trackers = Trackers(cfg.output.trackers if ranks.leads else [], folder.path, config.dump(cfg))
    teacher = source.teacher
    guard = Guard(
        monitor=Monitor(cfg.alarms, cfg.train.steps),
        course=Course(
            horizon=Horizon(cfg.horizon, cfg.rollout.max_new_tokens),
            objective=objective,
            kinds=None if teacher is None else teacher.kinds,
            cold_start="ready" if waits else "never",
        ),
        folder=folder,
        console=console,
        trackers=trackers,
    )
    return Parts(
        cfg=cfg,
        folder=folder,
        source=source,
        learner=learner,
        tokenizer=pair.tokenizer,
        evals=evals,
        student_sampler=eval_sampler(cfg, pair.student, pair.stop, ranks),
        teacher_sampler=None
        if pair.teacher is None
        else eval_sampler(cfg, pair.teacher, pair.teacher_stop, ranks),
        console=console,
        trackers=trackers,
        clock=clock,
        warm_up=None if waits else cold_start,
        interlude=cold_start if waits else None,
        guard=guard,
    )


def make_learner(
    cfg: Run,
    pair: Pair,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks = ALONE,
) -> Learner:
    """What updates the student, as configured."""
    # Processes that planned their micro-batches differently would train rows twice, or never.
    pair.student.prefix_cache_works = not ranks.agree(not supports_prefix_cache(pair.student))
    return Learner(
        student=pair.student,
        optimizer=optimizer,
        objective=objective,
        optim=cfg.optim,
        tokens_per_microbatch=budget(cfg),
        teacher_logits=None if pair.teacher is None else logits_across(pair.teacher),
        teacher_temperature=cfg.loss.teacher_temperature,
        diagnostics_k=min(cfg.diagnostics.k, pair.student.vocab),
        position_edges=position_edges(cfg.rollout.max_new_tokens),
        seed=cfg.train.seed,
        sft_weight=cfg.loss.terms.sft_weight,
        ranks=ranks,
    )


def logits_across(teacher: LM) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher's head as a function of hidden states that may live on another device."""
    head = teacher.head
    return lambda hidden: head.logits(hidden.to(teacher.device)).to(hidden.device)


def load_gold_of(cfg: Run, pair: Pair) -> list[Rollout]:
    """The completions of loss.terms.sft_path; none if it is not set."""
    if cfg.loss.terms.sft_path is None:
        return []
    return load_gold(
        cfg.loss.terms.sft_path,
        pair.tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=cfg.prompts.max_tokens,
    )


def local_teacher(cfg: Run, pair: Pair) -> LocalTeacher | None:
    """The teacher in this process, if the run has one."""
    if pair.teacher is None:
        return None
    heat = cfg.loss.teacher_temperature
    return LocalTeacher(pair.teacher, tokens_per_batch=budget(cfg), temperature=heat)


def make_objective(cfg: Run) -> Objective:
    """The loss section and its terms as one objective."""
    loss, terms = cfg.loss, cfg.loss.terms
    return Objective(
        divergence=loss.divergence,
        support="student_topk" if loss.support == "auto" else loss.support,
        k=loss.k,
        mode=loss.mode,
        estimator=loss.estimator,
        beta=loss.beta,
        weights=loss.weights,
        normalize=loss.normalize,
        allow_zero_gradient=loss.allow_zero_gradient,
        reward_scale=terms.reward_scale,
        entropy_forward_kl=terms.entropy_forward_kl,
        position_decay=terms.position_decay,
        outcome_weight=terms.outcome_weight,
        student_temperature=loss.student_temperature,
        sampling_temperature=cfg.rollout.temperature,
        sampling_truncated=cfg.rollout.top_p < 1 or cfg.rollout.top_k is not None,
    )


def load_training_prompts(cfg: Run, pair: Pair, console: Console) -> PromptSet:
    """The training prompts; what was dropped is said."""
    found = load_prompts(
        cfg.prompts.path,
        pair.tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=cfg.prompts.max_tokens,
        context=room(pair, cfg.rollout.max_new_tokens, "rollout.max_new_tokens"),
    )
    if found.dropped:
        console.say(
            f"{found.dropped} of {found.rows} prompts are longer than they may be and are left out "
            f"(prompts.max_tokens={cfg.prompts.max_tokens})."
        )
    return found


def load_eval_task(cfg: Run, spec: EvalSet, place: int, pair: Pair) -> EvalTask:
    """One held-out set with its grader.

    Raises:
        UserError: a prompt without an answer.
    """
    new_tokens = spec.max_new_tokens or cfg.rollout.max_new_tokens
    prompts = load_prompts(
        spec.path,
        pair.tokenizer,
        template=spec.template,
        chat=spec.chat,
        max_tokens=cfg.prompts.max_tokens,
        limit=spec.limit,
        context=room(pair, new_tokens, f"eval.{place}.max_new_tokens"),
    )
    grader = grader_for(
        prompts.prompts,
        spec.grader,
        required_by=f"eval.{place}.path={spec.path}",
        remedy="drop the set",
    )
    assert grader is not None
    return EvalTask(
        label=spec.label,
        prompts=prompts,
        grader=grader,
        decoding=Decoding(new_tokens, spec.temperature, spec.top_p),
        n=spec.n,
        every=spec.every,
    )


def make_judge(cfg: Run, prompts: PromptSet) -> Grader | None:
    """A grader for training rollouts, when their prompts have answers.

    Raises:
        UserError: an outcome reward is asked for and there are no answers.
    """
    weight = cfg.loss.terms.outcome_weight
    return grader_for(
        prompts.prompts,
        cfg.prompts.grader,
        required_by=f"loss.terms.outcome_weight={weight}" if weight > 0 else None,
        remedy="set the weight to 0",
    )


def room(pair: Pair, new_tokens: int, key: str) -> int | None:
    """Longest prompt that leaves room for a completion in both models.

    Raises:
        UserError: when there is no room for any prompt.
    """
    here = [lm for lm in (pair.student, pair.teacher) if lm]
    contexts = [lm.context_length for lm in here if lm.context_length]
    if not contexts:
        return None
    left = min(contexts) - new_tokens
    if left < 1:
        turned = any(rope_parameters(lm.config, "longrope") for lm in here)
        why = " (with longrope, those of the original context)" if turned else ""
        raise UserError(
            f"{key}={new_tokens} leaves no room for a prompt: the models read at most "
            f"{min(contexts)} tokens{why}. Lower {key}."
        )
    return left


def student_sampler(cfg: Run, pair: Pair, folder: Path) -> Sampler:
    """The sampler of training rollouts; records as many top tokens as the loss needs."""
    r = cfg.rollout
    if r.engine == "vllm":
        return remote_teacher.vllm_sampler(cfg, pair.student, pair.tokenizer, pair.stop, folder)
    if r.path is not None:
        given = read_rollouts(Path(r.path))
        return ReplaySampler(given, Path(r.path), capture=cfg.loss.k, max_length=r.max_new_tokens)
    decoding = Decoding(r.max_new_tokens, r.temperature, r.top_p, r.top_k)
    return HFSampler(pair.student, decoding, stop=pair.stop, capture=cfg.loss.k, batch=r.batch)


def eval_sampler(
    cfg: Run, lm: LM, stop: frozenset[int], ranks: Ranks = ALONE
) -> Callable[[EvalTask], Sampler]:
    """Samplers for held-out sets: they record only what evaluations report."""

    def make(task: EvalTask) -> Sampler:
        one = HFSampler(lm, task.decoding, stop=stop, capture=1, batch=cfg.rollout.batch)
        return one if ranks.size == 1 else SharedSampler(one, ranks, lm)

    return make


def shared(source: Source, ranks: Ranks, student: LM) -> Source:
    """Sampling and scoring shared out among processes."""
    teacher, reference, sampler = source.teacher, source.reference, source.sampler
    return replace(
        source,
        sampler=LedSampler(sampler, ranks, student)
        if isinstance(sampler, VllmSampler)
        else SharedSampler(sampler, ranks, student),
        teacher=None if teacher is None else SharedTeacher(teacher, ranks),
        reference=None if reference is None else SharedTeacher(reference, ranks),
    )


def budget(cfg: Run) -> int:
    """Padded tokens per forward-backward."""
    size = cfg.train.tokens_per_microbatch
    return AUTO_TOKENS if size == "auto" else size
