"""Everything that can be wrong with a run and is known before weights are loaded, all at once.

Configurations, tokenizers and files are read, no weights: seconds, on the largest pair. Whatever is
found wrong is in one message, and nothing has been written.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from opd import config
from opd.config import EvalSet, Run
from opd.errors import UserError
from opd.run.console import Console
from opd.run.layout import INPUTS
from opd.run.preflight import stored_and_new
from opd.setup.disk_estimate import require_space_for_weights
from opd.setup.inputs import Inputs, check_inputs
from opd.setup.memory_advice import require_memory
from opd.setup.memory_bound import require_memory_for_weights
from opd.setup.notes import find_notes, find_overlaps
from opd.setup.problems import Problems
from opd.setup.samplers import ServedContext, require_rollout_server
from opd.setup.settings import look_at_settings
from opd.setup.tokenized_pair import TokenizedPair

log = logging.getLogger(__name__)

# Keys of a held-out set that decide which prompts it has; they may change on resume.
OF_EVAL_PROMPTS = ("path", "template", "chat", "limit", "max_new_tokens")


def read_inputs(
    cfg: Run,
    console: Console,
    *,
    trains: bool = True,
    judges_pair: bool = False,
    problems: Problems | None = None,
) -> Inputs:
    """Read and check all that a run reads beside weights.

    Args:
        cfg: the run.
        console: shows how many prompts are too long.
        trains: False for commands that write no run folder.
        judges_pair: the command itself judges whether the two fit together.
        problems: found before, to be said with those found here.

    Raises:
        UserError: with everything that is wrong.
    """
    problems = problems or Problems()
    look_at_settings(cfg, problems, trains=trains)
    served = None
    if cfg.rollout.url is not None:
        served = problems.attempt(require_rollout_server, cfg)
    pair, inputs = check_inputs(cfg, console, problems, judges_pair=judges_pair)
    if served is not None:
        problems.attempt(_require_served_lengths, cfg, served, inputs)
    if pair is not None and trains:
        _require_room(cfg, pair, inputs, problems)
    problems.raise_all()
    assert pair is not None
    assert inputs.prompts is not None
    inputs.models = {r: f.identity for r, f in pair.models().items()}
    inputs.overlaps = find_overlaps(cfg, [p.index for p in inputs.prompts.prompts])
    inputs.notes = find_notes(cfg, inputs.prompts, pair.templates, pair.tokenizer)
    for note in (*map(str, inputs.overlaps), *inputs.notes):
        log.warning(note)
    return inputs


def require_same_inputs(cfg: Run, inputs: Inputs) -> None:
    """Refuse to resume a run whose prompts or models have changed since it began.

    Raises:
        UserError: naming what changed.
    """
    path = Path(cfg.output.dir) / INPUTS
    try:
        before = json.loads(path.read_bytes())["hashes"]
    except FileNotFoundError:
        return  # a run of an earlier version
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged. Remove it to resume without comparing.") from None
    now = inputs.record()["hashes"]
    others = {f"eval {label}" for label in _changed_evals(cfg)}
    changed = [k for k in now if k in before and before[k] != now[k] and k not in others]
    if changed:
        raise UserError(
            f"Since the run in {cfg.output.dir} began, this has changed: {', '.join(changed)}. "
            "Going on would mix two runs. Put the old files back, or start a new run (another "
            "output.dir)."
        )


def _changed_evals(cfg: Run) -> list[str]:
    """Held-out sets whose prompts are meant to be others than before: by their own keys."""
    stored, new = stored_and_new(Path(cfg.output.dir), config.dump(cfg))
    before, now = (
        {EvalSet(**each).label: [each[key] for key in OF_EVAL_PROMPTS] for each in run["eval"]}
        for run in (stored, new)
    )
    return [label for label, keys in now.items() if keys != before.get(label)]


def _require_served_lengths(cfg: Run, served: ServedContext, inputs: Inputs) -> None:
    """The run's longest prompts and whole completions must fit into the rollout server's context.

    Raises:
        UserError: some do not.
    """
    if served.tokens is None:
        return
    limit = cfg.rollout.max_new_tokens
    needs = []
    if inputs.longest_prompt is not None:
        needs.append((inputs.longest_prompt, "rollout.max_new_tokens", limit))
    for task in inputs.evals:
        key = "rollout.max_new_tokens"
        for i, spec in enumerate(cfg.eval):
            if spec.label == task.label and spec.max_new_tokens is not None:
                key = f"eval.{i}.max_new_tokens"
        longest = max(len(prompt.ids) for prompt in task.prompts.prompts)
        needs.append((longest, key, task.decoding.max_new_tokens))
    beyond = [need for need in needs if need[0] + need[2] > served.tokens]
    if not beyond:
        return
    parts = [f"{key}={new} has {prompt + new} tokens" for prompt, key, new in dict.fromkeys(beyond)]
    most = max(prompt + new for prompt, _, new in beyond) + served.unused
    raise UserError(
        f"rollout.url={cfg.rollout.url}: the server takes at most {served.tokens} tokens of prompt "
        f"and completion, and the longest prompt with {', with '.join(parts)}. Lower "
        f"{' and '.join(dict.fromkeys(key for _, key, _ in beyond))}, or prompts.max_tokens "
        f"({cfg.prompts.max_tokens}; longer prompts are left out), or start the server with "
        f"{served.option} {most} or more."
    )


def _require_room(cfg: Run, pair: TokenizedPair, inputs: Inputs, problems: Problems) -> None:
    """Disk and memory; of a run that cannot be planned the least that it needs."""
    folders = {key: Path(facts.name).expanduser() for key, facts in pair.models().items()}
    student, *teachers = folders.values()
    if student.is_dir():
        problems.attempt(require_space_for_weights, cfg, student)
    before = len(problems.messages)
    problems.attempt(require_memory, cfg, inputs.longest_prompt)
    if len(problems.messages) == before and student.is_dir():
        local = [folder for folder in teachers if folder.is_dir()]
        problems.attempt(require_memory_for_weights, cfg, student, local)
