"""Messages for mistakes in a configuration: the key, what is wrong, the value seen, what to do."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel

from opd.config.models import LocalTeacher, PythonTeacher, SelfTeacher, ServerTeacher
from opd.config.reference import known_keys

# Each kind of teacher, and what makes a section one of it.
TEACHERS: dict[type[BaseModel], str] = {
    LocalTeacher: "teacher.model",
    ServerTeacher: "teacher.url or teacher.launch",
    SelfTeacher: "teacher.from=student",
    PythonTeacher: "teacher.python",
}

# Names people bring from TRL, HF Trainer and verl, and where the value lives here.
WELL_KNOWN = {
    "model_name_or_path": "student.model",
    "teacher_model_name_or_path": "teacher.model",
    "model_revision": "student.model (owner/name@revision)",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.grad_clip",
    "warmup_steps": "optim.warmup",
    "max_steps": "train.steps",
    "num_train_epochs": "train.steps (steps, not epochs)",
    "per_device_train_batch_size": "train.prompts_per_step (the update) and "
    "train.tokens_per_microbatch (the memory)",
    "gradient_accumulation_steps": "train.tokens_per_microbatch (accumulation follows from it)",
    "num_generations": "rollout.n",
    "max_completion_length": "rollout.max_new_tokens",
    "max_new_tokens": "rollout.max_new_tokens",
    "max_prompt_length": "prompts.max_tokens",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "beta": "loss.divergence (and loss.beta)",
    "loss_top_k": "loss.k",
    "top_k": "loss.k (support); rollouts are truncated by rollout.top_p alone",
    "log_prob_top_k": "loss.k",
    "output_dir": "output.dir",
    "save_steps": "output.save_every",
    "save_total_limit": "output.keep",
    "eval_steps": "eval.N.every",
    "report_to": "output.trackers",
    "seed": "train.seed",
    "dataset_name": "prompts.path",
    "train_file": "prompts.path",
    "torch_dtype": "student.precision",
    "bf16": "student.precision (bf16_mixed)",
    "gradient_checkpointing": "student.gradient_checkpointing",
    "lora_r": "student.lora.rank",
    "lora_alpha": "student.lora.alpha",
}

NAME_RULE = "It may have up to 32 letters, digits, - and _, and begins with a letter or a digit."


def explain(error: Any) -> str:
    """One pydantic error as: key - what is wrong - value seen - fix."""
    loc = [str(part) for part in error["loc"]]
    at = {"teacher": 1, "teachers": 2}.get(loc[0], len(loc)) if loc else 0
    if loc[at : at + 1] and loc[at] in ("local", "server", "self", "python"):
        del loc[at]  # which kind it was taken for
    key = ".".join(loc)
    if loc[-1:] == ["[key]"] and loc[0] == "teachers":
        return f"  teachers: {error.get('input')!r} is no name for a teacher. {NAME_RULE}"
    if loc[:2] == ["prompts", "files"] and loc[3:4] == ["teacher"] and len(loc) > 4:
        return _route(".".join(loc[:4]), loc[4], error.get("input"))
    if error["type"] == "extra_forbidden":
        if loc[0] in ("teacher", "teachers") and (kinds := _teachers_with(loc[-1])):
            return f"  {key}={error.get('input')!r}: only a teacher with {kinds} has this key."
        return f"  {key}: unknown key.{_suggest(loc)}"
    if error["type"] == "missing":
        return f"  {key}: required, but missing."
    message = error["msg"].removeprefix("Value error, ")
    seen = error.get("input")
    if error["type"] == "value_error":
        return f"  {message}."
    if error["type"] == "string_type" and isinstance(seen, dict | list):
        return (
            f"  {key}: {message}. To YAML braces and brackets are values: put the text in quotes."
        )
    if error["type"] in ("model_type", "dataclass_type") and not isinstance(seen, dict | list):
        inner = [k for k in known_keys() if k.rpartition(".")[0] == key][:1]
        such = f", such as {inner[0]}={seen}" if inner and isinstance(seen, str) else ""
        return f"  {key}={seen!r}: {key} is a group of keys{such}."
    shown = "" if isinstance(seen, dict | list) else f" (found {seen!r})"
    return f"  {key}: {message}{shown}."


def _route(key: str, kind: str, seen: Any) -> str:
    """One line about what is neither a name nor names with weights; both kinds have an error."""
    if kind != "str":
        return ""
    return (
        f"  {key}={seen!r}: a teacher is a name, or names with weights above 0 such as "
        "{math: 0.5, code: 0.5}. A name that is a number needs quotes."
    )


def _teachers_with(name: str) -> str:
    """What makes a teacher one of the kinds that have a key; empty where none has."""
    return " or ".join(what for kind, what in TEACHERS.items() if name in kind.model_fields)


def _suggest(loc: list[str]) -> str:
    path = [part for part in loc if not part.isdigit()]
    if path[-1] in WELL_KNOWN:
        return f" Here it is {WELL_KNOWN[path[-1]]}."
    keys = list(known_keys())
    parent = ".".join(path[:-1])
    siblings = [k for k in keys if k.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(".".join(path), siblings, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(".".join(path), keys, n=1, cutoff=0.75)
    near = near or [k for k in keys if k.rpartition(".")[2] == path[-1]][:1]
    if near:
        return f" Did you mean {near[0]}?"
    return f" Allowed here: {', '.join(k.rpartition('.')[2] for k in siblings)}."
