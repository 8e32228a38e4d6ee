"""Prompts prefilled once for their n responses, or with each: the teacher's scoring, the update.

Both sides are `LocalTeacher.score` and `opd.training.step.accumulate`, default loss and
diagnostics on; one of them may not reuse prefixes. Prompt lengths vary by a fifth; responses have
the recorded lengths. Gradient norms must agree.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
from harness import BUILD, make_parser, median, publish, repeat, report, run_sides, spread, table
from workload import lengths, make_teacher, tiny_pair

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.models.lm import load_lm
from opd.teachers.local import LocalTeacher
from opd.training.gradient import accumulate
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer
from opd.types import Prompt, Rollout

# prompts, tokens of a prompt, responses of each, longest response, budget of a micro-batch
SHAPES = (
    (8, 57, 4, 128, 8192),
    (4, 200, 4, 128, 8192),
    (8, 57, 2, 20, 8192),
    (4, 57, 8, 128, 8192),
    (8, 57, 4, 128, 1024),
)
K, VOCAB = 16, 4000
WAYS = ("with each", "once")


def make_rollouts(count: int, prompt_length: int, n: int, longest: int) -> list[Rollout]:
    """Random tokens; prompts of uneven length, responses of the recorded ones."""
    random, rollouts = np.random.default_rng(0), []
    wanted = cycle(lengths(128, longest))
    for index in range(count):
        ids = random.integers(3, VOCAB, int(prompt_length * random.uniform(0.8, 1.2)))
        prompt = Prompt(index, tuple(ids.tolist()), "")
        for sample in range(n):
            t = next(wanted)
            top = np.stack([random.permutation(VOCAB)[:K] for _ in range(t)]).astype(np.int32)
            logp = np.full((t, K), -3.0, np.float32)
            rollouts.append(
                Rollout(prompt, sample, top[:, 0].copy(), logp[:, 0].copy(), -logp[:, 0], top, logp,
                        "length")
            )  # fmt: skip
    return rollouts


def side(args) -> None:
    *shape, budget = args.shape
    student, teacher = (load_lm(str(f), dtype=args.dtype) for f in (args.model, args.teacher))
    if args.side == "with each":
        student.prefix_cache_works = teacher.prefix_cache_works = False
    objective = Objective(k=K)
    learner = Learner(
        student=student, optimizer=make_optimizer(student, Optim()), objective=objective,
        optim=Optim(), tokens_per_microbatch=budget, teacher_logits=teacher.head.logits,
        teacher_temperature=1.0, diagnostics_k=K, position_edges=[0, 8, 64, 128],
    )  # fmt: skip
    rollouts = make_rollouts(*shape)
    random = np.random.default_rng(1)
    full = [np.flatnonzero(random.random(len(r)) < 0.25) for r in rollouts]

    def step() -> dict[str, float]:
        began = time.perf_counter()
        scores = LocalTeacher(teacher).score(rollouts, objective.want._replace(full=full))
        scored = time.perf_counter()
        accumulate(learner, Batch(rollouts, scores), 0)
        done = time.perf_counter()
        grads = [p.grad for p in student.parameters().values()]
        norm = sum(float(g.double().square().sum()) for g in grads) ** 0.5
        return {"score": scored - began, "update": done - scored, "norm": norm}

    report(repeat(step, args.reps))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=BUILD / "student")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", type=int, nargs=5, help="one shape only")
    args = parser.parse_args()
    if args.side:
        return side(args)
    if args.quick:
        args.model, args.teacher = tiny_pair(args.out)
        args.rounds = args.samples = 1
    args.teacher = args.teacher or make_teacher(args.model, args.out / "teacher")
    shapes = [tuple(args.shape)] if args.shape else SHAPES[:1] if args.quick else SHAPES
    models = ["--model", str(args.model), "--teacher", str(args.teacher), "--dtype", args.dtype]
    lines, data = [], {}
    for shape in shapes:
        rest = [*models, "--shape", *map(str, shape)]
        sides = {way: [sys.executable, __file__, "--side", way, *rest] for way in WAYS}
        by_side = data[str(shape)] = run_sides(sides, args)
        norms = [by_side[way][0]["norm"] for way in WAYS]
        # In bf16 another order of summation changes a gradient by some thousandths.
        if abs(norms[0] - norms[1]) > (1e-4 if args.dtype == "float32" else 2e-2) * norms[0]:
            sys.exit(f"gradient norms {norms}: not the same gradient")
        for way, samples in by_side.items():
            lines.append(
                [*shape, way, median(samples), spread(samples)]
                + [
                    median(by_side[WAYS[0]], name) / median(samples, name)
                    for name in ("seconds", "score", "update", "extra_mib")
                ]
            )
    header = ["prompts", "tokens", "n", "longest", "budget", "prompt runs", "s", "range",
              "with each / this", "score", "update", "MiB"]  # fmt: skip
    publish(args, "grouped", table(header, lines), {"samples": data})


if __name__ == "__main__":
    main()
