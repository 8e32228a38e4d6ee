"""What a step at 1e-6 does in each precision: weights that move, and the held-out KL.

The same rollouts and the same batch for float32, bf16_mixed (float32 masters), float32 weights
under bf16 autocast (TRL's default), and bf16 without masters, which a run refuses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.models import tokenizers
from opd.models.lm import LM, load_lm
from opd.models.master_weights import add_master_weights
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.training.learner import Learner
from opd.training.optimizer import MasterAdamW
from opd.training.step import update
from opd.types import Prompt, Rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", help="a model; without one: the student's weights with noise")
    parser.add_argument("--noise", type=float, default=0.05, help="in standard deviations")
    parser.add_argument("--prompts", required=True, help="JSON lines with a prompt")
    parser.add_argument("--rows", type=int, default=8, help="to train on; as many are held out")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/precision.json"))
    args = parser.parse_args()
    base = load_lm(args.student, dtype="float32")
    teacher = load_lm(args.teacher or args.student, dtype="float32")
    if not args.teacher:
        add_noise(teacher, args.noise)
    tokenizer = tokenizers.load_tokenizer(args.student)
    lines = Path(args.prompts).read_text().splitlines()[: 2 * args.rows]
    prompts = []
    for i, line in enumerate(lines):
        row = json.loads(line)["prompt"]
        turns = [{"role": "user", "content": row}] if isinstance(row, str) else row
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        prompts.append(Prompt(i, tuple(ids), ""))
    stop = tokenizers.eos_ids(tokenizer, base.causal.generation_config)
    sampler = HFSampler(base, Decoding(48), stop=stop, capture=16)
    rollouts = sampler.sample(prompts, n=1, key=(0,))
    train, held_out = rollouts[: args.rows], rollouts[args.rows :]
    objective = Objective()
    scores = LocalTeacher(teacher).score(train, objective.want)
    kl = mean_kl(base, teacher, held_out)
    changes, result = {}, {}
    for name in ("float32", "bf16_mixed", "bf16 autocast", "bfloat16"):
        student = load_lm(args.student, dtype="float32")
        if name == "bf16_mixed":
            add_master_weights(student)
        elif name == "bfloat16":
            student.model.to(torch.bfloat16)
        before = weights_of(student)
        optim = Optim(lr=args.lr)
        learner = Learner(
            student=student,
            optimizer=MasterAdamW(student, optim),
            objective=objective,
            optim=optim,
            tokens_per_microbatch=1024,
            teacher_logits=None,
            teacher_temperature=1.0,
            diagnostics_k=16,
            position_edges=[0, 1024],
        )
        for step in range(args.updates):
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16 autocast"):
                update(learner, Batch(train, scores), step)
            if step + 1 in (5, args.updates):
                changes[name, step + 1] = weights_of(student) - before
        load_weights(base, weights_of(student))  # the KL of what is saved, in float32
        after = mean_kl(base, teacher, held_out)
        result[name] = {
            "moved": float((changes[name, args.updates] != 0).double().mean()),
            "cosine_5": cosine(changes["float32", 5], changes[name, 5]),
            "cosine": cosine(changes["float32", args.updates], changes[name, args.updates]),
            "kl_before": kl,
            "kl_after": after,
            "kl_change": after / kl - 1,
        }
        print(name, {k: f"{v:.5g}" for k, v in result[name].items()}, flush=True)
        del student, learner
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(vars(args) | {"out": str(args.out), "result": result}, indent=1))


@torch.no_grad()
def add_noise(lm: LM, size: float) -> None:
    """Add normal noise to every matrix, `size` times its standard deviation."""
    generator = torch.Generator().manual_seed(0)
    for parameter in lm.parameters().values():
        if parameter.ndim >= 2:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=size * float(parameter.std()))


def weights_of(lm: LM) -> torch.Tensor:
    """What the optimizer moves (masters, if there are any), flat, in float32."""
    return torch.cat([w.detach().float().flatten() for w in lm.weights().values()])


@torch.no_grad()
def load_weights(lm: LM, flat: torch.Tensor) -> None:
    """Give a model weights as `weights_of` returns them."""
    parameters = list(lm.parameters().values())
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two flat tensors, summed in float64 (float32 loses .05 of it here)."""
    dot, one, other = (
        sum(
            float((x.double() * y.double()).sum())
            for x, y in zip(left.split(2**22), right.split(2**22), strict=True)
        )
        for left, right in ((a, b), (a, a), (b, b))
    )
    return dot / max(one * other, 1e-300) ** 0.5


@torch.no_grad()
def mean_kl(student: LM, teacher: LM, rollouts: list[Rollout]) -> float:
    """Mean reverse KL per token over the whole vocabulary, at the tokens of `rollouts`."""
    total, count = 0.0, 0
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids[:-1].tolist()]])
        first = len(rollout.prompt.ids) - 1
        p, q = (
            lm.head.logits(lm.hidden(ids)[0, first:]).double().log_softmax(-1)
            for lm in (student, teacher)
        )
        total += float((p.exp() * (p - q)).sum())
        count += len(rollout)
    return total / count


if __name__ == "__main__":
    main()
