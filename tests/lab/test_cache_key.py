"""The name of a cached result changes with every module that can change a number, and no other."""

import ast

import pytest

from opd_lab.cache_key import EXPERIMENTS, NO_EFFECT, PACKAGES, hash_modules, read_modules

MODULES = read_modules(PACKAGES)
LEFT_OUT = (*NO_EFFECT, *EXPERIMENTS)
STATEMENT = "\nADDED = 1\n"


def key(modules):
    return hash_modules(modules, left_out=LEFT_OUT)


def changed(path, added):
    """All modules, with some text at the end of one that there is."""
    return MODULES | {path: MODULES[path] + added}


@pytest.mark.parametrize(
    "path",
    [
        "opd/data/readers.py",
        "opd/models/prefix_cache.py",
        "opd/setup/session.py",
        "opd_lab/worlds/chain.py",
    ],
)
def test_a_module_that_decides_numbers_counts(path):
    assert key(changed(path, STATEMENT)) != key(MODULES)


def test_every_module_counts_that_is_not_left_out():
    unchanged = key(MODULES)
    counted = {path for path in MODULES if key(changed(path, STATEMENT)) != unchanged}
    assert counted == {path for path in MODULES if not path.startswith(LEFT_OUT)}
    assert len(counted) > 80


@pytest.mark.parametrize("path", ["opd/new.py", "opd/training/new.py", "opd_lab/new.py"])
def test_a_new_module_counts(path):
    assert key(MODULES | {path: STATEMENT}) != key(MODULES)


def test_a_module_that_moves_counts():
    moved = dict(MODULES)
    moved["opd/core/elsewhere.py"] = moved.pop("opd/core/losses.py")
    assert key(moved) != key(MODULES)


@pytest.mark.parametrize(
    "path",
    [
        "opd/cli.py",
        "opd/reports/run_page.py",
        "opd/run/console.py",
        "opd_lab/findings_page.py",
        "opd_lab/experiments/supports.py",
    ],
)
def test_a_module_that_only_shows_does_not_count(path):
    assert key(changed(path, STATEMENT)) == key(MODULES)


def test_what_an_experiment_measures_decides_its_own_results():
    path = "opd_lab/experiments/supports.py"
    hashes = [
        hash_modules(modules, left_out=NO_EFFECT) for modules in (MODULES, changed(path, STATEMENT))
    ]
    assert hashes[0] != hashes[1]


def test_nothing_that_counts_asks_the_check():
    """Or its verdicts and pilots would decide numbers that its code is not part of the name of."""
    check = ("opd.commands.check", "opd.recipes.check", "opd.commands.auto")
    entrances = ("opd/commands/library.py", "opd/commands/train.py")  # of users, not of experiments
    counted = {path for path in MODULES if not path.startswith(NO_EFFECT)} - set(entrances)
    assert not {p for p in counted for name in imports(p) if name.startswith(check)}
    lab = {path for path in counted if path.startswith("opd_lab/")}
    commands = ("opd.commands.library", "opd.commands.train")
    assert not {p for p in lab for name in imports(p) if name.startswith(commands)}


def imports(path):
    """Names of modules that a module imports, with what it imports from them."""
    for node in ast.walk(ast.parse(MODULES[path])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_path_that_is_left_out_exists():
    for prefix in LEFT_OUT:
        assert any(path.startswith(prefix) for path in MODULES), prefix


def test_docstrings_comments_and_layout_do_not_count():
    path = "opd/core/losses.py"
    source = MODULES[path]
    assert key(changed(path, "\n# a comment\n\n\n")) == key(MODULES)
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    other = source.replace(docstring, "Another docstring.", 1)
    assert other != source
    assert key(MODULES | {path: other}) == key(MODULES)
    spaced = source.replace("\n\n\n", "\n\n\n\n\n")
    assert key(MODULES | {path: spaced}) == key(MODULES)
    text = "def f():\n    '''Doc.'''\n    return 1\n\n\nasync def g():\n    '''Doc.'''\n"
    same = "def f():\n    return 1\n\n\nasync def g():\n    '''Other.'''\n"
    assert key(MODULES | {"opd/new.py": text}) == key(MODULES | {"opd/new.py": same})
