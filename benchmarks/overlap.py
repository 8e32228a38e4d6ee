"""Wall time of a step's rollouts and scores, one phase after the other and overlapped.

Rollout server and teacher server are fakes that answer after a given time; what is measured is who
waits for whom. `python benchmarks/overlap.py` prints a table.
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
    """Seconds of rollouts and scores of a step, by way."""
    seconds = {}
    for way in ("in turn", "overlapped"):
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
            if way == "in turn":
                source.sampler.arrived = None  # type: ignore[attr-defined]
            for server in servers:
                server.begun.append(True)  # type: ignore[attr-defined]
            began = time.monotonic()
            collect(session, 0)
            seconds[way] = time.monotonic() - began
            session.folder.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", type=float, default=1.0, help="seconds of an answer, rollouts")
    unit = parser.parse_args().unit
    waves, scored = PROMPTS / WIDTH, PROMPTS / TEACHER_WIDTH
    print("rollout : score   in turn   overlapped   longest chain   overlapped / chain")
    for share in (1 / 3, 2 / 3, 1.0):
        seconds = measure(unit, unit * share)
        # The last wave is scored after everything, then the canary, then a few rollouts again.
        chain = waves * unit + 3 * unit * share
        print(
            f"{waves * unit:5.1f} s : {scored * unit * share:3.1f} s"
            f"  {seconds['in turn']:7.2f} s {seconds['overlapped']:9.2f} s {chain:12.2f} s"
            f" {seconds['overlapped'] / chain:16.2f}"
        )


if __name__ == "__main__":
    main()
