"""Bytes of others, mutated: prompt files, answers of teacher servers, the files of a whole run.

Right, or a message: never another exception, never a score that is no number. OPD_FUZZ_DATA=10000
makes as many cases of each kind; everyday two hundred.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import httpx2
import numpy as np
import pytest

from opd.data.duplicates import load_questions
from opd.data.prompts import load_prompts
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.http import Refusal, Transient
from opd.models.tokenizers import load_tokenizer
from opd.run.checkpoint import find_newest_checkpoint
from opd.teachers.dialect import request_scores
from opd.teachers.opd_api import OpdDialect
from opd.teachers.validate import WrongAnswer
from opd.teachers.vllm_api import VllmDialect
from opd.testing import (
    LETTER_VOCAB,
    FakeClock,
    FakeTeacherServer,
    FakeVllmServer,
    encode_letters,
    fake_client,
    letter_model,
)
from opd.testing.clients import raw_response
from opd.types import Rollout, Want
from support.mistakes import make_workspace, type_command
from support.runs import digest

CASES = int(os.environ.get("OPD_FUZZ_DATA", "200"))
JUNK = (b"", b"\x00", b"\xff\xfe", b"{", b"}", b'"', b",", b"\n", b"NaN", b"1e999", b"\\ud800")
JUNK += (b"null", b"[]", b"-1", b"true", b"99999999999999999999", b"\xe2\x80\xae", b'{"a": 1}')
VALUES = (None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**70, "", "x", "1")
VALUES += ([], {}, [[]], [None], {"logprob": 1.0}, "\ud800", "A" * 3000, -1e308, "0", [1] * 99)
ROWS = [
    {"problem": "sum pig gnu jay", "answer": "8"},
    {"problem": "sum newt elk", "answer": 0},
    {"messages": [{"role": "user", "content": "sum elk"}], "solution": "so \\boxed{1}"},
    {"prompt": "ä {x} {{ y }}", "reward_model": {"ground_truth": "2"}},
]


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):  # a bit
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:  # the end is lost
            data = data[:at]
        elif kind == 2:  # something is put in
            data = data[:at] + rng.choice(JUNK) + data[at:]
        elif kind == 3:  # a part is lost
            data = data[:at] + data[at + rng.randrange(40) :]
        else:  # a part comes twice
            data = data[:at] + data[max(0, at - rng.randrange(40)) :]
    return data


def mutated_json(value, rng: random.Random):
    """A JSON value with one place changed, whatever its depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:i] + value[i + 1 :]
        return [*value[:i], mutated_json(value[i], rng), *value[i + 1 :]]
    if type(value) is float and rng.random() < 0.3:
        return value + rng.choice([1e-6, -1e-6, 1.0, -100.0])
    return rng.choice(VALUES)


def prompt_file(rng: random.Random) -> tuple[str, bytes]:
    rows = [rng.choice(ROWS) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        rows = mutated_json(rows, rng)
        rows = rows if isinstance(rows, list) else [rows]
    suffix = rng.choice(["jsonl", "json", "csv"])
    if suffix == "csv":
        text = "problem,answer\n" + "".join(f"sum pig {i},{i}\n" for i in range(len(rows)))
    elif suffix == "json":
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    return suffix, mutated_bytes(text.encode(), rng)


def test_a_mutated_prompt_file_is_read_or_a_message(tmp_path):
    tokenizer, refused, unnamed = load_tokenizer(str(PAIR / "student")), 0, 0
    for seed in range(CASES):
        suffix, data = prompt_file(random.Random(seed))
        path = tmp_path / f"rows.{suffix}"
        path.write_bytes(data)
        for read in (
            load_questions,
            lambda p: load_prompts(p, tokenizer, template=None, chat=None, max_tokens=64).prompts,
        ):
            try:
                prompts = read(str(path))
            except UserError as error:
                refused += 1
                unnamed += path.name not in str(error)
            except Exception as error:
                raise AssertionError((seed, data)) from error
            else:
                assert prompts
                assert all(p.answer is None or p.answer for p in prompts)
    assert unnamed == 0
    assert 0.2 < refused / (2 * CASES) < 0.95


class Mutating(httpx2.BaseTransport):
    """A fake server whose next answer is changed."""

    def __init__(self, server, change):
        self.server, self.change, self.active = server, change, False

    def handle_request(self, request):
        response = self.server.handle_request(request)
        if not self.active or response.status_code != 200:
            return response
        return raw_response(self.change(b"".join(response.iter_raw())))


ROLLOUTS = [
    Rollout.of_ids((3, 4, 5), [6, 7, 8, 9], topk_ids=np.array([[6, 1], [7, 2], [8, 3], [9, 4]])),
    Rollout.of_ids((1, 2), [3, 4, 5], topk_ids=np.array([[3, 1], [4, 2], [5, 7]])),
]


def changed_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(mutated_json(json.loads(data), rng)).encode()
    except ValueError:
        return mutated_bytes(data, rng)


def fuzz_server(make, want: Want, change) -> tuple[int, int]:
    """(refused, accepted) of the answers that are not what was sent."""
    accepted = refused = 0
    rng = random.Random(0)
    server = Mutating(None, lambda data: change(data, rng))
    dialect = make(server)
    honest = request_scores(dialect, ROLLOUTS, want, LETTER_VOCAB)
    for case in range(CASES):
        rng.seed(case)
        server.active = True
        try:
            scores = request_scores(dialect, ROLLOUTS, want, LETTER_VOCAB)
        except (WrongAnswer, Transient, Refusal, UserError):
            refused += 1
            continue
        except Exception as error:
            raise AssertionError(case) from error
        finally:
            server.active = False
        accepted += 1
        for got, right in zip(scores, honest, strict=True):
            for name, array in got.arrays().items():
                assert np.isfinite(array).all(), (case, name)
                assert array.shape == right.arrays()[name].shape, (case, name)
    return refused, accepted


def opd_dialect(server):
    server.server = FakeTeacherServer(letter_model(0), LETTER_VOCAB, tokenize=encode_letters)
    return OpdDialect(fake_client(server, FakeClock(), attempts=1))


def vllm_dialect(server):
    server.server = FakeVllmServer(letter_model(0), max_len=600)
    return VllmDialect(fake_client(server, FakeClock(), attempts=1), "m")


def test_a_mutated_answer_over_the_wire_is_refused_or_numbers(record_property):
    refused, accepted = fuzz_server(opd_dialect, Want(True, True, 3), mutated_bytes)
    record_property("counts", f"{refused} refused, {accepted} accepted")
    assert refused > CASES / 3


@pytest.mark.parametrize("change", [changed_json, mutated_bytes])
def test_mutated_json_of_a_server_is_refused_or_numbers(change, record_property):
    refused, accepted = fuzz_server(vllm_dialect, Want(sampled=True, topk=3), change)
    record_property("counts", f"{refused} refused, {accepted} accepted")
    assert refused > CASES / 4


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def other_step(path: Path) -> Path:
    """The file of the same name of another step; else any other file of the run."""
    for step in ("step-1", "step-2"):
        other = Path(str(path).replace("step-2", step).replace("step-3", step))
        if other != path and other.is_file():
            return other
    return path.parents[0] / "config.json" if (path.parent / "config.json").is_file() else path


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run of 3 steps, of which the last is to be made again; and the same without a stop."""
    folder = tmp_path_factory.mktemp("stopped")
    changes = {"train": {"steps": 3}, "output": {"save_every": 1, "keep": 3}, "eval": []}
    make_workspace(folder, **changes)
    assert type_command(folder, "train", "run.yaml", "--quiet").code == 0
    straight = digest(folder / "run")
    shutil.rmtree(folder / "run")
    assert type_command(folder, "train", "run.yaml", "--quiet", "train.steps=2").code == 0
    return folder, straight


DAMAGES = (flip, truncate, delete, swap)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_file_of_a_run_damaged_is_named_repaired_or_of_no_consequence(
    stopped_run, tmp_path, record_property
):
    """The corruption matrix of a whole run: every file, damaged in every way, then resumed."""
    folder, straight = stopped_run
    files = sorted(p.relative_to(folder) for p in (folder / "run").rglob("*") if p.is_file())
    counts: dict[str, dict[str, int]] = {}
    for name in files:
        for damage in DAMAGES:
            work = tmp_path / "work"
            shutil.copytree(folder, work, symlinks=True)
            damage(work / name, other_step(work / name))
            outcome = type_command(work, "train", "run.yaml", "--quiet", "--resume")
            case = (str(name), damage.__name__, outcome.text[-800:])
            assert not outcome.has_traceback, case
            assert outcome.code in (0, 2), case
            result = "refused"
            if outcome.code == 0:
                after = digest(work / "run")
                learned = {k: v for k, v in after.items() if "safetensors" in k and "step-3" in k}
                assert learned, case
                assert all(straight[k] == v for k, v in learned.items()), case
                result = "same bits"
            kind = name.parts[1] if len(name.parts) > 2 else name.name
            row = counts.setdefault(f"{kind} {damage.__name__}", {})
            row[result] = row.get(result, 0) + 1
            shutil.rmtree(work)
    record_property("counts", json.dumps(counts))
    print(json.dumps(counts, indent=1))  # noqa: T201 - the matrix of the closing note
    assert find_newest_checkpoint(folder / "run" / "checkpoints") is not None
