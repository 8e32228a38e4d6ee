"""Wall time until half of the gap to the teacher is closed, on the SmolLM2 example: opd and TRL.

Both sides train the base of the example from its teacher with their own loops on the same prompts,
at the same rate, 16 prompts x 2 completions per step; ours with the default configuration, TRL with
its full-vocabulary reverse KL. Every `--every` steps the clock stops and the same greedy
`generate` answers the same held-out problems. One run per side, so no median.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import HERE, make_parser, publish, report, run_sides, table, trl_python

PROMPTS, COPIES, LIMIT, RATE, MICRO = 16, 2, 32, 3e-5, 8


class Race:
    """Stops the clock every few steps, evaluates, and reports when half of the gap is closed."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        lines = (args.data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines[: args.problems]]
        self.tokenizer = AutoTokenizer.from_pretrained(args.base, padding_side="left")
        before, best = (
            self.accuracy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
            for folder in (args.base, args.teacher)
        )
        self.goal = before + (best - before) / 2
        self.every, self.seconds, self.steps = args.every, 0.0, 0
        self.curve = [(0, 0.0, before)]
        self.began = 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def step(self, model: Any) -> bool:
        """Call after an optimizer step; returns whether the goal is reached."""
        self.seconds += time.perf_counter() - self.began
        self.steps += 1
        done = False
        if self.steps % self.every == 0:
            self.curve.append((self.steps, self.seconds, self.accuracy(model)))
            done = self.curve[-1][2] >= self.goal
            progress = ", ".join(f"{s}: {a:.2f} at {t:.0f} s" for s, t, a in self.curve)
            print(progress, file=sys.stderr, flush=True)
        self.start()
        return done

    def result(self) -> list[dict[str, float]]:
        """Time to the goal, interpolated linearly between the last two evaluations.

        Raises:
            SystemExit: the goal was not reached.
        """
        (s0, t0, a0), (s1, t1, a1) = self.curve[-2:]
        if a1 < self.goal:
            sys.exit(f"{a1:.2f} after {s1} steps, {t1:.0f} s: half of the gap is {self.goal:.2f}")
        fraction = (self.goal - a0) / (a1 - a0)
        return [
            {
                "seconds": t0 + fraction * (t1 - t0),
                "steps": s0 + fraction * (s1 - s0),
                "goal": self.goal,
                "last": a1,
                "step_s": t1 / s1,
            }
        ]

    @torch.no_grad()
    def accuracy(self, model: Any) -> float:
        training, right = model.training, 0
        model.eval()
        for i in range(0, len(self.rows), 50):
            rows = self.rows[i : i + 50]
            inputs = self.tokenizer.apply_chat_template(
                [row["prompt"] for row in rows],
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            )
            out = model.generate(
                **inputs, do_sample=False, max_new_tokens=LIMIT,
                pad_token_id=self.tokenizer.eos_token_id,
            )  # fmt: skip
            texts = self.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right += sum(t.strip() == r["answer"] for t, r in zip(texts, rows, strict=True))
        model.train(training)
        return right / len(self.rows)


def ours(args: argparse.Namespace, race: Race) -> None:
    from opd import config
    from opd.recipes.distillation import distill
    from opd.run.console import Console
    from opd.setup.session import build

    with tempfile.TemporaryDirectory() as folder:
        cfg = config.parse(
            {
                "student": {"model": str(args.base), "precision": "float32"},
                "teacher": {"model": str(args.teacher), "dtype": "float32"},
                "prompts": {"path": str(args.data / "train.jsonl"), "shuffle": False},
                "rollout": {"n": COPIES, "max_new_tokens": LIMIT},
                "optim": {"lr": RATE},
                "train": {"steps": args.max_steps, "prompts_per_step": PROMPTS,
                          "tokens_per_microbatch": MICRO * (60 + LIMIT)},
                "output": {"dir": f"{folder}/run", "save_every": 1000},
            }
        )  # fmt: skip
        session, completions = build(cfg, resume=False, overwrite=False, console=Console("quiet"))
        sync = session.source.sampler.sync

        def synced(version: int) -> None:
            sync(version)
            if version and race.step(session.learner.student.causal):
                session.stop.set()

        session.source.sampler.sync = synced  # type: ignore[method-assign]
        race.start()
        try:
            distill(session, completions)
        except KeyboardInterrupt:
            session.folder.close()


def theirs(args: argparse.Namespace, race: Race) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    lines = (args.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [{"prompt": json.loads(line)["prompt"]} for line in lines]
    rows = [row for row in prompts[: PROMPTS * args.max_steps] for _ in range(COPIES)]
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (args.base, args.teacher)
    )

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            race.start()

        def on_step_end(self, _: Any, __: Any, control: Any, model: Any = None, **___: Any) -> Any:
            control.should_training_stop = race.step(model)
            return control

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=PROMPTS * COPIES // MICRO,
            max_completion_length=LIMIT,
            max_steps=args.max_steps,
            learning_rate=RATE,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            beta=1.0,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Watch()],
        ).train()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, help="output folder of examples/smollm2/run.py")
    parser.add_argument("--base", type=Path, default=HERE.parent / "examples/smollm2/base")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=24, help="steps after which to give up")
    args = parser.parse_args()
    if args.side:
        race = Race(args)
        {"opd": ours, "TRL": theirs}[args.side](args, race)
        return report(race.result())
    if args.run is None:
        sys.exit("Give --run FOLDER, the output of examples/smollm2/run.py.")
    rest = ["--base", str(args.base), "--teacher", str(args.run / "teacher"),
            "--data", str(args.run / "data"), "--problems", str(args.problems),
            "--every", str(args.every), "--max-steps", str(args.max_steps)]  # fmt: skip
    pythons = {"opd": sys.executable, "TRL": trl_python(args)}
    sides = {name: [python, __file__, "--side", name, *rest] for name, python in pythons.items()}
    args.rounds = args.samples = 1
    by_side = run_sides(sides, args)
    lines = [
        [
            name, one["seconds"], one["steps"], one["step_s"], one["goal"], one["last"],
            by_side["TRL"][0]["seconds"] / one["seconds"],
        ]
        for name, (one,) in by_side.items()
    ]  # fmt: skip
    header = ["side", "s to half", "steps", "s per step", "goal", "accuracy then", "TRL / this"]
    publish(args, "half-gap", table(header, lines), {"samples": by_side})


if __name__ == "__main__":
    main()
