"""Conditions of the alarm rules: functions of the history that return evidence, or None.

Every condition takes the history and the rule's threshold, mostly a change or a ratio: the first
and the newest `History.window` steps are compared. `teacher_off_support`, `nothing_to_learn` and
`rollouts_are_stale` compare with a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, median

from opd.alarms.history import Change, History


class Evidence(dict[str, float]):
    """The numbers that show what a rule found.

    Attributes:
        subject: the evaluation set, or the training prompts, that they are about; empty where they
            are about the whole run.
    """

    def __init__(self, *numbers: Mapping[str, float], subject: str = "") -> None:
        """Evidence of some numbers."""
        super().__init__()
        self.subject = subject
        for part in numbers:
            self.update(part)


TRAINING_PROMPTS = "the training prompts"
Condition = Callable[[History, float], Evidence | None]

REVERSE_KL = ("diag/reverse_kl", "bound/reverse_kl_lower")
ENTROPY_GAP = "diag/entropy_gap_abs"
TOP1_AGREEMENT, OVERLAP_RATIO = "diag/top1_agreement", "diag/overlap_ratio"
ENTROPY, TEACHER_ENTROPY = "diag/student_entropy", "diag/teacher_entropy"
LOSS_TEACHER_MASS = "diag/loss_teacher_mass"
MASS_GAINED = 0.25  # of the mass outside the support: then the student is on its way by itself
LENGTH, TRUNCATED = "rollout/length", "rollout/truncated"
REPETITION, REWARD = "rollout/repetition", "rollout/reward"
HINT_QUOTED, DISTINCT = "rollout/hint_quoted", "rollout/distinct"
AHEAD_ESS = "ahead/ess"
HORIZON_CUT = "horizon/cut"  # fraction of rollouts cut by a horizon below rollout.max_new_tokens


def overlap_stagnates(history: History, min_closed: float) -> Evidence | None:
    """After four windows the distance to the teacher, by the median measure, is hardly smaller.

    Or it fell at once, and has been flat ever since, above the student's whole entropy.
    """
    agreement = history.change(TOP1_AGREEMENT)
    if agreement is None or history.num_windows(TOP1_AGREEMENT) < 4:
        return None
    if 1 - agreement.start < 0.05 or _improves(history):
        return None
    distances = {"top1_distance": _from_one(agreement)}
    kl_name = history.first_logged(REVERSE_KL)
    names = (("overlap_distance", OVERLAP_RATIO), ("kl", kl_name), ("gap", ENTROPY_GAP))
    for label, name in names:
        change = None if name is None else history.change(name)
        if change is not None:
            distances[label] = _from_one(change) if name == OVERLAP_RATIO else change
    closed = median(_fraction_closed(c) for c in distances.values())
    if closed < min_closed:
        return Evidence({"closed": round(closed, 6)}, _evidence(**distances))
    late = None if kl_name is None else history.change(kl_name, skip_windows=1)
    entropy = history.change(ENTROPY)
    if late is None or entropy is None or history.num_windows(TOP1_AGREEMENT) < 5:
        return None
    if late.now < entropy.now or _fraction_closed(late) >= min_closed:
        return None
    return _evidence(kl_since_second_window=late, student_entropy=entropy)


def mass_outside_grows(name: str, label: str, min_rise: float) -> Condition:
    """A condition: the probability outside a set of tokens has multiplied, and by `min_rise`."""

    def condition(history: History, factor: float) -> Evidence | None:
        change = history.change(name)
        if change is None:
            return None
        outside = _from_one(change)
        if outside.rises(min_rise) and outside.now > factor * outside.start:
            return _evidence(**{label: change})
        return None

    return condition


def teacher_off_support(history: History, min_mass: float) -> Evidence | None:
    """The teacher has little mass where the loss renormalises it, and hardly gains any there."""
    mass = history.change(LOSS_TEACHER_MASS)
    if mass is None or mass.now >= min_mass or _improves(history):
        return None
    is_early = history.num_windows(LOSS_TEACHER_MASS) < 4
    if (is_early and mass.rises(0.0)) or _fraction_closed(_from_one(mass)) >= MASS_GAINED:
        return None
    return _evidence(teacher_mass=mass)


def entropy_gap_stays_open(history: History, max_widening: float) -> Evidence | None:
    """The gap has widened; or after six windows neither gap nor reverse KL has closed."""
    gap = history.change(ENTROPY_GAP)
    if gap is None or gap.now < 0.05 or _improves(history):
        return None
    widened = gap.now > (1 + max_widening) * gap.start and gap.rises(0.0)
    kl = _falling_kl(history)
    open_still = gap.now > 0.85 * gap.start and (kl is None or _fraction_closed(kl) < 0.7)
    if not (widened or (history.num_windows(ENTROPY_GAP) >= 6 and open_still)):
        return None
    changes = {"gap": gap}
    for label, name in (("student_entropy", ENTROPY), ("teacher_entropy", TEACHER_ENTROPY)):
        entropy = history.change(name)
        if entropy is not None:
            changes[label] = entropy
    return _evidence(**changes)


def entropy_collapses(history: History, fraction: float) -> Evidence | None:
    """Entropy has fallen below a fraction of its start, and of the teacher's."""
    student, teacher = history.change(ENTROPY), history.change(TEACHER_ENTROPY)
    if student is None or not student.falls(0.0) or student.now >= fraction * student.start:
        return None
    if teacher is not None and student.now >= fraction * teacher.now:
        return None
    changes = {"student_entropy": student} | ({"teacher_entropy": teacher} if teacher else {})
    return _evidence(**changes)


def diversity_falls(history: History, min_fall: float) -> Evidence | None:
    """In two evaluations in a row fewer problems are solved by any sample; the mean is no lower."""
    for name in history.eval_sets():
        k, passed = history.max_pass_at_k(name)
        accuracy = history.values(f"eval/{name}/accuracy")
        if len(passed) < 3 or accuracy[-1] < accuracy[0]:
            continue
        if max(passed[-2:]) > passed[0] - min_fall:
            continue
        entropy = history.change(ENTROPY)
        return Evidence(
            {f"{name}_pass@{k}_start": passed[0], f"{name}_pass@{k}_now": passed[-1]},
            {f"{name}_start": accuracy[0], f"{name}_now": accuracy[-1]},
            {} if entropy is None else _evidence(student_entropy=entropy),
            subject=name,
        )
    return None


def late_entropy_spikes(history: History, factor: float) -> Evidence | None:
    """Entropy has shot up from some position to the end, and that position moves forward."""
    min_count = 0.9 * len(history.values(ENTROPY))  # positions that few responses reach are noise
    bins = [b for b in history.position_bins(ENTROPY) if len(history.values(b[1])) >= min_count]
    overall = history.change(ENTROPY)
    if overall is None:
        return None
    now, before = (
        _first_spiking_bin(history, bins, overall, factor, ago) for ago in (0, history.window)
    )
    if before == len(bins) or now >= before:
        return None
    change = history.change(bins[now][1])
    assert change is not None
    positions = {"position": float(bins[now][0]), "position_before": float(bins[before][0])}
    return Evidence(positions, _evidence(entropy_there=change))


def _first_spiking_bin(
    history: History, bins: list[tuple[int, str]], overall: Change, factor: float, ago: int
) -> int:
    """Index of the bin from which entropy has risen in every later one; `len(bins)` if in none."""
    first = len(bins)
    for i in range(len(bins) - 1, 0, -1):
        change = history.change(bins[i][1], ago=ago)
        if change is None or not change.rises(0.0):
            break
        if change.now < max(factor * change.start, overall.start):
            break
        first = i
    return first


def length_inflates(history: History, factor: float) -> Evidence | None:
    """Responses are longer, and repeat themselves, are truncated or are wrong more often."""
    length = history.change(LENGTH)
    if length is None or not length.rises(0.0) or length.now < factor * length.start:
        return None
    repetition, truncated, reward = (history.change(n) for n in (REPETITION, TRUNCATED, REWARD))
    if repetition is not None and repetition.rises(0.05):
        return _evidence(length=length, repetition=repetition)
    if truncated is not None and truncated.rises(0.05):
        return _evidence(length=length, truncated=truncated)
    if reward is not None and reward.falls(0.0):
        return _evidence(length=length, reward=reward)
    return None


def repetition_rises(history: History, min_rise: float) -> Evidence | None:
    """The fraction of repeated 4-grams has risen."""
    change = history.change(REPETITION)
    rises = change is not None and change.rises(min_rise)
    return _evidence(repetition=change) if change is not None and rises else None


def hint_leaks(history: History, min_rise: float) -> Evidence | None:
    """More rollouts quote what only the teacher sees."""
    change = history.change(HINT_QUOTED)
    rises = change is not None and change.rises(min_rise)
    return _evidence(hint_quoted=change) if change is not None and rises else None


def responses_become_alike(history: History, min_fraction: float) -> Evidence | None:
    """Distinct 4-grams among the responses to a prompt have become few."""
    change = history.change(DISTINCT)
    falls = change is not None and change.falls((1 - min_fraction) * change.start)
    return _evidence(distinct=change) if change is not None and falls else None


def truncation_rises(history: History, min_rise: float) -> Evidence | None:
    """More rollouts are truncated than at the start; or all are, at a third of eval length."""
    change = history.change(TRUNCATED)
    if change is None or any(history.values(HORIZON_CUT)):
        return None
    if change.rises(min_rise):
        return _evidence(truncated=change)
    length = history.change(LENGTH)
    lengths = [history.values(f"eval/{name}/length") for name in history.eval_sets()]
    eval_lengths = [values[-1] for values in lengths if values]
    if length is None or not eval_lengths or min(change.start, change.now) < 0.9:
        return None
    if fmean(eval_lengths) < 3 * length.now:
        return None
    evidence = _evidence(truncated=change, length=length)
    return Evidence(evidence, {"evaluation_length": fmean(eval_lengths)})


def nothing_to_learn(history: History, max_fraction: float) -> Evidence | None:
    """Reverse KL has been small beside the student's entropy all along; nothing improves."""
    kl, entropies = history.first_logged(REVERSE_KL), history.means(ENTROPY)
    if kl is None or len(entropies) < 4:
        return None
    pairs = zip(history.means(kl), entropies, strict=False)
    largest = max(k / h if h > 0 else 1.0 for k, h in pairs)
    change = history.change(kl)
    if largest >= max_fraction or change is None or _improves(history):
        return None
    return Evidence({"largest_share_of_entropy": round(largest, 6)}, _evidence(kl=change))


def sampler_drifts(history: History, factor: float) -> Evidence | None:
    """Log-probabilities of trainer and sampler differ more than at the start.

    With `rollout.ahead` they are of different weights, which `rollouts_are_stale` is about.
    """
    if history.values(AHEAD_ESS):
        return None
    gap, ess = history.change("drift/logp_gap"), history.change("drift/ess")
    if gap is not None and gap.rises(1e-3) and gap.now > factor * gap.start:
        return _evidence(logp_gap=gap)
    if ess is not None and ess.falls(0.05):
        return _evidence(effective_share=ess)
    return None


def rollouts_are_stale(history: History, min_share: float) -> Evidence | None:
    """Importance weights of the rollouts leave few of them."""
    ess = history.change(AHEAD_ESS)
    return None if ess is None or ess.now >= min_share else _evidence(effective_share=ess)


def accuracy_falls_towards_teacher(history: History, min_fall: float) -> Evidence | None:
    """The student comes closer to the teacher and gets worse at what the run is judged by."""
    kl, loss = _falling_kl(history), _accuracy_loss(history, min_fall)
    if kl is None or loss is None:
        return None
    return Evidence(loss, _evidence(kl=kl), subject=loss.subject)


def accuracy_falls(history: History, min_fall: float) -> Evidence | None:
    """The student gets worse at what the run is judged by, and comes no closer to the teacher."""
    return None if _falling_kl(history) is not None else _accuracy_loss(history, min_fall)


def forgets(history: History, min_fall: float) -> Evidence | None:
    """Accuracy on other sets than the first, by which the run is judged, is below its start."""
    losses = [n for n in history.eval_sets()[1:] if _has_fallen(history, n, min_fall)]
    if not losses:
        return None
    values = {name: history.values(f"eval/{name}/accuracy") for name in losses}
    numbers = ({f"{n}_start": v[0], f"{n}_now": v[-1]} for n, v in values.items())
    return Evidence(*numbers, subject=", ".join(losses))


def _accuracy_loss(history: History, min_fall: float) -> Evidence | None:
    """Accuracy on the first held-out set, or on training rollouts, is below its start.

    Beyond chance; and not where the first set, by which the run is judged, is above its start.
    """
    main = next(iter(history.eval_sets()), None)
    if main is not None and _has_risen(history, main):
        return None
    if main is not None and _has_fallen(history, main, min_fall):
        accuracy = history.values(f"eval/{main}/accuracy")
        numbers = {f"{main}_start": accuracy[0], f"{main}_now": accuracy[-1]}
        return Evidence(numbers, subject=main)
    reward = history.change(REWARD)
    if reward is not None and reward.falls(min_fall) and not any(history.values(HORIZON_CUT)):
        return Evidence(_evidence(reward=reward), subject=TRAINING_PROMPTS)
    return None


def _has_risen(history: History, name: str) -> bool:
    """Whether the newest accuracy on a held-out set is above the first, beyond chance."""
    low, high = (history.values(f"eval/{name}/accuracy_{end}") for end in ("low", "high"))
    return low[-1] > high[0]


def _has_fallen(history: History, name: str, min_fall: float) -> bool:
    """Whether the newest accuracy on a held-out set is below the first, beyond chance."""
    low, high = (history.values(f"eval/{name}/accuracy_{end}") for end in ("low", "high"))
    accuracy = history.values(f"eval/{name}/accuracy")
    return high[-1] < low[0] and accuracy[0] - accuracy[-1] >= min_fall


def _improves(history: History) -> bool:
    """Whether accuracy has ever been above its start beyond chance: then the run has an effect."""
    means = history.means(REWARD)
    for i in range(1, len(means)):
        ago = len(history.values(REWARD)) - (i + 1) * history.window
        change = history.change(REWARD, ago=ago)
        if change is not None and change.rises(0.08):
            return True
    for name in history.eval_sets():
        low = history.values(f"eval/{name}/accuracy_low")
        if max(low) > history.values(f"eval/{name}/accuracy_high")[0]:
            return True
    return False


def _falling_kl(history: History) -> Change | None:
    """How reverse KL has changed, if it is lower than at the start."""
    kl = history.first_logged(REVERSE_KL)
    change = None if kl is None else history.change(kl)
    return change if change is not None and change.difference < 0 else None


def _evidence(**changes: Change) -> Evidence:
    """Start and newest window of several metrics."""
    return Evidence(
        *(
            {f"{name}_start": round(c.start, 6), f"{name}_now": round(c.now, 6)}
            for name, c in changes.items()
        )
    )


def _fraction_closed(change: Change) -> float:
    """Fraction of a distance that is gone; negative when it grew."""
    return 1 - change.now / change.start if change.start > 0 else 0.0


def _from_one(change: Change) -> Change:
    """The distance of a fraction from 1."""
    return Change(1 - change.start, 1 - change.now, change.noise)
