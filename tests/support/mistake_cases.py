"""Mistakes as data: what is typed, in which files, and what the answer must name.

The workspace of each is that of `support.mistakes.make_workspace`: run.yaml of the demo pair with
prompts, answers and a held-out set. One line is one mistake; a star before its name (`*name`) puts
it among the worst, which run with every `make test`.
"""

# fmt: off - one line is one mistake

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from opd.config import known_keys, settable_keys
from opd.config.reference import takes_text_alone
from opd.demo.run_config import PAIR

TRAIN = ("train", "run.yaml")
ROW = '{"problem": "sum pig gnu jay", "answer": "8"}\n'


@dataclass(frozen=True)
class Mistake:
    """A mistake and what must come of it.

    Attributes:
        kind: class of mistakes, for the table.
        name: of the mistake.
        words: typed after `opd`.
        says: words that the answer must contain, in any case.
        files: content by name, written before; bytes or text.
        prepare: changes to the workspace.
        code: exit code.
        seconds: after which the answer must be there (of this process, imports done).
        worst: among those of `make test`.
        env: environment variables.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    code: int = 2
    seconds: float = 2.0
    worst: bool = False
    env: dict[str, str] = field(default_factory=dict)


def all_mistakes() -> list[Mistake]:
    """Every mistake, hand-written ones first."""
    made = [*command_line(), *config_files(), *prompts(), *models(), *places(), *servers()]
    made += [*of_a_review(), *of_a_newcomer()]
    return [*made, *contradictions(), *after_a_run(), *values_of_every_key()]


def _mistake(kind: str, name: str, words: Any, says: str, **more: Any) -> Mistake:
    """`words` is a command line; `says` are the expected words, separated by `|`."""
    typed = tuple(words.split()) if isinstance(words, str) else tuple(words)
    worst = name.startswith("*")
    return Mistake(kind, name.lstrip("*"), typed, tuple(says.split("|")), worst=worst, **more)


def _override(kind: str, name: str, override: str, says: str, **more: Any) -> Mistake:
    return _mistake(kind, name, (*TRAIN, *override.split(" ; ")), says, **more)


def command_line() -> Iterator[Mistake]:
    """Words that are no command, options that do not exist, arguments of the wrong kind."""
    k = "command line"
    for name, words, says in [
        ("*no such command", "trian run.yaml", "no such command|train"),
        ("*no such option", "train run.yaml --resum", "no such option|--resume"),
        ("option of another command", "report run --merge", "no such option"),
        ("*train without a file", "train", "missing argument"),
        ("eval without a target", "eval", "missing argument"),
        ("compare without runs", "compare", "missing argument"),
        ("budget is no number", "check run.yaml --budget five", "--budget"),
        ("budget of zero", "check run.yaml --budget 0", "--budget"),
        ("*budget below zero", "check run.yaml --budget -3", "--budget"),
        ("budget is no finite number", "check run.yaml --budget nan", "budget"),
        ("infinite budget", "check run.yaml --budget inf", "budget|inf"),
        ("*port is no number", "serve-teacher run.yaml --port eighty", "--port"),
        ("*port out of range", "serve-teacher run.yaml --port 99999", "--port|65535"),
        ("port below zero", "serve-teacher run.yaml --port -1", "--port"),
        ("host does not exist", "serve-teacher run.yaml --host no.such.host.invalid", "--host"),
        ("every below zero", "watch run --every -1", "--every"),
        ("every is nan", "watch run --every nan", "--every"),
        ("apply without a file", "check run.yaml --apply", "--apply|argument"),
        ("*resume and overwrite", "train run.yaml --resume --overwrite", "--resume|--overwrite"),
        ("steps of the demo", "demo --steps 0", "--steps"),
        ("steps of the demo are no number", "demo --steps few", "--steps"),
        ("lab is not given words", "lab nonsense", "nonsense"),
        ("*local without self", "check run.yaml --local teacher", "--local|--self"),
        ("*override without value", "train run.yaml train.steps", "key=value|train.steps"),
        ("override without key", "train run.yaml =3", "key=value"),
        ("*override with spaces", ("train", "run.yaml", "train.steps", "=", "3"), "key=value"),
        ("dashes before a key", "train run.yaml --train.steps=3", "--train.steps"),
        ("override through a value", "train run.yaml train.steps.x=3", "train.steps|value"),
        ("element of no list", "train run.yaml prompts.0=x", "prompts.0"),
        ("*element beyond a list", "train run.yaml eval.7.n=2", "eval.7.n|1"),
        ("override is no YAML", "train run.yaml train.steps=[1", "train.steps|YAML"),
        ("doubled dots", "train run.yaml train..steps=3", "train..steps"),
        ("ends in a dot", "train run.yaml train.=3", "train."),
        ("*init over a file", "init run.yaml", "run.yaml|exists"),
        ("*init in no folder", "init no/such/x.yaml/y.yaml", "x.yaml"),
        ("init over a folder", "init student", "student|folder"),
    ]:
        files = {"no/such/x.yaml": "a file"} if "y.yaml" in words else {}
        yield _mistake(k, name, words, says, files=files)


def config_files() -> Iterator[Mistake]:
    """run.yaml itself: absent, another kind of file, broken, or saying things twice."""
    k = "run.yaml"
    for command in ("train", "check", "verify", "select", "eval", "coldstart", "serve-teacher"):
        yield _mistake(k, f"no file: {command}", (command, "nothing.yaml"), "No such|nothing.yaml")
        yield _mistake(k, f"misspelt: {command}", (command, "rum.yaml"), "did you mean|run.yaml")
    for command in ("train", "check", "select", "coldstart"):
        yield _mistake(k, f"a folder: {command}", (command, "student"), "student|folder")
    good = "student: {model: student}\nteacher: {model: teacher}\nprompts: {path: train.jsonl}\n"
    end = "output: {dir: run}\n"
    for name, content, says in [
        ("*empty", "", "mapping"),
        ("a list", "- a\n- b\n", "mapping|list"),
        ("a text", "train it\n", "mapping|str"),
        ("a number", "3\n", "mapping|int"),
        ("*tabs", "student:\n\tmodel: student\n", "YAML|line 2"),
        ("not closed", "student: {model: student\n", "YAML|line"),
        ("*a key twice", f"{good}{end}train: {{steps: 2, steps: 3}}\n", "steps|twice|line"),
        ("*a section twice", f"{good}{end}train: {{}}\ntrain: {{steps: 3}}\n", "train|twice"),
        ("*binary", b"\x80\x04\x95\x00\x00", "UTF-8|YAML"),
        ("*latin-1", "# ä\nstudent: x\n".encode("latin-1"), "YAML|utf-8"),
        ("utf-16", "student: x\n".encode("utf-16"), "YAML|utf-8"),
        ("nul bytes", "student: \x00\n", "YAML"),
        ("*a python object", "student: !!python/object/apply:os.system ['true']\n", "YAML|python"),
        ("*aliases of aliases", _bomb(), "too many|nested"),
        ("*deep nesting", "[" * 3000, "nested|YAML"),
        ("a list as key", "? [a, b]\n: c\n", "key|text"),
        ("two documents", f"{good}---\n{end}", "document|YAML"),
        ("too large", "#" * (2**20 + 1), "bytes"),
        ("JSON cut", '{"student": {"model"', "YAML|line"),
        ("nothing but comments", "# train\n", "mapping"),
        ("*no student", f"teacher: {{model: t}}\nprompts: {{path: p}}\n{end}", "student|required"),
        ("no teacher", f"student: {{model: s}}\nprompts: {{path: p}}\n{end}", "teacher|required"),
        ("no prompts", f"student: {{model: s}}\nteacher: {{model: t}}\n{end}", "prompts|required"),
        ("no output", good, "output|required"),
        ("a section that is a text", f"{good}{end}train: fast\n", "train|fast"),
        ("a section that is a list", f"{good}{end}train: [1]\n", "train"),
        ("a section that is null", f"{good}{end}train:\n", "train"),
        (
            "*two errors, both named",
            f"{good}{end}train: {{stpes: 1}}\nloss: {{kk: 1}}\n",
            "steps|kk",
        ),
        ("eval is one set", f"{good}{end}eval: {{path: held.jsonl}}\n", "eval|list"),
        ("a date", f"{good}{end}train: {{steps: 2026-01-01}}\n", "train.steps|2026"),
        ("a octal", f"{good}{end}train: {{steps: 1_000x}}\n", "train.steps"),
        ("*keys of TRL", f"{good}{end}learning_rate: 1e-5\nmax_steps: 3\n", "optim.lr|train.steps"),
        ("section in capitals", f"{good}{end}Train: {{steps: 3}}\n", "Train|train"),
        ("a key with a dot", f"{good}{end}train.steps: 3\n", "train.steps"),
    ]:
        yield _mistake(k, name, TRAIN, says, files={"run.yaml": content})


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def prompts() -> Iterator[Mistake]:
    """Prompt files and held-out sets: absent, broken, misnamed columns, templates."""
    k = "prompts"
    for role, key in (("prompts.path", "prompts.path"), ("eval.0.path", "eval.0.path")):
        for name, file, content, says in [
            ("absent", "none.jsonl", None, "none.jsonl|No such"),
            ("a folder", "student", None, "student|folder"),
            ("no suffix", "rows", ROW, "rows|suffix"),
            ("another suffix", "rows.txt", ROW, "rows.txt|.jsonl"),
            ("empty", "rows.jsonl", "", "rows.jsonl|empty"),
            ("blank lines", "rows.jsonl", "\n\n\n", "rows.jsonl|empty"),
            ("broken line", "rows.jsonl", ROW + "{oops\n", "rows.jsonl|line 2"),
            ("a list a line", "rows.jsonl", ROW + "[1]\n", "rows.jsonl|line 2"),
            ("cut", "rows.jsonl", ROW + '{"problem": "su', "rows.jsonl|line 2"),
            ("no column", "rows.jsonl", '{"text": "x", "answer": "1"}\n', "text|problem"),
            ("a number", "rows.jsonl", '{"problem": 7, "answer": "1"}\n', "problem|line 1"),
            ("null", "rows.jsonl", '{"problem": null, "answer": "1"}\n', "line 1"),
            ("empty text", "rows.jsonl", '{"problem": " ", "answer": "1"}\n', "line 1|empty"),
            ("half a character", "rows.jsonl", '{"problem": "\\ud800", "answer": "1"}\n', "line 1"),
            ("latin-1", "rows.jsonl", '{"problem": "ä"}\n'.encode("latin-1"), "UTF-8"),
            ("*parquet is none", "rows.parquet", "no parquet", "rows.parquet"),
            ("parquet is empty", "rows.parquet", b"", "rows.parquet"),
            ("json is no list", "rows.json", "3", "rows.json"),
            ("csv without a header", "rows.csv", "", "rows.csv"),
            (
                "*answer is a list",
                "rows.jsonl",
                '{"problem": "sum pig", "answer": [1]}\n',
                "answer",
            ),
            (
                "messages without user",
                "rows.jsonl",
                '{"messages": [{"role": "system", "content": "x"}], "answer": "1"}\n',
                "user",
            ),
            (
                "message without role",
                "rows.jsonl",
                '{"messages": [{"content": "x"}], "answer": "1"}\n',
                "role",
            ),
        ]:
            worst = "*" if name in ("absent", "broken line", "no column") or name[0] == "*" else ""
            files = {} if content is None else {file: content}
            yield _override(
                k, f"{worst}{key}: {name.lstrip('*')}", f"{role}={file}", says, files=files
            )
    no_answers = '{"problem": "sum pig"}\n'
    wrong_name = '{"problem": "sum pig", "anser": "1"}\n'
    for name, override, says, content in [
        ("*no answers to evaluate", "eval.0.path=rows.jsonl", "eval.0.path|answer", no_answers),
        ("answers misspelt", "eval.0.path=rows.jsonl", "answer|anser", wrong_name),
        ("*one answer missing", "eval.0.path=rows.jsonl", "answer|line 2", ROW + no_answers),
        (
            "outcome without answers",
            "prompts.path=rows.jsonl ; loss.terms.outcome_weight=1",
            "outcome_weight|answer",
            no_answers,
        ),
        ("*template without problem", "prompts.template=Solve", "template|{problem}", ROW),
        ("template of a set", "eval.0.template=Solve", "template|{problem}", ROW),
        ("template with another name", "prompts.template='{question} go'", "{problem}", ROW),
        (
            "*unknown word of the chat",
            "prompts.chat={enable_thinkng: false}",
            "enable_thinkng",
            ROW,
        ),
        ("reserved word of the chat", "prompts.chat={tokenize: true}", "tokenize", ROW),
        (
            "chat template that fails",
            "prompts.chat={chat_template: '{{ raise_exception(1) }}'}",
            "chat",
            ROW,
        ),
        ("chat template is broken", "prompts.chat={chat_template: '{% for %}'}", "chat", ROW),
        ("*every prompt too long", "prompts.max_tokens=2", "prompts.max_tokens|2", ROW),
        ("no room for a prompt", "rollout.max_new_tokens=5000", "rollout.max_new_tokens|room", ROW),
        ("grader of LaTeX", "prompts.grader=latex", "prompts.grader", ROW),
        ("hub without a name", "prompts.path='hub:'", "hub:", ROW),
        ("*set named by a path", "eval.0.name=../../x", "eval.0.name|../../x", ROW),
        (
            "*two sets of one name",
            "eval=[{path: held.jsonl}, {path: held.jsonl}]",
            "held|name",
            ROW,
        ),
    ]:
        worst = name.startswith("*")
        yield _override(k, name, override, says, files={"rows.jsonl": content})
        if worst and name.startswith("*no answers"):
            yield _mistake(
                k,
                "no answers to evaluate: check",
                ("check", "run.yaml", override),
                says,
                files={"rows.jsonl": content},
            )


def _broken(role: str, change: Callable[[Path], None]) -> Callable[[], None]:
    """A copy of a shipped model in place of the link to it, changed."""

    def prepare() -> None:
        folder = Path(role)
        folder.unlink()
        shutil.copytree(PAIR / role, folder)
        change(folder)

    return prepare


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return change


def _remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]  # type: ignore[return-value]


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def _weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def _drop(part: str) -> Callable[[Path], None]:
    return _weights(lambda t: [t.pop(n) for n in list(t) if part in n][:0] and None)


def _reshape(part: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if part in n)
        tensors[name] = tensors[name][:-1].clone()

    return _weights(change)


def _fill(part: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if part in n)
        tensors[name].fill_(value)

    return _weights(change)


def models() -> Iterator[Mistake]:
    """Models: absent, half-copied, of another kind, damaged, not a pair."""
    k = "models"
    weights = "model.safetensors"
    for role in ("student", "teacher"):
        key = f"{role}.model"
        for name, value, says in [
            ("*absent", "./nope", f"{key}|nope|no such"),
            ("absent, absolute", "/no/such/folder", f"{key}|no such"),
            ("a file", "train.jsonl", f"{key}|file"),
            ("an empty text", "''", f"{key}"),
            ("a number", "7", f"{key}|7"),
            ("a list", "[a]", f"{key}"),
            ("too long", "x" * 300, f"{key}"),
            ("nul byte", '"a\\0b"', f"{key}"),
            ("not on the hub", "nobody/nothing-of-this-name", f"{key}|nobody"),
            (
                "misspelt folder",
                "studnet" if role == "student" else "taecher",
                f"{key}|did you mean",
            ),
        ]:
            yield _override(
                k,
                f"{name if role == 'student' else name.lstrip('*')}: {role}",
                f"{key}={value}",
                says,
            )
        for name, change, says in [
            ("*no config", _remove("config.json"), f"{key}|config.json"),
            ("*broken config", _write("config.json", "{oops"), f"{key}|config.json"),
            ("empty config", _write("config.json", ""), f"{key}|config.json"),
            ("config is a list", _write("config.json", "[]"), f"{key}|config.json"),
            ("config without a type", _write("config.json", "{}"), f"{key}|config.json"),
            ("*unknown architecture", _edit("config.json", model_type="nosuch"), f"{key}|nosuch"),
            ("encoder", _edit("config.json", model_type="bert"), f"{key}|bert"),
            (
                "no tokenizer",
                _remove("tokenizer.json", "tokenizer_config.json"),
                f"{key}|tokenizer",
            ),
            ("broken tokenizer", _write("tokenizer.json", "{oops"), f"{key}|tokenizer"),
            ("empty tokenizer", _write("tokenizer.json", ""), f"{key}|tokenizer"),
            ("*no weights", _remove(weights), f"{key}|weights"),
            ("*weights cut in half", _cut(weights, 0.5), f"{key}|model.safetensors"),
            ("weights cut by a byte", _cut(weights, 0.99999), f"{key}|model.safetensors"),
            ("weights of no bytes", _write(weights, b""), f"{key}|model.safetensors"),
            (
                "*weights of Git LFS",
                _write(weights, "version https://git-lfs.github.com/spec/v1\n"),
                f"{key}|model.safetensors",
            ),
            (
                "weights are text",
                _write(weights, "<html>404</html>" * 100),
                f"{key}|model.safetensors",
            ),
            ("*a projection missing", _drop("layers.0.self_attn.q_proj"), f"{key}|q_proj"),
            ("a layer missing", _drop("layers.1."), f"{key}|layers.1"),
            ("*a weight of another shape", _reshape("down_proj"), f"{key}|down_proj"),
            ("*a weight is NaN", _fill("down_proj", float("nan")), f"{key}|nan"),
            ("a weight is infinite", _fill("norm", float("inf")), f"{key}|inf"),
            ("no end token", _no_end, f"{key}|end token"),
            ("*index without shards", _shards, f"{key}|model-00002-of-00002.safetensors"),
        ]:
            seconds = 4.0
            yield _mistake(
                k,
                f"{name if role == 'teacher' else name.lstrip('*')}: {role}",
                TRAIN,
                says.replace("\x00", ""),
                prepare=_broken(role, change),
                seconds=seconds,
            )
    yield _mistake(
        k,
        "pickled weights only",
        TRAIN,
        "student.model|safetensors",
        prepare=_broken("student", _pickled),
    )
    yield _mistake(
        k,
        "*another tokenizer",
        TRAIN,
        "different tokenizers|2 tokens differ",
        prepare=_broken("teacher", _swap_tokens),
    )
    yield _mistake(
        k,
        "other end tokens",
        TRAIN,
        "rollout.stop=union",
        prepare=_broken("teacher", _edit("generation_config.json", eos_token_id=[2, 5])),
    )
    yield _override(
        k,
        "lora on nothing",
        "student.lora={rank: 2, target_modules: [nothing]}",
        "target_modules|nothing",
        seconds=4.0,
    )
    yield _override(
        k,
        "lora on the head",
        "student.lora={rank: 2, target_modules: [lm_head]}",
        "target_modules|head",
        seconds=4.0,
    )
    yield _override(k, "no such origin", "check.origin=./nope ; train.steps=1", "check.origin|nope")
    yield _override(
        k,
        "no such reference",
        "loss.terms={reference: ./nope, reward_scale: 1.25}",
        "loss.terms.reference|nope",
    )


def _no_end(folder: Path) -> None:
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        path = folder / name
        data = json.loads(path.read_text())
        data = {k: v for k, v in data.items() if "eos" not in k}
        path.write_text(json.dumps(data))


def _shards(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    half = names[: len(names) // 2]
    save_file(
        {n: tensors[n] for n in half},
        folder / "model-00001-of-00002.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "model.safetensors").unlink()
    where = {n: f"model-0000{1 if n in half else 2}-of-00002.safetensors" for n in names}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickled(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _swap_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    vocab = data["model"]["vocab"]
    a, b = list(vocab)[10:12]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(data))


def _folder_with(name: str, **files: str) -> Callable[[], None]:
    def prepare() -> None:
        Path(name).mkdir()
        for file, content in files.items():
            (Path(name) / file.replace("__", ".")).write_text(content)

    return prepare


def places() -> Iterator[Mistake]:
    """Run folders, outputs, devices, packages."""
    k = "places"
    for name, override, says, more in [
        (
            "*folder in use by others",
            "output.dir=mine",
            "mine|--overwrite|content",
            {"prepare": _folder_with("mine", thesis__tex="ten years")},
        ),
        ("*folder is a file", "output.dir=train.jsonl", "train.jsonl", {}),
        ("folder of a long name", f"output.dir={'x' * 300}", "output.dir", {}),
        ("folder of a long path", f"output.dir={'/'.join(['y' * 200] * 30)}", "output.dir", {}),
        ("folder inside a file", "output.dir=train.jsonl/run", "output.dir|train.jsonl", {}),
        ("folder is empty text", "output.dir=''", "output.dir", {}),
        ("*folder is the root", "output.dir=/", "output.dir|/", {}),
        ("folder is here", "output.dir=.", "content", {}),
        ("folder is a dash", "output.dir=-rf", "output.dir|-rf", {}),
        ("folder has a nul byte", 'output.dir="a\\0b"', "output.dir", {}),
        ("folder has a new line", 'output.dir="a\\nb"', "output.dir", {}),
        (
            "folder is a dangling link",
            "output.dir=link",
            "link",
            {"prepare": lambda: Path("link").symlink_to("nowhere")},
        ),
        ("folder in /proc", "output.dir=/proc/opd/run", "output.dir|/proc", {}),
        ("folder is a device", "output.dir=/dev/null", "/dev/null", {}),
        ("*tracker that is not installed", "output.trackers=[wandb]", "wandb|pip install", {}),
        ("tracker that does not exist", "output.trackers=[weights]", "output.trackers|weights", {}),
        ("*no GPU here", "teacher.device=cuda", "teacher.device|cuda", {}),
        ("no such GPU", "teacher.device=cuda:7", "teacher.device|cuda:7", {}),
        ("no such device", "teacher.device=gpu", "teacher.device|gpu", {}),
        ("device without memory", "teacher.device=meta", "teacher.device|meta", {}),
        ("device of Apple", "teacher.device=mps", "teacher.device|mps", {}),
        ("empty device", "teacher.device=''", "teacher.device", {}),
        (
            "cache is a file",
            "teacher.cache={dir: train.jsonl, offline: true}",
            "teacher.cache.dir|train.jsonl",
            {},
        ),
        ("cache is empty", "teacher.cache={dir: cache, offline: true}", "cache", {}),
        ("rollouts that are not there", "rollout.path=no.parquet", "rollout.path|no.parquet", {}),
        ("rollouts that are none", "rollout.path=train.jsonl", "rollout.path|train.jsonl", {}),
        (
            "supervised file absent",
            "loss.terms={sft_weight: 0.1, sft_path: no.jsonl}",
            "sft_path|no.jsonl",
            {},
        ),
        (
            "supervised rows without completion",
            "loss.terms={sft_weight: 0.1, sft_path: train.jsonl}",
            "completion|train.jsonl",
            {},
        ),
        ("completions absent", "coldstart={path: no.jsonl}", "coldstart.path|no.jsonl", {}),
        (
            "completions of another kind",
            "coldstart={path: train.jsonl}",
            "train.jsonl|completion",
            {},
        ),
        ("cold start's prompts absent", "coldstart={prompts: no.jsonl}", "no.jsonl", {}),
    ]:
        yield _override(k, name, override, says, **more)
    for name, words, says in [
        ("no cold start section", "coldstart run.yaml", "coldstart"),
        ("no select section", "select run.yaml", "select|output"),
        ("*select over the prompts", "select run.yaml select.output=train.jsonl", "prompts.path"),
        (
            "*select over the held-out set",
            "select run.yaml select.output=held.jsonl",
            "eval.0.path",
        ),
        (
            "select over a note",
            "select run.yaml select.output=note.jsonl",
            "note.jsonl|--overwrite",
        ),
        ("select without a suffix", "select run.yaml select.output=chosen", "select.output|.jsonl"),
        (
            "select into a file",
            "select run.yaml select.output=train.jsonl/x.jsonl",
            "select.output",
        ),
        (
            "select against nothing",
            ("select", "run.yaml", "select={output: x.jsonl, against: [no.jsonl]}"),
            "no.jsonl",
        ),
        ("*apply over a file", "check run.yaml --apply note.jsonl", "--apply|note.jsonl|exists"),
        ("*apply over itself", "check run.yaml --apply run.yaml", "run.yaml"),
        ("apply into a file", "check run.yaml --apply train.jsonl/x.yaml", "--apply|train.jsonl"),
        ("apply over a folder", "check run.yaml --apply student", "--apply|student"),
        ("score without a cache", "serve-teacher run.yaml --score rollouts", "teacher.cache"),
        (
            "score nothing",
            (
                "serve-teacher",
                "run.yaml",
                "--score",
                "none",
                "teacher.cache={dir: c, offline: true}",
            ),
            "none",
        ),
        ("eval without sets", "eval run.yaml eval=[]", "eval"),
        ("resume nothing", "train run.yaml --resume", "--resume|run"),
        ("*resume a typo", "train run.yaml --resume output.dir=rnu", "--resume|rnu"),
        ("*overwrite others", "train run.yaml --overwrite output.dir=mine", "--overwrite|mine"),
    ]:
        prepare = _folder_with("mine", thesis__tex="x") if "mine" in words else None
        yield _mistake(k, name, words, says, files={"note.jsonl": "mine"}, prepare=prepare)
    for command in ("report", "watch", "export", "eval"):
        for name, target, says in [
            ("nothing", "none", "none"),
            ("a folder of others", "mine", "mine"),
            ("a model", "student", "student"),
            ("a file", "train.jsonl", "train.jsonl"),
        ]:
            yield _mistake(
                k,
                f"{command}: {name}",
                (command, target),
                says,
                prepare=_folder_with("mine", thesis__tex="x"),
            )
    for name, words, says in [
        ("compare one run", "compare none", "none"),
        ("compare with nothing", "compare none nobody", "none"),
        ("compare into no page", "compare none nobody --out x.txt", "x.txt|.html"),
        ("compare over a note", "compare none nobody --out note.html", "note.html|exists"),
    ]:
        yield _mistake(k, name, words, says, files={"note.html": "mine"})


def servers() -> Iterator[Mistake]:
    """Servers that are not there, or addresses that are none."""
    k = "servers"
    gone = "http://127.0.0.1:9/v1"
    for name, teacher, says in [
        ("*nobody listens", f"{{url: '{gone}', model: t, patience: 0}}", "teacher.url|127.0.0.1:9"),
        ("no address", "{url: nonsense, model: t, patience: 0}", "teacher.url|nonsense"),
        (
            "address of a file",
            "{url: 'file:///etc/passwd', model: t, patience: 0}",
            "teacher.url|http",
        ),
        ("empty address", "{url: '', model: t, patience: 0}", "teacher.url"),
        (
            "port out of range",
            "{url: 'http://127.0.0.1:99999/v1', model: t, patience: 0}",
            "teacher.url|99999",
        ),
        (
            "no such host",
            "{url: 'http://no.such.host.invalid/v1', model: t, patience: 0}",
            "teacher.url|no.such.host",
        ),
        ("no model", f"{{url: '{gone}'}}", "teacher.model|required"),
        (
            "*the key itself",
            f"{{url: '{gone}', model: t, api_key_env: sk-abc}}",
            "api_key_env|NAME",
        ),
        (
            "*key that is not set",
            f"{{url: '{gone}', model: t, api_key_env: NO_SUCH_KEY}}",
            "NO_SUCH_KEY",
        ),
        ("keys of both kinds", f"{{url: '{gone}', model: t, dtype: float32}}", "teacher.dtype"),
        (
            "offline, nothing there",
            f"{{url: '{gone}', model: t, cache: {{dir: c, offline: true}}}}",
            "cache",
        ),
    ]:
        yield _mistake(k, name, (*TRAIN, f"teacher={teacher}"), says, seconds=3.0)
    for name, rollout, says in [
        ("rollouts of nobody", f"rollout.url={gone} ; rollout.model=s", "rollout.url|127.0.0.1:9"),
        ("rollouts of no model", f"rollout.url={gone}", "rollout.model"),
        (
            "rollouts of no address",
            "rollout.url=nonsense ; rollout.model=s",
            "rollout.url|nonsense",
        ),
        (
            "rollouts from two places",
            f"rollout.url={gone} ; rollout.model=s ; rollout.path=x",
            "rollout.path",
        ),
    ]:
        yield _mistake(k, name, (*TRAIN, *rollout.split(" ; ")), says, seconds=4.0)
    yield _mistake(
        k,
        "serve a server",
        ("serve-teacher", "run.yaml", f"teacher={{url: '{gone}', model: t}}"),
        "serve-teacher|teacher.url",
    )
    yield _mistake(
        k,
        "serve nothing",
        ("serve-teacher", "run.yaml", "teacher=null", "loss.terms.outcome_weight=1"),
        "teacher",
    )


def contradictions() -> Iterator[Mistake]:
    """Keys that exclude each other or change nothing."""
    for name, override, says in [
        ("*no teacher, no reward", "teacher=null", "teacher|outcome_weight"),
        (
            "whole distributions of nobody",
            "teacher=null ; loss.terms.outcome_weight=1 ; loss.support=full",
            "loss.support|teacher",
        ),
        ("scale without reference", "loss.terms.reward_scale=2", "reward_scale|reference"),
        ("reference without scale", "loss.terms.reference=student", "reference|reward_scale"),
        ("weight without examples", "loss.terms.sft_weight=1", "sft_weight|sft_path"),
        ("examples without weight", "loss.terms.sft_path=train.jsonl", "sft_weight|sft_path"),
        (
            "cold start without teacher",
            "teacher=null ; loss.terms.outcome_weight=1 ; coldstart={}",
            "coldstart|teacher",
        ),
        ("cold start by an alarm that warns", "coldstart={when: alarm}", "coldstart|alarm"),
        ("*cap beyond the length", "horizon={cap: 100}", "horizon.cap|100|8"),
        ("name kept for the teacher", "eval.0.name=teacher-x", "teacher-"),
        (
            "a list of teachers in train",
            "teacher=[{model: teacher}, {model: teacher}]",
            "teacher|opd check",
        ),
        (
            "rank beyond any machine",
            "student.lora={rank: 9223372036854775808}",
            "student.lora.rank|2**53",
        ),
        ("*k beyond the vocabulary", "loss.k=100000", "loss.k|100000|vocab"),
        ("a key that was removed", "student.dtype=float32", "student.dtype|precision"),
        ("temperature of a replay", "rollout.path=x ; coldstart={}", "rollout.path|coldstart"),
    ]:
        yield _override("contradictions", name, override, says)


def of_a_review() -> Iterator[Mistake]:
    """What a second look tried: files that are no files, values that no program writes."""
    k = "review"
    pipe, loop = {"prepare": _pipe}, {"prepare": _loop}
    for name, override, says, more in [
        ("*prompts are a pipe", "prompts.path=p.jsonl", "p.jsonl|ordinary", pipe),
        ("prompts are compressed", "prompts.path=p.jsonl.gz", ".gz", _file("p.jsonl.gz")),
        ("prompts are packed", "prompts.path=p.zip", "p.zip", _file("p.zip")),
        ("prompts of YAML", "prompts.path=p.yaml", "p.yaml", _file("p.yaml")),
        ("prompts are a device", "prompts.path=/dev/zero", "/dev/zero", {}),
        ("prompts are a link to themselves", "prompts.path=loop", "loop", loop),
        ("*run folder is a link to itself", "output.dir=loop", "loop|link", loop),
        ("student is a link to itself", "student.model=loop", "student.model|loop", loop),
        ("a rate of 1e30", "optim.lr=1e30", "optim.lr|1e30|1", {}),
        ("a path of the home", "prompts.path=~/none.jsonl", "none.jsonl", {}),
        ("an address as model", "student.model=https://hf.co/a/b", "student.model|no such", {}),
        ("GGUF as model", "student.model=m.gguf", "student.model|m.gguf|file", _file("m.gguf")),
        ("teacher and teachers", "teachers={a: {model: teacher}}", "teacher|teachers", {}),
        ("a hint that no row has", "teacher.prompt='{hint} {problem}'", "teacher.prompt|hint", {}),
        (
            "one of several files absent",
            "prompts={files: [{path: train.jsonl}, {path: no.jsonl}]}",
            "no.jsonl",
            {},
        ),
        ("no weight", "prompts={files: [{path: train.jsonl, weight: 0}]}", "weight|0", {}),
        (
            "a teacher named by a path",
            "teacher=null ; teachers={../x: {model: teacher}}",
            "teachers|../x",
            {},
        ),
        (
            "teachers that no row names",
            "teacher=null ; teachers={a: {model: teacher}, b: {model: student}}",
            "a, b",
            {},
        ),
    ]:
        yield _override(k, name, override, says, **more)
    digits, brackets = "9" * 5000, "[" * 5000 + "]" * 5000
    for name, rows, says in [
        ("rows are lists", "[1]\n", "p.jsonl|list"),
        (
            "*a column twice in a row",
            '{"problem": "a", "problem": "b"}\n',
            "line 1|'problem'|twice",
        ),
        ("5,000 digits", f'{{"problem": "a", "answer": {digits}}}\n', "p.jsonl|line 1"),
        ("brackets without end", f'{{"problem": {brackets}}}\n', "line 1|nested"),
        ("columns in capitals", '{"Problem": "a"}\n', "Problem|problem"),
        ("turns of ShareGPT", '{"conversations": []}\n', "conversations"),
        ("one list named jsonl", f"[{ROW.strip()}]", "line 1|list"),
    ]:
        yield _override(k, name, "prompts.path=p.jsonl", says, files={"p.jsonl": rows})
    yield _override(
        k, "rows named json", "prompts.path=p.json", ".jsonl", **_file("p.json", ROW * 2)
    )
    rope, gptq = {"rope_type": "zz", "factor": 2}, {"quant_method": "gptq", "bits": 4}
    for name, change, says in [
        ("*no tokens", _edit("config.json", vocab_size=0), "student.model|vocabulary|0"),
        ("tokens are a word", _edit("config.json", vocab_size="many"), "student.model|vocab_size"),
        ("width below zero", _edit("config.json", hidden_size=-4), "config.json|-4"),
        ("no layers", _edit("config.json", num_hidden_layers=0), "student.model|config.json"),
        ("text part is a list", _edit("config.json", text_config=[1]), "student.model|config"),
        ("*rotation of no kind", _edit("config.json", rope_scaling=rope), "config.json|zz"),
        (
            "package missing",
            _edit("config.json", quantization_config=gptq),
            "student.model|optimum",
        ),
        (
            "end tokens are words",
            _edit("generation_config.json", eos_token_id=["a"]),
            "eos_token_id",
        ),
        ("*generation cut", _write("generation_config.json", "{"), "generation_config.json"),
        ("tokenizer is a list", _write("tokenizer_config.json", "[]"), "student.model|tokenizer"),
        (
            "template reads files",
            _write("chat_template.jinja", "{% include '/etc/passwd' %}"),
            "chat template",
        ),
        (
            "template looks behind objects",
            _write("chat_template.jinja", "{{ messages.__class__.__mro__ }}"),
            "chat template|unsafe",
        ),
        (
            "a header of a terabyte",
            _write("model.safetensors", (2**40).to_bytes(8, "little")),
            "model.safetensors",
        ),
        (
            "contexts of four tokens",
            _edit("config.json", max_position_embeddings=4),
            "max_new_tokens|4",
        ),
    ]:
        yield _mistake(k, name, TRAIN, says, prepare=_broken("student", change))
    yield _mistake(k, "*weights of no server", "verify run.yaml --local x", "--local|server")
    yield _mistake(k, "a file in place of a run", "export run.yaml", "run.yaml|file")


def _pipe() -> None:
    os.mkfifo("p.jsonl")


def _loop() -> None:
    Path("loop").symlink_to("loop")


def _file(name: str, content: str = "x") -> dict[str, Any]:
    return {"files": {name: content}}


def of_a_newcomer() -> Iterator[Mistake]:
    """Typed by somebody who has not read the manual."""
    k = "newcomer"
    yield _mistake(
        k,
        "*self with apply",
        ("check", "run.yaml", "--self", "--apply", "x.yaml"),
        "--apply change nothing with --self",
    )
    yield _mistake(
        k, "self with budget", ("check", "run.yaml", "--self", "--budget", "5"), "--budget|--self"
    )
    yield _mistake(
        k,
        "*select without a section",
        ("select", "run.yaml"),
        "no `select` section|select: {output",
        seconds=1.0,
    )
    yield _override(
        k,
        "*a group as a value",
        "student=student",
        "student is a group of keys, such as student.model=student",
    )
    yield _override(
        k,
        "a teacher as a value",
        "teacher=teacher",
        "teacher is a group of keys, such as teacher.model=teacher",
    )
    yield _override(
        k,
        "prompts as a value",
        "prompts=train.jsonl",
        "prompts is a group of keys, such as prompts.path=train.jsonl",
    )
    yield _override(
        k, "output as a value", "output=run2", "output is a group of keys, such as output.dir=run2"
    )
    yield _override(k, "lora as a switch", "student.lora=true", "student.lora is a group of keys")
    yield _override(
        k,
        "rollout.url without http",
        "rollout.url=localhost:8000 ; rollout.model=m",
        "only http:// and https://",
    )
    yield _override(k, "words of TRL for adapters", "student.lora={r: 4}", "student.lora.rank")
    yield _override(k, "a rate of trackers", "output.trackers=wandb", "output.trackers|list")
    yield _override(k, "a float as k", "loss.k=16.5", "loss.k|16.5")
    yield _override(k, "a key with a space", "train.steps =5", "Did you mean train.steps?")
    yield _override(k, "a hyphen", "loss.divergence=reverse-kl", "reverse_kl")
    yield _mistake(k, "run.yml", ("train", "run.yml"), "Did you mean run.yaml?")
    yield _mistake(k, "a colon", ("train", "run.yaml", "train.steps:5"), "not key=value")
    yield _mistake(k, "an option", ("train", "run.yaml", "--train.steps=5"), "No such option")
    yield _mistake(k, "a capital", ("Train", "run.yaml"), "Did you mean 'train'?")
    yield _mistake(k, "report of a model", ("report", "student"), "no run folder")
    yield _mistake(k, "compare models", ("compare", "student", "teacher"), "no run folder")
    yield _mistake(k, "export of a file", ("export", "run.yaml"), "is a file|run folder")
    yield _mistake(k, "dash of a file", ("dash", "run.yaml"), "no folder")
    yield _mistake(
        k,
        "apply onto the input",
        ("check", "run.yaml", "--apply", "run.yaml"),
        "would replace what is read",
    )
    yield _mistake(
        k,
        "score without a cache",
        ("serve-teacher", "run.yaml", "--score", "nothing"),
        "teacher.cache.dir",
    )
    yield _override(
        k, "k without top tokens", "loss.k=4 ; loss.support=full", "loss.k=4 changes nothing"
    )
    yield _override(k, "a horizon of nothing", "horizon={}", "changes nothing")
    yield _override(k, "a cap of all", "horizon={cap: 8}", "horizon.cap=8 changes nothing")
    yield _override(
        k,
        "a horizon that grows beneath a cap",
        "horizon={cap: 4, grow: {start: 4, until: 1}}",
        "horizon.grow.start=4 changes nothing with horizon.cap=4",
    )
    yield _override(
        k,
        "one answer for an outcome",
        "loss.terms.outcome_weight=1 ; rollout.n=1",
        "changes nothing with rollout.n=1",
    )


def after_a_run() -> Iterator[Mistake]:
    """Filled by tests that have a finished run; see test_mistakes_after_a_run.py."""
    return iter(())


def values_of_every_key() -> Iterator[Mistake]:
    """For each key: another type, a number out of range, a typo in its name."""
    k = "values"
    for key, info in settable_keys().items():
        path = key.replace("eval.", "eval.0.")
        if key.startswith(("alarms.rules", "teacher.cache", "teacher.url", "teacher.patience")):
            continue
        last = key.rpartition(".")[2]
        parent = path.rpartition(".")[0]
        typo = f"{parent}.{last}x" if parent else f"{last}x"
        section = {
            "coldstart": "coldstart={}",
            "horizon": "horizon={}",
            "select": "select={output: x.jsonl}",
        }.get(key.partition(".")[0], "train={}")
        if key.startswith("prompts.files."):
            section, path = (
                "prompts={files: [{path: train.jsonl}]}",
                key.replace("files.", "files.0."),
            )
            parent = path.rpartition(".")[0]
            typo = f"{parent}.{last}x"
        yield _override(k, f"typo: {key}", f"{section} ; {typo}=1", f"{last}x|{last}")
        annotation = info.annotation
        allowed = set(_types(annotation))
        if not allowed & {dict, list} and not takes_text_alone(key):
            yield _override(k, f"a list: {key}", f"{section} ; {path}=[[1]]", path)
        if not allowed & {str, dict}:
            yield _override(k, f"a text: {key}", f"{section} ; {path}=nonsense", f"{path}|nonsense")
        if allowed & {int, float} and "str" not in str(annotation):
            yield _override(k, f"below: {key}", f"{section} ; {path}=-7", f"{path}|-7")
            yield _override(k, f"nan: {key}", f"{section} ; {path}=.nan", path)
            yield _override(k, f"infinite: {key}", f"{section} ; {path}=.inf", path)


def _types(annotation: Any) -> Iterator[type]:
    inner = get_args(annotation)
    if not inner:
        yield type(annotation) if not isinstance(annotation, type) else annotation
    origin = getattr(annotation, "__origin__", None)
    if isinstance(origin, type):
        yield origin
    for each in inner:
        yield from _types(each)


assert known_keys  # the names of groups, for tests that need them
