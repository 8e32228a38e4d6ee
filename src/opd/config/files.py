"""run.yaml in, a validated `Run` out; every mistake told with the key that fixes it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from opd.config.schema import Run
from opd.errors import UserError

# Names people bring from TRL, HF Trainer and verl, and where the value lives here.
WELL_KNOWN = {
    "model_name_or_path": "student.model",
    "teacher_model_name_or_path": "teacher.model",
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
    "top_k": "loss.k (support) or rollout.top_k (sampling)",
    "log_prob_top_k": "loss.k",
    "output_dir": "output.dir",
    "save_steps": "output.save_every",
    "save_total_limit": "output.keep",
    "eval_steps": "eval.N.every",
    "report_to": "output.trackers",
    "seed": "train.seed",
    "dataset_name": "prompts.path",
    "train_file": "prompts.path",
    "torch_dtype": "student.dtype",
    "bf16": "student.dtype (bfloat16)",
    "gradient_checkpointing": "student.gradient_checkpointing",
    "lora_r": "student.lora.rank",
    "lora_alpha": "student.lora.alpha",
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read run.yaml, apply `key=value` overrides, validate once.

    Raises:
        UserError: naming the key, the value seen, what is allowed, and the nearest known key.
    """
    data = overridden(read(path), overrides)
    if isinstance(data.get("teacher"), list):
        raise UserError(
            f"{path}: teacher is a list of {len(data['teacher'])}. A run learns from one teacher; "
            f"`opd check {path}` ranks several."
        )
    return validate(data, where=str(path))


def load_each(path: str | Path, overrides: Sequence[str] = ()) -> list[Run]:
    """As `load`, where `teacher` may be a list: one configuration a teacher.

    Raises:
        UserError: as `load`; an empty list.
    """
    data = overridden(read(path), overrides)
    teachers = data.get("teacher")
    if not isinstance(teachers, list):
        return [validate(data, where=str(path))]
    if not teachers:
        raise UserError(f"{path}: teacher is an empty list; give at least one.")
    return [
        validate(data | {"teacher": each}, where=f"{path}, teacher {i}")
        for i, each in enumerate(teachers)
    ]


def read(path: str | Path) -> dict[str, Any]:
    """The YAML's content, not yet validated.

    Raises:
        UserError: no such file, or not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No such file: {path}. `opd init {path}` writes a commented one.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of sections, found {type(data).__name__}.")
    return data


def parse(data: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "config") -> Run:
    """Validate a plain mapping (the YAML's content) with overrides applied; see `load`."""
    return validate(overridden(data, overrides), where=where)


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A private copy, plain types only, with `key=value` overrides applied.

    Raises:
        UserError: an override that is none, or has nowhere to go.
    """
    data = json.loads(json.dumps(data, default=str))
    for item in overrides:
        key, eq, value = item.partition("=")
        if not eq or not key:
            raise UserError(f"Override {item!r} is not key=value, e.g. train.steps=50.")
        try:
            _assign(data, key.split("."), yaml.safe_load(value), item)
        except yaml.YAMLError:
            raise UserError(f"Override {item!r}: {value!r} is not a YAML value.") from None
    return data


def validate(data: dict[str, Any], *, where: str) -> Run:
    """A plain mapping as a `Run`.

    Raises:
        UserError: naming every wrong key.
    """
    try:
        return Run.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}:\n" + "\n".join(_explain(e) for e in error.errors())) from None


def dump(run: Run) -> dict[str, Any]:
    """The resolved configuration as plain JSON types."""
    return run.model_dump(mode="json")


def _assign(data: dict[str, Any], keys: list[str], value: Any, item: str) -> None:
    node: Any = data
    for key, after in pairwise(keys):
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise UserError(f"Override {item!r}: no element {key!r} in a list of {len(node)}.")
            node = node[int(key)]
            continue
        if node.get(key) is None:
            if after.isdigit():
                raise UserError(
                    f"Override {item!r}: {key!r} is empty, so it has no element {after}."
                )
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict | list):
            raise UserError(f"Override {item!r}: {key!r} is a value, not a section.")
    if isinstance(node, list):
        if not keys[-1].isdigit() or int(keys[-1]) >= len(node):
            raise UserError(f"Override {item!r}: no element {keys[-1]!r} in a list of {len(node)}.")
        node[int(keys[-1])] = value
    else:
        node[keys[-1]] = value


def _explain(error: Any) -> str:
    """One pydantic error as: key - what is wrong - value seen - fix."""
    loc = [str(part) for part in error["loc"]]
    if loc[:1] == ["teacher"] and loc[1:2] in (["local"], ["server"]):
        del loc[1]  # which kind it was taken for
    key = ".".join(loc)
    if error["type"] == "extra_forbidden":
        return f"  {key}: unknown key.{_suggest(loc)}"
    if error["type"] == "missing":
        return f"  {key}: required, but missing."
    message = error["msg"].removeprefix("Value error, ")
    seen = error.get("input")
    if error["type"] == "value_error":
        return f"  {message}."
    shown = "" if isinstance(seen, dict | list) else f" (found {seen!r})"
    return f"  {key}: {message}{shown}."


def reference() -> str:
    """docs/config.md: every key with its default and its reason, from the fields themselves."""
    lines = [
        "# Every key of run.yaml",
        "",
        "Made from the configuration's fields by `python -m opd.config`; a test keeps it equal.",
        "Override any key on the command line: `opd train run.yaml optim.lr=1e-5 eval.0.n=8`.",
        "",
        "| key | default | what it is |",
        "|---|---|---|",
    ]
    for key, field in known_keys().items():
        if isinstance(field.annotation, type) and _sections_in(field.annotation):
            continue
        default = "required" if field.is_required() else _shown(field.get_default())
        said = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {default} | {said} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{json.dumps(value)}`"


def known_keys(section: type[BaseModel] = Run, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the configuration with its field."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        for inner in _sections_in(field.annotation):
            inner_keys = known_keys(inner, f"{prefix}{name}.")
            keys |= {k: f for k, f in inner_keys.items() if k not in keys}
    return keys


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections_in(arg)]


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
