"""`opd lab`: commands that this package adds to `opd`. Nothing heavy is imported early."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="The paper's findings, reproduced on tiny models.")
Seeds = Annotated[int, typer.Option(help="How many seeds; each retrains every checkpoint.")]
FirstSeed = Annotated[int, typer.Option(help="The first of them.")]
LabCache = Annotated[
    Path | None, typer.Option(help="Where checkpoints and runs are kept (default: ~/.cache/opd).")
]


@app.command("list")
def lab_list() -> None:
    """Checkpoints and experiments of the lab."""
    from opd_lab.commands import list_lab

    list_lab()


@app.command("build")
def lab_build(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints; none: all.")] = None,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    cache: LabCache = None,
) -> None:
    """Build checkpoints, each once, and measure what they can do."""
    from opd_lab.commands import CACHE, build_zoo

    build_zoo(names or (), range(first_seed, first_seed + seeds), cache or CACHE)


@app.command("run")
def lab_run(
    names: Annotated[list[str] | None, typer.Argument(help="Such as E1 E5; none: all.")] = None,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Five experiments, smaller.")] = False,
    jobs: Annotated[int, typer.Option(help="Seeds run at once, a process each.")] = 1,
    cache: LabCache = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
    page: Annotated[str | None, typer.Option(help="Its name; lab, or lab-quick.")] = None,
) -> None:
    """Run experiments and write a page: findings, verdicts, pictures."""
    from opd_lab.commands import CACHE, run_lab

    chosen, cache = range(first_seed, first_seed + seeds), cache or CACHE
    where: dict[str, Any] = {"cache": cache, "out": out, "name": page}
    run_lab(names or (), seeds=chosen, quick=quick, jobs=jobs, **where)


@app.command("calibrate")
def lab_calibrate(
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit the model of opd check anew, and stop there.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = 1,
    cache: LabCache = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
) -> None:
    """Hold what opd check says against what training does, on pairs nobody fitted."""
    from opd_lab.calibration.commands import calibrate
    from opd_lab.commands import CACHE

    calibrate(refit=refit, jobs=jobs, cache=cache or CACHE, out=out)
