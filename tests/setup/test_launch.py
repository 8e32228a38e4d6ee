"""`rollout.launch` and `teacher.launch`: servers that are started, kept, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
import torch

from opd import config
from opd.demo.run_config import PAIR, demo_config
from opd.errors import UserError
from opd.http import Transient, keeper
from opd.http.launched import LaunchedServer
from opd.run.console import Console
from opd.setup import remote_teacher
from opd.setup.launch import (
    Seat,
    describe_seats,
    find_crowded,
    plan_servers,
    seats,
    start_servers,
)
from opd.training.distributed import Ranks
from support.everyday import everyday

SOON = 30.0  # seconds; a server of tests ends in one, on a machine that is not busy
# A module "vllm" of the standard library alone. It notes how it was called, lists its model, and
# fails at the start if it is asked to.
FAKE = """
    import json, os, subprocess, sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    if "--fail" in sys.argv:
        sys.exit("no such quantisation: maybe")

    workers = []
    if "--workers" in sys.argv:  # as vLLM has them; one of them leaves the group
        for apart in (False, True):
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            workers.append(subprocess.Popen(command, start_new_session=apart).pid)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            facts = {"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()}
            facts["workers"] = workers
            card = {"id": "student", "facts": facts}
            body = json.dumps({"object": "list", "data": [card]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("serving", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def python(tmp_path) -> str:
    """An interpreter of an environment with (a fake) vLLM."""
    package = tmp_path / "environment" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, *list(package.parents)[:2]):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(textwrap.dedent(FAKE))
    program = tmp_path / "environment" / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/environment exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


def run_of(tmp_path, python, **launch) -> config.Run:
    data = demo_config(tmp_path / "run")
    data["rollout"] |= {"launch": {"python": python, **launch}}
    return config.parse(data)


def facts(server: LaunchedServer) -> dict:
    """What the server says about itself."""
    answer = httpx2.get(f"{server.url}/v1/models", trust_env=False).json()
    return answer["data"][0]["facts"]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_gets_what_the_run_needs_and_ends_with_it(tmp_path, python, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("PYTHONPATH", "of-the-trainer")
    cfg = run_of(tmp_path, python, gpus=[1, 3], args={"seed": 7, "enforce-eager": True})
    with start_servers([cfg], Console("plain"), tmp_path / "run") as servers:
        server = servers.started["rollout"]
        assert cfg.rollout.address == server.url
        seen = facts(server)
        argv = seen["argv"]
        options = dict(pairwise(argv))
        assert options["--model"] == str(PAIR / "student")
        assert options["--served-model-name"] == "student"
        assert options["--dtype"] == "float32"
        assert options["--host"] == "127.0.0.1"
        assert options["--max-model-len"] == "80"  # prompts of 32, rollouts of 24, answers of 24
        assert options["--seed"] == "7"
        assert "--enforce-eager" in argv
        assert "--enable-lora" not in argv
        assert seen["env"]["CUDA_VISIBLE_DEVICES"] == "1,3"
        assert seen["env"]["VLLM_SERVER_DEV_MODE"] == "1"
        assert "RANK" not in seen["env"]
        assert "of-the-trainer" not in seen["env"]["PYTHONPATH"]
        folder = tmp_path / "folder"
        folder.mkdir()
        servers.move_logs(folder)
        assert "serving" in (folder / "rollout-server.log").read_text()
    wait_until(lambda: not listens(server.port))
    with pytest.raises(ProcessLookupError):
        os.kill(seen["pid"], 0)
    assert "Starting vLLM for rollout on GPU 1,3" in capsys.readouterr().out


def test_options_of_adapters_temperatures_and_a_teacher(tmp_path, python):
    data = demo_config(tmp_path / "run")
    data["student"]["lora"] = {"rank": 12}
    data["rollout"] |= {"launch": {"python": python}, "temperature": 0.7}
    data["teacher"] |= {"launch": {"python": python, "args": {"quantization": "fp8"}}}
    data["loss"]["k"] = 40
    plans = plan_servers([config.parse(data)], tmp_path / "run")
    assert list(plans) == ["rollout", "teacher"]
    student, teacher = (" ".join(plan.command) for plan in plans.values())
    assert "--enable-lora --max-lora-rank 16 --max-loras 2" in student
    assert "--logprobs-mode processed_logprobs" in student
    assert "--max-logprobs 40" in teacher
    assert "--quantization fp8" in teacher
    assert plans["rollout"].port != plans["teacher"].port
    data["student"]["lora"] = {"rank": 600}
    with pytest.raises(UserError, match=r"student\.lora\.rank=600"):
        plan_servers([config.parse(data)], tmp_path / "run")


def test_a_server_that_dies_is_started_again_in_the_same_place(tmp_path, python):
    cfg = run_of(tmp_path, python)
    with start_servers([cfg], Console("quiet"), tmp_path / "run") as servers:
        server = servers.started["rollout"]
        first = facts(server)["pid"]
        time.sleep(2 * keeper.POLL)  # it has been seen to listen
        os.kill(first, signal.SIGKILL)
        server.wait()
        wait_until(lambda: listens(server.port) and facts(server)["pid"] != first)
        assert server.ended() is None
        assert "it is started again" in server.log.read_text()


def test_a_server_that_does_not_start_is_named_with_its_last_words(tmp_path, python):
    cfg = run_of(tmp_path, python, args={"fail": True})
    with pytest.raises(UserError, match=r"(?s)rollout server did not start.*no such quantisation"):
        start_servers([cfg], Console("quiet"), tmp_path / "run")


def test_a_teacher_that_died_is_named_with_the_reason(tmp_path, monkeypatch):
    """Which a server of several processes writes long before its end."""
    data = demo_config(tmp_path / "run")
    data["teacher"] |= {"launch": {"python": sys.executable}}
    teacher = config.parse(data).teacher
    plan = LaunchedServer("teacher", [], "m", {}, tmp_path / "log")
    teacher.set_launched(plan)
    reason = "RuntimeError: no attention for heads of 16"
    monkeypatch.setattr(remote_teacher, "is_opd", Mock(side_effect=Transient("refused")))
    plan.log.write_text(f"(Worker pid=7) ERROR {reason}\n" * 2 + "see above\n" * 1000)
    with pytest.raises(UserError, match="no teacher answers there") as refused:
        remote_teacher.connect(teacher)
    assert str(refused.value).count(reason) == 1
    assert "(Worker" not in str(refused.value)
    assert str(refused.value).endswith("see above")


def test_a_process_that_comes_late_leaves_the_log_of_rank_zero(tmp_path, python):
    """It removed what the server was writing, and rank zero could not move it to the run folder."""

    class Late(Ranks):
        def gather(self, data: bytes) -> list[bytes]:
            return [b"+8000", data]

    log = tmp_path / "run.rollout-server.log"
    log.write_text("Loading weights")
    cfg = run_of(tmp_path, python)
    with start_servers([cfg], Console("quiet"), tmp_path / "run", Late(1, 2)):
        assert cfg.rollout.address == "http://127.0.0.1:8000"
        assert log.read_text() == "Loading weights"


def test_an_interpreter_that_is_not_there(tmp_path):
    cfg = run_of(tmp_path, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"rollout\.launch\.python"):
        start_servers([cfg], Console("quiet"), tmp_path / "run")


TRAINER = """
    import sys, time
    from pathlib import Path
    from opd.http.launched import LaunchedServer

    python, log = sys.argv[1:]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}"]
    server = LaunchedServer("rollout", command, "m", {}, Path(log))
    server.start()
    server.wait()
    print(server.port, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_does_not_outlive_a_trainer_that_is_killed(tmp_path, python, number):
    log = tmp_path / "server.log"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINER), python, str(log)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(keeper.__file__).parents[2])},
    ) as trainer:
        port = int(trainer.stdout.readline())
        assert listens(port)
        trainer.send_signal(number)
    wait_until(lambda: not listens(port))


@pytest.mark.parametrize("killed", everyday(["keeper and server", "all three", "server"], 1))
def test_workers_of_a_server_do_not_outlive_it(tmp_path, python, killed):
    """They have other parents by then, and one of them is in another session."""
    log = tmp_path / "server.log"
    program = textwrap.dedent(TRAINER).replace('"{port}"]', '"{port}", "--workers", "2"]')
    with subprocess.Popen(
        [sys.executable, "-c", program, python, str(log)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(keeper.__file__).parents[2])},
    ) as trainer:
        url = f"http://127.0.0.1:{int(trainer.stdout.readline())}"
        card = httpx2.get(f"{url}/v1/models", trust_env=False).json()["data"][0]
        server, workers = card["facts"]["pid"], card["facts"]["workers"]
        kept_by = parent_of(server)
        assert all(map(lives, workers))
        victims = {"keeper and server": [kept_by, server], "server": [server]}
        for pid in victims.get(killed, [trainer.pid, kept_by, server]):
            os.kill(pid, signal.SIGKILL)
        try:
            wait_until(lambda: not any(map(lives, workers)))
        finally:
            trainer.kill()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("rollout", {"launch": {"python": "p"}, "url": "http://a", "model": "m"}, "without"),
        ("teacher", {"launch": {"python": "p"}, "url": "http://a"}, "set one"),
        ("rollout", {"launch": {"python": "p"}, "temperature": 0.7, "top_p": 0.9}, "truncated"),
        ("rollout", {"launch": {"gpus": [0]}}, r"rollout\.launch\.python"),
    ],
)
def test_what_does_not_go_together(tmp_path, section, changes, words):
    data = demo_config(tmp_path / "run")
    data[section] |= changes
    with pytest.raises(UserError, match=words):
        config.parse(data)


def test_the_file_says_nothing_of_ports(tmp_path, python):
    """A resumed run has another port, and must be the same run."""
    cfg = run_of(tmp_path, python)
    before = json.dumps(config.dump(cfg))
    with start_servers([cfg], Console("quiet"), tmp_path / "run"):
        assert json.dumps(config.dump(cfg)) == before


@pytest.mark.parametrize(
    ("student", "teacher", "crowded"),
    [
        ({"gpus": [1]}, {"gpus": [2, 3]}, None),
        ({"gpus": [1]}, {"gpus": [1, 2]}, "GPU 1 is given to rollout and teacher"),
        (
            {"gpus": [1], "args": {"gpu-memory-utilization": 0.4}},
            {"gpus": [1], "args": {"gpu-memory-utilization": 0.5}},
            None,
        ),
    ],
)
def test_who_sits_on_which_gpu(tmp_path, student, teacher, crowded):
    data = demo_config(tmp_path / "run")
    data["rollout"] |= {"launch": {"python": "p", **student}}
    data["teacher"] |= {"launch": {"python": "p", **teacher}}
    seated = seats(config.parse(data))
    shown = describe_seats(seated)
    assert f"rollout: GPU 1 ({seated[0].memory:.0%} of its memory)" in shown
    assert "teacher: GPU " in shown
    found = find_crowded(seated)
    assert found is None if crowded is None else crowded in found


def test_without_a_gpu_no_share_of_one_is_claimed(tmp_path, python, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = describe_seats(seats(run_of(tmp_path, python)))
    assert shown == "rollout: the devices it finds"


def test_a_server_on_the_trainers_gpu_can_sleep(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for gpu, sleeps in ((2, True), (3, False)):
        data = demo_config(tmp_path / "run")
        data["student"]["precision"] = "float32"
        data["rollout"] |= {"launch": {"python": "p", "gpus": [gpu]}}
        (plan,) = plan_servers([config.parse(data)], tmp_path / "run").values()
        assert ("--enable-sleep-mode" in plan.command) == sleeps


@pytest.mark.parametrize(
    ("gpus", "args", "lora", "backend"),
    [
        ([2], {}, False, "ipc"),
        ([3, 4], {}, False, "nccl"),
        ([2, 3], {}, False, None),  # IPC reaches one GPU, and NCCL wants a GPU per process
        ([], {}, False, None),
        ([3], {"weight-transfer-config": False}, False, None),
        ([3], {}, True, None),
    ],
)
def test_full_weights_go_without_files_where_gpus_allow_it(
    gpus, args, lora, backend, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    data = demo_config(tmp_path / "run")
    data["student"] |= {"precision": "float32"} | ({"lora": {"rank": 4}} if lora else {})
    data["rollout"] |= {"launch": {"python": "p", "gpus": gpus, "args": args}}
    (plan,) = plan_servers([config.parse(data)], tmp_path / "run").values()
    words = [part.format(port=1, model="m") for part in plan.command]
    assert ("--weight-transfer-config" in words) == (backend is not None)
    if backend is not None:
        said = words[words.index("--weight-transfer-config") + 1]
        assert json.loads(said) == {"backend": backend}
    # only who needs it lets the server read pickles
    assert ("VLLM_ALLOW_INSECURE_SERIALIZATION" in plan.environment) == (backend == "ipc")


def test_a_trainer_shares_a_gpu_only_with_a_small_server():
    assert find_crowded([Seat("rollout", (0,), 0.4), Seat("trainer", (0,))]) is None
    assert "trainer" in find_crowded([Seat("rollout", (0,), 0.9), Seat("trainer", (0,))])
    assert find_crowded([Seat("rollout", (1,), 0.9), Seat("trainer", (0,))]) is None
