"""The alarm rules: a message, a condition on trends with its threshold, and a remedy for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opd.alarms import conditions
from opd.alarms.conditions import Condition
from opd.config import AlarmName, Alarms
from opd.config.python_objects import load_object
from opd.errors import UserError

Intervention = Literal["tail", "cap", "cold start"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that goes wrong; a rule of your own is used with `alarms.python: [pkg.mod:RULE]`.

    Attributes:
        name: as in alarms.jsonl and `alarms.rules`.
        message: what is happening, in a sentence.
        remedy: what helps.
        threshold: default of `alarms.rules.<name>.threshold`.
        threshold_meaning: what the threshold is.
        condition: evidence from the history and the threshold, or None.
        interventions: what a run can do by itself, in order of preference.
        stops: whether `alarms.action: stop` ends the run; with its own `action: stop` it always
            does.
        denies_gain: whether it says that the run achieves nothing, which a later gain refutes.
    """

    name: AlarmName | str
    message: str
    remedy: str
    threshold: float
    threshold_meaning: str
    condition: Condition
    interventions: tuple[Intervention, ...] = ()
    stops: bool = True
    denies_gain: bool = False

    def message_about(self, subject: str) -> str:
        """The message with the evaluation set that it is about, if it is about one."""
        if not subject:
            return self.message
        return f"On {subject}: {self.message[0].lower()}{self.message[1:]}"


RULES = (
    Rule(
        name="overlap-stagnating",
        message="The student is not coming closer to the teacher: overlap, agreement and KL hardly "
        "change.",
        remedy="Run a cold start on teacher completions first, use prompts the teacher was trained "
        "on, or take a teacher closer to the student; check optim.lr.",
        threshold=0.25,
        threshold_meaning="minimum fraction of the distance (median of 1 - top-1 agreement, 1 - "
        "overlap ratio, reverse KL, entropy gap) that must be gone after four windows; and of a "
        "reverse KL above the student's entropy, from the second window to the fifth",
        condition=conditions.overlap_stagnates,
        interventions=("cold start",),
        denies_gain=True,
    ),
    Rule(
        name="overlap-mass-falling",
        message="The student's probability leaves the tokens that both models rank high.",
        remedy="Run a cold start on teacher completions, lower optim.lr, or set loss.mode=tail.",
        threshold=2.0,
        threshold_meaning="factor by which the mass outside the overlap has multiplied (and by "
        "0.03 or more)",
        condition=conditions.mass_outside_grows("diag/overlap_mass_student", "overlap_mass", 0.03),
        interventions=("cold start", "tail"),
    ),
    Rule(
        name="support-mass-draining",
        message="Probability leaves the student's top k, outside which a renormalised loss has no "
        "gradient.",
        remedy="Set loss.mode=tail, or a larger loss.k.",
        threshold=3.0,
        threshold_meaning="factor by which the mass outside the support has multiplied (and by "
        "0.01 or more)",
        condition=conditions.mass_outside_grows("diag/support_mass", "support_mass", 0.01),
        interventions=("tail",),
    ),
    Rule(
        name="teacher-off-support",
        message="Much of the teacher's probability lies outside the student's top k, on which the "
        "loss renormalises it: the student is taught something else than the teacher.",
        remedy="Set loss.mode=tail, or run a cold start on teacher completions first; with "
        "loss.support=union the loss sees the teacher's own tokens, too.",
        threshold=0.75,
        threshold_meaning="teacher's mean probability on the student's top loss.k below which the "
        "newest window counts, unless it rises, or after four windows has gained a quarter of what "
        "was missing",
        condition=conditions.teacher_off_support,
        interventions=("cold start", "tail"),
        denies_gain=True,
    ),
    Rule(
        name="entropy-gap-open",
        message="The entropies of student and teacher do not approach each other.",
        remedy="Run a cold start on teacher completions, or choose a teacher or prompts that fit "
        "the student; see the overlap mass.",
        threshold=0.5,
        threshold_meaning="fraction by which the gap has widened (or, after six windows, 0.85 of "
        "it is left and reverse KL has not fallen by 0.7)",
        condition=conditions.entropy_gap_stays_open,
        interventions=("cold start",),
    ),
    Rule(
        name="entropy-collapse",
        message="The student's entropy is collapsing, far below its start and the teacher's.",
        remedy="Set loss.terms.entropy_forward_kl, raise rollout.temperature, or mix in prompts "
        "the teacher was not trained on.",
        threshold=0.5,
        threshold_meaning="fraction of its start, and of the teacher's, that the student's entropy "
        "has fallen below",
        condition=conditions.entropy_collapses,
    ),
    Rule(
        name="diversity-falling",
        message="Mean accuracy holds, but fewer problems are solved by any of several samples: "
        "the student explores less.",
        remedy="Set loss.terms.entropy_forward_kl, raise rollout.temperature, or mix in prompts "
        "the teacher was not trained on.",
        threshold=0.1,
        threshold_meaning="fall of pass@k, for the largest k that was evaluated, in two "
        "evaluations in a row",
        condition=conditions.diversity_falls,
    ),
    Rule(
        name="late-spike",
        message="Entropy spikes at late positions, and the spike moves towards the front.",
        remedy="Shorten the horizon: horizon.cap, or rollout.max_new_tokens.",
        threshold=1.5,
        threshold_meaning="factor by which entropy at the spiking positions has grown (and above "
        "the mean at the start)",
        condition=conditions.late_entropy_spikes,
        interventions=("cap",),
    ),
    Rule(
        name="length-inflation",
        message="Responses become longer without becoming better.",
        remedy="Shorten the horizon (horizon.cap), mix in supervised examples "
        "(loss.terms.sft_weight), and check that both models agree on the end token.",
        threshold=1.25,
        threshold_meaning="factor by which the mean length has grown, while repetition or "
        "truncation rises or accuracy falls",
        condition=conditions.length_inflates,
        interventions=("cap",),
    ),
    Rule(
        name="repetition",
        message="Responses repeat themselves more and more.",
        remedy="Shorten the horizon (horizon.cap), or mix in supervised examples "
        "(loss.terms.sft_weight).",
        threshold=0.1,
        threshold_meaning="rise of the fraction of repeated 4-grams",
        condition=conditions.repetition_rises,
        interventions=("cap",),
    ),
    Rule(
        name="truncation",
        message="Responses are truncated before they end.",
        remedy="Check that both models agree on the end token; raise rollout.max_new_tokens if "
        "responses need it, or shorten the horizon if they ramble.",
        threshold=0.15,
        threshold_meaning="rise of the fraction of rollouts that are truncated (or nine of ten all "
        "along, at a third of the length of evaluation completions)",
        condition=conditions.truncation_rises,
    ),
    Rule(
        name="nothing-to-learn",
        message="The loss is small and flat from the start: the teacher's distribution is that of "
        "the student.",
        remedy="A small flat loss means that the teacher adds nothing: take one that was trained "
        "further, or on other data.",
        threshold=0.05,
        threshold_meaning="largest reverse KL, as a fraction of the student's entropy, of any "
        "window; at least four windows",
        condition=conditions.nothing_to_learn,
        denies_gain=True,
    ),
    Rule(
        name="drift",
        message="The trainer's probabilities differ from the sampler's: the data is not on-policy.",
        remedy="Check precision, temperature and templates of the sampler, and that every weight "
        "sync arrives.",
        threshold=5.0,
        threshold_meaning="factor by which the log-prob gap has grown (or the effective sample "
        "size has fallen by 0.05)",
        condition=conditions.sampler_drifts,
    ),
    Rule(
        name="stale-rollouts",
        message="The student moves so far in a step that rollouts of the step before say little: a "
        "few of them count for all.",
        remedy="Set rollout.ahead=0, lower optim.lr, or shorten the horizon (horizon.cap).",
        threshold=0.5,
        threshold_meaning="effective fraction of the prefixes (ahead/ess) below which the newest "
        "window counts",
        condition=conditions.rollouts_are_stale,
    ),
    Rule(
        name="hint-leaking",
        message="The student begins to quote what only the teacher sees.",
        remedy="Say in teacher.prompt that the answer must not mention the hint, take a shorter "
        "hint, or stop here.",
        threshold=0.15,
        threshold_meaning="rise of the fraction of rollouts with words that only the teacher's "
        "prompt has",
        condition=conditions.hint_leaks,
    ),
    Rule(
        name="responses-alike",
        message="Responses to one prompt become alike: a teacher that knows the answer takes the "
        "shortest way to it.",
        remedy="Stop here, lower optim.lr, set loss.terms.entropy_forward_kl, or give a hint that "
        "says less.",
        threshold=0.7,
        threshold_meaning="fraction of its start that the share of distinct 4-grams among the "
        "responses to a prompt has fallen below",
        condition=conditions.responses_become_alike,
    ),
    Rule(
        name="reverse-distillation",
        message="The student comes closer to the teacher and gets worse.",
        remedy="This teacher is worse for this student than no teacher: take one whose "
        "continuations of the student's text are correct more often; or run a cold start on its "
        "completions.",
        threshold=0.05,
        threshold_meaning="fall of accuracy on the first evaluation set or the training prompts, "
        "beyond chance",
        condition=conditions.accuracy_falls_towards_teacher,
        denies_gain=True,
    ),
    Rule(
        name="accuracy-falling",
        message="The student gets worse without coming closer to the teacher.",
        remedy="Lower optim.lr; look at skipped updates, truncation and repetition.",
        threshold=0.05,
        threshold_meaning="fall of accuracy on the first evaluation set or the training prompts, "
        "beyond chance",
        condition=conditions.accuracy_falls,
        denies_gain=True,
    ),
    Rule(
        name="forgetting",
        message="The student loses accuracy on what it is not trained for.",
        remedy="Mix prompts of that kind into prompts.path, add examples of it "
        "(loss.terms.sft_path), lower optim.lr, or stop earlier.",
        threshold=0.05,
        threshold_meaning="fall of accuracy on another evaluation set than the first, beyond "
        "chance; it warns where alarms.action is stop, unless its own action is stop",
        condition=conditions.forgets,
        stops=False,
    ),
)


def rules_of(settings: Alarms) -> tuple[Rule, ...]:
    """The rules of a run: those above, and the user's own.

    Raises:
        UserError: one that cannot be imported, is no rule, or has a name that is taken.
    """
    rules = list(RULES)
    for name in settings.python:
        value = load_object(name, key="alarms.python", group="opd.alarms")
        for rule in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(rule, Rule) or not callable(rule.condition):
                raise UserError(
                    f"alarms.python={name} gives a {type(rule).__name__}. Give an opd.alarms.Rule, "
                    "or a list of them."
                )
            if rule.name in {each.name for each in rules}:
                raise UserError(
                    f"alarms.python={name}: there is a rule {rule.name} already; give yours "
                    "another name."
                )
            rules.append(rule)
    return tuple(rules)
