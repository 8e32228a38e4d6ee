"""The trained student for other people: a plain Hugging Face folder, a card, and a reload check."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from opd import config
from opd.config import Run
from opd.core.stats import Estimate
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import LM, load_lm, save_final
from opd.reports.formatting import estimate, points, points_range
from opd.reports.outcome import outcome
from opd.reports.read import RunData, read_run
from opd.reports.sanitize import for_terminal, short_name
from opd.run import checkpoint as store
from opd.setup.pair import prepare_student
from opd.training.guard import BEST

# Largest difference of a log-probability between the trained student and the reloaded folder.
# Saved as trained, the same arithmetic gives the same numbers; merging adds a rounding of weights.
SAME = 1e-6
MERGED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5}
SEQUENCES = 4
TOKENS = 256  # of each sequence, at most

_LICENSE = re.compile(r"^license:\s*([A-Za-z0-9.+-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Exported:
    """What was written, and how it differs from the trained student after reloading."""

    path: Path
    kind: str  # "weights", "adapter" or "merged weights"
    step: int
    difference: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.kind} of step {self.step}. Reloaded in plain transformers, "
            f"log-probabilities differ by at most {self.difference:.2g} (allowed "
            f"{self.allowed:.2g})."
        )


def export_run(run: Path, out: Path | None = None, *, merge: bool = False) -> Exported:
    """Write the student of a run's newest checkpoint as a folder that transformers loads.

    A LoRA student is written as its adapter, or merged into its base with `merge`.

    Args:
        run: the run folder.
        out: folder to write, must not exist; None: `export` in the run folder.
        merge: merge an adapter; without effect on a student that has none.

    Raises:
        UserError: no run folder, no checkpoint, `out` exists, or the reloaded folder differs.
    """
    data = read_run(run)
    out = out or run / "export"
    if out.exists():
        raise UserError(f"{out} exists and stays as it is. Give another folder with --out.")
    # A run that an alarm has ended keeps its best student apart, see `opd.training.guard`.
    found = store.newest(run / ("checkpoints" if data.ended_by is None else BEST))
    if found is None:
        raise UserError(f"{run} has no valid checkpoint to export; let `opd train` save one.")
    cfg = config.parse(data.config, where=str(run / "config.json"))
    base, revision = _base(cfg, run)
    student = _trained(cfg, found, base, revision)
    tokenizer = tokenizers.load_tokenizer(base, revision)
    kind = "weights" if not student.is_lora else "merged weights" if merge else "adapter"
    tmp = out.with_name(out.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    if kind == "adapter":
        student.model.save_pretrained(tmp)  # type: ignore[operator]
        tokenizer.save_pretrained(tmp)
    else:
        save_final(student, tokenizer, tmp)
        shutil.rmtree(tmp / "adapter", ignore_errors=True)
    dtype = next(iter(student.parameters().values())).dtype
    allowed = MERGED[dtype] if kind == "merged weights" else SAME
    difference = _difference(student, tmp, kind, _sequences(data, student.vocab))
    if not difference <= allowed:
        raise UserError(
            f"{tmp}, reloaded, differs from the trained student by {difference:.3g} in a "
            f"log-probability; allowed is {allowed:.3g} for {kind} in {dtype}. Export without "
            "--merge, or train with student.dtype=float32."
        )
    result = Exported(out, kind, found.step, difference, allowed)
    (tmp / "README.md").write_text(card(data, result), encoding="utf-8")
    for file in tmp.iterdir():  # weights are written closed to others
        file.chmod(0o644)
    tmp.rename(out)
    return result


def _base(cfg: Run, run: Path) -> tuple[str, str | None]:
    """Model and revision whose weights the checkpoint's replace.

    A student without an adapter brings its own in `final`: the model it began as may be gone, or
    named by a path that means something only where the run was started.
    """
    if cfg.student.lora is None and (run / "final").is_dir():
        return str(run / "final"), None
    return cfg.student.model, cfg.student.revision


def _trained(cfg: Run, found: store.Checkpoint, base: str, revision: str | None) -> LM:
    student = load_lm(
        base,
        revision=revision,
        dtype=cfg.student.dtype,
        device=cfg.student.device,
    )
    student = prepare_student(cfg, student)
    tensors, _ = found.load()
    with torch.no_grad():
        for name, parameter in student.parameters().items():
            parameter.copy_(tensors["student"][name])
    student.model.eval()
    return student


def _sequences(data: RunData, vocab: int) -> list[list[int]]:
    """Prompts with completions of the run itself; without rollouts, ids in order."""
    steps = data.rollout_steps()
    file = data.rollout_file(steps[-1]) if steps else None
    if file is None or not file.batch:
        return [list(range(min(vocab, TOKENS)))]
    rollouts = file.batch[:SEQUENCES]
    return [[*r.prompt.ids, *r.ids.tolist()][:TOKENS] for r in rollouts]


@torch.no_grad()
def _difference(student: LM, folder: Path, kind: str, sequences: list[list[int]]) -> float:
    """Largest gap of a log-probability between the student in memory and the folder on disk."""
    auto: Any = transformers.AutoModelForCausalLM
    if kind == "adapter":
        import peft

        auto = peft.AutoPeftModelForCausalLM
    dtype = next(iter(student.parameters().values())).dtype
    reloaded = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    reloaded = reloaded.to(student.device).eval()
    gaps = []
    for ids in sequences:
        row = torch.tensor([ids], device=student.device)
        gap = _logp(student.model(input_ids=row).logits) - _logp(reloaded(input_ids=row).logits)
        gaps.append(float(gap.abs().max()))
    return max(gaps)


def _logp(logits: Tensor) -> Tensor:
    wide = logits.double()
    return wide - wide.logsumexp(-1, keepdim=True)


def card(data: RunData, exported: Exported) -> str:
    """The model card: data, teacher, loss, before and after with intervals, licence notes."""
    settings = data.config
    teacher = settings["teacher"] or {}
    student = str(settings["student"]["model"])
    head = {
        "base_model": short_name(student),
        "library_name": "peft" if exported.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["on-policy-distillation", "opd"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    lines = [
        f"---\n{front}\n---",
        f"# {_plain(data.name)}",
        f"{_code(student)}, distilled on its own completions from "
        f"{_code(str(teacher.get('model', 'no teacher')))} with "
        f"opd {_plain(str(data.env['versions'].get('opd')))}: {exported.step} of "
        f"{data.planned} steps, {exported.kind}.",
        "## Results",
        *_results(data),
        "## Training",
        "\n".join(_training(data, exported)),
        "## Licences",
        *_licences(student, str(teacher.get("model", ""))),
    ]
    return "\n\n".join(lines) + "\n"


def _training(data: RunData, exported: Exported) -> list[str]:
    settings = data.config
    loss, rollout = settings["loss"], settings["rollout"]
    return [
        f"- Prompts: {_code(str(settings['prompts']['path']))}, "
        f"{settings['train']['prompts_per_step']} a step, {rollout['n']} completions each of at "
        f"most {rollout['max_new_tokens']} tokens at temperature {rollout['temperature']}.",
        f"- Loss: {loss['divergence']} on {loss['support']}, k = {loss['k']}, mode {loss['mode']}.",
        f"- AdamW, learning rate {settings['optim']['lr']}, seed {settings['train']['seed']}.",
        f"- Reload check: log-probabilities differ by at most {exported.difference:.2g} from the "
        f"trained student (allowed {exported.allowed:.2g}).",
    ]


def _results(data: RunData) -> list[str]:
    rows = []
    for task in data.evals:
        found = outcome(task)
        if found is None:
            continue
        teacher = "" if task.teacher is None else _interval(task.teacher.accuracy)
        change = ""
        if found.gain is not None:
            gain = found.gain.difference
            change = f"{points(gain.value)}, {points_range(gain.low, gain.high)}"
        rows.append(
            f"| {_code(task.label)} | {found.before.n} | {_interval(found.before)} | "
            f"{_interval(found.after)} | {teacher} | {change} |"
        )
    if not rows:
        return ["No held-out set was evaluated."]
    head = "| set | prompts | before | after | teacher | paired change |\n|---|---|---|---|---|---|"
    return [
        "\n".join([head, *rows]),
        "Accuracy with 95 % intervals, the prompt as the unit.",
    ]


def _interval(found: Estimate) -> str:
    number = estimate(found)
    return f"{number.text} ({number.note})"


def _licences(student: str, teacher: str) -> list[str]:
    said = [f"- {_code(name)}: {_licence(name)}." for name in (student, teacher) if name]
    return [
        "\n".join(said),
        "These weights derive from the student's, and were trained on the teacher's scores and on "
        "the prompts above. The terms of all three may apply; this card grants nothing.",
    ]


def _licence(model: str) -> str:
    readme = Path(model) / "README.md"
    match = _LICENSE.search(readme.read_text("utf-8", "replace")) if readme.is_file() else None
    return f"says `license: {match[1]}`" if match else "licence not stated in its folder; see there"


def _plain(text: str) -> str:
    """Text from outside as words of a Markdown line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", for_terminal(text))


def _code(text: str) -> str:
    """A name from outside as code; of a local path only its last part is anybody's business."""
    return f"`{for_terminal(short_name(text)).replace('`', chr(0x2B9)).replace('|', chr(0xA6))}`"
