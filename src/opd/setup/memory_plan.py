"""What a run needs of every device, phase by phase, before anything is loaded.

Only configurations are read; `opd.models.model_size` has what models take. A phase is taken at its
worst moment: every completion as long as allowed, micro-batches full.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from opd.config import Run
from opd.core.precision import accumulation_dtype
from opd.run.host_memory import processes_on_host
from opd.samplers.hf import HOST_FRACTION, MEMORY_FRACTION, batch_rows, record_bytes
from opd.samplers.pace import pace_of
from opd.setup.memory_models import (
    DTYPES,
    HOST,
    ConfigReader,
    DeviceMemory,
    PlannedModels,
    device_name,
    machine_memory,
    pinned_pieces,
    plan_models,
)
from opd.setup.memory_work import LossWork
from opd.setup.planned_memory import USABLE, MemoryPlan, Parts, Phase, PhaseMemory

PROCESS = 2**30  # host memory of Python and its libraries
# train.tokens_per_microbatch: auto. The largest of the choices that fits; more are not faster. Host
# memory is used by others as well, and where it is exhausted a process ends: half of it.
AUTO_TOKENS = 8192
GPU_CHOICES = (1024, 2048, 4096, 8192, 16384)
CPU_CHOICES, CPU_USABLE = (1024, 2048, 4096, AUTO_TOKENS), 0.5

_READING = ("student weights", "teacher being read")
# Each process has its own of these in host memory. Other parts may be in mapped files, which all
# share, or are there when free memory is read: counted once, so that no run is refused wrongly.
_OWN = (
    *("master weights", "optimizer moments", "gradients", "offloaded optimizer"),
    *("offloaded teachers", "sampled rows", "prompts being read", "gathered weights"),
    *("activations", "loss and backward", "diagnostics", "optimizer step"),
    *("rollouts and scores", "teacher's forward"),
)


def plan_memory(
    cfg: Run,
    *,
    device: str | None = None,
    memory: DeviceMemory | None = None,
    processes: int | None = None,
    read: ConfigReader | None = None,
    longest_prompt: int | None = None,
) -> MemoryPlan:
    """Plan the memory of a run.

    Args:
        cfg: the run.
        device: of the student; None: the accelerator if there is one.
        memory: of the devices; None: that of this machine, now.
        processes: that train together, on one host; None: as torchrun or accelerate says.
        read: (model, key) -> transformers configuration; None: from folder or hub.
        longest_prompt: its tokens; None: prompts.max_tokens.

    Raises:
        UserError: a model's configuration that cannot be read, a loss that makes no sense.
    """
    sharing = processes  # of this host's memory
    if processes is None:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        sharing = processes_on_host(processes)
    models = plan_models(cfg, device_name(device), processes=processes, read=read)
    memory = _memory_now(models.devices) if memory is None else memory
    total = memory.total.get(models.device)
    if models.device != HOST:
        models = models.on_device_of(total)
    planner = _Planner(cfg, models, (processes, sharing or 1), longest_prompt)
    tokens = cfg.train.tokens_per_microbatch
    if tokens == "auto":  # as the run chooses, which does not know its prompts
        tokens = _Planner(cfg, models, (processes, sharing or 1), None).auto_tokens(total)
    rows = planner.rows(memory)
    return MemoryPlan(
        phases=tuple(planner.phases(tokens, rows)),
        devices=tuple(models.devices),
        memory=memory,
        precision=models.precision,
        tokens_per_microbatch=tokens,
        rows=rows,
        length=planner.length,
        processes=processes,
    )


def _memory_now(devices: Sequence[str]) -> DeviceMemory:
    """Of this machine; what is free on the host is for the first of its processes to judge.

    The others may read it when some have loaded their models already.
    """
    memory = machine_memory(devices)
    if os.environ.get("LOCAL_RANK", "0") in ("", "0"):
        return memory
    return DeviceMemory({x: size for x, size in memory.free.items() if x != HOST}, memory.total)


class _Planner:
    """Bytes of the phases of a run, for given micro-batches and rows."""

    def __init__(
        self,
        cfg: Run,
        models: PlannedModels,
        processes: tuple[int, int],  # all, and those of a host
        longest_prompt: int | None,
    ) -> None:
        self.cfg, self.models, (self.processes, self.sharing) = cfg, models, processes
        most = cfg.prompts.max_tokens
        self.prompt = most if longest_prompt is None else min(longest_prompt, most)
        self.limit = cfg.rollout.max_new_tokens
        if cfg.horizon is not None and cfg.horizon.cap is not None:
            self.limit = min(self.limit, cfg.horizon.cap)
        context = models.student.context
        length = self.prompt + self.limit
        self.length = length if context is None else min(length, context)
        self.on_gpu = models.device != HOST
        self.work = LossWork(cfg, on_gpu=self.on_gpu)

    def phases(self, tokens: int, rows: int) -> list[PhaseMemory]:
        """All phases on all devices.

        Args:
            tokens: of a micro-batch; a longer row is one of its own.
            rows: that are sampled together.
        """
        tokens = max(tokens, self.length)
        phases: dict[Phase, dict[str, Parts]] = {
            "load": self._load(),
            "rollout": {self.models.device: self._rollout(rows)},
            "score": self._score(tokens),
            "update": self._update(self._update_tokens(tokens)),
            "save": self._save(),
        }
        planned = []
        for phase, by_device in phases.items():
            for device in self.models.devices:
                resident = {} if phase == "load" else self._resident(device)
                parts = _add(resident, by_device.get(device, {}))
                parts = self._of_all(parts) if device == HOST else parts
                needed = {name: size for name, size in parts.items() if size}
                planned.append(PhaseMemory(phase, device, needed))
        return planned

    def _of_all(self, parts: Parts) -> Parts:
        """In host memory, of all processes that share it."""
        own = _OWN if self.cfg.student.lora is not None else (*_OWN, "student weights")
        return {x: size * self.sharing if x in own else size for x, size in parts.items()}

    def _update_tokens(self, tokens: int) -> int:
        """Of a micro-batch that a step can fill; supervised phases have batches of their own."""
        cfg = self.cfg
        if cfg.coldstart is not None or cfg.recipe == "auto" or cfg.loss.terms.sft_path is not None:
            return tokens
        rows = -(-cfg.train.prompts_per_step * cfg.rollout.n // self.processes)
        return min(tokens, rows * self.length)

    def auto_tokens(self, total: int | None) -> int:
        """Tokens per micro-batch by all bytes of the device."""
        if total is None:
            return AUTO_TOKENS
        choices: tuple[int, ...] = GPU_CHOICES if self.on_gpu else CPU_CHOICES
        usable = total * (USABLE if self.on_gpu else CPU_USABLE)
        fitting = [tokens for tokens in choices if self._needed(tokens) <= usable]
        return max(fitting, default=choices[0])

    def _needed(self, tokens: int) -> int:
        """Most bytes of the student's device while such micro-batches are scored or learnt."""
        phases = [p for p in self.phases(tokens, 0) if p.device == self.models.device]
        return max(p.total for p in phases if p.phase in ("score", "update"))

    def rows(self, memory: DeviceMemory) -> int:
        """Rows sampled together: as many as what is free on a GPU holds, or a part of a CPU."""
        cfg, device = self.cfg, self.models.device
        if cfg.rollout.engine != "hf":
            return 0
        rows = min(batch_rows([], self.length), cfg.train.prompts_per_step * cfg.rollout.n)
        free, total = memory.free.get(device), memory.total.get(device)
        if free is None or total is None:
            return rows
        available = HOST_FRACTION * total / self.sharing
        if self.on_gpu:
            others = _total(self._resident(device)) + _total(self._rollout(0))
            resident = others - self._prompt_bytes()
            # It takes a fraction of what is free, and half if prompts have no room beside it.
            available = min(MEMORY_FRACTION * (free - resident), USABLE * free - others)
        return max(1, min(rows, int(available / self._row_bytes())))

    def _prompt_bytes(self) -> int:
        """Of a forward over the prompts of the rows that start together."""
        tokens = max(pace_of(self.models.torch_device).prefill, self.prompt)
        return tokens * self.models.student.forward

    def _row_bytes(self) -> int:
        student = self.models.student
        columns = pace_of(self.models.torch_device).column_count(self.length)
        dtype = accumulation_dtype(DTYPES[self.models.precision])
        records = record_bytes(self.limit, self.cfg.loss.k, student.vocab, dtype)
        return student.cache_bytes(columns) + records

    def _resident(self, device: str) -> Parts:
        """What is there in every phase after loading."""
        state, parts = self.models.state, self._frozen_weights(device)
        if device == self.models.device:
            student = {
                "student weights": state.weights,
                "master weights": state.masters,
                "optimizer moments": state.moments,
            }
            parts = _add(student, parts)
        if device == HOST:
            away = [pinned_pieces(f.moved) for f in self.models.frozen if f.offload == "cpu"]
            host = {
                "Python and libraries": PROCESS,
                "offloaded optimizer": state.host,
                "offloaded teachers": sum(away),
            }
            parts = _add(host, parts)
        return parts

    def _frozen_weights(self, device: str) -> Parts:
        models = self.models
        reference = [] if models.reference is None else [models.reference]
        named = {"teacher weights": models.teachers, "reference weights": reference}
        return {
            name: sum(f.resident for f in frozen if f.device == device)
            for name, frozen in named.items()
            if any(f.device == device for f in frozen)
        }

    def _load(self) -> dict[str, Parts]:
        """Each model is read into host memory and moved to its device.

        Masters are made when the teacher is there already, and weights sharded, from host memory.
        """
        models, state = self.models, self.models.state
        parts = {device: self._frozen_weights(device) for device in models.devices}
        for place in models.devices:  # whole, before it is quantised or sent away
            reading = [f.beside_while_read for f in models.frozen if f.device == place]
            parts[place] = _add(parts[place], {"teacher being read": max(reading, default=0)})
        student = max(state.loaded, state.weights + state.masters)
        if models.student.unpacked and not self.on_gpu:
            student = state.loaded + state.weights  # in full, and quantised beside it
        parts[models.device] = _add({"student weights": student}, parts[models.device])
        if state.mapped:  # the teacher is read before masters are made beside the student's file
            rest = {name: size for name, size in parts[HOST].items() if name not in _READING}
            read = {name: parts[HOST].get(name, 0) for name in _READING}
            read["student weights"] = state.loaded
            made = {"student weights": student, "student's file": state.mapped}
            parts[HOST] = _add(rest, read if _total(read) > _total(made) else made)
        host = {"Python and libraries": PROCESS}
        if self.on_gpu:
            sizes = [state.read or state.loaded, *(f.size.loaded for f in models.frozen)]
            host["model being read"] = max(sizes)
            host["offloaded optimizer"] = state.host
        parts[HOST] = _add(host, parts[HOST])
        return parts

    def _rollout(self, rows: int) -> Parts:
        if self.cfg.rollout.engine != "hf":
            return {}
        return {
            "gathered weights": self.models.state.gathered_to_sample,
            "prompts being read": self._prompt_bytes(),
            "sampled rows": rows * self._row_bytes(),
        }

    def _score(self, tokens: int) -> dict[str, Parts]:
        parts: dict[str, Parts] = {HOST: {"rollouts and scores": self._step_arrays()}}
        for frozen in self.models.frozen:
            forward = self.work.scoring_bytes(frozen.size, tokens, self.limit)
            needed = {
                "teacher's forward": forward + frozen.size.unpacked,
                "teacher that scores": frozen.moved,
            }
            # Teachers and reference score one after the other.
            before = parts.get(frozen.device, {})
            if _total(needed) > sum(before.get(name, 0) for name in needed):
                parts[frozen.device] = {**before, **needed}
        return parts

    def _update(self, tokens: int) -> dict[str, Parts]:
        """Gradients, and the worst of: loss and backward, diagnostics, the optimizer's step."""
        models, work, state = self.models, self.work, self.models.state
        student, checkpointing = models.student, self.cfg.student.gradient_checkpointing
        backward = student.backward_bytes(tokens, checkpointing=checkpointing)
        alternatives = [
            {
                "activations": student.activation_bytes(tokens, checkpointing=checkpointing),
                "loss and backward": max(backward, work.loss_bytes(student, tokens))
                + student.unpacked,
            },
            {"diagnostics": work.diagnosed_bytes(student, tokens)},
            {"optimizer step": state.largest if state.host else 0},
        ]
        held = {"gathered weights": state.gathered_to_update, "gradients": state.gradients}
        parts: dict[str, Parts] = {HOST: {"rollouts and scores": self._step_arrays()}}
        worst = _add(held, max(alternatives, key=_total))
        parts[models.device] = _add(parts.get(models.device, {}), worst)
        teacher = models.teacher
        if teacher is not None and teacher.device != models.device:
            logits = {"teacher's logits": work.chunk * teacher.size.itemsize}
            parts[teacher.device] = _add(parts.get(teacher.device, {}), logits)
        return parts

    def _save(self) -> dict[str, Parts]:
        """Checkpoints are streamed; the final model is put together in host memory."""
        student, state = self.models.student, self.models.state
        whole, gathered = max(student.weights, student.loaded), 0  # in full if it was quantised
        if state.gathered_to_sample:  # tensor by tensor; the process that writes keeps them all
            whole, gathered = max(whole, 3 * state.loaded), state.largest
        parts: dict[str, Parts] = {self.models.device: {"gathered tensor": gathered}}
        parts[HOST] = _add(parts.get(HOST, {}), {"model being written": whole})
        return parts

    def _step_arrays(self) -> int:
        """A step's rollouts and scores, in host memory until its update."""
        cfg, teacher = self.cfg, self.models.teacher
        tokens = cfg.train.prompts_per_step * cfg.rollout.n * self.limit
        per_token = self.work.token_bytes()
        if teacher is not None and self.work.objective.needs_full_teacher:
            per_token += teacher.size.hidden * teacher.size.itemsize
        return tokens * per_token


def _add(a: Parts, b: Parts) -> Parts:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def _total(parts: Parts) -> int:
    return sum(parts.values())
