"""Gathering evidence within the budget: a few tokens to see the speed, the probe, the pilot, cost.

Whatever is interrupted, by the deadline or by Ctrl-C, what was measured before stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opd.commands.check import timing
from opd.commands.check.candidates import Candidate
from opd.commands.check.pilot import PilotResult, PilotSize, run_pilot
from opd.commands.check.rounds import Budget, Probe, count_trained_on, make_probe
from opd.commands.check.served import watched
from opd.commands.check.speed import Speed, measure_speed, one_teacher
from opd.commands.check.timing import StepTimer
from opd.commands.check.watch import Watch
from opd.config import Run
from opd.core.stats import Estimate
from opd.data.prompts import PromptSet
from opd.recipes.check.advice import decide
from opd.recipes.check.cost import RunCost, StepTime
from opd.recipes.check.features import compute_features, others_accuracy
from opd.recipes.check.forecast import (
    MIN_PART,
    MIN_STEPS,
    PILOT,
    predict,
    without_short_pilot,
)
from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.verdict import (
    GO,
    NO_GO,
    decisive_rule,
    judge,
    part_breaks_off,
    promise,
    rank,
)

SHORT = 120.0  # seconds a check may take beside a short run ...
LONG_FRACTION = 0.05  # ... and as a fraction of a long one
FIRST_ROUNDS = (8, 4, 2, 1)  # prompts of the first round, the largest that fits
FIRST_FRACTION = 0.25  # of the budget, that the first round may take by the first few tokens' speed
PROBE_FRACTION = 0.5  # of the budget, after which the pilot begins
LEAN_N, LEAN_M = 2, 1  # rollouts and answers per prompt where even a few prompts take long
FORWARD_SECONDS = 5.0  # of a forward pass, at most: the deadline cannot hold in the middle of it
MIN_BATCH = 128  # tokens
PILOT_STEPS, LONGER_PILOT, STRETCH_STEPS = 4, 8, 4
PARTS = ((0.5, 0.4), (1.0, 0.75))
"""Fractions of the run's steps that are made where the time allows it, and the least of each."""
NARROW = 0.05  # half-width of a forecast's interval that no larger part would make narrower
MANY_SEEN = 0.1  # of the probe's prompts, trained on by a part: worth a sentence
MAX_SEEN = 1000  # steps whose prompts the probe leaves for last
PILOT_TOKENS = 0.03  # of the run's, that the pilot may generate under a token budget
SURE_PROMPTS = 48  # that a no-go without a pilot rests on
USED = 0.85  # of the time that is left: later steps may be slower, and evaluations are timed
OF_TEACHER = ("worse", "level")  # rules of a no-go that no training changes
MARGIN = 1.3  # times the errors, with which a verdict must be the same to be settled


def pilot_size(cfg: Run, budget: Budget) -> PilotSize:
    """How much a pilot of a run does at most."""
    whole = cfg.train.steps
    if math.isfinite(budget.token_fraction):
        return PilotSize(min(max(1, int(PILOT_TOKENS * whole)), LONGER_PILOT), 0, resample=False)
    steps = min(max(PILOT_STEPS, int(LONG_FRACTION * whole)), LONGER_PILOT)
    return PilotSize(min(steps, whole), STRETCH_STEPS if steps < whole else 0)


class Gathering:
    """Everything that a check has measured so far."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        training: PromptSet,
        budget: Budget,
        watch: Watch,
        scratch: Path,
    ) -> None:
        """Nothing is measured yet.

        Args:
            candidates: compatible ones.
            training: prompts of the run.
            budget: of time and tokens.
            watch: started.
            scratch: a folder for what a step needs.
        """
        candidates = [watched(candidate, watch) for candidate in candidates]
        self.candidates, self.training, self.budget = candidates, training, budget
        self.watch, self.scratch = watch, scratch
        self.model = load_model()
        most = max(PILOT_STEPS + STRETCH_STEPS, min(candidates[0].cfg.train.steps, MAX_SEEN))
        self.probe: Probe = make_probe(candidates, training, most)
        self.pilots: dict[int, PilotResult] = {}
        self.speed: Speed | None = None
        self.cost: RunCost | None = None
        self._slowness = 1.0  # seconds of the last round over what the first few tokens made expect

    def run(self) -> None:
        """Gather until everything is measured, the verdict is settled, or time is over."""
        pairs = [c.pair for c in self.candidates if c.pair is not None]
        models = [pairs[0].student, *(p.teacher for p in pairs if p.teacher is not None)]
        if self.budget.seconds is not None:
            self.watch.allow(self.budget.seconds)
        with self.watch.attached(models), self.watch.evidence():
            self.watch.stage("sampling a few tokens to see the speed")
            self.speed = measure_speed(self.candidates, self.training.prompts)
            self._plan(self.speed)
            self._add_rounds(PROBE_FRACTION)
            self._run_pilots()
            if not self.pilots:
                self._add_rounds(1.0)
            self.measure_cost(self.speed)

    def features(self, index: int) -> dict[str, Estimate]:
        """Every number of a candidate so far."""
        pilot = self.pilots.get(index)
        sides = self.probe.sides
        features = compute_features(*sides[index]) | (pilot.features if pilot else {})
        return features | others_accuracy([t for i, (_, t) in enumerate(sides) if i != index])

    def settings(self, index: int) -> RunSettings:
        """Of a candidate's run."""
        candidate = self.candidates[index]
        assert candidate.pair is not None
        return RunSettings.of_run(candidate.cfg, candidate.pair.student)

    def _plan(self, speed: Speed) -> None:
        """Set the deadline, and how much is asked of each prompt."""
        seconds = self._allowed(speed)
        if seconds is None:
            return
        self.watch.allow(seconds)
        config = self.probe.config
        slowest = max(m.forward for m in (speed.student, *speed.teachers))
        batch = max(MIN_BATCH, int(FORWARD_SECONDS / max(slowest, 1e-9)))
        config = replace(config, tokens_per_batch=min(config.tokens_per_batch, batch))
        if speed.probe(FIRST_ROUNDS[0], config) > PROBE_FRACTION * seconds:
            config = replace(config, n=LEAN_N, m=LEAN_M, greedy=False, continuations=False)
        self.probe.config = config

    def _allowed(self, speed: Speed) -> float | None:
        """Seconds of the check; None: no limit."""
        cfg, seconds = self.candidates[0].cfg, self.budget.seconds
        if seconds is None and math.isinf(self.budget.token_fraction):
            fraction = LONG_FRACTION * self.budget.part
            seconds = max(SHORT, fraction * cfg.train.steps * speed.step(cfg))
        return seconds

    def _see_lengths(self, speed: Speed) -> Speed:
        """The speed with the length that rollouts have, and the deadline by it.

        Until now half of the limit was assumed, and so the run, and a twentieth of it, too long.
        """
        assert self.probe.student is not None
        rollouts = self.probe.student.rollouts
        speed = replace(speed, length=sum(map(len, rollouts)) / len(rollouts))
        if (seconds := self._allowed(speed)) is not None:
            self.watch.allow(seconds)
        return speed

    def _first_round(self) -> int:
        if math.isinf(self.watch.deadline) or self.speed is None:
            return FIRST_ROUNDS[0]
        seconds = FIRST_FRACTION * self.watch.allowed
        config = self.probe.config
        sizes = [n for n in FIRST_ROUNDS if self.speed.probe(n, config) <= seconds]
        return sizes[0] if sizes else FIRST_ROUNDS[-1]

    def _add_rounds(self, fraction: float) -> None:
        """Rounds, each twice as large as all before it, until so much of the budget is spent."""
        probe, watch = self.probe, self.watch
        size = self._first_round() if probe.done == 0 else probe.done
        while probe.done < probe.total:
            if probe.done:
                left = fraction * watch.allowed - watch.seconds
                if math.isfinite(watch.deadline):
                    size = min(size, int(left / probe.seconds_per_prompt))
                size = min(size, probe.affordable(self.budget.token_fraction))
            if size < 1 or (probe.done >= SURE_PROMPTS and self._hopeless()):
                return
            upto = min(probe.done + size, probe.total)
            watch.stage(f"probe: prompts {probe.done + 1} to {upto} of up to {probe.total}")
            began, before = watch.seconds, probe.done
            probe.add(size)
            if self.speed is not None:
                self.speed = self._see_lengths(self.speed)
                expected = self.speed.probe(probe.done - before, probe.config)
                self._slowness = (watch.seconds - began) / expected
            size = probe.done

    def _hopeless(self) -> bool:
        """Whether every candidate is a settled no-go without a pilot."""
        return all(self._settled(i) == NO_GO for i in range(len(self.candidates)))

    def _settled(self, index: int, features: dict[str, Estimate] | None = None) -> str | None:
        """The verdict if it is the same with larger errors, and a plain one; else None."""
        numbers = self.features(index) if features is None else features
        forecast = predict(self.model, numbers, self.settings(index))
        verdict, distribution = judge(forecast, numbers), forecast.distribution
        if distribution is None or verdict not in (GO, NO_GO):
            return None
        if verdict == NO_GO and decisive_rule(forecast, numbers) == "too little":
            return verdict if "pilot_steps" in without_short_pilot(numbers) else None
        wide = replace(distribution, scale=MARGIN * distribution.scale)
        change = forecast.change
        assert change is not None
        least, most = wide.quantile(0.05), wide.quantile(0.95)
        ends = replace(change, low=least, high=most)
        wider = replace(forecast, distribution=wide, change=ends, least=least)
        same = judge(wider, numbers) == verdict
        return verdict if same else None

    def _run_pilots(self) -> None:
        """A pilot for each candidate, the best first, as far as there is time."""
        if not self.probe.sides or self._hopeless():
            return
        order = sorted(range(len(self.candidates)), key=self._promise, reverse=True)
        for place, index in enumerate(order):
            missing = self._seconds_missing(index)
            if missing > 0:
                without = ", ".join(self.candidates[i].label for i in order[place:])
                whose = f" of {without}, so its" if len(order) > 1 else ", so the"
                self.probe.limitations.append(
                    f"There was no time for a pilot{whose} forecast knows neither the length nor "
                    f"the rate of this run. --budget {self.watch.allowed + missing:.0f} would "
                    "allow one."
                )
                return
            self._run_pilot(index)

    def _promise(self, index: int) -> tuple[float, float]:
        return promise(predict(self.model, self.features(index), self.settings(index)))

    def _seconds_missing(self, index: int) -> float:
        """Seconds beyond the deadline that the shortest pilot would take; negative if it fits."""
        if self.speed is None or math.isinf(self.watch.deadline):
            return -math.inf
        cfg, config, prompts = self.candidates[index].cfg, self.probe.config, self.probe.done
        texts = 3 * self.speed.fixed_texts(config, prompts)
        seconds = min(MIN_STEPS, cfg.train.steps) * self.speed.step(cfg) + texts
        return self._slowness * seconds - self.watch.remaining

    def _run_pilot(self, index: int) -> None:
        candidate, result = self.candidates[index], PilotResult()
        folder = self.scratch / f"pilot{index}"
        folder.mkdir()
        size = pilot_size(candidate.cfg, self.budget)
        self.pilots[index] = result
        self.watch.stage("pilot: the first steps of the run, on a copy")
        sides = self.probe.sides[index]

        def more(result: PilotResult, steps: int) -> bool:
            return self._goes_on(index, result, steps)

        def next_part(result: PilotResult) -> int:
            steps = self._next_part(index, result) if result.resampling else 0
            if steps:
                self.watch.stage(f"the run's own steps up to {steps}, on a copy")
            return steps

        config = self.probe.config
        try:
            run_pilot(
                candidate,
                self.training,
                folder,
                sides,
                config,
                size,
                result=result,
                more=more,
                next_part=next_part,
            )
        finally:
            if not result.moments:
                del self.pilots[index]
            if result.parts:
                self._note_trained_on(int(result.parts[-1]["part_steps"].value))

    def _note_trained_on(self, steps: int) -> None:
        """Say of how many prompts answers were sampled again after the copy had trained on them."""
        assert self.probe.student is not None
        prompts, cfg = self.probe.student.prompts, self.candidates[0].cfg
        count = count_trained_on(prompts, self.training, cfg, min(steps, MAX_SEEN))
        text = (
            f"Of the {len(prompts)} prompts whose answers were sampled again after {steps} steps, "
            f"{count} had been trained on in them: accuracy on held-out prompts may change by "
            "less. More prompts in prompts.path would avoid it."
        )
        if count >= MANY_SEEN * len(prompts) and text not in self.probe.limitations:
            self.probe.limitations.append(text)

    def _goes_on(self, index: int, result: PilotResult, steps: int) -> bool:
        """Whether a pilot goes on after a measurement."""
        done = len(result.times)
        self.watch.stage(f"pilot: {done} steps done")
        features = compute_features(*self.probe.sides[index]) | result.features
        settled = done >= MIN_STEPS and self._settled(index, features) is not None
        if settled and not self._next_part(index, result):
            return False
        if math.isinf(self.watch.deadline):
            return done < PILOT_STEPS or math.isfinite(self.budget.token_fraction)
        next_part = max(steps, 1) if done == steps else STRETCH_STEPS
        seconds = next_part * result.step_seconds + 2 * result.measuring
        return seconds <= self.watch.remaining

    def _next_part(self, index: int, result: PilotResult) -> int:
        """Steps of the run to go on to before answers are sampled again; 0: no more.

        Half of the run, then all of it, or as much as there is time for, if it is nearly that:
        after a quarter its own change tells hardly more than the forecast before it
        (docs/check.md). Left out where the verdict rests on the teacher alone; how a run goes on
        cannot be seen in its first few steps.
        """
        whole, done = self.candidates[index].cfg.train.steps, len(result.times)
        if math.isinf(self.watch.deadline) or done < MIN_STEPS:
            return 0
        if not self._part_can_matter(index, result) or self._part_suffices(index, result):
            return 0
        others = sum(i not in self.pilots for i in range(len(self.candidates)))
        seconds = USED * self.watch.remaining / (1 + others) - result.measuring - result.resampling
        most = done + int(seconds / max(result.step_seconds, 1e-9))
        settings = self.settings(index)
        for fraction, least in PARTS[len(result.parts) :]:
            steps = min(int(fraction * whole), most)
            counts = settings.path(steps) >= MIN_PART * settings.path()
            if counts and steps > done and steps >= least * whole:
                return steps
        return 0

    def _part_suffices(self, index: int, result: PilotResult) -> bool:
        """Whether more of the run would tell nothing: the forecast is exact, or no steps go on."""
        if not result.parts:
            return False
        features = compute_features(*self.probe.sides[index]) | result.features
        change = predict(self.model, features, self.settings(index)).change
        exact = change is not None and (change.high - change.low) / 2 <= NARROW
        settled = self._settled(index, features) is not None
        return part_breaks_off(features) or (settled and exact)

    def _part_can_matter(self, index: int, result: PilotResult) -> bool:
        """Whether a part of the run could change the verdict, by what is known so far."""
        features = compute_features(*self.probe.sides[index]) | result.features
        forecast = predict(self.model, features, self.settings(index))
        rule = decisive_rule(forecast, features)
        if PILOT not in forecast.views or rule in ("refused", "few"):
            return False
        return not (self._settled(index, features) and rule in OF_TEACHER)

    def best(self) -> int:
        """The candidate that comes first in the result, by what is known so far."""

        def standing(index: int) -> tuple[int, float, float]:
            return rank(*decide(self.model, self.features(index), self.settings(index))[:2])

        return max(range(len(self.candidates)), key=standing) if self.probe.sides else 0

    def measure_cost(self, speed: Speed) -> None:
        """The cost of the best candidate's run, from steps of its pilot or a timed one."""
        index = self.best()
        candidate, speed = self.candidates[index], one_teacher(speed, self.candidates, index)
        cfg, pair = candidate.cfg, candidate.pair
        if (
            math.isfinite(self.budget.token_fraction)
            or pair is None
            or cfg.rollout.engine == "replay"
        ):
            return
        step = self._step_time(index, speed)
        if step is None:
            return
        self.watch.stage("timing an evaluation")
        rough = timing.time_evaluations(candidate, speed)
        sample = timing.EVAL_PROMPTS * sum(each.n for each in cfg.eval)
        models = (speed.student, *speed.teachers[:1])
        seconds = 2 * sum(model.decoding(sample, speed.length) for model in models)
        if seconds < 0.5 * self.watch.remaining:
            rough = timing.time_evaluations(candidate)
        self.cost = timing.run_cost(candidate, step, rough)

    def _step_time(self, index: int, speed: Speed) -> StepTime | None:
        pilot = self.pilots.get(index)
        if pilot is not None:
            return sorted(pilot.times, key=lambda time: time.seconds)[len(pilot.times) // 2]
        cfg = self.candidates[index].cfg
        part = timing.FIRST / cfg.train.prompts_per_step
        if 2 * part * speed.step(cfg) > self.watch.remaining:
            return None
        self.watch.stage("timing a step")
        timer = StepTimer(self.candidates[index], self.training, self.scratch)
        return timer.median_step(timing.FIRST)
