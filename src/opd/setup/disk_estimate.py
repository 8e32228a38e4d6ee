"""How much disk a run may need: `opd check` reports it, `opd train` asks for it at its start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opd.config import Run
from opd.models.model_files import count_elements
from opd.run.disk import require_space

if TYPE_CHECKING:
    from opd.models.lm import LM

LOGS = 64 * 2**20  # journals, evaluations, tokenizer files
ROLLOUT_OVERHEAD = 1024  # bytes of a rollout beside its arrays: texts, offsets, names
# Bytes per weight in a checkpoint and in the final model, by student.precision; auto: at least.
ITEMSIZES = {"auto": (4, 2), "bf16_mixed": (4, 2), "float32": (4, 4), "bfloat16": (2, 2)}
ITEMSIZES["float64"] = (8, 8)
STATES_PER_WEIGHT = 3  # a checkpoint holds each trained weight and its two moments


def bytes_needed(cfg: Run, student: LM, teacher: LM | None) -> int:
    """Bytes of checkpoints, final model, logs and the step files that wait for a checkpoint.

    An upper bound: every completion is taken to reach rollout.max_new_tokens.
    """
    # A LoRA's base is in the final model, which is merged, and in no checkpoint.
    final = sum(p.numel() * p.element_size() for p in student.model.parameters())
    steps = min(cfg.output.save_every, cfg.train.steps) + 1
    step_files = steps * step_bytes(cfg, student, teacher)
    return checkpoint_count(cfg) * checkpoint_bytes(student) + final + step_files + LOGS


def require_space_for_weights(cfg: Run, folder: Path) -> None:
    """Check, from the headers of the student's files alone, that its checkpoints have room.

    A lower bound of `bytes_needed`, which needs the models: adapters and step files are left out,
    and where student.precision decides about sizes and is auto, the smaller ones are taken.

    Args:
        cfg: the run.
        folder: student.model.

    Raises:
        UserError: naming needed and free bytes.
    """
    elements = count_elements(folder)
    trained, final = ITEMSIZES[cfg.student.precision]
    checkpoint = 0 if cfg.student.lora is not None else STATES_PER_WEIGHT * trained * elements
    needed = checkpoint_count(cfg) * checkpoint + final * elements + LOGS
    try:
        require_space(Path(cfg.output.dir), needed)
    except (OSError, ValueError):
        return  # no path at all; whoever makes the run folder says why


def checkpoint_count(cfg: Run) -> int:
    """Checkpoints that may be there at once."""
    # The kept ones and one being written; a cold start has its own, and so has the best student.
    checkpoints = cfg.output.keep + (1 if cfg.coldstart is None else 3)
    checkpoints += 2 if cfg.alarms.may_stop else 0
    return checkpoints


def checkpoint_bytes(student: LM) -> int:
    """Bytes of one checkpoint: the trained weights and the optimizer's moments."""
    trained = sum(p.numel() * p.element_size() for p in student.weights().values())
    return STATES_PER_WEIGHT * trained


def step_bytes(cfg: Run, student: LM, teacher: LM | None) -> int:
    """Largest size of one rollouts/step-N.parquet, bytes."""
    from opd.core.diagnostics import OVERLAP_K  # imports torch

    rollouts = cfg.train.prompts_per_step * cfg.rollout.n
    tokens = rollouts * cfg.rollout.max_new_tokens
    k, own = cfg.loss.k, max(cfg.loss.k, OVERLAP_K)
    # Per token: id, log-prob, entropy, k ids with log-probs of the student; the teacher's scores of
    # those and of the sampled token, normaliser, entropy, and its own top tokens; its text.
    token = 12 + 8 * k + 4 * k + 12 + 8 * own + 8
    needs_all = cfg.loss.support == "full"
    diagnosed = tokens if needs_all else min(tokens, cfg.diagnostics.positions)
    hidden = 0
    if teacher is not None:
        hidden = int(teacher.config.hidden_size) * teacher.causal.dtype.itemsize + 4
    prompt = cfg.prompts.max_tokens * 8
    return tokens * token + diagnosed * hidden + rollouts * (prompt + ROLLOUT_OVERHEAD)
