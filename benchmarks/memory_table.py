"""The memory table of docs/memory.md: which settings fit which student on which card, planned.

    python benchmarks/memory_table.py            # prints the table
    python benchmarks/memory_table.py --write    # puts it into docs/memory.md

Nothing is loaded or run: rows come from `opd.setup.memory_plan` and the shapes of the Qwen3 models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import Qwen3Config

from opd import config
from opd.config import Run
from opd.setup.memory_advice import first_that_fits
from opd.setup.memory_models import HOST, DeviceMemory
from opd.setup.memory_plan import plan_memory
from opd.setup.planned_memory import MemoryPlan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- table: benchmarks/memory_table.py -->\n", "<!-- end of table -->\n"
GB = 1e9
# Of a card, once a process has its context on it.
CARDS = {24: 23.5 * 2**30, 80: 78.5 * 2**30}
HOST_MEMORY = 256 * GB
LENGTHS = (2048, 4096, 8192, 16384)
PROMPT = 512
DEVICE = "cuda:0"
FOUR_BIT = "-4bit"
# Hidden size, MLP width, layers, query heads, tied embeddings.
SHAPES = {
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
    "32B": (5120, 25600, 64, 64, False),
}
TEACHERS = {"0.6B": "4B", "1.7B": "8B", "4B": "8B", "8B": "32B"}


@dataclass(frozen=True)
class Row:
    """One line of the table; `plan` is None where nothing fits."""

    student: str
    lora: bool
    card: int
    length: int
    overrides: Sequence[str]
    plan: MemoryPlan | None


def read_shape(name: str, key: str) -> Qwen3Config:
    """The configuration of a model by its size, such as 8B or 8B-4bit."""
    size = name.removesuffix(FOUR_BIT)
    hidden, inner, layers, heads, tied = SHAPES[size]
    shape = Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
    if name != size:
        shape.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return shape


def base_run(student: str, length: int, *, lora: bool) -> Run:
    """The run that the settings of a row change."""
    return config.parse(
        {
            "student": {
                "model": student,
                "precision": "bf16_mixed",
                "lora": {} if lora else None,
            },
            "teacher": {"model": TEACHERS[student], "dtype": "bfloat16"},
            "prompts": {"path": "prompts.jsonl", "max_tokens": PROMPT},
            "rollout": {"max_new_tokens": length - PROMPT},
            "output": {"dir": "runs/memory"},
        }
    )


def plan_on(cfg: Run, card: int) -> MemoryPlan:
    """The plan of a run on one card."""
    memory = DeviceMemory.idle({DEVICE: round(CARDS[card]), HOST: round(HOST_MEMORY)})
    return plan_memory(cfg, device=DEVICE, memory=memory, processes=1, read=read_shape)


def make_row(student: str, length: int, card: int, *, lora: bool) -> Row:
    """The settings that cost least among those that fit."""
    cfg, teacher = base_run(student, length, lora=lora), TEACHERS[student]
    teachers: list[Sequence[str]] = [
        (),
        (f"teacher.model={teacher}{FOUR_BIT}", "teacher.dtype=auto"),
        (f"teacher={{url: http://HOST:8400/v1, model: {teacher}}}",),
    ]
    fitting = first_that_fits(cfg, lambda changed: plan_on(changed, card), teachers)
    overrides, plan = ((), None) if fitting is None else fitting
    return Row(student, lora, card, length, overrides, plan)


def make_rows() -> list[Row]:
    """All rows, by student, method, card and length."""
    return [
        make_row(student, length, card, lora=lora)
        for student in TEACHERS
        for lora in (False, True)
        for card in CARDS
        for length in LENGTHS
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown; sizes in GB."""
    lines = [
        "| student | trained | card | tokens | teacher | run.yaml | weights | gradients | masters, "
        "moments | teacher | activations, loss | update | rows sampled at once | host |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(line, rows)]) + "\n"


def line(row: Row) -> str:
    """One row as Markdown."""
    start = f"| {row.student} | {'LoRA' if row.lora else 'full'} | {row.card} GB | "
    start += f"{row.length // 1024}k | "
    if row.plan is None:
        return start + "- | does not fit | | | | | | | | |"
    by_phase = {p.phase: p for p in row.plan.phases if p.device == DEVICE}
    update = by_phase["update"].parts
    parts = [
        update.get("student weights", 0),
        update.get("gradients", 0),
        update.get("master weights", 0) + update.get("optimizer moments", 0),
        update.get("teacher weights", 0),
        sum(update.get(name, 0) for name in ("activations", "loss and backward")),
        by_phase["update"].total,
    ]
    sizes = [f"{size / GB:.1f}" for size in parts]
    host = f"{row.plan.peak(HOST).total / GB:.0f}"
    cells = [teacher_of(row), yaml_of(row), *sizes, str(row.plan.rows), host]
    return start + " | ".join(cells) + " |"


def teacher_of(row: Row) -> str:
    """Which teacher, and where it is."""
    teacher, settings = TEACHERS[row.student], " ".join(row.overrides)
    if "url:" in settings:
        return f"{teacher}, served"
    return f"{teacher}, {'4 bits' if FOUR_BIT in settings else 'bf16'}"


def yaml_of(row: Row) -> str:
    """The keys of run.yaml that are not at their default, but for models and lengths."""
    keys = ["student.lora: {}"] if row.lora else []
    keys += [o.replace("=", ": ") for o in row.overrides if not o.startswith("teacher")]
    return ", ".join(f"`{key}`" for key in keys) or "defaults"


def updated(text: str, rows: Sequence[Row]) -> str:
    """The page with its table replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main() -> None:
    """Print the table or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    rows = make_rows()
    if parser.parse_args().write:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
