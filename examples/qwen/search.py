"""Accuracy of both sizes on every task of `tasks.py`: where the larger model is ahead.

    python examples/qwen/search.py --student MODEL --teacher MODEL [--count 60] [--out FILE]

Greedy, at most `--tokens` new tokens. Each task and model is written to FILE when it is done; a
second call goes on there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tasks import TASKS, rows, write_jsonl

from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.models.lm import load_lm
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.samplers.hf import Decoding, HFSampler
from opd.training.evaluate import EvalTask, evaluate


def measure(folder: str, tasks: list[str], count: int, tokens: int, save) -> None:
    """Evaluate a model on each task and hand every result to `save`."""
    lm, tokenizer = load_lm(folder, dtype="bfloat16", device="cpu"), load_tokenizer(folder)
    decoding = Decoding(tokens, temperature=0.0)
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, decoding, stop=stop, capture=1, batch=32)
    for task in tasks:
        with tempfile.TemporaryDirectory() as scratch:
            path = write_jsonl(Path(scratch) / "rows.jsonl", rows(task, "search", count, 0))
            prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=256)
        grader = make_grader("exact", [p.answer or "" for p in prompts.prompts])
        began = time.monotonic()
        result = evaluate(
            sampler,
            EvalTask(task, prompts, grader, decoding, 1, 0),
            make_decoder(tokenizer),
            seed=0,
        )
        accuracy = result.accuracy
        save(
            {
                "task": task,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "n": count,
                "seconds": round(time.monotonic() - began),
                "examples": [graded.text[:80] for graded in result.graded[:3]],
            }
        )


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    asked = parser.parse_args()
    lines = asked.out.read_text("utf-8").splitlines() if asked.out.is_file() else []
    done = {(line["who"], line["task"]): line for line in map(json.loads, lines)}
    for who in ("student", "teacher"):

        def save(record: dict, who: str = who) -> None:
            done[who, record["task"]] = record | {"who": who}
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[who, record["task"]]) + "\n")

        missing = [task for task in TASKS if (who, task) not in done]
        if missing:
            measure(getattr(asked, who), missing, asked.count, asked.tokens, save)
    print("| task | student | teacher | gap |\n|---|---|---|---|")
    for task in TASKS:
        a, b = (done[who, task] for who in ("student", "teacher"))
        texts = [f"{r['accuracy']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in (a, b)]
        print(f"| {task} | {texts[0]} | {texts[1]} | {b['accuracy'] - a['accuracy']:+.2f} |")


if __name__ == "__main__":
    main()
