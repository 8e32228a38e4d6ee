"""Keys of earlier versions that are gone, and what became of each.

A run.yaml or an override that still sets one is refused with the reason. The config.json of an
earlier version holds every key there was, most of them at their defaults: there a removed key is
dropped if its value is what this version does anyway or decides no number, so that runs resume.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from opd.errors import UserError

logger = logging.getLogger(__name__)

VERSION = "0.2"  # the first version without them


@dataclass(frozen=True)
class Removed:
    """A key that is gone.

    Attributes:
        default: its value where this version does the same, or a function of the stored
            configuration that gives it.
        reason: what happens now, and what to use instead.
        constant: `module:NAME` of a constant with the value `default`; None without one.
        affects_results: whether a stored value other than `default` is refused; False where it
            decides speed, waiting or display alone.
    """

    default: Any
    reason: str
    constant: str | None = None
    affects_results: bool = True


def _engine(stored: dict[str, Any]) -> str:
    """The engine that `rollout` implies by itself."""
    rollout = stored.get("rollout") or {}
    if rollout.get("url") is not None:
        return "vllm"
    return "hf" if rollout.get("path") is None else "replay"


_WEIGHTS = " in a prompt's score; the prompt file holds every measure, to rank by another"

REMOVED: dict[str, Removed] = {
    "student.dtype": Removed(
        "float32",
        "use student.precision: bf16_mixed (bf16 with float32 masters), float32, float64 or auto",
    ),
    "student.revision": Removed(None, "use student.model=owner/name@revision"),
    "student.device": Removed(
        None,
        "The student is on the GPU if there is one; CUDA_VISIBLE_DEVICES chooses which, or none",
        affects_results=False,
    ),
    "student.lora.dropout": Removed(
        0.0, "Dropout would train another network than the one that has sampled the rollouts"
    ),
    "teacher.revision": Removed(None, "use teacher.model=owner/name@revision"),
    "loss.weights": Removed(
        "student_p",
        "loss.mode=reference weighs tokens by the student's probability, as the published code "
        "does by default",
    ),
    "loss.normalize": Removed(
        False,
        "loss.mode=reference is the published code, which leaves both sides of "
        "loss.support=symmetric_difference as they are; use loss.mode=paper to renormalise them",
    ),
    "loss.allow_zero_gradient": Removed(
        False,
        "loss.k=1 with loss.mode=paper trains nothing; use loss.k=4 or more, or loss.mode=tail",
    ),
    "teacher.api": Removed(
        "auto", "The server is asked which API it speaks", affects_results=False
    ),
    "teacher.concurrency": Removed(
        8, "8 requests are under way at once", "opd.teachers.remote:CONCURRENCY", False
    ),
    "teacher.timeout": Removed(
        300.0,
        "A request may take 300 s; teacher.patience says how long to wait for a teacher",
        "opd.http.client:ANSWER_SECONDS",
        False,
    ),
    "rollout.engine": Removed(
        _engine,
        "rollout.url samples on a vLLM server, rollout.path replays recorded rollouts; without "
        "them the student samples in this process",
    ),
    "rollout.timeout": Removed(
        600.0, "A completion may take 600 s", "opd.samplers.sampling_server:ANSWER_SECONDS", False
    ),
    "rollout.concurrency": Removed(
        256,
        "256 completions are under way at once",
        "opd.samplers.sampling_server:CONCURRENCY",
        False,
    ),
    "rollout.top_k": Removed(
        None,
        "Rollouts should come from the student's whole distribution; rollout.top_p can truncate it",
    ),
    "rollout.batch": Removed(
        128,
        "128 rollouts are decoded at once, more where they are short, fewer where memory runs out",
        "opd.samplers.hf:ROWS",
        False,
    ),
    "diagnostics.k": Removed(
        16, "Overlap is of the top 16 tokens", "opd.core.diagnostics:OVERLAP_K"
    ),
    "optim.betas": Removed([0.9, 0.999], "AdamW has these", "opd.training.optimizer:BETAS"),
    "optim.max_bad_steps": Removed(
        3, "A run stops after 3 non-finite updates in a row", "opd.training.loop:MAX_SKIPPED"
    ),
    "coldstart.share": Removed(
        0.5,
        "A cold start uses half of prompts.path at most; coldstart.prompts gives it others",
        "opd.setup.coldstart_source:PROMPT_FRACTION",
    ),
    "coldstart.disjoint": Removed(
        True,
        "On-policy training leaves out the questions of the cold start, as in the paper; "
        "coldstart.prompts gives the cold start prompts of its own",
    ),
    "coldstart.n": Removed(
        1,
        "One completion per prompt, as in the paper; coldstart.path takes any others",
        "opd.recipes.coldstart.completions:PER_PROMPT",
    ),
    "coldstart.repetition": Removed(
        None, "Repetitive completions are left out by the published rules alone"
    ),
    "coldstart.batch": Removed(
        32, "32 completions per optimizer step", "opd.recipes.coldstart.phase:BATCH"
    ),
    "coldstart.warmup": Removed(10, "10 steps of warm-up", "opd.recipes.coldstart.phase:WARMUP"),
    "coldstart.probe_prompts": Removed(
        lambda stored: max(1, stored["coldstart"].get("completions_per_round", 256) // 4),
        "The student is measured on a quarter as many prompts as coldstart.completions_per_round",
    ),
    "coldstart.top1": Removed(
        0.8,
        "The top-1 agreement to reach is 0.8; coldstart.mass decides",
        "opd.recipes.coldstart.progress:TOP1_TARGET",
    ),
    "coldstart.patience": Removed(
        3,
        "A cold start ends after 3 rounds without a rise; coldstart.max_rounds ends it earlier",
        "opd.recipes.coldstart.progress:PATIENCE",
    ),
    "coldstart.min_rise": Removed(
        0.005, "A rise is more than 0.005", "opd.recipes.coldstart.progress:MIN_RISE"
    ),
    "horizon.least": Removed(
        16,
        "An adaptive cap or an alarm never shortens rollouts below 16 tokens",
        "opd.training.horizon:MIN_LIMIT",
    ),
    "horizon.prune.k": Removed(
        lambda stored: stored.get("loss", {}).get("k", 16), "Pruning compares the top loss.k tokens"
    ),
    "horizon.prune.measure": Removed("ratio", "A position is judged by its overlap ratio"),
    "horizon.prune.drop": Removed(
        0.02, "Each bad position takes 0.02 of the weight", "opd.training.horizon:WEIGHT_DROP"
    ),
    "horizon.prune.base": Removed(0.0, "No weight remains after the last position that counts"),
    "horizon.prune.adapt": Removed(True, "The cap always follows the overlap"),
    "horizon.prune.quantile": Removed(
        0.9,
        "The cap is where 0.9 of the rollouts have died or ended",
        "opd.training.horizon:ENDED_FRACTION",
    ),
    "horizon.prune.growth": Removed(
        1.25, "A cap grows by 1.25 while rollouts are cut alive", "opd.training.horizon:GROWTH"
    ),
    "horizon.prune.tail": Removed(
        "drop",
        "Weight that leaves the distillation is dropped; loss.terms.outcome_weight adds the "
        "outcome reward to every token that keeps weight",
    ),
    "alarms.window": Removed(
        "auto", "Windows are a tenth of the run, at least 4 steps", affects_results=False
    ),
    "check.prompts": Removed(
        192,
        "The check looks at 192 prompts at most; `opd check --budget` ends it earlier",
        "opd.commands.check.rounds:MAX_PROMPTS",
        affects_results=False,
    ),
    "select.k": Removed(4, "pass@k is always pass@4", "opd.recipes.select:PASS_K"),
    "select.ood_share": Removed(
        0.25,
        "A quarter of the kept prompts is drawn from the rest; the column `why` of the prompt file "
        "tells them apart, to leave them out",
        "opd.recipes.select:OTHERS_FRACTION",
    ),
    "select.advantage": Removed(1.0, "The teacher's advantage has weight 1" + _WEIGHTS),
    "select.learnability": Removed(0.5, "Learnability has weight 0.5" + _WEIGHTS),
    "select.alignment": Removed(0.5, "Alignment has weight 0.5" + _WEIGHTS),
    "select.near": Removed(
        0.8, "Questions are near duplicates from 0.8", "opd.commands.select.prepare:NEAR"
    ),
    "select.template_prompts": Removed(
        64, "Templates are compared on 64 prompts", "opd.commands.select.templates:TEMPLATE_PROMPTS"
    ),
}


def removed_key_errors(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration without its removed keys, and one line per key that was there."""
    rest = deepcopy(data)
    return rest, [_message(*each) for each in _pop_removed(rest)]


def upgrade(stored: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The configuration that a run folder has stored, without keys that make no difference now.

    Raises:
        UserError: a removed key has another value than what this version does.
    """
    rest = deepcopy(stored)
    rename_dtype(rest)
    move_revisions(rest)
    errors = []
    for name, key, value in _pop_removed(rest):
        message, default = _message(name, key, value), REMOVED[name].default
        if value == (default(stored) if callable(default) else default):
            continue
        if REMOVED[name].affects_results:
            errors.append(message)
        else:
            logger.warning("%s: %s", where, message.strip())
    if errors:
        raise UserError(
            f"{where} was stored by an earlier version, with settings that this version does not "
            "have:\n" + "\n".join(errors)
        )
    return rest


def rename_dtype(stored: dict[str, Any]) -> None:
    """Give a stored student the precision that its dtype was, so that its run goes on alike."""
    student = stored.get("student")
    if isinstance(student, dict) and "dtype" in student:
        dtype = student.pop("dtype")
        student.setdefault("precision", "float32" if dtype == "auto" else dtype)


def move_revisions(stored: dict[str, Any]) -> None:
    """Put the revision of a stored model where it stands now: behind its name."""
    for model in (stored.get("student"), stored.get("teacher")):
        if isinstance(model, dict) and model.get("revision") is not None:
            model["model"] = f"{model['model']}@{model.pop('revision')}"


def _message(name: str, key: str, value: Any) -> str:
    removed, place = REMOVED[name], ""
    if removed.constant is not None:
        module, constant = removed.constant.split(":")
        place = f" (the constant {constant} in {module.replace('.', '/')}.py)"
    return f"  {key}={value!r}: {key} was removed in {VERSION}. {removed.reason}{place}."


def _pop_removed(data: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Take removed keys out of `data`; yields name in `REMOVED`, key with list indices, value."""
    for name in REMOVED:
        *sections, leaf = name.split(".")
        for path, section in _sections(data, sections):
            if leaf in section:
                yield name, ".".join([*path, leaf]), section.pop(leaf)


def _sections(node: Any, names: list[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Every mapping under dotted `names`, with its path; the elements of a list count as one."""
    if isinstance(node, list):
        for index, element in enumerate(node):
            for path, section in _sections(element, names):
                yield [str(index), *path], section
    elif isinstance(node, dict) and not names:
        yield [], node
    elif isinstance(node, dict) and names[0] in node:
        for path, section in _sections(node[names[0]], names[1:]):
            yield [names[0], *path], section
