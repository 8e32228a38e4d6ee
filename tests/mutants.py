"""One-line mutants of the package, each of which some test must notice.

Every mutant is a text replacement in a temporary copy of src; the named test files then run against
that copy and have to fail. Run as a script, it prints the table.

    python tests/mutants.py [part of a name ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # below src/opd
    old: str
    new: str
    tests: tuple[str, ...]  # below tests


LOSSES, ESTIMATORS = ("core/test_losses.py",), ("core/test_estimators.py",)
OBJECTIVE, SUPPORTS = ("core/test_objective.py",), ("core/test_supports.py",)
DIAGNOSTICS, STATS = ("core/test_diagnostics.py",), ("core/test_stats.py",)
LIES = ("teachers/test_teacher_lies.py",)
FORECAST = ("recipes/test_check_forecast.py",)
PREFIXES = ("models/test_prefix_cache.py",)
BATCH, CHUNKED, UPDATE = ("core/test_batch.py",), ("core/test_chunked.py",), ("test_update.py",)

MUTANTS = [
    # losses
    Mutant(
        "reverse KL with its sign flipped",
        "core/losses.py",
        "p.exp() * (p - q)",
        "p.exp() * (q - p)",
        LOSSES,
    ),
    Mutant(
        "reverse KL without a mask with its sign flipped",
        "core/losses.py",
        "vecdot(p.exp(), p - q)",
        "vecdot(p.exp(), q - p)",
        LOSSES,
    ),
    Mutant(
        "reverse KL takes no notice of impossible tokens",
        "core/losses.py",
        "if where is None and all_possible(student):",
        "if where is None:",
        LOSSES,
    ),
    Mutant(
        "forward KL in the reverse direction",
        "core/losses.py",
        "return reverse_kl(teacher, student, where)",
        "return reverse_kl(student, teacher, where)",
        LOSSES,
    ),
    Mutant(
        "mask dropped from what counts as possible",
        "core/losses.py",
        "return possible if where is None else possible & where",
        "return possible",
        LOSSES,
    ),
    Mutant(
        "mask dropped from the inputs",
        "core/losses.py",
        "return x if where is None else torch.where(where, x, fill)",
        "return x",
        LOSSES,
    ),
    Mutant(
        "masked entries given a probability",
        "core/losses.py",
        "return torch.where(possible, normal, -torch.inf)",
        "return normal",
        LOSSES,
    ),
    Mutant(
        "bf16 arithmetic kept",
        "core/precision.py",
        "return x.to(accumulation_dtype(x.dtype))",
        "return x",
        LOSSES,
    ),
    Mutant(
        "mixture weights swapped",
        "core/losses.py",
        "torch.logaddexp(p + math.log1p(-beta), q + math.log(beta))",
        "torch.logaddexp(q + math.log1p(-beta), p + math.log(beta))",
        LOSSES,
    ),
    Mutant(
        "tail of a rounded sum left infinite",
        "core/losses.py",
        "inside = inside.clamp(max=-finfo.eps)",
        "pass",
        LOSSES,
    ),
    Mutant(
        "tail holding the inside mass",
        "core/losses.py",
        "return torch.cat([_masked(logp, possible, -torch.inf), tail], -1)",
        "return torch.cat([_masked(logp, possible, -torch.inf), inside], -1)",
        LOSSES,
    ),
    Mutant(
        "score function with its sign flipped",
        "core/losses.py",
        "return -at_least_float32(advantage).detach()",
        "return at_least_float32(advantage).detach()",
        ESTIMATORS,
    ),
    Mutant(
        "missing detach of the advantage",
        "core/losses.py",
        "return -at_least_float32(advantage).detach() *",
        "return -at_least_float32(advantage) *",
        ESTIMATORS,
    ),
    Mutant(
        "surplus detach of the log-prob",
        "core/losses.py",
        "torch.exp(logp - logp.detach())",
        "torch.exp(logp.detach() - logp.detach())",
        OBJECTIVE,
    ),
    Mutant(
        "k3 with its ratio inverted",
        "core/losses.py",
        "ratio = at_least_float32(teacher_logp) - at_least_float32(logp)",
        "ratio = at_least_float32(logp) - at_least_float32(teacher_logp)",
        ESTIMATORS,
    ),
    Mutant("k2 without its half", "core/losses.py", ".square() / 2", ".square()", ESTIMATORS),
    Mutant(
        "reference weights never renormalised",
        "core/losses.py",
        "renormalise(chosen, valid) if normalize else",
        "renormalise(chosen, valid) if not normalize else",
        ESTIMATORS,
    ),
    Mutant(
        "reference weights of the wrong model",
        "core/losses.py",
        'chosen = teacher if weights == "teacher_p" else student',
        'chosen = student if weights == "teacher_p" else teacher',
        ESTIMATORS,
    ),
    Mutant(
        "reward scaling towards the reference model",
        "core/losses.py",
        "q + (scale - 1) * (q - ref)",
        "q + (1 - scale) * (q - ref)",
        LOSSES,
    ),
    Mutant(
        "entropy-aware term where the teacher is certain",
        "core/losses.py",
        "torch.where(teacher_entropy > threshold",
        "torch.where(teacher_entropy < threshold",
        LOSSES,
    ),
    Mutant(
        "outcome advantage without its baseline",
        "core/losses.py",
        "return (rewards - mean) / (std + eps)",
        "return rewards / (std + eps)",
        LOSSES,
    ),
    # supports and objective
    Mutant(
        "tokens of both models twice in the union",
        "core/supports.py",
        "new = ~contains(teacher_topk, student_topk)",
        "new = torch.ones_like(shared)",
        SUPPORTS,
    ),
    Mutant(
        "symmetric difference that is the union",
        "core/supports.py",
        'if support == "union" else ~shared',
        'if support == "union" else torch.ones_like(shared)',
        SUPPORTS,
    ),
    Mutant(
        "support shifted by one rank",
        "core/objective.py",
        "student_topk = tokens.student_topk[:, : self.k]",
        "student_topk = tokens.student_topk[:, 1 : self.k + 1]",
        OBJECTIVE,
    ),
    Mutant(
        "student and teacher swapped in reverse KL",
        "core/objective.py",
        "return losses.reverse_kl(p, q)",
        "return losses.reverse_kl(q, p)",
        ESTIMATORS,
    ),
    Mutant(
        "teacher's graph left open",
        "core/objective.py",
        "_zero_ignored(tokens, q).detach()",
        "_zero_ignored(tokens, q)",
        ESTIMATORS,
    ),
    Mutant(
        "teacher not renormalised on the support",
        "core/objective.py",
        "losses.renormalise(q, valid))",
        "q)",
        OBJECTIVE,
    ),
    Mutant(
        "position weight ignored",
        "core/objective.py",
        "return total * tokens.weight",
        "return total * 1",
        OBJECTIVE,
    ),
    Mutant(
        "infinities of silenced positions let through",
        "core/objective.py",
        "return values if bool(used.all()) else torch.where(used[:, None], values, 0.0)",
        "return values",
        OBJECTIVE,
    ),
    Mutant(
        "outcome term subtracted",
        "core/objective.py",
        "total = total + self.outcome_weight *",
        "total = total - self.outcome_weight *",
        ESTIMATORS,
    ),
    Mutant(
        "loss temperature ignored",
        "core/distributions.py",
        "return logits / self.temperature if",
        "return logits if",
        OBJECTIVE,
    ),
    # diagnostics and statistics
    Mutant(
        "Eq. 7 summed instead of averaged over the overlap",
        "core/diagnostics.py",
        "Measure(advantage.sum(-1) * per_token, some)",
        "Measure(advantage.sum(-1), some)",
        DIAGNOSTICS,
    ),
    Mutant(
        "entropy gap without its absolute value",
        "core/diagnostics.py",
        "Measure.of(value) for name, value in values.items()",
        "Measure.of(value * 1) for name, value in (values | "
        '{"diag/entropy_gap_abs": h_q - h_p}).items()',
        DIAGNOSTICS,
    ),
    Mutant(
        "mean of means",
        "core/diagnostics.py",
        "Mean(*sums[2 * i : 2 * i + 2])",
        "Mean(sums[2 * i] / sums[2 * i + 1], 1.0)",
        DIAGNOSTICS,
    ),
    Mutant(
        "bin edges off by one",
        "core/diagnostics.py",
        "torch.bucketize(position, starts, right=True)",
        "torch.bucketize(position, starts, right=False)",
        DIAGNOSTICS,
    ),
    Mutant(
        "positions without overlap counted in Eq. 7",
        "core/diagnostics.py",
        "some = (size > 0).to(log_p.dtype)",
        "some = torch.ones_like(size)",
        DIAGNOSTICS,
    ),
    Mutant(
        "effective sample size of the square root",
        "core/diagnostics.py",
        "ratio.value**2 / ratio_squared.value",
        "ratio.value / ratio_squared.value",
        DIAGNOSTICS,
    ),
    Mutant(
        "biased pass@k",
        "core/stats.py",
        "factors = (n - np.asarray(correct, dtype=float)[:, None] - i) / (n - i)",
        "factors = (n - np.asarray(correct, dtype=float)[:, None] - 0 * i) / (n - 0 * i)",
        STATS,
    ),
    Mutant(
        "samples of a prompt taken as independent",
        "core/stats.py",
        "variance = float(matrix.mean(1).var(ddof=1)) / prompts",
        "variance = float(matrix.var()) / matrix.size",
        STATS,
    ),
    Mutant(
        "clusters ignored in the AUROC interval",
        "core/stats.py",
        "np.arange(len(values)) if groups is None else",
        "np.arange(len(values)) if True else",
        STATS,
    ),
    # what carries the mathematics
    Mutant(
        "completion read one position late",
        "core/batch.py",
        "first = prompt_length - 1\n",
        "first = prompt_length\n",
        BATCH,
    ),
    Mutant(
        "completion read one position early",
        "core/batch.py",
        "first = prompt_length - 1\n",
        "first = max(0, prompt_length - 2)\n",
        BATCH,
    ),
    Mutant(
        "teacher's normaliser added instead of subtracted",
        "core/batch.py",
        "support - log_z[:, None]",
        "support + log_z[:, None]",
        BATCH + UPDATE,
    ),
    Mutant(
        "padding rows of a wide head sampled",
        "models/head.py",
        "return project(hidden, self.weight[: self.vocab], bias)",
        "return project(hidden, self.weight, bias)",
        ("test_cli.py",),
    ),
    Mutant(
        "padding rows of a wide head trained",
        "models/head.py",
        "if self.vocab < weight.shape[0]:",
        "if False:",
        ("test_cli.py",),
    ),
    Mutant(
        "a head that is not compared with the model's own logits",
        "models/lm.py",
        "if not gap <= tolerance",
        "if False and not gap <= tolerance",
        ("models/test_lm.py",),
    ),
    Mutant(
        "mean over the micro-batch instead of the step",
        "training/gradient.py",
        "(total / denominator).backward()",
        "(total / len(micro.tokens.targets)).backward()",
        UPDATE,
    ),
    Mutant(
        "responses on shared prompts begin one position late",
        "models/prefix_cache.py",
        "positions = lengths + torch.arange(",
        "positions = 1 + lengths + torch.arange(",
        PREFIXES,
    ),
    Mutant(
        "padding of shared prompts attended to",
        "models/prefix_cache.py",
        "torch.cat([prompt_mask.long(), torch.ones_like(input_ids)], 1)",
        "torch.cat([torch.ones_like(prompt_mask).long(), torch.ones_like(input_ids)], 1)",
        PREFIXES,
    ),
    Mutant(
        "a gap between shared prompt and response",
        "models/prefix_cache.py",
        "return x.gather(2, index[:, None, :, None].expand_as(x))",
        "return x",
        PREFIXES,
    ),
    Mutant(
        "padding of shared prompts predicts the first token",
        "models/prefix_cache.py",
        "hidden[rows, self._lengths - 1]",
        "hidden[rows, -1]",
        PREFIXES,
    ),
    Mutant(
        "shared prompts learn nothing",
        "training/gradient.py",
        "        prompts.backward()\n",
        "",
        PREFIXES,
    ),
    Mutant(
        "a response goes on from its neighbour's prompt",
        "core/microbatches.py",
        "return [prompt_of[row] for row in rows]",
        "return [max(0, prompt_of[row] - 1) for row in rows]",
        PREFIXES,
    ),
    Mutant(
        "hidden gradient of all chunks but the last lost",
        "core/chunked.py",
        "grad_hidden[part] = logits @ weight",
        "grad_hidden = torch.zeros_like(hidden); grad_hidden[part] = logits @ weight",
        CHUNKED,
    ),
    Mutant(
        "a block's positions counted from its chunk",
        "core/chunked.py",
        "part = slice(start + rows.start, start + rows.stop)",
        "part = rows",
        CHUNKED,
    ),
    Mutant(
        "every block is given the teacher's first rows",
        "core/chunked.py",
        "(teacher_logits[rows],)",
        "(teacher_logits[: rows.stop - rows.start],)",
        CHUNKED,
    ),
    # teachers
    Mutant(
        "a server that contradicts itself is believed",
        "teachers/remote.py",
        "if contradiction is not None:",
        "if contradiction is None and not repeats:",
        LIES,
    ),
    Mutant(
        "earlier rollouts are not scored again",
        "teachers/repeats.py",
        "yield _shortened(earlier.pop(), rng)",
        "earlier.pop()",
        LIES,
    ),
    Mutant(
        "another beginning is not looked for in the last tokens",
        "teachers/dependence_probes.py",
        "        if not noticed:\n",
        "        if False:\n",
        LIES,
    ),
    Mutant(
        "a difference of a change is not bounded",
        "core/stats.py",
        "low, high = _bounded(mean, variance, prompts, squared)",
        "low, high = mean - (squared * variance) ** 0.5, mean + (squared * variance) ** 0.5",
        STATS,
    ),
    Mutant(
        "reach follows KL per token instead of whole answers",
        "recipes/check/forecast.py",
        "return (math.exp(-left * nats) - now) / (1 - now)",
        "return 1 - left",
        FORECAST,
    ),
]


def copy_source(into: Path) -> Path:
    source = into / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def apply(mutant: Mutant, source: Path) -> None:
    path = source / "opd" / mutant.file
    text = path.read_text(encoding="utf-8")
    if mutant.old not in text:
        raise ValueError(f"{mutant.name}: {mutant.file} no longer contains {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def environment(source: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(source: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The tests against a copy of src; exit code 0: all passed, 1: some failed."""
    files = [str(ROOT / "tests" / name) for name in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *files],
        cwd=ROOT,
        env=environment(source),
        capture_output=True,
        text=True,
        check=False,
    )


def imported_from(source: Path) -> Path:
    """Where `import opd` finds the package in the tests' environment."""
    command = [sys.executable, "-c", "import opd, sys; sys.stdout.write(opd.__file__)"]
    printed = subprocess.run(
        command, cwd=ROOT, env=environment(source), capture_output=True, text=True, check=True
    )
    return Path(printed.stdout)


def verdict(mutant: Mutant) -> str:
    """`caught`, `SURVIVED`, or `broken` when the tests could not even run."""
    with tempfile.TemporaryDirectory() as folder:
        source = copy_source(Path(folder))
        apply(mutant, source)
        done = run_tests(source, mutant.tests)
    return {0: "SURVIVED", 1: "caught"}.get(done.returncode, f"broken: {done.stdout[-300:]}")


def main(parts: list[str]) -> int:
    chosen = [m for m in MUTANTS if not parts or any(part in m.name for part in parts)]
    sys.stdout.write("| mutant | file | verdict |\n|---|---|---|\n")
    verdicts = []
    for mutant in chosen:
        verdicts.append(verdict(mutant))
        sys.stdout.write(f"| {mutant.name} | {mutant.file} | {verdicts[-1]} |\n")
        sys.stdout.flush()
    caught = verdicts.count("caught")
    sys.stdout.write(f"\n{caught} of {len(chosen)} caught.\n")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
