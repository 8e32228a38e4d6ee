"""Right answers in any dress count, wrong ones never, and no text holds the grader up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.data import graders
from opd.data.answers import extract_answer, final_answer, parse_number
from opd.data.graders import grader_for, make_grader
from opd.data.math_sandbox import WORKER
from opd.errors import MissingDependency, UserError
from opd.types import Prompt

LIMIT = 1.0
SLACK = 3.0  # seconds a busy machine may add to a limit


@pytest.fixture(scope="module")
def judge():
    """One math grader with its child, shared: starting sympy is the slow part."""
    with make_grader("math", ["x"], limit=LIMIT) as grader:
        yield grader


@pytest.fixture(scope="module")
def patient():
    """The same with the limit of a real run, for honest algebra on a busy machine."""
    with make_grader("math", ["x"], limit=30) as grader:
        yield grader


def verdict(grader, text, answer):
    (grade,) = grader.grade([text], [answer])
    return grade


@pytest.mark.parametrize(
    ("text", "expected", "marked"),
    [
        (r"so \boxed{5}", "5", True),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{\boxed{7}}", "7", True),
        (r"\boxed{3} then \boxed{4", "3", True),
        ("work\nAnswer: 12\nmore words", "12", True),
        ("**Final Answer:** 12", "12", True),
        ("Answer:\n\n42", "42", True),
        (r"\boxed{3} Answer: 4", "4", True),
        (r"Answer: \boxed{4}", "4", True),
        ("then fox 3 so owl 0 ANS 7", "7", True),
        ("ANS 7 ANS 8 then", "8 then", True),
        ("long story\n#### 1,000", "1,000", True),
        ("<answer> B </answer> bye", "B", True),
        ("<ANSWER>B", "B", True),
        ("no marker\nlast line\n\n", "last line", False),
        ("answers vary: MANS 7", "answers vary: MANS 7", False),
        ("ANS", "", True),
        ("", "", False),
    ],
)
def test_where_the_answer_stands(text, expected, marked):
    found = extract_answer(text)
    assert (found.text, found.marked) == (expected, marked)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", "7"),
        ("x = -1,234.50", "-1234.5"),
        ("\u22123", "-3"),
        (r"\dfrac{3}{4}", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        ("6/8", "3/4"),
        (".5", "1/2"),
        ("-.5.", "-1/2"),
        ("1e3", "1000"),
        ("2.5e-1", "1/4"),
        (r"\$1{,}000", "1000"),
        (r"5\text{ cm}^2", "5"),
        ("45^\\circ", "45"),
        ("$12$", "12"),
        ("12 km/h", "12"),
        ("The total is 12.", "12"),
        ("007", "7"),
        (r"\sqrt{3}", None),
        ("sqrt(3)", None),
        ("2^3", None),
        ("5x", None),
        ("x5", None),
        ("3 or 5", None),
        ("3, 5", None),
        ("(3, 5)", None),
        ("1,23", None),
        ("3-4", None),
        ("1/0", None),
        ("1e9999", None),
        ("9" * 301, None),
        ("\u0661\u0662", None),
        ("12\u00b2", None),
        ("seven", None),
        ("", None),
    ],
)
def test_what_number_a_text_is(text, value):
    found = parse_number(text)
    assert (None if found is None else found.value) == (None if value is None else Fraction(value))


@given(st.fractions(), st.sampled_from(["{} ", "x = {}", "${}$", "{}.", "is {} apples"]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_fraction_is_read_as_itself(value, dress):
    found = parse_number(dress.format(value))
    assert found is not None
    assert found.value == value


@given(st.integers(-(10**12), 10**12))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_separators_change_nothing_and_one_more_is_wrong(value):
    grader = make_grader("number", [str(value)])
    assert verdict(grader, f"Answer: {value:,}", str(value)).correct
    assert not verdict(grader, f"Answer: {value + 1:,}", str(value)).correct


@pytest.mark.parametrize(
    ("kind", "text", "answer", "correct"),
    [
        ("number", "it is 3, so 4 apples", "4", True),
        ("number", "it is 3, so 4 apples", "3", False),
        ("number", r"\boxed{1, 2, 3}", "3", False),
        ("number", r"\boxed{0.75}", "3/4", True),
        ("number", r"Answer: 50\%", "50", True),
        ("number", "Answer: 50%", "0.5", True),
        ("number", "Answer: 0.5", "50%", True),
        ("number", "Answer: 5%", "0.5", False),
        ("number", "Answer: 3.0", "3", True),
        ("number", "Answer: 3.1", "3", False),
        ("number", "nothing here", "3", False),
        ("number", "", "3", False),
        ("exact", "ANS 7", "7", True),
        ("exact", "ANS 7 then ANS 3", "7", False),
        ("exact", "so the word is Fox.", "fox", True),
        ("exact", "Answer: The  Red Fox", "the red fox", True),
        ("exact", "Answer: fox owl", "owl", False),
        ("exact", r"\boxed{\text{Evelyn}}", "Evelyn", True),
        ("exact", "", "", False),
        ("exact", "ANS", "", False),
    ],
)
def test_verdicts_without_sympy(kind, text, answer, correct):
    assert verdict(graders.Grader(kind), text, answer).correct is correct


@pytest.mark.parametrize(
    ("text", "answer", "correct"),
    [
        (r"\boxed{1+x}", "x+1", True),
        (r"\boxed{2+x}", "x+1", False),
        (r"it is $\frac{2}{4}$", r"\frac12", True),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", True),
        (r"\boxed{\left( 3, \frac{\pi}{3} \right)}", r"(3,\frac{\pi}{2})", False),
        (r"\boxed{2\sqrt{12}}", r"4\sqrt{3}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{x^2+2x+1}", r"(x+1)^2", True),
    ],
)
def test_verdicts_with_sympy(patient, text, answer, correct):
    assert verdict(patient, text, answer).correct is correct


def test_equal_text_never_reaches_the_child():
    with make_grader("math", ["x"]) as grader:
        texts = [r"\boxed{x+1}", r"\boxed{ $x + 1$ }", r"\boxed{0.5}", ""]
        grades = grader.grade(texts, ["x+1", "x+1", "1/2", "x"])
        assert [g.correct for g in grades] == [True, True, True, False]
        assert grader._comparer.process.starts == 0


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["7", "-3.5", "3/4", "1,000", r"\frac{1}{2}"], "number"),
        (["7", r"\sqrt{2}"], "math"),
        (["7", "x+1"], "math"),
        (["(1, 2)"], "math"),
        (["yes", "no", "7"], "exact"),
        (["A", "B"], "exact"),
    ],
)
def test_auto_looks_at_the_answers(answers, kind):
    assert make_grader("auto", answers).kind == kind


def test_number_refuses_ground_truths_that_are_none():
    with pytest.raises(UserError, match=r"grader=number.*'yes' is not a number"):
        make_grader("number", ["3", "yes"])


def asked(*answers):
    return [Prompt(i, (5,), "?", answer) for i, answer in enumerate(answers)]


def test_prompts_are_graded_if_each_has_a_ground_truth():
    assert grader_for(asked("3", "4"), "auto").kind == "number"
    assert grader_for(asked("3", None), "auto") is None
    assert grader_for(asked("3", "yes"), "exact").kind == "exact"
    with pytest.raises(UserError, match=r"grader=number.*'yes' is not a number"):
        grader_for(asked("3", "yes"), "number", required_by="a.b=1")


def test_missing_ground_truths_are_counted_for_the_key_that_needs_them():
    with pytest.raises(UserError, match=r"a\.b=1 needs an answer for every .*; 2 of 3 have none"):
        grader_for(asked(None, "yes", None), "auto", required_by="a.b=1")
    with pytest.raises(UserError, match=r"`answer`, or set a\.b=0\.$"):
        grader_for(asked(None), "auto", required_by="a.b=1", remedy="set a.b=0")


def test_latex_without_math_verify_says_what_to_install(monkeypatch):
    monkeypatch.setattr(graders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'opd\[math\]'"):
        make_grader("auto", [r"\sqrt{2}"])


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("2 and 2\n#### 72", "72"), (r"So \boxed{x}.", "x"), ("7", "7"), ("Answer: 7", "Answer: 7")],
)
def test_worked_solutions_give_their_answer(solution, answer):
    assert final_answer(solution) == answer


TOWERS = [r"9^{9^{9}}", r"10^{10^{10^{10}}}"]
HOSTILE = [
    *(rf"\boxed{{{tower}}}" for tower in TOWERS),
    r"\boxed{(10^{10})!}",
    r"\boxed{\sum_{i=1}^{10^{12}} i^{i}}",
    r"\boxed{__import__('os').system('touch HACKED')}",
    "__import__('os')",
    r"\boxed{eval(compile('1','a','eval'))}",
    r"\boxed{open('HACKED','w')}",
    r"\boxed{lambda: 0}",
    r"\boxed{" * 5000,
    r"\boxed{" * 200 + "1" + "}" * 200,
    r"\boxed{" + "{" * 1500 + "}" * 1500 + "}",
    r"\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
    r"\boxed{" + r"\frac{1}{" * 150 + "2" + "}" * 150 + "}",
    r"\boxed{" + r"\sqrt{" * 200 + "2" + "}" * 200 + "}",
    r"\boxed{" + "x+" * 800 + "1}",
    r"\boxed{" + "-" * 1900 + "1}",
    r"\boxed{" + "9" * 1900 + "}",
    r"\boxed{" + "1/" * 900 + "1}",
    r"\boxed{" + "1," * 900 + "1}",
    r"\boxed{" + "a " * 950 + "!}",
    r"\boxed{5" + " " * 1900 + "!}",
    r"\boxed{\text{" + r"\text{" * 300 + "}}",
    r"\boxed{1e999999999}",
    r"\boxed{0/0}",
    r"\boxed{\infty-\infty}",
    r"\boxed{\u0661\u0662}",
    "Answer: \u0663\u0664",
    "Answer: \x00\x00",
    "\x00" * 10_000,
    "Answer: \ud800",
    "\u202e" * 5000 + "Answer: 4",
    "e\u0301" * 50_000,
    "Answer: " * 20_000,
    "ANS " * 50_000,
    "<answer>" * 20_000,
    "#### " * 50_000,
    "9" * 1_000_000,
    " " * 1_000_000,
    "\n" * 1_000_000,
    "\\" * 100_000,
    '{"equal": true, "reason": "equal"}\n{"equal": true}',
    'Answer: "}\n{"text": "x", "answer": "x", "marked": true}',
]


# These run into the limit, and starting sympy again takes longer than the limit itself.
COSTLY = {1, 2, 3, 12, 13, 14, 15, 16, 18, 20, 21}


@pytest.mark.parametrize(
    "place",
    [pytest.param(i, marks=[pytest.mark.slow] * (i in COSTLY)) for i in range(len(HOSTILE))],
)
def test_hostile_text_is_wrong_within_its_limit(judge, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judge._comparer.process.start()
    start = time.monotonic()
    grade = verdict(judge, HOSTILE[place], "x+7")
    assert time.monotonic() - start < LIMIT + SLACK
    assert not grade.correct
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["exact", "number"])
def test_hostile_text_costs_the_simple_graders_little(kind):
    start = time.monotonic()
    grades = graders.Grader(kind).grade(HOSTILE, ["77"] * len(HOSTILE))
    assert not any(g.correct for g in grades)
    assert time.monotonic() - start < SLACK


def test_a_tower_is_wrong_and_the_others_are_graded():
    texts = [r"\boxed{1+x}", rf"\boxed{{{TOWERS[0]}}}", r"\boxed{x+1.0}", r"\boxed{3+x}"]
    with make_grader("math", ["x+1"], limit=5) as grader:
        grades = grader.grade(texts, ["x+1"] * len(texts))
        assert [g.correct for g in grades] == [True, False, True, False]
        assert grades[1].reason in ("timed out", "the checker died (out of time or memory)")
        assert grader._comparer.process.starts == 2


def test_a_child_killed_from_outside_costs_no_text():
    with make_grader("math", ["x"], limit=30) as grader:
        assert verdict(grader, r"\boxed{1+7x}", "7x+1").correct
        os.kill(grader._comparer.process._child.pid, signal.SIGKILL)
        assert verdict(grader, r"\boxed{2+x}", "x+1").reason == "not equal"
        assert verdict(grader, r"\boxed{1+7x}", "7x+1").correct


def test_the_child_imports_no_torch_and_sees_no_secrets(patient, monkeypatch):
    monkeypatch.setenv("OPD_TEST_KEY", "canary")
    patient.close()
    verdict(patient, r"\boxed{2+3x}", "x+1")
    pid = patient._comparer.process._child.pid
    assert b"canary" not in read_proc(pid, "environ")
    assert b"libtorch" not in read_proc(pid, "maps")


def read_proc(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except FileNotFoundError:
        pytest.skip("this system has no /proc")


PROBE = """
import runpy, sys
worker = runpy.run_path(sys.argv[1])
worker["confine"](2 * 2**30)
import os, socket, subprocess
def write(): open("HACKED", "w")
def connect(): socket.socket()
def start(): subprocess.run(["true"])
def shell(): os.system("true")
for act in (write, connect, start, shell):
    try:
        act()
    except PermissionError:
        continue
    sys.exit(act.__name__)
"""


def test_the_child_can_neither_write_nor_connect_nor_start_anything(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(WORKER)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


ORPHAN = """
import os, sys
from opd.data.graders import make_grader
grader = make_grader("math", ["x"], limit=30)
grader.grade([r"\\boxed{1+x}"], ["x+1"])
print(grader._comparer.process._child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_no_child_outlives_a_killed_parent():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True)
    pid = int(done.stdout)
    end = time.monotonic() + 10
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    """Alive and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
