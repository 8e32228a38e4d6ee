"""Wall time of a step, its phases one after the other and overlapped.

Rollout server and teacher server are fakes that answer after a given time (and compute under one
lock); what is measured is who waits for whom. The update is a wait. The longest chain that cannot
overlap is: the rollouts alone as they were measured, one answer of the teacher to the last of them,
and the update. `python benchmarks/overlap.py` prints a table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from opd import config
from opd.demo.run_config import PAIR, demo_config
from opd.models.lm import load_lm
from opd.models.tokenizers import load_tokenizer
from opd.run.console import Console
from opd.setup.session import build
from opd.testing import FakeVllmServer, load_weights_for, model_logp, serve_on_loopback
from opd.training.experience import sample_step
from opd.training.loop import collect

PROMPTS, WIDTH, TEACHER_WIDTH = 24, 8, 8  # prompts of a step; requests under way at each server


def slow(role: str, seconds: float, asked: str = "prompt") -> FakeVllmServer:
    """A model of the demo's pair behind a server that takes its time, for many at once.

    Args:
        role: student or teacher.
        seconds: of an answer.
        asked: a field of the requests that take so long; others are answered at once.
    """
    lm, tokenizer = load_lm(str(PAIR / role), dtype="float32"), load_tokenizer(str(PAIR / role))
    server = FakeVllmServer(
        model_logp(lm),
        role,
        max_len=lm.context_length,
        tokenize=partial(tokenizer.encode, add_special_tokens=False),
        load=load_weights_for(lm),
    )
    answer = server.handle_request

    def handle(request):  # type: ignore[no-untyped-def]
        if begun and request.url.path == "/v1/completions" and asked in json.loads(request.read()):
            time.sleep(seconds)
        return answer(request)

    begun: list[bool] = []
    server.handle_request = handle  # type: ignore[method-assign]
    server.begun = begun  # type: ignore[attr-defined]
    return server


def measure(rollout: float, score: float) -> dict[str, float]:
    """Seconds of a step's rollouts alone, and of rollouts and scores, by way."""
    seconds = {}
    for way in ("rollouts", "in turn", "overlapped"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            servers = [slow("student", rollout), slow("teacher", score)]
            urls = [stack.enter_context(serve_on_loopback(server)) for server in servers]
            data = demo_config(Path(folder) / "run")
            data["rollout"] |= {"n": 1, "max_new_tokens": 24, "url": urls[0], "model": "student"}
            data["teacher"] = {"url": urls[1], "model": "teacher"}
            data["loss"] |= {"support": "sampled"}
            data["train"] |= {"prompts_per_step": PROMPTS}
            data["eval"] = []
            console = Console("quiet")
            session, _ = build(config.parse(data), resume=False, overwrite=False, console=console)
            source = session.source
            source.sampler.sync(0)
            source.sampler.sampler.server.concurrency = WIDTH  # type: ignore[attr-defined]
            if way != "overlapped":
                source.sampler.arrived = None  # type: ignore[attr-defined]
            for server in servers:
                server.begun.append(True)  # type: ignore[attr-defined]
            began = time.monotonic()
            if way == "rollouts":
                sample_step(source, 0)
            else:
                collect(session, 0)
            seconds[way] = time.monotonic() - began
            session.folder.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", type=float, default=1.0, help="seconds of an answer, rollouts")
    unit = parser.parse_args().unit
    update = PROMPTS / WIDTH * unit
    print("rollout : score : update   rollouts   in turn   overlapped   chain   overlapped / chain")
    for share in (1 / 3, 2 / 3, 1.0):
        seconds = measure(unit, unit * share)
        chain = seconds["rollouts"] + unit * share + update
        whole = {way: seconds[way] + update for way in ("in turn", "overlapped")}
        print(
            f"{update:5.1f} : {PROMPTS / TEACHER_WIDTH * unit * share:.1f} : {update:.1f} s"
            f" {seconds['rollouts']:12.2f} {whole['in turn']:10.2f} {whole['overlapped']:11.2f}"
            f" {chain:9.2f} {whole['overlapped'] / chain:14.2f}"
        )


if __name__ == "__main__":
    main()
