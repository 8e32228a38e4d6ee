"""`rollout.launch` and `teacher.launch`: vLLM servers that a command starts, and ends.

They run in another environment than opd: `launch.python` is its interpreter. On machines with GPUs
a server sees those of `launch.gpus`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, NamedTuple

import torch

from opd.config import Launch, Run, ServerTeacher
from opd.core.diagnostics import OVERLAP_K
from opd.errors import UserError
from opd.http.launched import LaunchedServer
from opd.models.configs import context_length_of, read_config
from opd.run.console import Console
from opd.setup.precision import resolve_precision
from opd.training.distributed import SINGLE, Ranks

STUDENT = "student"  # the name under which a launched server serves it
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has
MAX_LOGPROBS = 20  # vLLM's own default
MEMORY, VLLM_MEMORY = "gpu-memory-utilization", 0.92  # option, and its default in vLLM 0.32
TRANSFER = "weight-transfer-config"
SHARED = 0.5  # of a GPU, at most, that servers take where the trainer is as well
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # weights, versions; the server listens on 127.0.0.1 alone
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass
class Servers:
    """The servers that a command has started; a context that ends them.

    Attributes:
        started: as they were started, by the section that asked for them.
    """

    started: dict[str, LaunchedServer] = field(default_factory=dict)

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def move_logs(self, folder: Path) -> None:
        """Put their logs into the run folder."""
        for server in self.started.values():
            server.move_log(folder)

    def stop(self) -> None:
        """End them."""
        while self.started:
            self.started.popitem()[1].stop()


def start_servers(
    cfgs: Sequence[Run], console: Console, logs: Path, ranks: Ranks = SINGLE
) -> Servers:
    """Start the servers of a run, all at the same time, and wait until they answer.

    Args:
        cfgs: the run, once per teacher; their sections know their servers from then on.
        console: shows what is started, and that it is waited for.
        logs: prefix of the log files.
        ranks: rank zero starts them; the others get the address.

    Returns:
        What has been started, to be ended by the caller.

    Raises:
        UserError: a server does not start; with the end of its log.
    """
    plans = plan_servers(cfgs, logs)
    servers = Servers()

    def start() -> bytes:
        if ranks.is_main:
            _start(plans, servers, console)
        return b" ".join(b"%d" % plan.port for plan in plans.values())

    try:
        ports = ranks.run_everywhere(start)[0].split()
    except BaseException:
        servers.stop()
        raise
    for plan, port in zip(plans.values(), ports, strict=True):
        plan.port = int(port)
    for cfg in cfgs:
        if cfg.rollout.launch is not None:
            cfg.rollout.set_launched(plans["rollout"])
    for name, (_, spec) in _launched_teachers(cfgs).items():
        spec.set_launched(plans[name])
    return servers


def plan_servers(cfgs: Sequence[Run], logs: Path) -> dict[str, LaunchedServer]:
    """The servers to start; nothing for sections without `launch`.

    Raises:
        UserError: a model that cannot be read, or that vLLM cannot serve so.
    """
    plans = {}
    if cfgs[0].rollout.launch is not None:
        plans["rollout"] = plan_rollout(cfgs[0], logs)
    for name, (cfg, spec) in _launched_teachers(cfgs).items():
        plans[name] = plan_teacher(cfg, spec, logs, name)
    return plans


def _launched_teachers(cfgs: Sequence[Run]) -> dict[str, tuple[Run, ServerTeacher]]:
    """The teachers to be started, by the name of their server, each with its run."""
    named = {
        "teacher" if i == 0 else f"teacher-{i + 1}": (cfg, cfg.teacher)
        for i, cfg in enumerate(cfgs)
    }
    members = {f"teacher-{name}": (cfgs[0], spec) for name, spec in cfgs[0].teachers.items()}
    return {
        name: (cfg, spec)
        for name, (cfg, spec) in (named | members).items()
        if isinstance(spec, ServerTeacher) and spec.launch is not None
    }


def _start(plans: Mapping[str, LaunchedServer], servers: Servers, console: Console) -> None:
    for name, plan in plans.items():
        gpus = plan.environment.get("CUDA_VISIBLE_DEVICES")
        where = f"GPU {gpus}" if gpus is not None else "the devices that it finds"
        console.print(f"Starting vLLM for {name} on {where}: {plan.model} (log: {plan.log})")
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        plan.log.unlink(missing_ok=True)  # of an earlier start
        plan.start()
        servers.started[name] = plan
    for plan in plans.values():
        plan.wait(console.print)


def plan_rollout(cfg: Run, logs: Path) -> LaunchedServer:
    """The student's server: it takes adapters or weights, in the precision of the student.

    Raises:
        UserError: a student that cannot be read.
    """
    launch = cfg.rollout.launch
    assert launch is not None
    options: dict[str, str | int | float | bool] = {
        "served-model-name": STUDENT,
        "dtype": str(server_dtype(cfg)).removeprefix("torch."),
    }
    if cfg.rollout.temperature != 1.0:
        options["logprobs-mode"] = "processed_logprobs"
    if cfg.student.lora is not None:
        rank = next((r for r in LORA_RANKS if r >= cfg.student.lora.rank), None)
        if rank is None:
            raise UserError(
                f"student.lora.rank={cfg.student.lora.rank}: vLLM serves adapters of rank "
                f"{LORA_RANKS[-1]} at most. Lower it, or leave rollout.launch out."
            )
        options |= {"enable-lora": True, "max-lora-rank": rank, "max-loras": 2}
    if shares_gpu(cfg):
        options["enable-sleep-mode"] = True
    environment = {}
    if (backend := transfer_backend(cfg)) is not None:
        options[TRANSFER] = json.dumps({"backend": backend})
        if backend == "ipc":  # vLLM reads handles by pickle; it listens on 127.0.0.1 alone
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    options["max-model-len"] = longest_request(cfg, cfg.student.model, "student.model")
    return _plan("rollout", launch, cfg.student.model, options, logs, environment)


def plan_teacher(cfg: Run, spec: ServerTeacher, logs: Path, name: str) -> LaunchedServer:
    """The teacher's server: it gives as many log-probs as the loss asks for.

    Raises:
        UserError: a teacher that cannot be read.
    """
    assert spec.launch is not None
    options: dict[str, str | int | float | bool] = {
        "served-model-name": spec.model,
        "max-logprobs": max(MAX_LOGPROBS, cfg.loss.k, OVERLAP_K),
        "max-model-len": longest_request(cfg, spec.model, "teacher.model"),
    }
    if torch.cuda.is_available():
        options["enable-scale-out"] = True  # scores of the student's tokens
    return _plan(name, spec.launch, spec.model, options, logs)


def _plan(
    role: str,
    launch: Launch,
    model: str,
    options: dict[str, str | int | float | bool],
    logs: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> LaunchedServer:
    command = [
        braced(launch.python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "{model}",
    ]
    command += ["--host", "127.0.0.1", "--port", "{port}"]
    for name, value in (options | launch.args).items():
        if value is not False:
            command += [f"--{name}"] if value is True else [f"--{name}", braced(str(value))]
    environment = ENVIRONMENT | dict(environment)
    if not torch.cuda.is_available():  # vLLM's CPU build would take nearly all memory
        environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
    if launch.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, launch.gpus))
    log = logs.with_name(f"{logs.name}.{role}-server.log")
    return LaunchedServer(role, command, model, environment, log)


class Seat(NamedTuple):
    """Who uses which GPUs.

    Attributes:
        who: trainer, rollout or the name of a teacher's server.
        gpus: their numbers; empty: not known.
        memory: fraction of each that it takes; None: what the run's own plan says, or no GPU.
    """

    who: str
    gpus: tuple[int, ...]
    memory: float | None = None


def seats(cfg: Run) -> list[Seat]:
    """The servers that would be started, and the trainer if it is on a GPU."""
    launches = {"rollout": cfg.rollout.launch} if cfg.rollout.launch is not None else {}
    for name, (_, spec) in _launched_teachers([cfg]).items():
        assert spec.launch is not None
        launches[name] = spec.launch
    cuda = torch.cuda.is_available()
    shares = {
        who: float(launch.args.get(MEMORY, VLLM_MEMORY)) if launch.gpus or cuda else None
        for who, launch in launches.items()  # vLLM's CPU build does not take a share
    }
    seated = [Seat(who, tuple(launches[who].gpus), share) for who, share in shares.items()]
    if seated and cuda:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        seated.append(Seat("trainer", (int(visible),) if visible.isdigit() else ()))
    return seated


def transfer_backend(cfg: Run) -> Literal["ipc", "nccl"] | None:
    """How full weights reach the launched rollout server without files; None: they do not.

    By CUDA IPC on the trainer's own GPU, by NCCL on others. `launch.args` may say otherwise:
    `weight-transfer-config: false`.
    """
    launch = cfg.rollout.launch
    if launch is None or cfg.student.lora is not None or TRANSFER in launch.args:
        return None
    seated = {seat.who: set(seat.gpus) for seat in seats(cfg)}
    ours, theirs = seated.get("trainer", set()), seated["rollout"]
    if not ours or not theirs:
        return None
    if ours == theirs:
        return "ipc"
    return None if ours & theirs else "nccl"


def shares_gpu(cfg: Run) -> bool:
    """Whether the rollout server is on the trainer's GPU, which it then gives away to updates."""
    seated = {seat.who: set(seat.gpus) for seat in seats(cfg)}
    return bool(seated.get("rollout", set()) & seated.get("trainer", set()))


def describe_transfer(cfg: Run) -> str:
    """How full weights reach the rollout server, where it is not by files; else empty."""
    name = {"ipc": "CUDA IPC", "nccl": "NCCL"}.get(transfer_backend(cfg) or "")
    return "" if name is None else f"; full weights by {name}, by files if that fails"


def describe_seats(seated: Sequence[Seat]) -> str:
    """The plan in one sentence; empty without servers."""
    parts = []
    for seat in seated:
        where = f"GPU {', '.join(map(str, seat.gpus))}" if seat.gpus else "the devices it finds"
        share = "" if seat.memory is None else f" ({seat.memory:.0%} of its memory)"
        parts.append(f"{seat.who}: {where}{share}")
    return "; ".join(parts)


def find_crowded(seated: Sequence[Seat]) -> str | None:
    """What is wrong with a plan: a GPU of which more is given away than there is."""
    for gpu in sorted({gpu for seat in seated for gpu in seat.gpus}):
        there = [seat for seat in seated if gpu in seat.gpus]
        taken = sum(seat.memory or 0.0 for seat in there)
        alone = len(there) == 1
        if not alone and (taken > 1 or (any(s.memory is None for s in there) and taken > SHARED)):
            names = " and ".join(seat.who for seat in there)
            return (
                f"GPU {gpu} is given to {names}, and vLLM takes {taken:.0%} of it. Set "
                f"launch.args: {{{MEMORY}: ...}} lower, or launch.gpus apart"
            )
    return None


def braced(text: str) -> str:
    """Text that `str.format` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def server_dtype(cfg: Run) -> torch.dtype:
    """Of the student's arithmetic on its server: as in this process, but never above float32."""
    exact = resolve_precision(cfg) in ("float32", "float64")
    return torch.float32 if exact else torch.bfloat16


def longest_request(cfg: Run, model: str, key: str) -> int:
    """Tokens of the longest prompt, a rollout's prefix and an answer, within the model's context.

    Args:
        cfg: the run.
        model: folder or name of the model that is served.
        key: that names it.
    """
    answers = [cfg.rollout.max_new_tokens, *(e.max_new_tokens or 0 for e in cfg.eval)]
    if cfg.coldstart is not None:
        answers.append(cfg.coldstart.max_new_tokens or 0)
    # `opd check` lets models continue most of a rollout.
    length = cfg.prompts.max_tokens + cfg.rollout.max_new_tokens + max(answers)
    context = context_length_of(read_config(model, key=key).get_text_config())
    return length if context is None else min(length, context)
