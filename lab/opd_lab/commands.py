"""What `opd lab list`, `build` and `run` do."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from opd.errors import UserError
from opd.run.console import Console
from opd_lab import more_checkpoints, zoo
from opd_lab.cache_key import experiment_hash
from opd_lab.calibration import grid
from opd_lab.checkpoints import RECIPES
from opd_lab.experiments import (
    all_experiments,
    experiments_of,
    more_experiments,
    quick_experiments,
)
from opd_lab.experiments.experiment import verdict
from opd_lab.experiments.results import (
    SeedResult,
    load_results,
    numbers_of,
    run_experiment,
    save_result,
)
from opd_lab.experiments.workspace import Workspace
from opd_lab.findings_page import findings_document, words_of, write_findings
from opd_lab.tuned import regimes

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "opd" / "lab"
SMALL = ("quick-", more_checkpoints.PREFIX)  # checkpoints of --quick and of E19 on
BUILT_ON_USE = (
    *SMALL,
    grid.PREFIX,
    regimes.PREFIX,
)  # not built unless named, or used by a command
# Measured with one thread, on a machine that did other work too.
TIME_OF_ALL = "Three seeds of all took 117 minutes (docs/lab.md)."
TIME_OF_QUICK = (
    "Three seeds of these took 11 minutes on two shared cores, some checkpoints made before "
    "(docs/lab-quick.md)."
)


@dataclass(frozen=True)
class LabRun:
    """What `opd lab run` was asked for.

    Attributes:
        names: experiments; none: all of them.
        seeds: one retrains every checkpoint.
        quick: the small set.
        jobs: processes at a time, one seed each, one thread each.
        cache: where checkpoints and runs are kept.
        out: folder of the page, its figures and the numbers of each seed.
        page: file name of the page without suffix; None: lab, or lab-quick.
    """

    names: Sequence[str]
    seeds: Sequence[int]
    quick: bool = False
    jobs: int = 1
    cache: Path = CACHE
    out: Path = Path("runs/lab")
    page: str | None = None


def list_lab() -> None:
    """Print checkpoints with their recipes, and experiments with their designs."""
    console = Console("plain")
    console.print("Checkpoints (opd lab build NAME ...):")
    for name, recipe in RECIPES.items():
        low, high = recipe.accuracy_range
        console.print(f"  {name:<18} accuracy {low:.2f} to {high:.2f}; {zoo.describe(recipe)}")
    console.print(
        "\nExperiments (opd lab run NAME ...), those with * also in --quick; from E19 on where "
        "they are named alone:"
    )
    quick = quick_experiments()
    for name, experiment in experiments_of(quick=False).items():
        label = name + "*" * (name in quick)
        console.print(f"  {label:<5} {experiment.title}: {experiment.design}")


def build_zoo(names: Sequence[str], seeds: Sequence[int], cache: Path) -> None:
    """Build checkpoints (if none is named, all but the quick ones) and print their accuracy.

    Raises:
        UserError: unknown name, or an accuracy outside its range.
    """
    console = Console("plain")
    transformers_logging.disable_progress_bar()
    for seed in seeds:
        for name in names or [n for n in RECIPES if not n.startswith(BUILT_ON_USE)]:
            console.print(_card_line(zoo.card(name, seed, cache)))


def run_lab(request: LabRun) -> dict[str, list[SeedResult]]:
    """Run experiments on each seed and write the page of all results in the output folder.

    Returns:
        Results by experiment, one per seed.

    Raises:
        UserError: unknown experiment, a checkpoint outside its accuracy range.
    """
    experiments = experiments_of(quick=request.quick)
    for name in request.names:
        if name not in experiments:
            which = " with --quick" if request.quick else ""
            raise UserError(f"No experiment {name!r}{which}; there are {', '.join(experiments)}.")
    names = list(request.names) or experiments_when_unnamed(request.quick)
    console, started = Console("plain"), time.monotonic()
    if not request.names:
        _say_what_is_run(console, names, request)
    for seed in _run_seeds(request, names):
        console.print(f"seed {seed}: done")
    # What was asked for and nothing else, so that the command on the page makes this page.
    results = {
        name: [
            result
            for result in load_results(request.out, experiments[name], quick=request.quick)
            if result.seed in request.seeds
        ]
        for name in experiments
        if name in names
    }
    seeds = list(request.seeds)
    facts = _facts(request, time.monotonic() - started)
    small = request.quick or set(names) <= set(more_experiments())
    cards = _cards(seeds, small, request.cache)
    document = findings_document(experiments, results, cards, facts=facts)
    page = request.page or ("lab-quick" if request.quick else "lab")
    path = write_findings(document, results, request.out, page)
    for name in names:
        decided = words_of(experiments[name])[verdict(experiments[name], numbers_of(results[name]))]
        console.print(f"{name:<4} {experiments[name].title}: {decided}")
    console.print(f"Page: {path}, and as Markdown {path.with_suffix('.md')}")
    return results


def experiments_when_unnamed(quick: bool) -> list[str]:
    """What `opd lab run` runs if no experiment is named."""
    return list(quick_experiments() if quick else all_experiments())


def _say_what_is_run(console: Console, names: Sequence[str], request: LabRun) -> None:
    """Where no experiment was named: which are run, for how long, and how to run fewer."""
    count = len(request.seeds)
    console.note(
        f"No experiment is named: all {len(names)} are run ({', '.join(names)}), on "
        f"{count} seed{'s' * (count > 1)}."
    )
    if request.quick:
        console.note(
            f"{TIME_OF_QUICK} `opd lab list` says what each is; `opd lab run --quick E1` runs one."
        )
    else:
        console.note(
            f"{TIME_OF_ALL} `opd lab list` says what each is, `opd lab run E1` runs one, and "
            f"`opd lab run --quick` {len(quick_experiments())} small ones."
        )


def _run_seeds(request: LabRun, names: Sequence[str]) -> Iterable[int]:
    if request.jobs == 1:
        for seed in request.seeds:
            run_seed(request, names, seed)
            yield seed
        return
    with ProcessPoolExecutor(request.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_seed, request, names, seed): seed for seed in request.seeds}
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def run_seed(request: LabRun, names: Sequence[str], seed: int) -> dict[str, SeedResult]:
    """Run experiments on one seed and one thread: where a seed runs does not change it.

    Each result is saved under `request.out` as soon as it is there.
    """
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    experiments, workspace = experiments_of(quick=request.quick), Workspace(seed, request.cache)
    results, console = {}, Console("plain")
    for number, name in enumerate(names, start=1):
        console.note(f"seed {seed}: {name} ({number} of {len(names)}) begins")
        results[name] = run_experiment(experiments[name], workspace)
        save_result(request.out, name, results[name], quick=request.quick)
        console.note(f"seed {seed}: {name} took {results[name].seconds:.0f} s")
    return results


def _facts(request: LabRun, seconds: float) -> dict[str, str]:
    return {
        "Command": command_of(request),
        "Commit": commit(),
        "Source": f"{experiment_hash()[:16]} (hash of all code that can change a number)",
        "Seeds": ", ".join(map(str, request.seeds)),
        "Time": f"{seconds / 60:.1f} minutes for this command, {request.jobs} process(es) of one "
        "thread; what the cache held already took its time before",
        "Versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()})",
    }


def command_of(request: LabRun) -> str:
    """The command that makes this page again; where files are kept changes nothing."""
    seeds = request.seeds
    words = ["opd", "lab", "run", *request.names, "--seeds", str(len(seeds))]
    words += ["--first-seed", str(seeds[0])] if seeds[0] else []
    words += ["--quick"] if request.quick else []
    words += ["--page", request.page] if request.page else []
    return " ".join(words)


def commit() -> str:
    """The commit that is checked out, and whether files differ from it; without git: unknown."""
    root = Path(__file__).parent
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
            ).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + (", with changes that are not committed" if changes.strip() else "")


def _cards(seeds: Sequence[int], small: bool, cache: Path) -> list[dict[str, Any]]:
    """Cards of the checkpoints that have been built, of the small ones or of the others."""
    return [
        zoo.card(name, seed, cache)
        for name in RECIPES
        if not name.startswith((grid.PREFIX, regimes.PREFIX))
        for seed in seeds
        if name.startswith(SMALL) == small and (cache / zoo.folder_name(name, seed)).is_dir()
    ]


def _card_line(card: Mapping[str, Any]) -> str:
    accuracy = card["accuracy"]
    return (
        f"{card['name']:<18} seed {card['seed']}  accuracy {accuracy['value']:.3f} "
        f"({accuracy['low']:.3f} to {accuracy['high']:.3f})  pattern 2 {card['pattern_2']:.2f}  "
        f"{card['seconds']:.0f} s"
    )
