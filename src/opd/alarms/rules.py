"""The rules: each a sentence, a condition on trends, the numbers it saw, and what helps.

A threshold is a change, a ratio or a share - never a level that a good run of another pair could
have. Windows: the first and the newest `History.window` steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from opd.alarms.history import Change, History, latest
from opd.config import AlarmName

Evidence = dict[str, float]
Act = Literal["tail", "cap", "cold start"]

KL = ("diag/reverse_kl", "bound/reverse_kl_lower")
GAP, TOP1, RATIO = "diag/entropy_gap_abs", "diag/top1_agreement", "diag/overlap_ratio"
ENTROPY, TEACHER_ENTROPY = "diag/student_entropy", "diag/teacher_entropy"
LENGTH, CUT, LOOPS = "rollout/length", "rollout/truncated", "rollout/repetition"
REWARD = "rollout/reward"
SHORTENED = "horizon/cut"  # share of rollouts that a horizon below the longest has cut


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong.

    Attributes:
        name: as in alarms.jsonl and `alarms.rules`.
        says: what is happening, for people.
        remedy: what helps.
        threshold: the number that decides, unless `alarms.rules.<name>.threshold` says otherwise.
        means: what the threshold is.
        find: numbers that show it, or None.
        acts: what a run can do about it by itself, the first possible one first.
    """

    name: AlarmName
    says: str
    remedy: str
    threshold: float
    means: str
    find: Callable[[History, float], Evidence | None]
    acts: tuple[Act, ...] = ()


def _seen(**changes: Change) -> Evidence:
    """Start and newest window of several metrics."""
    return {
        f"{name}_{when}": round(value, 6)
        for name, c in changes.items()
        for when, value in (("start", c.start), ("now", c.now))
    }


def _closed(change: Change) -> float:
    """Share of a distance that is gone; negative when it grew."""
    return 1 - change.now / change.start if change.start > 0 else 0.0


def _to_one(change: Change) -> Change:
    """The distance of a share from 1."""
    return Change(1 - change.start, 1 - change.now, change.noise)


def improving(history: History) -> bool:
    """Whether accuracy has been above its start, beyond chance: then the run teaches something."""
    means = history.means(REWARD)
    for i in range(1, len(means)):
        ago = len(history.values(REWARD)) - (i + 1) * history.window
        change = history.change(REWARD, ago=ago)
        if change is not None and change.rises(0.08):
            return True
    for name in history.sets():
        low = history.values(f"eval/{name}/accuracy_low")
        if max(low) > history.values(f"eval/{name}/accuracy_high")[0]:
            return True
    return False


def stagnating(history: History, least: float) -> Evidence | None:
    """After four windows the distance to the teacher, by the median measure, is hardly smaller.

    Or it fell at once, and has lain flat ever since, at more than the student's whole entropy.
    """
    agreement = history.change(TOP1)
    if agreement is None or history.windows(TOP1) < 4 or 1 - agreement.start < 0.05:
        return None
    if improving(history):
        return None
    found = {"top1_distance": _to_one(agreement)}
    for label, name in (("overlap_distance", RATIO), ("kl", latest(history, KL)), ("gap", GAP)):
        change = None if name is None else history.change(name)
        if change is not None:
            found[label] = _to_one(change) if name == RATIO else change
    closed = median(_closed(c) for c in found.values())
    if closed < least:
        return {"closed": round(closed, 6), **_seen(**found)}
    kl = latest(history, KL)
    late = None if kl is None else history.change(kl, since=1)
    entropy = history.change(ENTROPY)
    if late is None or entropy is None or history.windows(TOP1) < 5:
        return None
    if late.now < entropy.now or _closed(late) >= least:
        return None
    return _seen(kl_since_second_window=late, student_entropy=entropy)


def draining(name: str, label: str, least: float) -> Callable[[History, float], Evidence | None]:
    """A rule: the probability outside a set of tokens has multiplied, and is no trifle."""

    def find(history: History, times: float) -> Evidence | None:
        change = history.change(name)
        if change is None:
            return None
        outside = _to_one(change)
        if outside.rises(least) and outside.now > times * outside.start:
            return _seen(**{label: change})
        return None

    return find


def gap_open(history: History, wider: float) -> Evidence | None:
    """The gap has widened; or after six windows neither gap nor KL has closed."""
    change = history.change(GAP)
    if change is None or change.now < 0.05:
        return None
    if improving(history):
        return None
    widened = change.now > (1 + wider) * change.start and change.rises(0.0)
    nearer = _nearer(history)
    open_still = change.now > 0.85 * change.start and (nearer is None or _closed(nearer) < 0.7)
    if not (widened or (history.windows(GAP) >= 6 and open_still)):
        return None
    found = {"gap": change}
    for label, name in (("student_entropy", ENTROPY), ("teacher_entropy", TEACHER_ENTROPY)):
        entropy = history.change(name)
        if entropy is not None:
            found[label] = entropy
    return _seen(**found)


def collapse(history: History, share: float) -> Evidence | None:
    """Entropy has fallen below a share of what it was, and of the teacher's."""
    mine, theirs = history.change(ENTROPY), history.change(TEACHER_ENTROPY)
    if mine is None or not mine.falls(0.0) or mine.now >= share * mine.start:
        return None
    if theirs is not None and mine.now >= share * theirs.now:
        return None
    return _seen(student_entropy=mine, **({"teacher_entropy": theirs} if theirs else {}))


def narrowing(history: History, fall: float) -> Evidence | None:
    """Twice in a row some answer was found for fewer problems than at the start; mean no lower."""
    for name in history.sets():
        tries, passed = history.most_tries(name)
        accuracy = history.values(f"eval/{name}/accuracy")
        if len(passed) < 3 or accuracy[-1] < accuracy[0] or max(passed[-2:]) > passed[0] - fall:
            continue
        found = {f"{name}_pass@{tries}_start": passed[0], f"{name}_pass@{tries}_now": passed[-1]}
        found |= {f"{name}_start": accuracy[0], f"{name}_now": accuracy[-1]}
        entropy = history.change(ENTROPY)
        return found | ({} if entropy is None else _seen(student_entropy=entropy))
    return None


def spike_forward(history: History, times: float) -> Evidence | None:
    """Entropy has shot up from some position to the end, and that position moves forward."""
    often = 0.9 * len(history.values(ENTROPY))  # what few responses reach is noise
    bins = [b for b in history.bins(ENTROPY) if len(history.values(b[1])) >= often]
    usual = history.change(ENTROPY)
    if usual is None:
        return None
    fronts = []
    for ago in (0, history.window):
        front = len(bins)
        for i in range(len(bins) - 1, 0, -1):
            change = history.change(bins[i][1], ago=ago)
            least = max(times * change.start, usual.start) if change else 0.0
            if change is None or not change.rises(0.0) or change.now < least:
                break
            front = i
        fronts.append(front)
    now, before = fronts
    if before == len(bins) or now >= before:
        return None
    change = history.change(bins[now][1])
    assert change is not None
    where = {"position": float(bins[now][0]), "position_before": float(bins[before][0])}
    return where | _seen(entropy_there=change)


def inflated(history: History, times: float) -> Evidence | None:
    """Responses have grown, and repeat themselves, are cut or are wrong more often."""
    length = history.change(LENGTH)
    if length is None or not length.rises(0.0) or length.now < times * length.start:
        return None
    loops, cut, reward = (history.change(n) for n in (LOOPS, CUT, REWARD))
    if loops is not None and loops.rises(0.05):
        return _seen(length=length, repetition=loops)
    if cut is not None and cut.rises(0.05):
        return _seen(length=length, truncated=cut)
    if reward is not None and reward.falls(0.0):
        return _seen(length=length, reward=reward)
    return None


def repeating(history: History, more: float) -> Evidence | None:
    """The share of repeated 4-grams has grown."""
    change = history.change(LOOPS)
    return None if change is None or not change.rises(more) else _seen(repetition=change)


def cut_off(history: History, more: float) -> Evidence | None:
    """More rollouts are cut than at the start; or all are, far before the student is done."""
    change = history.change(CUT)
    if change is None or any(history.values(SHORTENED)):
        return None
    if change.rises(more):
        return _seen(truncated=change)
    length = history.change(LENGTH)
    lengths = [history.values(f"eval/{name}/length") for name in history.sets()]
    needed = [values[-1] for values in lengths if values]
    if length is None or not needed or min(change.start, change.now) < 0.9:
        return None
    if fmean(needed) < 3 * length.now:
        return None
    return _seen(truncated=change, length=length) | {"evaluation_length": fmean(needed)}


def nothing_to_learn(history: History, share: float) -> Evidence | None:
    """Reverse KL has been a trifle beside the student's entropy all along; nothing improves."""
    kl, entropy = latest(history, KL), history.means(ENTROPY)
    if kl is None or len(entropy) < 4:
        return None
    means = history.means(kl)
    largest = max(k / h if h > 0 else 1.0 for k, h in zip(means, entropy, strict=False))
    change = history.change(kl)
    if largest >= share or change is None or improving(history):
        return None
    return {"largest_share_of_entropy": round(largest, 6)} | _seen(kl=change)


def drifting(history: History, times: float) -> Evidence | None:
    """Trainer and sampler disagree more than at the start."""
    gap, share = history.change("drift/logp_gap"), history.change("drift/ess")
    if gap is not None and gap.rises(1e-3) and gap.now > times * gap.start:
        return _seen(logp_gap=gap)
    if share is not None and share.falls(0.05):
        return _seen(effective_share=share)
    return None


def _lost(history: History, least: float) -> Evidence | None:
    """Accuracy on training rollouts, or on a held-out set, is below what it was at the start."""
    reward = history.change(REWARD)
    if reward is not None and reward.falls(least) and not any(history.values(SHORTENED)):
        return _seen(reward=reward)
    for name in history.sets():
        high = history.values(f"eval/{name}/accuracy_high")
        low = history.values(f"eval/{name}/accuracy_low")
        accuracy = history.values(f"eval/{name}/accuracy")
        if high[-1] < low[0] and accuracy[0] - accuracy[-1] >= least:
            return {f"{name}_start": accuracy[0], f"{name}_now": accuracy[-1]}
    return None


def _nearer(history: History) -> Change | None:
    """How reverse KL has changed, if it has fallen."""
    kl = latest(history, KL)
    change = None if kl is None else history.change(kl)
    return change if change is not None and change.by < 0 else None


def reversing(history: History, least: float) -> Evidence | None:
    """The student comes nearer to the teacher and gets worse."""
    nearer, lost = _nearer(history), _lost(history, least)
    return None if nearer is None or lost is None else lost | _seen(kl=nearer)


def losing(history: History, least: float) -> Evidence | None:
    """The student gets worse, and not because it comes nearer."""
    return None if _nearer(history) is not None else _lost(history, least)


RULES = (
    Rule(
        "overlap-stagnating",
        "The student is not coming nearer to the teacher: overlap, agreement and KL hardly move.",
        "Warm up on teacher completions first, use prompts the teacher was trained on, or take a "
        "teacher closer to the student; check optim.lr.",
        0.25,
        "least share of the distance (median of 1 - top-1 agreement, 1 - overlap ratio, reverse "
        "KL, entropy gap) that must be gone after four windows; and of a reverse KL above the "
        "student's entropy, from the second window to the fifth",
        stagnating,
        ("cold start",),
    ),
    Rule(
        "overlap-mass-falling",
        "The student's probability leaves the tokens that both models rank high.",
        "Warm up on teacher completions, lower optim.lr, or set loss.mode=tail.",
        2.0,
        "times the mass outside the overlap has multiplied (and by .03 or more)",
        draining("diag/overlap_mass_student", "overlap_mass", 0.03),
        ("cold start", "tail"),
    ),
    Rule(
        "support-mass-draining",
        "Probability escapes from the student's top k, where a renormalised loss does not look.",
        "Set loss.mode=tail, or a larger loss.k.",
        3.0,
        "times the mass outside the support has multiplied (and by .01 or more)",
        draining("diag/support_mass", "support_mass", 0.01),
        ("tail",),
    ),
    Rule(
        "entropy-gap-open",
        "The entropies of student and teacher do not approach each other.",
        "Warm up on teacher completions, or choose a teacher or prompts that fit the student; see "
        "the overlap mass.",
        0.5,
        "share by which the gap has widened (or, after six windows, .85 of it is left and reverse "
        "KL has not fallen by .7)",
        gap_open,
        ("cold start",),
    ),
    Rule(
        "entropy-collapse",
        "The student's entropy is collapsing: samples of a prompt become equal.",
        "Set loss.terms.entropy_forward_kl, raise rollout.temperature, or mix in prompts the "
        "teacher was not trained on.",
        0.5,
        "share of its start, and of the teacher's, that the student's entropy has fallen below",
        collapse,
    ),
    Rule(
        "diversity-falling",
        "Mean accuracy holds, but fewer problems are solved by any of several tries: the student "
        "explores less.",
        "Set loss.terms.entropy_forward_kl, raise rollout.temperature, or mix in prompts the "
        "teacher was not trained on.",
        0.1,
        "fall of pass@k, k the most tries that were made, in two evaluations in a row",
        narrowing,
    ),
    Rule(
        "late-spike",
        "Entropy spikes at late positions, and the spike moves towards the front.",
        "Shorten the horizon: horizon.cap, or rollout.max_new_tokens.",
        1.5,
        "times entropy at the spiking positions has grown (and above the mean at the start)",
        spike_forward,
        ("cap",),
    ),
    Rule(
        "length-inflation",
        "Responses grow, and not for the better.",
        "Shorten the horizon (horizon.cap), mix in gold completions (loss.terms.sft_weight), and "
        "check that both models agree on the end token.",
        1.25,
        "times the mean length has grown, while repetition or cuts rise or accuracy falls",
        inflated,
        ("cap",),
    ),
    Rule(
        "repetition",
        "Responses repeat themselves more and more.",
        "Shorten the horizon (horizon.cap), or mix in gold completions (loss.terms.sft_weight).",
        0.1,
        "rise of the share of repeated 4-grams",
        repeating,
        ("cap",),
    ),
    Rule(
        "truncation",
        "Responses are cut before they end.",
        "Check that both models agree on the end token; raise rollout.max_new_tokens if responses "
        "need it, or shorten the horizon if they ramble.",
        0.15,
        "rise of the share of rollouts that are cut (or nine of ten all along, at a third of what "
        "evaluation writes)",
        cut_off,
    ),
    Rule(
        "nothing-to-learn",
        "The loss is small and flat from the start: this teacher says what the student says.",
        "That is no good student but a useless teacher: take one that was trained further, or on "
        "other data.",
        0.05,
        "largest reverse KL, as a share of the student's entropy, of any window; four at least",
        nothing_to_learn,
    ),
    Rule(
        "drift",
        "The trainer's probabilities are no longer the sampler's: the data is not on-policy.",
        "Check precision, temperature and templates of the sampler, and that every sync arrives.",
        5.0,
        "times the log-prob gap has grown (or the effective share has fallen by .05)",
        drifting,
    ),
    Rule(
        "reverse-distillation",
        "The student comes nearer to the teacher and gets worse: it unlearns what it could do.",
        "This teacher is worse for this student than no teacher: take one whose continuations of "
        "the student's text are right more often; or warm up on its completions.",
        0.05,
        "fall of accuracy, beyond chance",
        reversing,
    ),
    Rule(
        "accuracy-falling",
        "The student gets worse without coming nearer to the teacher.",
        "Lower optim.lr; look at refused steps, truncation and repetition.",
        0.05,
        "fall of accuracy, beyond chance",
        losing,
    ),
)
