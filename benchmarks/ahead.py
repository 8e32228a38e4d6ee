"""What `rollout.ahead: 1` gains in time and costs in accuracy.

`python benchmarks/ahead.py time`: wall time of a step with a rollout server and a teacher server of
given latency, in turn and one step ahead. `python benchmarks/ahead.py accuracy --pair STUDENT
TEACHER`: held-out accuracy of both ways at equal steps, same seeds; folders of the lab's models,
which `opd lab run` keeps. `python benchmarks/ahead.py real --task sort`: the same with SmolLM2
(`OPD_SMOLLM2`) and itself after fine-tuning on the task; finished runs are kept in `--cache`, and
one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from overlap import slow

from opd import config
from opd.demo.run_config import demo_config
from opd.recipes.distillation import distill
from opd.run import evals
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build
from opd.testing import serve_on_loopback
from opd.training.evaluations import result_key
from opd.training.session import Session
from opd_lab.checkpoints import QUICK
from opd_lab.pairs.real import RealRun, configure_real, problems
from opd_lab.runs import RunResult, Task, one_thread, run

PROMPTS, STEPS = 4, 5
HEADER = "student <- teacher, seed   before  teacher  in turn  ahead  difference (95 %)   ess"
# Of the lab's small experiments: steps are large, so that rollouts of the step before are off.
CHANGES = ("train.steps=30", "optim.lr=1.5e-3", "eval.0.n=4", "eval.0.every=0")
TASK = Task(QUICK, test=384)
FIRST = 0  # seed of the run that evaluates student and teacher before training
HELD_OUT, SAMPLES = 256, 2  # problems of the real pair, answers to each


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
    print(HEADER)
    for student, teacher in pairs:
        for seed in seeds:
            pair = Path(student), Path(teacher)
            both = [
                run(*pair, TASK, seed=seed, cache=cache, changes=(*CHANGES, f"rollout.ahead={a}"))
                for a in (0, 1)
            ]
            print(f"{pair[0].name} <- {pair[1].name}, {seed}: {compare(*both)}", flush=True)


def show_real(task: str, seeds: list[int], cache: Path) -> None:
    """The table of `real`."""
    print(HEADER)
    for seed in seeds:
        plain, ahead = (real_run(task, seed, a, cache) for a in (0, 1))
        print(f"SmolLM2, {task}, {seed}: {compare(plain, ahead)}", flush=True)


def borrow(session: Session, first: Path, seed: int) -> None:
    """Keep another run's accuracies of the student before training and of the teacher.

    Both models are the same in all runs, and their evaluation takes as long as the training.

    Args:
        session: of the run.
        first: run folder that has them.
        seed: its seed.
    """
    (task,) = session.evals
    key = result_key(session, task)
    for name in (task.label, f"teacher-{task.label}"):
        saved = evals.load(first / "eval" / f"step-0-{name}.json", key | {"seed": seed})
        if saved is not None:
            session.folder.save_eval(0, name, *saved, key=key)


def real_run(task: str, seed: int, ahead: int, cache: Path) -> RunResult:
    """SmolLM2 learns a task from itself after fine-tuning, as the lab's real pairs do.

    Args:
        task: sort, reverse or add.
        seed: of the run.
        ahead: rollout.ahead.
        cache: for the teacher, problems and the finished run.
    """
    held_out = cache / f"ahead-{task}.jsonl"
    rows = problems(task, "heldout", HELD_OUT)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    held_out.parent.mkdir(parents=True, exist_ok=True)
    with held_out.open("w", encoding="utf-8") as file:
        for question, answer in rows:
            prompt = [messages[0], messages[1] | {"content": question}]
            file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
    out = cache / f"ahead-{task}-{seed}-{ahead}"
    changes = (
        f"eval.0.path={held_out}",
        f"eval.0.n={SAMPLES}",
        "eval.0.every=0",
        f"rollout.ahead={ahead}",
        "output.save_every=6",
    )
    pair = RealRun(seed, task, ("smollm2", "base"), ("smollm2", "right"), changes)
    if not (out / "summary.json").exists():
        cfg, _ = configure_real(pair, cache, out)
        with one_thread():
            session, completions = build(
                cfg, resume=out.exists(), overwrite=False, console=Console("quiet")
            )
            if seed != FIRST or ahead:
                borrow(session, cache / f"ahead-{task}-{FIRST}-0", FIRST)
            distill(session, completions)
            session.folder.close()
    return RunResult(out)


def compare(plain: RunResult, ahead: RunResult) -> str:
    """Accuracies of two runs, and their difference over the same held-out problems."""
    last = int(plain.curve("eval/task/accuracy")[0][-1])
    difference = ahead.correct(last) - plain.correct(last)
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
    parser.add_argument("what", choices=["time", "accuracy", "real"])
    parser.add_argument("--unit", type=float, default=4.0, help="seconds of an answer, rollouts")
    parser.add_argument("--pair", nargs=2, action="append", default=[], help="student, teacher")
    parser.add_argument("--task", default="sort", choices=["sort", "reverse", "add"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/opd").expanduser())
    args = parser.parse_args()
    if args.what == "time":
        show_times(args.unit)
    elif args.what == "real":
        show_real(args.task, args.seeds, args.cache)
    else:
        show_accuracy(args.pair, args.seeds, args.cache)


if __name__ == "__main__":
    main()
