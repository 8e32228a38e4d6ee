"""Accuracy of both sizes on every task of `tasks.py`: where is the larger model ahead?

    python examples/qwen/search.py --student MODEL --teacher MODEL [--count 64] [--out FILE]

One answer to each prompt at temperature 0.7 and top_p 0.95, at most `--tokens` new tokens, in
bfloat16. Each task and model is written to FILE when it is done; a second call goes on there. The
interval of a gap is that of paired prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks import TASKS, grader_of, rows, write_jsonl

from opd.core import stats
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.models.lm import load_lm
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.eval_task import EvalTask
from opd.training.evaluate import evaluate

Record = dict[str, Any]
SIDES = ("student", "teacher")
TEMPERATURE, TOP_P = 0.7, 0.95


def measure(
    folder: str,
    tasks: Sequence[str],
    count: int,
    tokens: int,
    save: Callable[[Record], None],
) -> None:
    """Evaluate a model on each task and hand every result to `save`."""
    lm, tokenizer = load_lm(folder, dtype="bfloat16", device="cpu"), load_tokenizer(folder)
    decoding = Decoding(tokens, TEMPERATURE, TOP_P)
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, decoding, stop=stop, capture=1, batch=64)
    for task in tasks:
        with tempfile.TemporaryDirectory() as scratch:
            path = write_jsonl(Path(scratch) / "rows.jsonl", rows(task, "search", count, 0))
            prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=256)
        grader = make_grader(grader_of(task), [p.answer or "" for p in prompts.prompts])
        began = time.monotonic()
        result = evaluate(
            sampler,
            EvalTask(task, prompts, grader, decoding, 1, 0),
            make_decoder(tokenizer),
            seed=0,
        )
        save(
            {
                "task": task,
                "correct": result.correct[:, 0].astype(int).tolist(),
                "tokens": result.length.value,
                "truncated": result.truncated,
                "seconds": round(time.monotonic() - began),
                "examples": [graded.text[:120] for graded in result.graded[:3]],
            }
        )


def row_of(task: str, student: Record, teacher: Record) -> str:
    """A row of the table."""
    cells = [task]
    for side in (student, teacher):
        accuracy = stats.avg_at_n([[c] for c in side["correct"]])
        cells.append(f"{accuracy.value:.2f} ({accuracy.low:.2f} to {accuracy.high:.2f})")
    gap = stats.paired_change(student["correct"], teacher["correct"])
    cells.append(f"{gap.value:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})")
    cells.append(f"{student['tokens']:.1f}, {teacher['tokens']:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    asked = parser.parse_args()
    lines = asked.out.read_text("utf-8").splitlines() if asked.out.is_file() else []
    done = {(line["who"], line["task"]): line for line in map(json.loads, lines)}
    for who in SIDES:

        def save(record: Record, who: str = who) -> None:
            done[who, record["task"]] = record | {"who": who}
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[who, record["task"]]) + "\n")

        missing = [task for task in asked.tasks if (who, task) not in done]
        if missing:
            measure(getattr(asked, who), missing, asked.count, asked.tokens, save)
    print("| task | student | teacher | gap | tokens of an answer |\n|---|---|---|---|---|")
    for task in asked.tasks:
        print(row_of(task, *(done[who, task] for who in SIDES)))


if __name__ == "__main__":
    main()
