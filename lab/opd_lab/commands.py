"""What `opd lab` does: list, build, run."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from opd.errors import UserError
from opd.run.console import Console
from opd_lab import page, zoo
from opd_lab.calibration import grid
from opd_lab.experiments import Bench, Entry, entries, quick_entries
from opd_lab.experiments.entry import measured, verdict, write
from opd_lab.runs import source_hash
from opd_lab.sheet import write_sheet

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "opd" / "lab"
QUICK = "quick-"
SMALL = (QUICK, grid.PREFIX)  # built by the commands that use them


def list_lab() -> None:
    """Checkpoints with their recipes, and experiments with their designs."""
    console = Console("plain")
    console.say("Checkpoints (opd lab build NAME ...):")
    for name, recipe in zoo.RECIPES.items():
        low, high = recipe.window
        console.say(f"  {name:<18} accuracy {low:.2f} to {high:.2f}; {zoo.how(recipe)}")
    console.say("\nExperiments (opd lab run NAME ...), those with * also in --quick:")
    quick = quick_entries()
    for name, entry in entries().items():
        console.say(f"  {name + '*' * (name in quick):<5} {entry.title}: {entry.design}")


def build_zoo(names: Sequence[str], seeds: Sequence[int], cache: Path) -> None:
    """Build checkpoints (all but the quick ones, if none is named) and tell what they can do.

    Raises:
        UserError: unknown name, or an accuracy outside its window.
    """
    console = Console("plain")
    _quiet()
    for seed in seeds:
        for name in names or [n for n in zoo.RECIPES if not n.startswith(SMALL)]:
            console.say(_told(zoo.card(name, seed, cache)))


def run_lab(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    quick: bool,
    jobs: int,
    cache: Path,
    out: Path,
    name: str | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run experiments on each seed and write the page of all that is in `out` by then.

    Args:
        names: experiments; none: all of them.
        seeds: one retrains every checkpoint.
        quick: the small set.
        jobs: processes at a time, one seed each, one thread each.
        cache: where checkpoints and runs are kept.
        out: folder of the page, its pictures and the numbers of each seed.
        name: of the page; None: lab, or lab-quick.

    Returns:
        Results by experiment, one a seed, earlier ones in `out` included.

    Raises:
        UserError: unknown experiment, a checkpoint outside its window.
    """
    known = quick_entries() if quick else entries()
    for each in names:
        if each not in known:
            also = " with --quick" if quick else ""
            raise UserError(f"No experiment {each!r}{also}; there are {', '.join(known)}.")
    chosen = list(names) or list(known)
    console, started = Console("plain"), time.monotonic()
    for seed in _of_seeds(seeds, chosen, quick, jobs, cache, out):
        console.say(f"seed {seed}: done")
    found = {each: results for each in known if (results := kept(out, each, quick))}
    shown = sorted({result["seed"] for results in found.values() for result in results})
    facts = _facts(shown, time.monotonic() - started, jobs)
    name = name or (page.QUICK_PAGE if quick else "lab")
    path = page.write_page(out, known, found, _cards(shown, quick, cache), facts=facts, name=name)
    sheet = write_sheet(path.with_suffix(".html"), known, found, facts=facts)
    for each in chosen:
        decided = verdict(known[each], [result["numbers"] for result in found[each]])
        console.say(f"{each:<4} {known[each].title}: {decided}")
    console.say(f"Page: {path} and, with curves to look at, {sheet}")
    return found


def _of_seeds(
    seeds: Sequence[int], names: Sequence[str], quick: bool, jobs: int, cache: Path, out: Path
) -> Iterable[int]:
    if jobs == 1:
        for seed in seeds:
            run_seed(seed, names, quick, cache, out)
            yield seed
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        under_way = {pool.submit(run_seed, seed, names, quick, cache, out): seed for seed in seeds}
        for done in as_completed(under_way):
            done.result()
            yield under_way[done]


def run_seed(
    seed: int, names: Sequence[str], quick: bool, cache: Path, out: Path
) -> list[dict[str, Any]]:
    """All experiments of one seed, on one thread: where a seed is run does not change it.

    Each result is on disk as soon as it is there: `out/seed-N/NAME.json`.
    """
    torch.set_num_threads(1)
    _quiet()
    known: Mapping[str, Entry] = quick_entries() if quick else entries()
    results = []
    for name in names:
        result = measured(known[name], Bench(seed, cache))
        result |= {"quick": quick, "source": source_hash()}
        write(out / f"seed-{seed}" / f"{name}.json", result)
        results.append(result)
    return results


def kept(out: Path, name: str, quick: bool) -> list[dict[str, Any]]:
    """Results of an experiment in a folder, by seed: of this code and this size alone.

    So seeds may be run apart from each other, and a page never mixes two versions.
    """
    found = [json.loads(path.read_text("utf-8")) for path in out.glob(f"seed-*/{name}.json")]
    same = [r for r in found if (r["quick"], r["source"]) == (quick, source_hash())]
    return sorted(same, key=lambda result: int(result["seed"]))


def _facts(seeds: Sequence[int], seconds: float, jobs: int) -> dict[str, str]:
    words = [word for word in sys.argv[1:] if word]
    if "--cache" in words:  # where somebody keeps files changes nothing
        at = words.index("--cache")
        del words[at : at + 2]
    command = " ".join(["opd", *words])
    return {
        "Command": f"`{command}`",
        "Seeds": ", ".join(map(str, seeds)),
        "Time": f"{seconds / 60:.1f} minutes, {jobs} process(es) of one thread",
        "Versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()})",
    }


def _cards(seeds: Sequence[int], quick: bool, cache: Path) -> list[dict[str, Any]]:
    """Cards of the checkpoints that are there."""
    return [
        zoo.card(name, seed, cache)
        for name in zoo.RECIPES
        if not name.startswith(grid.PREFIX)
        for seed in seeds
        if name.startswith(QUICK) == quick and (cache / zoo.folder_name(name, seed)).is_dir()
    ]


def _told(card: Mapping[str, Any]) -> str:
    accuracy = card["accuracy"]
    return (
        f"{card['name']:<18} seed {card['seed']}  accuracy {accuracy['value']:.3f} "
        f"({accuracy['low']:.3f} to {accuracy['high']:.3f})  pattern 2 {card['pattern_2']:.2f}  "
        f"{card['seconds']:.0f} s"
    )


def _quiet() -> None:
    """No progress bars for files that are written in a moment."""
    transformers_logging.disable_progress_bar()
