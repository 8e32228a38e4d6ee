"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import logging
import math
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from opd.commands.first_commands import FIRST_COMMANDS
from opd.commands.process_exit import (
    end,
    end_on_sigterm,
    fail,
    forget_messages,
    interruptible,
    report_crash,
)
from opd.errors import UserError

app = typer.Typer(
    name="opd",
    help="On-policy distillation: the student samples completions, the teacher scores every "
    "token of them, and the student learns from the scores.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file.", metavar="run.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change, such as train.steps=50.", metavar="[key=value ...]"),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing while it runs.")]
Local = Annotated[
    str | None,
    typer.Option(help="Folder of the model a teacher server serves, to compare its scores with."),
]
JsonResult = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
JsonList = Annotated[bool, typer.Option("--json", help="One JSON list instead of text.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


def show_version(wanted: bool) -> None:
    """Print the version and leave, for --version."""
    if wanted:
        from opd.run.env import package_versions

        typer.echo(f"opd {package_versions()['opd']}")
        raise typer.Exit


@app.callback()
def setup(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options before the command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # The hub client's retries stay quiet: our own error reports how they ended. Its package sets
    # its own level when it is imported, from this variable.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if debug:
        _Debug.on = True


@app.command(short_help="Write a commented, valid run.yaml.")
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("run.yaml"),
) -> None:
    """Write a commented run.yaml that validates."""
    from opd.config.template import RUN_YAML
    from opd.run.disk import write_output
    from opd.run.outputs import require_free

    require_free(file, {}, key="FILE", replace="")
    write_output(file, RUN_YAML.encode())
    typer.echo(f"Wrote {file}. Set student.model, teacher.model and prompts.path, then:")
    typer.echo(f"  opd check {file}\n  opd train {file}")


@app.command(short_help="Distil the teacher into the student.")
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder and start over.")
    ] = False,
    quiet: Quiet = False,
    json_lines: Json = False,
) -> None:
    """Distil the teacher into the student, on the student's own rollouts."""
    from opd.commands.look import load_and_look

    cfg = load_and_look(file, overrides or (), trains=True, resume=resume, overwrite=overwrite)
    _train(cfg, resume, overwrite, quiet, json_lines)


@app.command(short_help="Imitate the teacher's completions first.")
def coldstart(
    file: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted one.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder and start over.")
    ] = False,
    quiet: Quiet = False,
    json_lines: Json = False,
) -> None:
    """Imitate the teacher's completions until the student can learn on-policy."""
    from opd.commands.look import load_and_look

    cfg = load_and_look(file, overrides or (), trains=True, resume=resume, overwrite=overwrite)
    from opd.commands.coldstart import run_coldstart

    run_coldstart(
        cfg,
        resume=resume,
        overwrite=overwrite,
        style="json" if json_lines else "quiet" if quiet else "auto",
    )


@app.command(short_help="Choose prompts from which this student can learn.")
def select(
    file: ConfigFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace select.output and its report.")
    ] = False,
    json_lines: JsonResult = False,
) -> None:
    """Choose the prompts, and the template, on which this teacher can teach this student."""
    from opd.commands.look import look_at_selection

    cfg = look_at_selection(file, overrides or (), overwrite=overwrite)
    from opd.commands.select import run_select

    run_select(cfg, json_lines, overwrite=overwrite)


@app.command(short_help="Before a run: will this teacher help this student?")
def check(
    file: ConfigFile,
    overrides: Overrides = None,
    budget: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds; default 5 % of a long run, two minutes of a short one."),
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(help="Write the file with the advice followed.")
    ] = None,
    self_: Annotated[bool, typer.Option("--self", help="The same as opd verify.")] = False,
    local: Local = None,
    json_lines: Json = False,
) -> None:
    """Before a run: will this teacher, or which of these, help this student on these prompts?

    Exits with 1 for a no-go.
    """
    if self_ and (budget is not None or apply is not None):
        raise UserError("--budget and --apply change nothing with --self, which predicts nothing.")
    if self_:
        verify(file, overrides, local, json_lines)
        return
    if local is not None:
        raise UserError("--local belongs to opd verify, or to opd check --self.")
    if budget is not None and not math.isfinite(budget):
        raise UserError(f"--budget={budget} is no number of seconds.")
    from opd.commands.look import look_at_check

    look_at_check(file, overrides or (), apply)
    from opd.commands.check import run_check

    result = run_check(file, overrides or (), budget=budget, apply=apply, json_lines=json_lines)
    if result.best.verdict == "don't":
        raise typer.Exit(1)


@app.command(short_help="Is the mathematics right on this pair?")
def verify(
    file: ConfigFile,
    overrides: Overrides = None,
    local: Local = None,
    json_lines: JsonList = False,
) -> None:
    """The invariants of the mathematics, checked on this pair. Exits with 1 if one is broken."""
    from opd.commands.look import load_and_look

    cfg = load_and_look(file, overrides or ())
    from opd.commands.verify import run_verify

    if not run_verify(cfg, json_lines=json_lines, local=local):
        raise typer.Exit(1)


@app.command("eval", short_help="Accuracy of student and teacher on held-out sets.")
def evaluate(
    target: Annotated[Path, typer.Argument(help="A run.yaml or a run folder.")],
    overrides: Overrides = None,
    json_lines: Json = False,
) -> None:
    """Accuracy of student and teacher on the held-out sets, with intervals."""
    from opd.commands.eval import evaluate_target

    evaluate_target(target, overrides or (), "json" if json_lines else "plain")


@app.command("serve-teacher", short_help="Serve a local model as a teacher over HTTP.")
def serve_teacher(
    file: ConfigFile,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8400,
    score: Annotated[
        Path | None,
        typer.Option(help="Score these rollouts into teacher.cache.dir and end; serve nothing."),
    ] = None,
) -> None:
    """Serve teacher.model over HTTP, exact on tokens the student chose."""
    from opd.config import load

    cfg = load(file, overrides or ())
    if score is not None:
        from opd.commands.score import score_ahead

        score_ahead(cfg, score)
    else:
        from opd.commands.outputs import require_address

        require_address(host, port)
        from opd.commands.serve_teacher import serve

        serve(cfg, host=host, port=port)


@app.command(short_help="One HTML report of a run, finished or not.")
def report(
    run: RunFolder,
    live: Annotated[
        bool, typer.Option("--live", help="Rewrite the report until the run ends.")
    ] = False,
    as_json: JsonResult = False,
) -> None:
    """A self-contained HTML report of a run, finished or not, with a JSON sidecar."""
    from opd.commands import report as commands

    if live:
        say = (lambda line: None) if as_json else typer.echo
        commands.live_report(run, interval=20.0, say=say)
    document, page = commands.report_and_write(run)
    typer.echo(commands.verdict_json(document, page) if as_json else page)


@app.command()
def watch(
    run: RunFolder,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two views.")] = 2.0,
    json_lines: Json = False,
) -> None:
    """A live view of a run in the terminal."""
    from opd.commands import watch as commands

    if json_lines:
        commands.watch_as_json(run, interval=every, say=typer.echo)
    else:
        commands.watch(run, interval=every)


@app.command(short_help="A live page of runs in the browser.")
def dash(
    runs: Annotated[
        Path, typer.Argument(help="A folder of runs, or a run.", metavar="[RUNS]")
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0: a free one.")] = 8420,
) -> None:
    """A live page of runs in the browser, on this machine alone; can stop and continue them."""
    from opd.commands import dash as commands

    commands.serve(runs, port=port, say=typer.echo)


@app.command(short_help="Two runs or more, paired prompt by prompt.")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is the base.")],
    out: Annotated[Path, typer.Option(help="The report to write.")] = Path("compare.html"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older report of that name.")
    ] = False,
    as_json: JsonResult = False,
) -> None:
    """Two runs or more, paired prompt by prompt; runs of several seeds are compared as groups."""
    from opd.commands import report as commands

    document, page = commands.compare_and_write(runs, out, overwrite=overwrite)
    typer.echo(commands.comparison_text(document, page, as_json=as_json))


@app.command(short_help="The trained student as a Hugging Face folder.")
def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/export if absent.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge a LoRA adapter into the weights.")
    ] = False,
    as_json: JsonResult = False,
) -> None:
    """The trained student as a plain Hugging Face folder with a model card, reloaded to check."""
    from opd.commands.export import export_run

    exported = export_run(run, out, merge=merge)
    typer.echo(exported.json() if as_json else exported)


@app.command(short_help="A whole run of a tiny shipped pair.")
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer or more steps.")] = None,
) -> None:
    """The whole story on a tiny shipped pair, no network, no GPU; replaces an earlier demo."""
    from opd.commands.demo import run_demo

    run_demo(out, steps)


def _train(cfg: Any, resume: bool, overwrite: bool, quiet: bool, json_lines: bool) -> None:
    from opd.commands.check.slow_products import warn_of_slow_products
    from opd.commands.train import run_train

    warn_of_slow_products(cfg)
    run_train(
        cfg,
        resume=resume,
        overwrite=overwrite,
        style="json" if json_lines else "quiet" if quiet else "auto",
    )


class _Debug:
    on = False


def add_plugins() -> None:
    """Add the commands of other installed distributions: entry points of the group opd.commands."""
    plugins = {point.name: point for point in entry_points(group="opd.commands")}
    for name, point in plugins.items():
        app.add_typer(point.load(), name=name)
    if "lab" not in plugins:

        @app.command("lab", hidden=True, context_settings={"ignore_unknown_options": True})
        def lab(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
            """The paper's findings on tiny models."""
            raise UserError(
                "opd lab is a package of its own, opd-lab, which is not installed. In a clone of "
                "the repository: pip install -e lab"
            )


add_plugins()


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    if len(sys.argv) == 1:
        typer.echo(FIRST_COMMANDS)
        return
    forget_messages()
    end_on_sigterm()
    for command in app.registered_commands:
        command.callback = interruptible(command.callback)
    try:
        app(standalone_mode=True)
    except UserError as error:
        if _Debug.on:
            raise
        fail(str(error), 2)
    except SystemExit as done:
        if isinstance(done.code, str):  # what the interpreter itself makes of it
            typer.echo(done.code, err=True)
        end(done.code if isinstance(done.code, int) else int(done.code is not None))
    except BrokenPipeError:  # of `opd ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        end(141)
    except Exception as error:
        if _Debug.on:
            raise
        report_crash(error)
