"""From numbers to advice: go, go with changes, or don't; why; what to change; how sure.

The thresholds are those that `opd lab calibrate` was judged with; docs/check.md has the error
rates they came to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy import stats as scipy_stats

from opd.core.stats import Estimate
from opd.recipes.check.compatibility import Point
from opd.recipes.check.forecast import Prospect
from opd.recipes.check.probe import DEPTHS

Verdict = Literal["go", "go with changes", "don't"]

LEAD = 0.05  # a teacher less far ahead than this has nothing to teach
ENOUGH, LITTLE = 0.5, 0.2  # shares of the lead: worth a run; not worth one
DOUBT = 0.1  # chance of being wrong that a plain verdict may carry
ALIKE = 0.5  # share taken over from which on two models think alike
SAME = 0.1  # of the student's distance from its origin: the teacher's, when it is the origin again
NORMAL_90 = 1.645


@dataclass(frozen=True)
class Reason:
    """A sentence and the numbers behind it."""

    text: str
    evidence: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "evidence": self.evidence}


@dataclass(frozen=True)
class Advice:
    """What to change, and the keys that do it."""

    text: str
    set: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "set": dict(self.set)}


def judge(prospect: Prospect, found: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a pair whose handshake is right.

    - don't: nothing to gain (the teacher leads by less than `LEAD`), or `ENOUGH` of the lead is
      unlikely to be gained as the run is configured.
    - go: `ENOUGH` of the lead is expected, and less than `LITTLE` of it is unlikely.
    - go with changes: everything between, and every pair that the lab has not seen the like of.
    """
    change = prospect.change
    if "lead" not in found or change is None:
        return "go with changes"
    lead = found["lead"].value
    if lead < LEAD and change.value < LEAD:
        return "don't"
    if prospect.outside:
        return "go with changes"
    if change.value >= ENOUGH * lead and chance_below(change, LITTLE * lead) <= DOUBT:
        return "go"
    if 1 - chance_below(change, ENOUGH * lead) <= DOUBT:
        return "don't"
    return "go with changes"


def chance_below(change: Estimate, bound: float) -> float:
    """Chance that a quantity with this 90 % interval is below a bound, if errors are normal."""
    sigma = (change.high - change.low) / (2 * NORMAL_90)
    if sigma == 0 or not math.isfinite(sigma):
        return float(change.value < bound)
    return float(scipy_stats.norm.cdf((bound - change.value) / sigma))


def worth_imitating(found: Mapping[str, Estimate]) -> bool:
    """Whether a cold start has something to give: the teacher is ahead, be it only alone.

    `lead` weighs its answers by how likely the student is to write them, for these on-policy
    training can teach; a cold start teaches the others too, so a lead over all of them (`gap`) is
    enough.
    """
    if "lead" not in found:
        return False
    gap = found["gap"]
    return found["lead"].value >= LEAD or (gap.low > 0 and gap.value >= LEAD)


def sureness(prospect: Prospect) -> str:
    """How sure the prospect is, in words."""
    if prospect.change is None:
        return "Without answers nobody can say how accuracy will change."
    better = 1 - chance_below(prospect.change, 0.0)
    told = f"chance that accuracy rises: {better:.0%}"
    if prospect.outside:
        return f"{told}, if this pair is like those of the lab, which it is not in every way"
    return f"{told} (90 % of lab outcomes fell inside such intervals)"


def reasons(prospect: Prospect, found: Mapping[str, Estimate]) -> list[Reason]:
    """What the verdict rests on, the strongest first."""
    said = [_capability(found), _compatibility(prospect, found), _signal(found)]
    return [reason for reason in said if reason is not None]


def _capability(found: Mapping[str, Estimate]) -> Reason | None:
    if "gap" not in found:
        return Reason(
            "Without answers it is unknown whether the teacher can do more than the student",
            "give prompts.path an answer column, or an eval set",
        )
    student, teacher, gap = (found[n] for n in ("student_accuracy", "teacher_accuracy", "gap"))
    evidence = f"teacher {share(teacher)}, student {share(student)}, lead {points(gap)}"
    gain = found.get("continuation_gain")
    if gain is not None:
        evidence += f"; finishing what the student began: {points(gain)}"
        depths = [f"{100 * found[f'gain@{d:g}'].value:+.0f}" for d in DEPTHS]
        evidence += f", from {', '.join(f'{d:.0%}' for d in DEPTHS)} of it: {', '.join(depths)}"
    if "headroom" in found:
        evidence += (
            f"; one of the student's answers is right on {share(found['pass_at_n'])}, beyond that "
            f"the teacher adds {points(found['headroom'])}"
        )
    if gap.low > 0 and gap.value >= LEAD:
        text = "The teacher can do what the student cannot"
        if gain is not None and gain.high < 0:
            text = "The teacher is ahead alone, but cannot go on from what the student writes"
        return Reason(text, evidence)
    if gap.high < 0:
        return Reason("The teacher is worse than the student: training would lead down", evidence)
    return Reason("The teacher is not distinguishably ahead of the student", evidence)


def _compatibility(prospect: Prospect, found: Mapping[str, Estimate]) -> Reason | None:
    if "overlap_mass" not in found:
        return None
    parts = [f"shared top-k mass {share(found['overlap_mass'])}"]
    if "reverse_kl" in found:
        parts.append(f"KL {number(found['reverse_kl'])} nats a token")
    if "read_mass" in found:
        parts.append(
            f"the student knows the teacher's tokens with mass {share(found['read_mass'])}"
        )
    parts.append(f"expected to be taken over: {prospect.share:.0%} of the teacher's way")
    alike = prospect.share >= ALIKE
    text = "They think alike" if alike else "They think differently"
    return Reason(f"{text} on what the student writes", "; ".join(parts))


def _signal(found: Mapping[str, Estimate]) -> Reason | None:
    if "auroc" not in found or math.isnan(found["auroc"].value):
        return None
    area, tilt = found["auroc"], found["tilt_gain"]
    evidence = (
        f"AUROC of the mean reward {number(area)}; accuracy if the student leaned towards the "
        f"teacher: {points(tilt)}"
    )
    if area.low > 0.5:
        return Reason("The teacher's scores tell right answers from wrong ones", evidence)
    return Reason("The teacher's scores do not tell right answers from wrong ones", evidence)


def origin_reason(teacher_kl: Estimate, student_kl: Estimate) -> Reason:
    """Can the teacher be told from the student's origin, where the student goes (paper 3.3)?

    Args:
        teacher_kl: KL(origin || teacher) a token on student rollouts.
        student_kl: KL(origin || student) there.
    """
    evidence = (
        f"KL from the origin on the student's rollouts: teacher {number(teacher_kl)}, student "
        f"{number(student_kl)} nats a token"
    )
    if teacher_kl.high < SAME * student_kl.value:
        return Reason(
            "The teacher is the student's past again: training would undo gains", evidence
        )
    return Reason("The teacher can be told from the student's origin", evidence)


def advice(
    verdict: Verdict,
    prospect: Prospect,
    found: Mapping[str, Estimate],
    points_found: Sequence[Point],
    *,
    truncated: float,
    support_mass: float,
    new_tokens: int,
    cold_start: Mapping[str, Any] | None,
) -> list[Advice]:
    """What to change, with the keys that do it.

    Args:
        verdict: of `judge`.
        prospect: of `foretell`.
        found: the numbers of the probe.
        points_found: of the handshake.
        truncated: share of student rollouts cut off at the limit.
        support_mass: the student's mass inside the support of the loss.
        new_tokens: rollout.max_new_tokens.
        cold_start: the `coldstart` section to set; None where the teacher cannot write.
    """
    given = [Advice(f"{p.message}: {p.fix}") for p in points_found if p.level == "warning"]
    cold = prospect.share < ALIKE and worth_imitating(found)
    ahead = "lead" in found and found["lead"].value >= LEAD
    if verdict == "don't" and not ahead and not (cold and cold_start is not None):
        given.append(
            Advice(
                "Choose a teacher that is ahead on these prompts, best one of the student's family "
                "that was improved (by reinforcement learning, say) rather than a bigger one"
            )
        )
    if cold and cold_start is not None:
        given.append(
            Advice("Begin with a cold start on the teacher's own rollouts", dict(cold_start))
        )
    if truncated > 0.2:
        given.append(
            Advice(
                f"{truncated:.0%} of the student's rollouts are cut off at {new_tokens} tokens: "
                "give them more room",
                {"rollout.max_new_tokens": 2 * new_tokens},
            )
        )
    if support_mass < 0.97:
        given.append(
            Advice(
                f"The support of the loss holds only {support_mass:.1%} of the student's mass: add "
                "the tail bucket, so that what lies outside cannot drift",
                {"loss.mode": "tail"},
            )
        )
    if prospect.outside and verdict != "don't":
        given.append(
            Advice(
                "The lab has seen no pair like this one: train a tenth of the steps and look at "
                "accuracy and overlap before you go on"
            )
        )
    return given


def share(e: Estimate) -> str:
    """An estimate in per cent, with its interval."""
    return f"{e.value:.1%} ({e.low:.1%} to {e.high:.1%})"


def points(e: Estimate) -> str:
    """A difference in points, with its interval."""
    return f"{100 * e.value:+.1f} points ({100 * e.low:+.1f} to {100 * e.high:+.1f})"


def number(e: Estimate) -> str:
    """An estimate with its interval."""
    return f"{e.value:.3g} ({e.low:.3g} to {e.high:.3g})"
