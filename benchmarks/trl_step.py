"""One side of step.py: TRL's DistillationTrainer, timed between optimizer steps."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import workload
from harness import report, reset_peak, rss
from replay import EndAt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--reps", type=int, required=True)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16_mixed"))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LogitsProcessorList, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    mixed = args.dtype == "bf16_mixed"  # TRL's own default: float32 weights under bf16 autocast
    base = rss()
    student = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(
        args.teacher, dtype=torch.bfloat16 if mixed else torch.float32
    )
    trained = sum(p.numel() * p.element_size() for p in student.parameters())
    allocated = 4 * trained + sum(p.numel() * p.element_size() for p in teacher.parameters())
    wanted = workload.lengths(args.requests, args.limit)
    rows = workload.rows(args.requests // args.n, large=args.large)
    samples: list[dict[str, float]] = []

    class Timer(TrainerCallback):
        began = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            if self.began:
                peak = rss("VmHWM") - base - allocated / 2**20
                samples.append(
                    {"seconds": now - self.began, "tokens": sum(wanted), "above_mib": peak}
                )
            reset_peak()
            self.began = time.perf_counter()

    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=args.requests // args.micro,
            max_completion_length=args.limit,
            max_steps=args.reps + 1,
            learning_rate=1e-6,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            beta=1.0,
            shuffle_dataset=False,
            gradient_checkpointing=args.checkpointing,
            bf16=mixed,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list([row for row in rows for _ in range(args.n)]),
            callbacks=[timer],
        )
        generate, end = student.generate, trainer.processing_class.eos_token_id

        def ending(**kwargs: Any) -> torch.Tensor:
            width = kwargs["input_ids"].shape[1]
            due = wanted if timer.began else [min(n, workload.WARM_UP) for n in wanted]
            processors = LogitsProcessorList([EndAt(due, width, end)])
            out = generate(**kwargs, logits_processor=processors)
            assert out.shape == (args.requests, width + max(due)), out.shape
            return out

        student.generate = ending
        trainer.train()
        logged = [x for x in trainer.state.log_history if "loss" in x]
        for sample, log in zip(samples, logged[1:], strict=True):
            sample["loss"] = float(log["loss"])
    report(samples)


if __name__ == "__main__":
    Path.cwd()
    main()
