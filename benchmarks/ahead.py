"""What `rollout.ahead: 1` gains in time and costs in accuracy.

`python benchmarks/ahead.py time`: wall time of a step with a rollout server and a teacher server of
given latency, in turn and one step ahead. `python benchmarks/ahead.py accuracy --pair STUDENT
TEACHER`: held-out accuracy of both ways at equal steps, same seeds; folders of the lab's models,
which `opd lab run` keeps.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from overlap import slow

from opd import config
from opd.demo.run_config import demo_config
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build
from opd.testing import serve_on_loopback
from opd_lab.checkpoints import QUICK
from opd_lab.runs import RunResult, Task, run

PROMPTS, STEPS = 4, 5
# Of the lab's small experiments: steps are large, so that rollouts of the step before are off.
CHANGES = ("train.steps=30", "optim.lr=1.5e-3", "eval.0.n=4", "eval.0.every=0")
TASK = Task(QUICK, test=384)


def step_times(ahead: int, rollout: float, score: float) -> dict[str, float]:
    """Median seconds of a step and of its phases, the first step left out.

    Args:
        ahead: rollout.ahead.
        rollout: seconds of the rollout server's answer.
        score: seconds of each of the teacher's, of which a step waits for two.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = [slow("student", rollout, "n"), slow("teacher", score)]
        urls = [stack.enter_context(serve_on_loopback(server)) for server in servers]
        data = demo_config(Path(folder) / "run")
        data["rollout"] |= {"n": 1, "max_new_tokens": 24, "url": urls[0], "model": "student"}
        data["rollout"] |= {"ahead": ahead}
        data["teacher"] = {"url": urls[1], "model": "teacher"}
        data["loss"] |= {"support": "sampled"}
        data["train"] |= {"prompts_per_step": PROMPTS, "steps": STEPS}
        data["output"] |= {"save_every": STEPS}
        data["eval"] = []
        console = Console("quiet")
        session, _ = build(config.parse(data), resume=False, overwrite=False, console=console)
        for server in servers:
            server.begun.append(True)  # type: ignore[attr-defined]
        distill(session, None)
        session.folder.close()
        lines = read_jsonl(Path(folder) / "run" / "timings.jsonl")[1:]
        names = ("time/step_s", "time/rollout_s", "time/score_s", "time/update_s")
        return {name: float(np.median([line.get(name, 0.0) for line in lines])) for name in names}


def show_times(unit: float) -> None:
    """The table of `time`."""
    print("rollout.ahead   step s   of it waiting for rollouts   scores   update")
    times = {ahead: step_times(ahead, unit, unit * 0.45) for ahead in (0, 1)}
    for ahead, seconds in times.items():
        step, rollout, score, update = seconds.values()
        print(f"{ahead:>13} {step:8.2f} {rollout:29.2f} {score:8.2f} {update:8.2f}")
    step, rollout = times[0]["time/step_s"], times[0]["time/rollout_s"]
    print(f"rollout : rest = 1 : {(step - rollout) / rollout:.2f}, {gain(times):.2f} times as fast")


def gain(times: dict[int, dict[str, float]]) -> float:
    """How many times as fast a step ahead is."""
    return times[0]["time/step_s"] / times[1]["time/step_s"]


def show_accuracy(pairs: list[list[str]], seeds: list[int], cache: Path) -> None:
    """The table of `accuracy`."""
    print("student <- teacher, seed   before  teacher  in turn  ahead  difference (95 %)   ess")
    for student, teacher in pairs:
        for seed in seeds:
            pair = Path(student), Path(teacher)
            both = [
                run(*pair, TASK, seed=seed, cache=cache, changes=(*CHANGES, f"rollout.ahead={a}"))
                for a in (0, 1)
            ]
            print(f"{pair[0].name} <- {pair[1].name}, {seed}: {compare(*both)}", flush=True)


def compare(plain: RunResult, ahead: RunResult) -> str:
    """Accuracies of two runs, and their difference over the same held-out problems."""
    difference = ahead.correct(30) - plain.correct(30)
    half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
    (accuracies,) = plain.record("summary.json")["sets"].values()
    ess = np.mean(ahead.curve("ahead/ess")[1][1:])
    return (
        f"{plain.initial_accuracy():.3f}  {accuracies['teacher']['value']:.3f}"
        f"  {plain.accuracy():.3f}  {ahead.accuracy():.3f}"
        f"  {difference.mean():+.3f} ({difference.mean() - half:+.3f} to "
        f"{difference.mean() + half:+.3f})  {ess:.3f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "accuracy"])
    parser.add_argument("--unit", type=float, default=4.0, help="seconds of an answer, rollouts")
    parser.add_argument("--pair", nargs=2, action="append", default=[], help="student, teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/opd").expanduser())
    args = parser.parse_args()
    if args.what == "time":
        show_times(args.unit)
    else:
        show_accuracy(args.pair, args.seeds, args.cache)


if __name__ == "__main__":
    main()
