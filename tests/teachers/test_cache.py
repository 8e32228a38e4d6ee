"""Scores on disk: right, shared, bounded, and never believed when damaged."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from opd import config
from opd.errors import UserError
from opd.run.clock import Clock
from opd.run.console import Console
from opd.setup.remote_teacher import CachedScores
from opd.teachers.cache import CachedTeacher, OfflineTeacher, Store, entry_key, offline_name
from opd.teachers.local import LocalTeacher
from opd.teachers.remote import TeacherDown
from opd.testing import TINY_VOCAB as VOCAB
from opd.testing import random_rollouts
from opd.types import Kind, Scores, Want

WANT = Want(sampled=True, support=True, topk=4)


class Counting:
    """Counts what a teacher is asked; may go away after some rollouts."""

    name, kinds = "counted", frozenset(Kind)

    def __init__(self, teacher, stay: int = 10**9) -> None:
        self.teacher, self.stay, self.asked = teacher, stay, 0

    def score(self, given, want):
        self.asked += len(given)
        scores = self.teacher.score(given, want)
        if len(given) > self.stay:
            left = [s if i < self.stay else None for i, s in enumerate(scores)]
            raise TeacherDown("gone", left)
        return scores


def same(a: Scores, b: Scores) -> bool:
    names = ("sampled", "support", "log_z", "entropy", "topk_ids", "topk_logp")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def test_what_was_asked_once_is_read_and_equal_bit_for_bit(make_lm, tmp_path):
    teacher = Counting(LocalTeacher(make_lm()))
    noted: dict[str, float] = {}
    cached = CachedTeacher(teacher, Store(tmp_path, 10**8), "f", record=noted.__setitem__)
    given = random_rollouts(5, vocab=VOCAB)
    first = cached.score(given, WANT)
    assert (teacher.asked, noted["teacher/cache_hits"]) == (5, 0)
    second = cached.score([*given, *random_rollouts(1, seed=9, vocab=VOCAB)], WANT)
    assert teacher.asked == 6
    assert noted["teacher/cache_hits"] == pytest.approx(5 / 6)
    assert all(map(same, first, second[:5]))
    assert all(map(same, first, teacher.teacher.score(given, WANT)))


def test_a_key_holds_everything_the_answer_depends_on():
    one = random_rollouts(1, vocab=VOCAB)[0]
    other_ids, other_top = one.ids.copy(), one.topk_ids.copy()
    other_ids[-1] += 1
    other_top[0, 0] += 1
    moved = replace(
        one, prompt=replace(one.prompt, ids=(*one.prompt.ids, int(one.ids[0]))), ids=one.ids[1:]
    )
    keys = [
        entry_key("f", one, WANT),
        entry_key("g", one, WANT),
        entry_key("f", one, WANT._replace(topk=5)),
        entry_key("f", one, WANT._replace(sampled=False)),
        entry_key("f", one, WANT._replace(support=False)),
        entry_key("f", replace(one, ids=other_ids), WANT),
        entry_key("f", replace(one, topk_ids=other_top), WANT),
        entry_key("f", moved, WANT),
    ]
    assert len(set(keys)) == len(keys)
    again = replace(one, sample=3, prompt=replace(one.prompt, index=7, text="another text"))
    assert entry_key("f", again, WANT) == keys[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "swapped", "garbage"])
def test_a_damaged_entry_is_asked_for_again(make_lm, tmp_path, damage, caplog):
    teacher = Counting(LocalTeacher(make_lm()))
    cached = CachedTeacher(teacher, Store(tmp_path, 10**8), "f")
    given = random_rollouts(2, vocab=VOCAB)
    honest = cached.score(given, WANT)
    first, second = sorted(tmp_path.glob("??/*"))
    data = bytearray(first.read_bytes())
    data[-5] ^= 1
    first.write_bytes(
        {
            "cut": first.read_bytes()[:-9],
            "flipped": bytes(data),
            "emptied": b"",
            "swapped": second.read_bytes(),
            "garbage": b"\x80\x04\x95" * 50,
        }[damage]
    )
    assert all(map(same, cached.score(given, WANT), honest))
    assert teacher.asked == 3
    assert "damaged" in caplog.text


def test_the_oldest_entries_go_when_the_limit_is_reached(make_lm, tmp_path):
    store = Store(tmp_path, 10**8)
    cached = CachedTeacher(LocalTeacher(make_lm()), store, "f")
    cached.score(random_rollouts(40, vocab=VOCAB), WANT)
    sizes = {p: p.stat().st_size for p in tmp_path.glob("??/*")}
    store.max_bytes = sum(sizes.values()) // 2
    store.shrink()
    left = sum(p.stat().st_size for p in tmp_path.glob("??/*"))
    assert store.max_bytes - max(sizes.values()) < left <= store.max_bytes


def test_files_of_others_in_the_folder_of_a_cache_are_never_removed(make_lm, tmp_path):
    """A folder with data/en/train.jsonl in it, given as teacher.cache.dir, would have lost it."""
    store = Store(tmp_path, 10**8)
    CachedTeacher(LocalTeacher(make_lm()), store, "f").score(random_rollouts(4, vocab=VOCAB), WANT)
    mine = tmp_path / "en" / "train.jsonl"
    mine.parent.mkdir()
    mine.write_text("years of work")
    store.max_bytes = 0
    store.shrink()
    assert [p for p in tmp_path.glob("??/*") if p.is_file()] == [mine]


def test_what_a_teacher_said_before_it_went_away_is_kept(make_lm, tmp_path):
    teacher = Counting(LocalTeacher(make_lm()), stay=3)
    cached = CachedTeacher(teacher, Store(tmp_path, 10**8), "f")
    given = random_rollouts(5, vocab=VOCAB)
    with pytest.raises(TeacherDown) as down:
        cached.score(given, WANT)
    assert [s is not None for s in down.value.partial] == [True] * 3 + [False] * 2
    cached.score(given, WANT)
    assert teacher.asked == 5 + 2


def write_many(folder, seed: int) -> None:
    """One of several writers of the same entries."""
    store = Store(folder, 10**8)
    for i in range(60):
        scores = Scores(sampled=np.full(50, i, np.float32))
        store.write(f"{i:02x}" * 32, scores)
        scores = store.read(f"{(i * 7 + seed) % 60:02x}" * 32)
        assert scores is None or len(set(scores.sampled.tolist())) == 1


def test_many_writers_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, s)) for s in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(60)
    assert [w.exitcode for w in writers] == [0, 0, 0]
    assert len(list(tmp_path.glob("??/*.safetensors"))) == 60
    assert not list(tmp_path.glob("??/*.tmp-*"))


def test_a_disk_that_refuses_costs_the_entry_not_the_run(make_lm, tmp_path, caplog):
    store = Store(tmp_path, 10**8)
    given = random_rollouts(1, vocab=VOCAB)
    key = entry_key("f", given[0], WANT)
    (tmp_path / key[:2]).write_text("a file where a folder should be")
    cached = CachedTeacher(LocalTeacher(make_lm()), store, "f")
    assert cached.score(given, WANT)[0].sampled is not None
    assert "cannot" in caplog.text


def test_offline_gives_what_was_made_and_names_what_is_missing(make_lm, tmp_path):
    store = Store(tmp_path, 10**8)
    given = random_rollouts(3, vocab=VOCAB)
    made = CachedTeacher(
        LocalTeacher(make_lm()), store, offline_name("m", 1.0), topk_for_diagnostics=6
    )
    full = [np.arange(len(r)) for r in given]
    expected = made.score(given, WANT._replace(full=full))
    offline = OfflineTeacher(store, "m", topk_for_diagnostics=6)
    read = offline.score(given, WANT._replace(full=full))
    assert all(map(same, read, expected))
    assert read[0].topk_ids.shape[1] == 6
    with pytest.raises(UserError, match=r"1 of 1 rollouts.*--score"):
        offline.score(random_rollouts(1, seed=3, vocab=VOCAB), WANT)
    with pytest.raises(UserError, match="of m"):
        OfflineTeacher(store, "m", temperature=2.0).score(given, WANT)


def test_the_size_that_a_run_gives_bounds_its_cache(tmp_path):
    """teacher.cache.max_gb, in bytes."""
    teacher = {"model": "t", "cache": {"dir": str(tmp_path), "offline": True, "max_gb": 0.25}}
    data = {"student": {"model": "s"}, "teacher": teacher, "prompts": {"path": "p"}}
    cfg = config.parse(data | {"output": {"dir": "run"}})
    made = CachedScores(cfg.teacher).teacher(cfg, 10, tmp_path, Console("quiet"), Clock())
    assert made.store.max_bytes == 250_000_000
