"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from opd.errors import UserError

app = typer.Typer(
    name="opd",
    help="On-policy distillation: the student writes, the teacher scores every token of it, the "
    "student learns from that.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file.", metavar="run.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change, such as train.steps=50.", metavar="[key=value ...]"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing while it runs.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


@app.callback()
def setup(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options before the command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # Retries of the hub client: what they come to is told once, by our own error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False
    if debug:
        _Debug.on = True


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("run.yaml"),
) -> None:
    """Write a commented run.yaml that validates."""
    from opd.template import RUN_YAML

    if file.exists():
        raise UserError(f"{file} exists and stays as it is. Give another name: opd init other.yaml")
    file.write_text(RUN_YAML, encoding="utf-8")
    typer.echo(f"Wrote {file}. Set student.model, teacher.model and prompts.path, then:")
    typer.echo(f"  opd train {file}")


@app.command()
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run folder and start over.")
    ] = False,
    quiet: Quiet = False,
    json_lines: Json = False,
) -> None:
    """Distil the teacher into the student, on the student's own rollouts."""
    from opd.config import load

    _train(load(file, overrides or ()), resume, overwrite, quiet, json_lines)


@app.command()
def check(
    file: ConfigFile,
    overrides: Overrides = None,
    self_: Annotated[
        bool, typer.Option("--self", help="The invariants of the mathematics, on this pair.")
    ] = False,
    json_lines: Json = False,
) -> None:
    """Prove on your own pair that a step computes what the configuration says."""
    if not self_:
        raise UserError("opd check needs --self: the invariants are the check there is.")
    from opd.config import load
    from opd.faces import run_self_check

    if not run_self_check(load(file, overrides or ()), json_lines):
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    target: Annotated[Path, typer.Argument(help="A run.yaml or a run folder.")],
    overrides: Overrides = None,
    json_lines: Json = False,
) -> None:
    """Accuracy of student and teacher on the held-out sets, with intervals."""
    from opd.faces import evaluate_target

    evaluate_target(target, overrides or (), json_lines)


@app.command("serve-teacher")
def serve_teacher(
    file: ConfigFile,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8400,
    score: Annotated[
        Path | None,
        typer.Option(help="Score these rollouts into teacher.cache.dir and end; serve nothing."),
    ] = None,
) -> None:
    """Serve teacher.model over HTTP, exact on tokens the student chose."""
    from opd.config import load
    from opd.serving import score_ahead, serve

    cfg = load(file, overrides or ())
    if score is not None:
        score_ahead(cfg, score)
    else:
        serve(cfg, host=host, port=port)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(help="Fewer or more steps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier demo.")] = True,
) -> None:
    """The whole story on a tiny shipped pair: no network, no GPU, about a minute."""
    from opd.lab.show import run_demo

    run_demo(out, steps, overwrite)


def _train(cfg: Any, resume: bool, overwrite: bool, quiet: bool, json_lines: bool) -> None:
    from opd.faces import run_train

    run_train(
        cfg,
        resume=resume,
        overwrite=overwrite,
        style="json" if json_lines else "quiet" if quiet else "auto",
    )


class _Debug:
    on = False


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        if _Debug.on:
            raise
        typer.echo(f"opd: {error}", err=True)
        sys.exit(2)
