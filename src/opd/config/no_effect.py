"""Settings that nothing would read: a user who set one expects that something changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opd.config.models import SelfTeacher
from opd.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from opd.config.schema import Run

# Keys of `loss` that say how a teacher's scores are used.
OF_TEACHER = ("divergence", "support", "k", "mode", "estimator", "beta", "teacher_temperature")
MOST_NATS = 16  # of entropy: ten million tokens alike


def require_effect(run: Run, *, where: str) -> None:
    """Refuse settings that differ from their default and have no effect beside the others.

    A run folder's config.json is not held to this: what an earlier version took stays readable.

    Args:
        run: the run.
        where: the file that describes it.

    Raises:
        UserError: naming every such key, its value, and the key that would give it an effect.
    """
    checks = (_loss, _loss_of_tokens, _terms, _teachers, _prompts, _rollout, _optim, _guards)
    if problems := [line for check in (*checks, _coldstart) for line in check(run)]:
        raise UserError(f"{where}:\n" + "\n".join(f"  {line}." for line in problems))


def _changed(section: BaseModel, names: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Key and value of those of some fields that are not at their default."""
    for name in names:
        value = getattr(section, name)
        if value != type(section).model_fields[name].default:
            yield name, value


def _loss(run: Run) -> Iterator[str]:
    loss = run.loss
    if not run.has_teacher:
        for name, value in _changed(loss, OF_TEACHER):
            yield (
                f"loss.{name}={value} changes nothing without a teacher: the outcome reward alone "
                "trains. Leave it out, or give a teacher"
            )
        return
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


def _terms(run: Run) -> Iterator[str]:
    terms = run.loss.terms
    if terms.position_decay == 1:
        yield (
            "loss.terms.position_decay=1.0 changes nothing: every position counts alike. Set less "
            "than 1, such as 0.999, or leave it out"
        )
    if terms.entropy_forward_kl is not None and terms.entropy_forward_kl > MOST_NATS:
        yield (
            f"loss.terms.entropy_forward_kl={terms.entropy_forward_kl} changes nothing: no teacher "
            f"is so uncertain ({MOST_NATS} nats are ten million tokens alike). Set about 0.5 to 2"
        )
    if terms.outcome_weight > 0 and run.rollout.n == 1:
        yield (
            f"loss.terms.outcome_weight={terms.outcome_weight} changes nothing with rollout.n=1: "
            "answers are compared with the other answers to their prompt. Set rollout.n=2 or more"
        )


def _prompts(run: Run) -> Iterator[str]:
    if len(run.prompts.files) == 1:
        for name, value in _changed(run.prompts.files[0], ("weight",)):
            yield (
                f"prompts.files.0.{name}={value} changes nothing with one file: a step takes all "
                "its prompts from it. Leave it out"
            )


def _coldstart(run: Run) -> Iterator[str]:
    cold = run.coldstart
    if cold is None or cold.path is None:
        return
    for name, value in _changed(cold, ("temperature", "top_p", "max_new_tokens")):
        yield (
            f"coldstart.{name}={value} changes nothing with coldstart.path, whose completions are "
            "there already. Leave one of the two out"
        )


def _guards(run: Run) -> Iterator[str]:
    horizon, alarms = run.horizon, run.alarms
    if horizon is not None and not any((horizon.cap, horizon.grow, horizon.prune)):
        yield "horizon={} changes nothing. Set horizon.cap, horizon.grow or horizon.prune"
    longest = run.rollout.max_new_tokens
    if horizon is not None and horizon.grow is not None and horizon.grow.start >= longest:
        yield (
            f"horizon.grow.start={horizon.grow.start} changes nothing with rollout.max_new_tokens="
            f"{longest}: nothing can grow. Set less"
        )
    if horizon is not None and horizon.cap == longest:
        yield (
            f"horizon.cap={horizon.cap} changes nothing with rollout.max_new_tokens={longest}. Set "
            "less, or leave it out"
        )
    elif horizon is not None and horizon.cap and horizon.grow and horizon.grow.start >= horizon.cap:
        yield (
            f"horizon.grow.start={horizon.grow.start} changes nothing with horizon.cap="
            f"{horizon.cap}: nothing can grow. Leave one of the two out"
        )
    for name, rule in alarms.rules.items():
        if rule.threshold is not None and (rule.action or alarms.action) == "off":
            yield (
                f"alarms.rules.{name}.threshold={rule.threshold} changes nothing: the rule is off. "
                f"Set alarms.rules.{name}.action, or leave it out"
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
