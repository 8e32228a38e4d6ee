"""How many keys there are, and that what is shipped or shown of run.yaml is true."""

from __future__ import annotations

import ast
import re
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
    "optim.moments": "trades exactness for memory, where the host has none to offload to",
    "train.deterministic": "trades speed for equal bits on a GPU",
}
FIRST_SCREEN = 20

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lab/*.md")]
FOLDERS = ("src", "lab", "examples", "benchmarks", "docs", "demo-data")
HISTORY = ("CHANGELOG.md", "LOG.md")  # they name what was
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
        pieces += [(page.name, piece) for piece, name in inline if name in config.Run.model_fields]
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.y*ml")]
    return pieces + [(path.name, path.read_text(encoding="utf-8")) for path in files]


@pytest.mark.parametrize(("page", "text"), yaml_shown())
def test_every_yaml_that_is_shown_loads(page, text):
    data = MINIMAL | yaml.safe_load(text)
    if (data.get("coldstart") or {}).get("when") == "alarm":  # shown apart from what it needs
        data |= {"alarms": {"action": "act"}}
    config.parse(data, where=page)


def test_yaml_is_looked_for_where_it_is():
    assert len(yaml_shown()) > 10


FILES = ("jsonl", "json", "md", "py", "html", "parquet")


def unknown_keys(text: str) -> list[str]:
    """Dotted names that begin with a section of run.yaml and are no key of it."""
    known = config.known_keys()
    sections = "|".join(config.Run.model_fields)
    dotted = re.findall(rf"(?<![\w./])((?:{sections})(?:\.[a-z_0-9N]+)+)(?![\w(])", text)
    # The keywords of a chat template are the template's own.
    keys = {name: re.sub(r"\.(\d+|N)(?=\.|$)|(?<=\.chat)\.\w+$", "", name) for name in dotted}
    return [
        name for name, key in keys.items() if key not in known and key.split(".")[-1] not in FILES
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=lambda p: p.name)
def test_the_documentation_names_no_key_that_is_gone(page):
    assert not unknown_keys(page.read_text(encoding="utf-8"))


def test_no_message_names_a_key_that_is_gone():
    unknown = []
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "lab").rglob("*.py")]:
        if file.name == "removed.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                unknown += [(file.name, node.lineno, name) for name in unknown_keys(node.value)]
    assert not unknown
