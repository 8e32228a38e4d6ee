"""Settings that nothing would read: a user who set one expects that something changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from opd.config.models import SelfTeacher
from opd.errors import UserError

if TYPE_CHECKING:
    from opd.config.schema import Run


def require_effect(run: Run, *, where: str) -> None:
    """Refuse settings that differ from their default and have no effect beside the others.

    A run folder's config.json is not held to this: what an earlier version took stays readable.

    Args:
        run: the run.
        where: the file that describes it.

    Raises:
        UserError: naming every such key, its value, and the key that would give it an effect.
    """
    if problems := [
        *_loss(run),
        *_loss_of_tokens(run),
        *_teachers(run),
        *_rollout(run),
        *_optim(run),
    ]:
        raise UserError(f"{where}:\n" + "\n".join(f"  {line}." for line in problems))


def _loss(run: Run) -> Iterator[str]:
    loss = run.loss
    if loss.beta != type(loss)().beta and loss.divergence not in ("jsd", "skew_kl"):
        yield (
            f"loss.beta={loss.beta} changes nothing with loss.divergence={loss.divergence}. Set "
            "loss.divergence=jsd or skew_kl, or leave it out"
        )
    if loss.estimator != "k1" and loss.support not in ("sampled", "auto"):
        yield (
            f"loss.estimator={loss.estimator} changes nothing with loss.support={loss.support}. "
            "Set loss.support=sampled, or leave it out"
        )


def _loss_of_tokens(run: Run) -> Iterator[str]:
    """Keys about the top tokens, where the loss has none."""
    loss, default = run.loss, type(run.loss)()
    if loss.support not in ("full", "sampled"):
        return
    prunes = run.horizon is not None and run.horizon.prune is not None
    if loss.k != default.k and loss.terms.entropy_forward_kl is None and not prunes:
        yield (
            f"loss.k={loss.k} changes nothing with loss.support={loss.support}, which has no top "
            "k. Set loss.support=student_topk, or leave it out"
        )
    if loss.mode == "reference" and loss.support == "sampled":
        yield (
            f"loss.mode={loss.mode} changes nothing with loss.support=sampled, which compares one "
            "token. Set loss.support=student_topk, or leave it out"
        )


def _teachers(run: Run) -> Iterator[str]:
    specs = {"teacher": run.teacher} | {f"teachers.{k}": v for k, v in run.teachers.items()}
    for key, spec in specs.items():
        if not isinstance(spec, SelfTeacher):
            continue
        default = type(spec).model_fields["decay"].default
        if spec.weights != "ema" and spec.decay != default:
            yield (
                f"{key}.decay={spec.decay} changes nothing with {key}.weights={spec.weights}. Set "
                f"{key}.weights=ema, or leave it out"
            )
        if spec.weights == "live" and (spec.prompt or "").strip() == "{prompt}":
            yield (
                f"{key}.prompt={spec.prompt!r} adds nothing to the student's own message, and with "
                f"{key}.weights=live the loss is then 0. Say more in it, such as "
                r"'{prompt}\n\nReference: {answer}'"
            )
    if run.prompts.by == "tokens" and not run.teachers:
        yield (
            "prompts.by=tokens changes nothing with one teacher: it divides the loss among several "
            "(teachers). Leave it out"
        )


def _rollout(run: Run) -> Iterator[str]:
    rollout = run.rollout
    if rollout.engine == "vllm":
        return
    for key in ("sync_dir", "api_key_env"):
        if (value := getattr(rollout, key)) is not None:
            yield (
                f"rollout.{key}={value} changes nothing without a rollout server. Set rollout.url "
                "and rollout.model, or rollout.launch, or leave it out"
            )


def _optim(run: Run) -> Iterator[str]:
    student = run.student
    wrong = None
    if student.lora is not None:
        wrong = "student.lora, whose weights have no masters"
    elif student.precision not in ("auto", "bf16_mixed"):
        wrong = f"student.precision={student.precision}, which has no masters"
    if run.optim.offload == "cpu" and wrong is not None:
        yield (
            f"optim.offload=cpu changes nothing with {wrong}: it moves the master weights of full "
            "training in bf16_mixed. Set optim.offload=none"
        )
