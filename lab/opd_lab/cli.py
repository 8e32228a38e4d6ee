"""`opd lab`: commands that this package adds to `opd`. Nothing heavy is imported early."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The paper's findings on tiny models.")
Seeds = Annotated[int, typer.Option(help="Number of seeds; each retrains every checkpoint.")]
FirstSeed = Annotated[int, typer.Option(help="The first seed.")]
LabCache = Annotated[
    Path | None, typer.Option(help="Where checkpoints and runs are kept (default: ~/.cache/opd).")
]


@app.command("list")
def lab_list() -> None:
    """List checkpoints and experiments of the lab."""
    from opd_lab.commands import list_lab

    list_lab()


@app.command("build")
def lab_build(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints (default: all).")] = None,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    cache: LabCache = None,
) -> None:
    """Build checkpoints, each once, and measure their accuracy."""
    from opd_lab.commands import CACHE, build_zoo

    build_zoo(names or (), range(first_seed, first_seed + seeds), cache or CACHE)


@app.command("run")
def lab_run(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Such as E1 E5 (default: all of E1 to E16, which takes long)."),
    ] = None,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Five experiments, smaller.")] = False,
    jobs: Annotated[int, typer.Option(help="Seeds to run in parallel, one process each.")] = 1,
    cache: LabCache = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
    page: Annotated[
        str | None, typer.Option(help="Its file name (default: lab, or lab-quick).")
    ] = None,
) -> None:
    """Run experiments and write a page of findings, verdicts and figures."""
    from opd_lab.commands import CACHE, LabRun, run_lab

    run_lab(
        LabRun(
            names=names or (),
            seeds=range(first_seed, first_seed + seeds),
            quick=quick,
            jobs=jobs,
            cache=cache or CACHE,
            out=out,
            page=page,
        )
    )


@app.command("tuned")
def lab_tuned(
    page: Annotated[
        bool, typer.Option("--page", help="Write the page from the records, and train nothing.")
    ] = False,
    records: Annotated[
        Path | None, typer.Option(help="Records to continue (default: those of the package).")
    ] = None,
    cache: LabCache = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
) -> None:
    """On-policy distillation against supervised training, every arm at its own best rate."""
    from opd_lab.commands import CACHE
    from opd_lab.tuned.study import tuned

    tuned(records, cache or CACHE, out, train=not page)


@app.command("calibrate")
def lab_calibrate(
    refit: Annotated[
        bool, typer.Option("--refit", help="Refit the forecast of opd check, and stop.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Number of parallel processes.")] = 1,
    cache: LabCache = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
) -> None:
    """Compare what opd check predicts with what training does, on held-out pairs."""
    from opd_lab.calibration.commands import calibrate
    from opd_lab.commands import CACHE

    calibrate(refit=refit, jobs=jobs, cache=cache or CACHE, out=out)


@app.command("outcomes")
def lab_outcomes(
    block: Annotated[
        str, typer.Option(help="Runs to do: fit, fresh, repeat, half, real or real-part.")
    ] = "fit",
    first: Annotated[int, typer.Option(help="Number of the first run.")] = 0,
    count: Annotated[int, typer.Option(help="How many runs.")] = 600,
    cache: LabCache = None,
) -> None:
    """Train random pairs of generated worlds; what is done already is not done again."""
    from opd_lab.commands import CACHE
    from opd_lab.pairs.commands import run_outcomes

    run_outcomes(block, first, count, (cache or CACHE) / "pairs")


@app.command("records")
def lab_records(cache: LabCache = None) -> None:
    """Put the outcomes of a cache into the repository, compressed."""
    from opd_lab.commands import CACHE
    from opd_lab.pairs.commands import pack_records

    pack_records((cache or CACHE) / "pairs")


@app.command("judge")
def lab_judge(
    refit: Annotated[
        bool, typer.Option("--refit", help="Refit the forecast of opd check, and stop.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/lab"),
) -> None:
    """Judge the forecast of opd check, each world by a model fitted on the others."""
    from opd_lab.pairs.commands import judge_forecast

    judge_forecast(out, refit=refit)
