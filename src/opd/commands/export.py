"""`opd export`: the trained student as a Hugging Face folder with a model card, reload checked."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import LM, load_lm
from opd.models.saved_folder import replaced_folder
from opd.models.saving import save_adapter, save_merged
from opd.reports.model_card import model_card
from opd.reports.read import RunData, read_run
from opd.run.checkpoint import Checkpoint, find_newest_checkpoint
from opd.run.layout import BEST
from opd.run.outputs import require_no_input, require_outside_run, require_writable_parent
from opd.setup.pair import prepare_student
from opd.setup.precision import loading_dtype

# Largest difference of a log-probability between the trained student and the reloaded folder.
# Saved as trained, the same arithmetic gives the same numbers; merging adds a rounding of weights.
SAME = 1e-6
MERGED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5}
NUM_SEQUENCES = 4
MAX_TOKENS = 256  # per sequence


@dataclass(frozen=True)
class Exported:
    """An exported folder and the result of its reload check.

    Attributes:
        path: the folder.
        kind: "weights", "adapter" or "merged weights".
        step: of the checkpoint.
        difference: largest difference of a log-probability after reloading, in nats.
        allowed: largest difference that is accepted.
    """

    path: Path
    kind: str
    step: int
    difference: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.path}: {self.kind} of step {self.step}. {self.reload_check}"

    def json(self) -> str:
        """One JSON object for a program."""
        return json.dumps(asdict(self) | {"path": str(self.path)})

    @property
    def reload_check(self) -> str:
        """The result of the reload check in words."""
        return (
            f"Reloaded in plain transformers, log-probabilities differ by at most "
            f"{self.difference:.2g} (allowed {self.allowed:.2g})."
        )


def export_run(run: Path, out: Path | None = None, *, merge: bool = False) -> Exported:
    """Write the student that a run ended with, or its newest, as a folder that transformers loads.

    A LoRA student is written as its adapter, or merged into its base with `merge`.

    Args:
        run: the run folder.
        out: folder to write, must not exist; None: `export` in the run folder.
        merge: merge an adapter; no effect on a student without one.

    Raises:
        UserError: no run folder, no checkpoint, `out` exists, or the reloaded folder differs.
    """
    data = read_run(run)
    out = out or run / "export"
    require_output(out, run, data)
    checkpoint = _kept_checkpoint(run, data.kept_step)
    if checkpoint is None:
        raise UserError(f"{run} has no valid checkpoint to export; let `opd train` save one.")
    cfg = config.parse_stored(data.config, where=str(run / "config.json"))
    base = _base_model(cfg, run)
    student = _load_student(cfg, checkpoint, base)
    tokenizer = tokenizers.load_tokenizer(base)
    kind = "weights" if not student.is_lora else "merged weights" if merge else "adapter"
    with replaced_folder(out) as new:
        if kind == "adapter":
            save_adapter(student, new)
            tokenizer.save_pretrained(new)
        else:
            save_merged(student, tokenizer, new)
        difference, allowed = _check_reload(student, new, kind, data)
        exported = Exported(out, kind, checkpoint.step, difference, allowed)
        card = model_card(data, kind=kind, step=exported.step, reload_check=exported.reload_check)
        (new / "README.md").write_text(card, encoding="utf-8")
        for file in new.iterdir():  # weights are saved without read permission for others
            file.chmod(0o644)
    return exported


def _kept_checkpoint(run: Path, kept_step: int | None) -> Checkpoint | None:
    """The checkpoint of the student that a run ended with; its newest while it goes on.

    A run that ended with an earlier student, the best it had, keeps it in a folder of its own. One
    that an alarm stopped without a held-out set has no best student, and ended with its newest.
    """
    newest = find_newest_checkpoint(run / "checkpoints")
    if kept_step is None:
        return newest
    best = find_newest_checkpoint(run / BEST)
    last = newest if newest is not None and newest.step == kept_step else None
    return last if best is None else best


def require_output(out: Path, run: Path, data: RunData) -> None:
    """Check that a folder may be written.

    Raises:
        UserError: it exists, is part of the run or of what the run read, or cannot be made.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} exists and stays as it is. Give another folder with --out.")
    require_outside_run(out, run, "--out")
    require_no_input(out, config.input_paths(data.config), key="--out")
    require_writable_parent(out, "--out")


def _base_model(cfg: Run, run: Path) -> str:
    """The model whose weights are replaced by those of the checkpoint.

    For a student without an adapter this is `final` of the run folder: the model it started from
    may be gone, or named by a path relative to where the run was started.
    """
    if cfg.student.lora is None and (run / "final").is_dir():
        return str(run / "final")
    return cfg.student.model


def _load_student(cfg: Run, checkpoint: Checkpoint, base: str) -> LM:
    """The student with the weights of a checkpoint."""
    student = load_lm(
        base,
        dtype=loading_dtype(cfg, trains=False),
    )
    student = prepare_student(cfg, student)
    tensors, _ = checkpoint.load()
    with torch.no_grad():
        for name, parameter in student.parameters().items():
            parameter.copy_(tensors["student"][name])
    student.model.eval()
    return student


def _check_reload(student: LM, folder: Path, kind: str, data: RunData) -> tuple[float, float]:
    """Compare the folder on disk with the student in memory.

    Returns:
        Largest difference of a log-probability in nats, and the difference that is allowed.

    Raises:
        UserError: the difference is larger than allowed.
    """
    dtype = next(iter(student.parameters().values())).dtype
    allowed = MERGED[dtype] if kind == "merged weights" else SAME
    difference = _max_difference(student, folder, kind, _sequences(data, student.vocab))
    if not difference <= allowed:
        raise UserError(
            f"{folder}, reloaded, differs from the trained student by {difference:.3g} in a "
            f"log-probability; allowed is {allowed:.3g} for {kind} in {dtype}. Export without "
            "--merge, or train with student.precision=float32."
        )
    return difference, allowed


def _sequences(data: RunData, vocab: int) -> list[list[int]]:
    """Prompts with completions of the run itself; without rollouts, ids in order."""
    steps = data.rollout_steps()
    file = data.rollout_file(steps[-1]) if steps else None
    if file is None or not file.batch:
        return [list(range(min(vocab, MAX_TOKENS)))]
    rollouts = file.batch[:NUM_SEQUENCES]
    return [[*r.prompt.ids, *r.ids.tolist()][:MAX_TOKENS] for r in rollouts]


@torch.no_grad()
def _max_difference(student: LM, folder: Path, kind: str, sequences: list[list[int]]) -> float:
    """Largest difference of a log-probability between the student in memory and the folder."""
    auto: Any = transformers.AutoModelForCausalLM
    if kind == "adapter":
        import peft

        auto = peft.AutoPeftModelForCausalLM
    dtype = next(iter(student.parameters().values())).dtype
    reloaded = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    reloaded = reloaded.to(student.device).eval()
    differences = []
    for ids in sequences:
        row = torch.tensor([ids], device=student.device)
        logp, other = (_logp(model(input_ids=row).logits) for model in (student.model, reloaded))
        differences.append(float((logp - other).abs().max()))
    return max(differences)


def _logp(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)
