"""Rules of the house: keys of run.yaml, sizes, docstrings, imports and words.

What is shipped or shown of run.yaml must load; the rest is said in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from opd import config
from opd.config.template import RUN_YAML

ROOT = Path(__file__).parents[1]

MAX_KEYS = 110
# Keys beyond that number, each with the reason why nobody but the user can know its value.
ADDED = {
    "optim.offload": "trades speed for GPU memory, at the cost of pinned memory on the host",
    "teacher.from": "the student as its own teacher is another method, not a default of one",
    "teacher.weights": "frozen, live or averaged: which holds depends on the length of the run",
    "teacher.decay": "how fast the average follows is the user's trade of stability for speed",
    "teacher.prompt": "what the teacher sees beyond the student's prompt is the method itself",
    "teacher.tokenizer": "that the teacher has other tokens, which would else be refused",
    "teachers": "who teaches what is the user's, as is every teacher's own section",
    "prompts.files": "prompts of several skills, each with its teacher and its weight",
    "prompts.files.path": "see prompts.files",
    "prompts.files.teacher": "see prompts.files",
    "prompts.files.weight": "see prompts.files",
    "teacher.offload": "trades time for memory: the teacher is read or moved for every step",
    "student.lora.weights": "trades exactness and speed for memory (QLoRA)",
    "eval.teacher": "whose prompts a held-out file has, where its rows do not say so",
    "prompts.by": "whether a teacher of long answers may take more of the loss is a choice",
    "rollout.python": "as teacher.python, for a sampler",
    "alarms.python": "as teacher.python, for alarm rules",
    "teacher.python": "a teacher of the user's own: nobody else knows where its code is",
    "optim.moments": "trades exactness for memory, where the host has none to offload to",
    "train.deterministic": "trades speed for equal bits on a GPU",
    "rollout.ahead": "trades rollouts that are a step older for time, which nobody else may decide",
    "rollout.launch": "whether opd starts the server, or somebody else has",
    "teacher.launch": "as rollout.launch",
    "rollout.launch.python": "which environment has vLLM is only known to whoever made it",
    "rollout.launch.gpus": "who sits on which GPU is the owner's to say",
    "rollout.launch.args": "vLLM has hundreds of options, quantisation and parallelism among them",
    "teacher.launch.python": "as rollout.launch.python",
    "teacher.launch.gpus": "as rollout.launch.gpus",
    "teacher.launch.args": "as rollout.launch.args",
    "prompts.teacher_template": "a student without a template beside a teacher with one: either is "
    "possible, and the wrong one costs the teacher its accuracy in silence",
}
FIRST_SCREEN = 20

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
FOLDERS = ("src", "lab", "examples", "benchmarks", "docs", "demo-data")
HISTORY = ("CHANGELOG.md", "LOG.md")  # they name what was
PRODUCT = [*(ROOT / "src").rglob("*.py"), *(ROOT / "lab").rglob("*.py")]
TESTS = list((ROOT / "tests").rglob("*.py"))
SCRIPTS = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]

MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 400, 60, 6
ROOT_MODULES, LAYERS, README_LINES = 8, 12, 120
# What is larger, and why; at most ten. A file stands for its functions too.
LARGER = {
    "tests/mutants.py": "a table: one entry per mutant",
    "tests/core/estimator_table.py": "a table: one row per estimator",
    "tests/support/mistake_cases.py": "a table: one entry per mistake",
    "src/opd/cli.py:check": "each option of a command is an argument",
    "lab/opd_lab/cli.py:lab_run": "each option of a command is an argument",
    "src/opd/models/attention.py:grouped_attention": "transformers' signature of an attention",
    "src/opd/recipes/sft.py:sft": "public: its settings have defaults and are named in the call",
    "src/opd/gpu_check/workload.py:make_model": "variants of one random model, named in the call",
    "src/opd/commands/check/pilot.py:run_pilot": "the parts of a check that it is measured with",
    "lab/opd_lab/runs.py:run": "student, teacher, task and seed are a run's identity",
}

# Words that mean something else to everybody else, and what to say.
RETIRED = {
    r"\btold\b": "reported, asked",
    r"\bheats?\b": "temperature",
    r"\bforet(ell|old)\w*": "predict, forecast",
    r"\bstrangers?\b": "mismatched teacher, foreign file",
    r"\bsift\w*": "filter",
    r"\bdrawn tokens?\b": "sampled token",
    r"\ba don't\b|\bdon'ts\b": "no-go",
    r"\bshared out\b": "sharded, distributed",
    r"\bits twin\b": "JSON sidecar",
    r"\b(on a|another) processors?\b": "CPU",
    r"\bmend(s|ed)?\b": "fix",
    r"\b(rows|tokens|bytes|ids|values|numbers|responses|completions)"
    r" an? (position|prompt|token|row|step|parameter|second|response)\b": "per",
    r"\bstudent writes\b": "samples, generates",
    r"\bteacher reads\b": "scores",
    r"\btells money\b": "shows cost",
    r"\brefused updates?\b": "skipped non-finite update",
    r"\bsureness\b": "confidence",
    r"\b(overhear|overheard)\b": "capture",
    r"\bthe (pen|ear)\b": "generator, scorer",
    r"\bwarm[- ]up phase\b": "cold start",
}
# The same for parts of names that code defines.
RETIRED_NAMES = {
    **dict.fromkeys(["found", "told", "said", "telling", "heard"], "metrics, scores, message"),
    **dict.fromkeys(["foretold", "foretell", "mended"], "predicted, fixed"),
    **dict.fromkeys(["heat", "pen", "ear", "sift", "circles", "sureness"], "see RETIRED"),
    **dict.fromkeys(["stranger", "strangers"], "mismatched"),
    **dict.fromkeys(["follower", "led", "overhear", "interlude"], "rank zero, capture, cold start"),
}
MINIMAL = {
    "student": {"model": "s"},
    "teacher": {"model": "t"},
    "prompts": {"path": "p.jsonl"},
    "output": {"dir": "runs/x"},
}


def test_the_number_of_keys():
    keys = set(config.settable_keys())
    assert keys >= set(ADDED)
    assert len(keys - set(ADDED)) <= MAX_KEYS


def test_every_key_is_described():
    assert not [k for k, field in config.settable_keys().items() if not field.description]


def keys_of(node: object, prefix: str = "") -> set[str]:
    """Dotted keys that a YAML document sets, list indices left out."""
    if isinstance(node, list):
        return set().union(*(keys_of(element, prefix) for element in node))
    if not isinstance(node, dict):
        return set()
    return {prefix + k for k in node}.union(*(keys_of(v, f"{prefix}{k}.") for k, v in node.items()))


def test_the_file_of_init_is_one_screen_of_at_most_twenty_keys():
    shown = keys_of(yaml.safe_load(RUN_YAML)) & set(config.settable_keys())
    assert len(shown) <= FIRST_SCREEN
    assert len(RUN_YAML.splitlines()) <= 48
    assert max(map(len, RUN_YAML.splitlines())) <= 100


def yaml_shown() -> list[tuple[str, str]]:
    """Every piece of run.yaml in the documentation: fenced blocks, and `section: {...}` in text."""
    pieces = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        pieces += [
            (page.name, block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        ]
        inline = re.findall(
            r"`(([a-z]+): [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        )
        pieces += [
            (page.name, piece.replace("}; ", "}\n"))
            for piece, name in inline
            if name in config.Run.model_fields
        ]
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.y*ml")]
    return pieces + [(path.name, path.read_text(encoding="utf-8")) for path in files]


def with_minimal(shown: dict) -> dict:
    """What is shown, with the keys that every run needs; a section that is null stays null."""
    minimal = dict(MINIMAL)
    if "from" in (shown.get("teacher") or {}) or "teachers" in shown:  # they name no model
        del minimal["teacher"]
    if isinstance(shown.get("prompts"), list) or "files" in (shown.get("prompts") or {}):
        del minimal["prompts"]
    return {
        name: minimal.get(name, {}) | shown[name]
        if isinstance(shown.get(name), dict)
        else shown.get(name, minimal.get(name))
        for name in minimal | shown
    }


@pytest.mark.parametrize(("page", "text"), yaml_shown())
def test_every_yaml_that_is_shown_loads(page, text):
    data = with_minimal(yaml.safe_load(text))
    if (data.get("coldstart") or {}).get("when") == "alarm":  # shown apart from what it needs
        data |= {"alarms": {"action": "act"}}
    config.parse(data, where=page)


def test_yaml_is_looked_for_where_it_is():
    assert len(yaml_shown()) > 10


FILES = ("jsonl", "json", "md", "py", "html", "parquet")


def unknown_keys(text: str) -> list[str]:
    """Dotted names that begin with a section of run.yaml and are no key of it."""
    sections = "|".join(config.Run.model_fields)
    dotted = re.findall(rf"(?<![\w./])((?:{sections})(?:\.[a-z_0-9N]+)+)(?![\w(])", text)
    if not dotted:  # most strings of the code: listing the keys takes longer than all the rest
        return []
    known = config.known_keys()
    # The keywords of a chat template are the template's own.
    keys = {name: re.sub(r"\.(\d+|N)(?=\.|$)|(?<=\.chat)\.\w+$", "", name) for name in dotted}
    return [
        name
        for name, key in keys.items()
        if key not in known
        and key.split(".")[-1] not in FILES
        and not key.startswith("teachers.")  # followed by a name of the user's
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=lambda p: p.name)
def test_the_documentation_names_no_key_that_is_gone(page):
    assert not unknown_keys(page.read_text(encoding="utf-8"))


def test_no_message_names_a_key_that_is_gone():
    unknown = []
    for file in PRODUCT:
        if file.name == "removed.py":
            continue
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                unknown += [(file.name, node.lineno, name) for name in unknown_keys(node.value)]
    assert not unknown


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def functions(files: list[Path]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method, also of functions, with the name of its file and its own."""
    for file in files:
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name_of(file)}:{node.name}", node


def count_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    spec = function.args
    names = [a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_functions_and_argument_lists_are_short():
    larger = {
        name_of(file)
        for file in [*PRODUCT, *TESTS, *SCRIPTS]
        if len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    for files, arguments in ((PRODUCT, MAX_ARGUMENTS), (TESTS, math.inf)):
        larger |= {
            name
            for name, node in functions(files)
            if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
            or count_arguments(node) > arguments
        }
    assert {file if (file := name.split(":")[0]) in LARGER else name for name in larger} == {
        *LARGER
    }
    assert len(LARGER) <= 10


def undocumented(file: Path) -> list[str]:
    """Public functions, classes and methods of a module, and itself, without a docstring."""
    module = parse(file)
    bare = [] if ast.get_docstring(module) else [name_of(file)]
    named = [n for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    named += [
        method
        for node in module.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    ]
    return bare + [
        f"{name_of(file)}:{node.name}"
        for node in named
        if not node.name.startswith("_") and ast.get_docstring(node) is None
    ]


def test_public_names_are_documented():
    assert not [name for file in PRODUCT for name in undocumented(file)]


def test_few_modules_at_the_root_and_few_layers():
    assert len(list((ROOT / "src/opd").glob("*.py"))) <= ROOT_MODULES
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    assert len(layers) <= LAYERS
    assert not settings.get("exclude_type_checking_imports")
    packages = {p.name for p in (ROOT / "src/opd").iterdir() if (p / "__init__.py").exists()}
    named = {name.removeprefix("opd.") for layer in layers for name in layer.split(" | ")}
    assert packages <= named


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def retired_words(text: str) -> list[str]:
    """Lines of a text with a retired word, and what to say instead."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, say: {instead}"
        for pattern, instead in RETIRED.items()  # none of them reaches over the end of a line
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


def test_retired_words_stay_out_of_code_and_documentation():
    assert retired_words("16 rows a position")
    assert not retired_words("at a position that a student samples a token")
    files = [*PRODUCT, *SCRIPTS, *(f for f in TESTS if f.name != Path(__file__).name)]
    texts = {name_of(p): p.read_text(encoding="utf-8") for p in [*files, *PAGES]}
    pages = {name for name in texts if name.endswith(".md") and "not edited by hand" in texts[name]}
    passed = {*HISTORY, *pages}  # they keep the words of their day
    said = {name: retired_words(text) for name, text in texts.items() if name not in passed}
    assert not {name: lines for name, lines in said.items() if lines}


def defined_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of variables, attributes, arguments, functions and classes, where they are made."""
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_retired_words_are_no_names():
    assert not [
        f"{name_of(file)}:{line}: {name}, say: {RETIRED_NAMES[part.lower()]}"
        for file in [*PRODUCT, *SCRIPTS]
        for line, name in defined_names(parse(file))
        for part in re.findall(r"[A-Z]?[a-z0-9]+", name)
        if part.lower() in RETIRED_NAMES
    ]
