"""The loss alone: forward, and backward to hidden states and head weight, against TRL.

Three of ours: the default (renormalised on the student's top 16, which the sampler recorded),
the tail bucket (needs both normalisers), and the whole vocabulary, which is TRL's own objective.
"""

from __future__ import annotations

import argparse
import sys

import torch
from harness import (
    make_parser,
    median,
    publish,
    repeat,
    report,
    run_sides,
    spread,
    table,
    trl_python,
)

WIDTH, K = 576, 16
OURS = ("default", "tail", "full")


def tensors(positions: int, vocab: int) -> dict[str, torch.Tensor]:
    """Both sides' hidden states and heads; logits of a spread like a language model's."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=random).mul_(scale)

    student, teacher = (normal(vocab, WIDTH, scale=0.1) for _ in range(2))
    hidden = normal(positions, WIDTH, scale=1.0)
    return {
        "student": student.requires_grad_(),
        "teacher": teacher,
        "hidden": hidden.requires_grad_(),
        "theirs": hidden.detach() + normal(positions, WIDTH, scale=0.1),
    }


def gradients(x: dict[str, torch.Tensor], value: torch.Tensor) -> dict[str, float]:
    """Backward; loss and gradient norms, which the sides are compared by."""
    value.backward()
    norms = {"loss": value.item(), "grad_hidden": x["hidden"].grad.norm().item()}
    norms["grad_weight"] = x["student"].grad.norm().item()
    x["hidden"].grad = x["student"].grad = None
    return norms


def ours(kind: str, x: dict[str, torch.Tensor]):
    from opd.core.chunked import chunk_slices
    from opd.core.distributions import DenseDistribution, KnownScores
    from opd.core.objective import CompletionTokens, Objective
    from opd.models.head import Head, HeadDistribution

    count, vocab = len(x["hidden"]), len(x["student"])
    objective = Objective(
        k=K,
        support="full" if kind == "full" else "student_topk",
        mode="tail" if kind == "tail" else "paper",
    )
    student = Head(x["student"], None, vocab, sparse=True)  # as an update has it
    teacher = Head(x["teacher"], None, vocab)
    with torch.no_grad():
        ids = torch.cat(
            [student.logits(x["hidden"][s]).topk(K, -1).indices for s in chunk_slices(count, vocab)]
        )
    ones = torch.ones(count)
    tokens = CompletionTokens(ids[:, 0], ids, None, ones, ids[:, 0], None, None, ones)

    def theirs(part):
        return teacher.logits(x["theirs"][part])

    def teacher_scores():
        """What a teacher returns for the tail: scores of the ids, and the normaliser."""
        chunks = []
        for part in chunk_slices(count, vocab):
            dense = DenseDistribution(theirs(part))
            chunks.append((dense.scores(ids[part]), dense.log_z()))
        return tuple(torch.cat(x) for x in zip(*chunks, strict=True))

    def of_logits(logits, part, *whole):
        chunk = CompletionTokens(*(None if v is None else v[part] for v in tokens))
        if whole:
            given = DenseDistribution(*whole)
        else:
            scores, log_z = returned[0]
            given = KnownScores([(ids[part], scores[part])], log_z[part])
        return objective.per_position(DenseDistribution(logits), given, chunk)

    returned = []

    def step():
        if kind == "tail":
            returned[:] = [teacher_scores()]
        if kind == "default":
            with torch.no_grad():
                scores = teacher.logits_of(x["theirs"], ids)
            x["student"].grad = torch.zeros_like(x["student"])
            distribution = HeadDistribution(student, x["hidden"])
            given = KnownScores([(ids, scores)])
            total = objective.per_position(distribution, given, tokens).sum()
        else:
            total = student.chunked_sum(of_logits, x["hidden"], theirs if kind == "full" else None)
        return gradients(x, total / count)

    return step


def trl(x: dict[str, torch.Tensor]):
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def step():
        value, _, _ = _chunked_divergence_loss(
            x["hidden"][None],
            x["theirs"][None],
            x["student"],
            x["teacher"],
            torch.ones(1, len(x["hidden"])),
            1.0,
        )
        return gradients(x, value)

    return step


def gkd(x: dict[str, torch.Tensor]):
    from trl.experimental.gkd import GKDTrainer

    def step():
        mine = x["hidden"] @ x["student"].T
        theirs = x["theirs"] @ x["teacher"].T
        labels = torch.zeros(1, len(mine), dtype=torch.int64)
        value = GKDTrainer.generalized_jsd_loss(mine[None], theirs[None], labels=labels, beta=1.0)
        return gradients(x, value)

    return step


def child(args: argparse.Namespace) -> None:
    made = {"trl": trl, "gkd": gkd}

    def step_of(x: dict[str, torch.Tensor]):
        return made[args.side](x) if args.side in made else ours(args.side, x)

    step = step_of(tensors(args.positions, args.vocab))
    report(repeat(step, args.reps, step_of(tensors(64, 16_384))))


def compare(args: argparse.Namespace, positions: int, vocab: int) -> tuple[list, dict]:
    shape = ["--positions", str(positions), "--vocab", str(vocab)]
    sides = {name: [sys.executable, __file__, "--side", name, *shape] for name in OURS}
    sides["trl"] = [trl_python(args), __file__, "--side", "trl", *shape]
    if positions * vocab <= args.gkd:
        sides["gkd"] = [trl_python(args), __file__, "--side", "gkd", *shape]
    by_side = run_sides(sides, args)
    for name in ("loss", "grad_hidden", "grad_weight"):
        mine, other = by_side["full"][0][name], by_side["trl"][0][name]
        if abs(mine - other) > 1e-4 * abs(other):
            sys.exit(f"{name}: full vocabulary {mine}, TRL {other}: not the same objective")
    grad = vocab * WIDTH * 4 / 2**20
    base, lines = by_side["trl"], []
    for name, samples in by_side.items():
        memory = median(samples, "extra_mib")
        without = memory - grad
        lines.append(
            [
                positions, vocab, name, median(samples), spread(samples),
                median(base) / median(samples), memory, without,
                without / (median(base, "extra_mib") - grad), len(samples),
            ]
        )  # fmt: skip
    return lines, by_side


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--positions", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--vocab", type=int, nargs="*", default=[49_152, 151_936, 262_144])
    parser.add_argument(
        "--gkd",
        type=float,
        default=1.1e8,
        help="largest number of logits for GKD, which keeps them all",
    )
    args = parser.parse_args()
    if args.side:
        args.positions, args.vocab = args.positions[0], args.vocab[0]
        return child(args)
    if args.quick:
        args.positions, args.vocab, args.rounds, args.samples = [64], [4096], 1, 1
    lines, data = [], {}
    for positions in args.positions:
        for vocab in args.vocab:
            more, data[f"{positions}x{vocab}"] = compare(args, positions, vocab)
            lines += more
    header = ["positions", "V", "loss", "median s", "range", "TRL / this", "extra MiB",
              "without head's gradient", "of TRL's", "n"]  # fmt: skip
    name = "-".join(map(str, ["loss", *args.positions]))
    publish(args, name, table(header, lines), {"samples": data})


if __name__ == "__main__":
    main()
