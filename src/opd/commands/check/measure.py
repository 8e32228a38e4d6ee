"""Every number of a pair and its run, of a given size: what a forecast is fitted on.

`opd check` measures the same numbers within a budget; here the caller says how much of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from opd.commands.check.candidates import Candidate, load_candidate, teacher_labels
from opd.commands.check.rounds import make_probe_config
from opd.config import Run
from opd.core.stats import Estimate
from opd.data.graders import grader_for
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.recipes.check.features import compute_features
from opd.recipes.check.fixed_texts import FixedTexts, Reading, fix_texts, read
from opd.recipes.check.pilot import Pilot
from opd.recipes.check.pilot_features import as_stretch, moment_features, resampled_features
from opd.recipes.check.probe import (
    ProbeConfig,
    ProbeModel,
    StudentSide,
    TeacherSide,
    answer,
    probe_student,
    probe_teacher,
)
from opd.recipes.check.settings import RunSettings
from opd.run.console import Console
from opd.setup.models import Models, local_teacher, token_budget
from opd.setup.objective import make_objective
from opd.setup.precision import prepare_weights
from opd.setup.prompts import load_training_prompts
from opd.setup.samplers import student_sampler
from opd.setup.session import experience_source, make_learner, make_pruning
from opd.training.horizon import Horizon
from opd.training.optimizer import make_optimizer
from opd.training.throwaway import throwaway
from opd.types import Prompt

STRETCH_PATH = 0.5  # of the run's sum of learning rates, which the raised rate aims at ...
MAX_STRETCH = 8.0  # ... times the run's own rate at most: beyond it AdamW tears a student apart


@dataclass(frozen=True)
class PilotResult:
    """What a pilot measured.

    Attributes:
        moments: `pilot_*` after 1, 2, 4, ... steps and after the last.
        stretch: `stretch_*`; empty without such steps.
        seconds: of its steps and measurements.
        tokens: generated in both.
    """

    moments: tuple[Mapping[str, Estimate], ...] = ()
    stretch: Mapping[str, Estimate] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0

    @property
    def features(self) -> dict[str, Estimate]:
        """Of the last moment, and of the stretch."""
        return {**(self.moments[-1] if self.moments else {}), **self.stretch}


@dataclass(frozen=True)
class Measurement:
    """Everything that is known of a pair and its run before training.

    Attributes:
        features: static ones, those of the pilot's last moment, those of the stretch.
        moments: `pilot_*` features after 1, 2, 4, ... steps.
        run: the settings.
        seconds: by part: probe, pilot.
        tokens: generated, by part.
    """

    features: dict[str, Estimate]
    moments: tuple[dict[str, Estimate], ...]
    run: RunSettings
    seconds: dict[str, float]
    tokens: dict[str, int]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Measurement:
        """The inverse of `record`."""
        return Measurement(
            _estimates(record["features"]),
            tuple(_estimates(moment) for moment in record["moments"]),
            RunSettings.of_record(record["run"]),
            dict(record["seconds"]),
            dict(record["tokens"]),
        )


def _estimates(record: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**e) for name, e in record.items()}


@dataclass(frozen=True)
class PilotSize:
    """How much a pilot does.

    Attributes:
        steps: at the run's own rates.
        stretch: further steps at a raised rate.
        resample: whether answers are sampled anew after the last step of each kind.
    """

    steps: int = 4
    stretch: int = 4
    resample: bool = True


def measure_pair(
    cfg: Run,
    scratch: Path,
    *,
    prompts: int = 192,
    pilot_steps: int = 4,
    stretch_steps: int = 4,
    resample: bool = True,
) -> Measurement:
    """Measure a pair with a teacher in this process, and a pilot of its run.

    Args:
        cfg: the run; its seed is that of every random number.
        scratch: an empty folder.
        prompts: of the probe, at most: of the training file, those of the pilot's steps last.
        pilot_steps: steps of the run.
        stretch_steps: further steps at a raised rate.
        resample: sample answers anew after the pilot, and after the stretch.

    Raises:
        UserError: wrong input, or models that are not compatible.
    """
    began = monotonic()
    candidate = load_candidate(cfg, teacher_labels([cfg])[0], None, scratch)
    if not candidate.compatible:
        failures = [f.message for f in candidate.findings if f.level == "failure"]
        raise UserError(f"{candidate.label} cannot teach this student: {'; '.join(failures)}")
    cfg, pair = candidate.cfg, candidate.pair
    assert pair is not None
    assert pair.teacher is not None
    size = PilotSize(pilot_steps, stretch_steps, resample)
    training = load_training_prompts(cfg, pair, Console("quiet"))
    chosen = probe_prompts(training, cfg, size.steps + size.stretch)[:prompts]
    prepare_weights(cfg, pair.student)
    with ExitStack() as stack:
        grader = grader_for(training.prompts, cfg.prompts.grader)
        if grader is not None:
            stack.enter_context(grader)
        config = make_probe_config(cfg, pair, grader)
        student, teacher = (
            ProbeModel(pair.student, pair.stop),
            ProbeModel(pair.teacher, pair.teacher_stop),
        )
        ours = probe_student(student, chosen, config)
        theirs = probe_teacher(teacher, student, ours, config)
        probed = monotonic() - began
        result = run_pilot(candidate, training, scratch, (ours, theirs), config, size)
    return Measurement(
        compute_features(ours, theirs) | result.features,
        tuple(dict(moment) for moment in result.moments),
        RunSettings.of_run(cfg, pair.student),
        {"probe": probed, "pilot": result.seconds},
        {"probe": ours.tokens + theirs.tokens, "pilot": result.tokens},
    )


def probe_prompts(training: PromptSet, cfg: Run, steps: int) -> list[Prompt]:
    """The training prompts, those of the run's first steps moved to the end."""
    size = cfg.train.prompts_per_step
    used = {
        prompt.index
        for step in range(steps)
        for prompt in training.batch(step, size, seed=cfg.train.seed, shuffle=cfg.prompts.shuffle)
    }
    return sorted(training.prompts, key=lambda prompt: prompt.index in used)


def make_pilot(candidate: Candidate, training: PromptSet, scratch: Path) -> Pilot:
    """The first steps of a candidate's run, with a fresh optimizer.

    Its student is the candidate's own: see `opd.training.throwaway`. Rollouts are sampled in this
    process, since a rollout server would have to be given the throw-away weights.
    """
    cfg, pair = candidate.cfg, candidate.pair
    assert pair is not None
    if cfg.rollout.engine == "vllm":
        rollout = cfg.rollout.model_copy(update={"engine": "hf"})
        cfg = cfg.model_copy(update={"rollout": rollout})
    prepare_weights(cfg, pair.student)
    models = Models(cfg, make_objective(cfg), pair, None)
    source = experience_source(models, training, student_sampler(cfg, pair, scratch))
    return Pilot(
        make_learner(models, make_optimizer(pair.student, cfg.optim)),
        replace(source, teacher=candidate.server or local_teacher(cfg, pair)),
        Horizon(cfg.horizon, cfg.rollout.max_new_tokens, make_pruning(cfg)),
    )


@dataclass
class PilotMeasurer:
    """Measures a student during a pilot, against itself before it.

    Attributes:
        pilot: the steps so far.
        model: the student with its end tokens.
        sides: the halves of the probe, made before the pilot.
        config: of the probe.
        settings: of the run.
        texts: fixed.
        before: the student's reading of them.
        tokens: generated by re-sampling.
    """

    pilot: Pilot
    model: ProbeModel
    sides: tuple[StudentSide, TeacherSide]
    config: ProbeConfig
    settings: RunSettings
    texts: FixedTexts
    before: Reading
    tokens: int = 0

    def measure(self, *, resample: bool) -> dict[str, Estimate]:
        """The numbers `pilot_*` now."""
        after = read(self.model.lm, self.texts)
        run_path = self.settings.path()
        features = moment_features(self.pilot, run_path, self.texts, self.before, after, self.sides)
        if resample:
            side = self.sides[0]
            answers, tokens = answer(self.model, side.prompts, self.config)
            self.tokens += tokens
            features |= resampled_features(side.answers, answers)
        return features


def make_measurer(
    pilot: Pilot,
    candidate: Candidate,
    sides: tuple[StudentSide, TeacherSide],
    config: ProbeConfig,
) -> PilotMeasurer:
    """Fix the texts, and read them before the first step."""
    cfg, pair = candidate.cfg, candidate.pair
    assert pair is not None
    texts = fix_texts(*sides, pair.teacher, tokens_per_batch=token_budget(cfg), seed=cfg.train.seed)
    before = read(pair.student, texts)
    model = ProbeModel(pair.student, pair.stop)
    settings = RunSettings.of_run(cfg, pair.student)
    return PilotMeasurer(pilot, model, sides, config, settings, texts, before)


def run_pilot(
    candidate: Candidate,
    training: PromptSet,
    scratch: Path,
    sides: tuple[StudentSide, TeacherSide],
    config: ProbeConfig,
    size: PilotSize,
) -> PilotResult:
    """Make the steps and measure; the student is as before afterwards, bit for bit.

    Args:
        candidate: the pair.
        training: prompts of the run.
        scratch: an empty folder.
        sides: the halves of the probe.
        config: of the probe.
        size: how much.
    """
    assert candidate.pair is not None
    if size.steps == 0:
        return PilotResult()
    began = monotonic()
    moments: list[dict[str, Estimate]] = []
    stretch: dict[str, Estimate] = {}
    with throwaway(candidate.pair.student):
        pilot = make_pilot(candidate, training, scratch)
        measurer = make_measurer(pilot, candidate, sides, config)
        for step in range(1, size.steps + 1):
            pilot.step()
            last = step == size.steps
            if last or step & (step - 1) == 0:
                moments.append(measurer.measure(resample=size.resample and last))
        if size.stretch:
            rate = stretch_rate(measurer.settings, size)
            for _ in range(size.stretch):
                pilot.step(rate)
            stretch = as_stretch(measurer.measure(resample=size.resample))
    tokens = pilot.tokens + measurer.tokens
    return PilotResult(tuple(moments), stretch, monotonic() - began, tokens)


def stretch_rate(settings: RunSettings, size: PilotSize) -> float:
    """The rate at which pilot and stretch together get through `STRETCH_PATH` of the run's."""
    missing = STRETCH_PATH * settings.path() - settings.path(size.steps)
    rate = missing / size.stretch
    return min(max(rate, settings.lr), MAX_STRETCH * settings.lr)


def all_moments(measurement: Measurement) -> Sequence[dict[str, Estimate]]:
    """Features with each moment's numbers in place of the last one's: a row per pilot length."""
    return [measurement.features | moment for moment in measurement.moments]
