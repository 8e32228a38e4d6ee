"""`opd dash`: who may ask, what is sent, and that a page is updated in place."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import pytest

from opd.commands.dash import Runs, go_on, make_server, page, policy, serve, stop
from opd.errors import UserError
from opd.run.stop_request import take_stop_request
from support.browser import CHROMIUM
from support.cdp import browser_page
from support.hostile_text import HOSTILE
from support.run_folders import alarm, good_run, plain, write_long_rollouts, write_run

TOKEN = "t0ken"


@contextmanager
def served(root):
    server = make_server(root, 0, TOKEN)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url, *, token=TOKEN, method="GET", **headers):
    headers = ({"X-Opd-Token": token} if token else {}) | headers
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers, answer.read()


def status(url, **options) -> int:
    try:
        ask(url, **options)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "more" / "b", steps=10, planned=20)
    return tmp_path / "runs"


def test_only_the_holder_of_the_address_on_this_machine_is_answered(runs):
    with served(runs) as url:
        assert status(f"{url}/") == 200
        assert status(f"{url}/api/runs") == 200
        assert status(f"{url}/api/runs", token="other") == 401
        assert status(f"{url}/api/runs", token=None) == 401
        assert status(f"{url}/api/stop/a", token="other", method="POST") == 401
        assert status(f"{url}/", Host="evil.example:80") == 403
        assert status(f"{url}/api/run/..%2F..%2Fetc") == 404
        assert status(f"{url}/report.html") == 404
        headers, body = ask(f"{url}/")
    assert headers["Content-Security-Policy"] == policy()
    assert "default-src 'none'" in policy()
    assert TOKEN not in body.decode()
    assert not take_stop_request(runs / "a")


def test_the_page_names_no_other_address():
    text = page().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text
    assert "https://" not in text
    assert "src=" not in text


def test_runs_are_listed_with_their_numbers(runs):
    rows = {row["id"]: row for row in Runs(runs).summaries()}
    assert set(rows) == {"a", "more/b"}
    assert rows["a"]["state"] == "finished"
    assert rows["more/b"]["state"] == "stopped"
    assert (rows["a"]["before"], rows["a"]["latest"]) == (0.2, 0.8)
    assert Runs(runs / "a").summaries()[0]["id"] == "a"


def test_what_a_page_has_is_not_sent_again(runs):
    known = Runs(runs)
    whole = known.detail("a", 0, 0, 0)
    loss = next(c for c in whole["charts"] if c["key"] == "train/loss")
    assert loss["lines"][0]["x"] == list(range(1, 21))
    again = known.detail("a", whole["done"], whole["version"], whole["epoch"])
    assert again == {"unchanged": True, "state": "finished"}
    with (runs / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, "train/loss": 0.5}) + "\n")
    more = known.detail("a", whole["done"], whole["version"], whole["epoch"])
    loss = next(c for c in more["charts"] if c["key"] == "train/loss")
    assert loss["lines"][0]["x"] == [20, 21]


def test_a_page_of_a_cut_run_gets_everything_anew(runs):
    known = Runs(runs)
    whole = known.detail("a", 0, 0, 0)
    lines = (runs / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs / "a" / "metrics.jsonl").write_text("".join(lines[:6]))
    cut = known.detail("a", whole["done"], whole["version"], whole["epoch"])
    assert cut["epoch"] == whole["epoch"] + 1
    fresh = known.detail("a", whole["done"], 0, whole["epoch"])
    loss = next(c for c in fresh["charts"] if c["key"] == "train/loss")
    assert loss["lines"][0]["x"][0] == 1


def test_stop_asks_the_run_and_continue_starts_it(runs, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda words, **options: started.append(words))
    with served(runs) as url:
        ask(f"{url}/api/stop/a", method="POST")
        ask(f"{url}/api/continue/more%2Fb", method="POST")
    assert take_stop_request(runs / "a")
    assert not take_stop_request(runs / "a")
    (words,) = started
    assert words[2:] == [
        "opd",
        "train",
        str(runs / "more" / "b" / "config.json"),
        "--resume",
        f"output.dir={runs / 'more' / 'b'}",
    ]
    assert "Continuing" in go_on(runs / "more" / "b")
    assert "finishes" in stop(runs / "a")


def test_a_body_is_not_taken_for_a_request(runs):
    """What was left of a long body was answered as the next request of the connection."""
    body = b"x" * 65536 + b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = f"POST /api/stop/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(runs) as url, socket.create_connection(("127.0.0.1", port_of(url)), 20) as sent:
        sent.sendall(head.encode() + body)
        answers = b""
        with suppress(ConnectionResetError):
            while part := sent.recv(65536):
                answers += part
    assert b"HTTP/1.1 200" not in answers


@pytest.mark.parametrize("length", ["x", "-1", "²"])
def test_a_length_that_is_none_is_answered(runs, length):
    with served(runs) as url, socket.create_connection(("127.0.0.1", port_of(url)), 20) as sent:
        head = f"POST /api/stop/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        sent.sendall(head.encode("latin-1"))
        assert sent.recv(100).startswith(b"HTTP/1.1 401 ")


def test_numbers_that_are_none_are_zero(runs):
    with served(runs) as url:
        assert status(f"{url}/api/run/a?have=%C2%B2&version=--1&epoch=x") == 200


def test_one_bad_folder_does_not_hide_the_others(runs, monkeypatch):
    """A folder that may not be read, one that has just gone, an accuracy that is no number."""
    (runs / "closed").mkdir()
    (runs / "a" / "eval" / "step-20-odd.json").write_text(
        '{"accuracy": {"value": NaN, "low": 0, "high": 1}}'
    )
    real = Path.iterdir

    def iterdir(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with served(runs) as url:
        _, body = ask(f"{url}/api/runs")
        assert {row["id"] for row in json.loads(body)} == {"a", "more/b"}
        assert status(f"{url}/api/run/a") == 200


def port_of(url) -> int:
    return int(url.rsplit(":", 1)[1])


def test_a_folder_that_is_not_there_and_a_port_that_is_taken(tmp_path, runs):
    with pytest.raises(UserError, match="There is no folder"):
        serve(tmp_path / "absent", port=0, say=print)
    with served(runs) as url, pytest.raises(UserError, match="--port"):
        serve(runs, port=int(url.rsplit(":", 1)[1]), say=print)


# --- in a browser ---------------------------------------------------------------------------

browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def slow_browser(test):
    for mark in browser:
        test = mark(test)
    return test


def add_steps(path, first, last):
    with (path / "metrics.jsonl").open("a") as metrics:
        for step in range(first, last + 1):
            row = {"step": step} | {n: f(step) for n, f in good_run().items()}
            metrics.write(json.dumps(row) + "\n")


@slow_browser
def test_charts_grow_in_place(tmp_path):
    path = tmp_path / "runs" / "a"
    write_run(path, planned=4000)
    with served(tmp_path / "runs") as url, browser_page() as tab:
        tab.screen(1440, 900)
        tab.open(f"{url}/#token={TOKEN}")
        tab.wait("document.querySelectorAll('#charts figure').length > 5")
        tab.run("document.querySelector('#alarms').open = true; window.scrollTo(0, 300)")
        tab.run("window.kept = document.querySelector('#charts figure svg')")
        tab.run("getSelection().selectAllChildren(document.querySelector('#charts figcaption'))")
        before = tab.run("[scrollY, getSelection().toString()]")
        add_steps(path, 21, 60)
        tab.wait("document.querySelector('#steps').textContent.includes('step 60')")
        assert tab.run("[scrollY, getSelection().toString()]") == before
        assert tab.run("window.kept.isConnected && document.querySelector('#alarms').open")
        tab.run("document.querySelector('#charts figure svg').focus()")
        tab.key("ArrowLeft")
        assert "step 60:" in tab.run("document.querySelector('.readout').textContent") or (
            "step 20:" in tab.run("document.querySelector('.readout').textContent")
        )
        outside = [u for u in tab.requests() if not u.startswith((url, "about:", "data:"))]
        assert outside == []


@slow_browser
def test_hostile_runs_stay_text(tmp_path):
    everything = " ".join(HOSTILE)
    write_run(tmp_path / "runs" / "a", text=lambda field: f"{field} {everything}", steps=6)
    with served(tmp_path / "runs") as url, browser_page() as tab:
        tab.open(f"{url}/#token={TOKEN}")
        tab.wait("document.querySelectorAll('#charts figure').length > 5")
        tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        tab.wait("document.querySelector('#settings td')")
        tab.wait("document.querySelector('.sample')")
        assert tab.run("window.pwned === undefined")
        assert [u for u in tab.requests() if not u.startswith((url, "about:", "data:"))] == []


@slow_browser
def test_a_wrong_token_is_told(tmp_path):
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as url, browser_page() as tab:
        tab.open(f"{url}/#token=wrong")
        tab.wait("document.querySelector('#status').textContent.includes('token')")


@slow_browser
def test_alarms_are_those_of_the_selected_run_and_the_newest(tmp_path):
    write_run(tmp_path / "runs" / "a", alarm_steps=range(1, 60))
    write_run(tmp_path / "runs" / "b", alarm_steps=[7])
    with served(tmp_path / "runs") as url, browser_page() as tab:
        rows = "document.querySelectorAll('#alarms tbody tr')"
        tab.open(f"{url}/#token={TOKEN}&run=a")
        tab.wait(f"{rows}.length === 50")
        title = "document.querySelector('#alarms summary').textContent"
        assert tab.run(title) == "Alarms: 59, the newest 50"
        with (tmp_path / "runs" / "a" / "alarms.jsonl").open("a") as file:
            file.write(json.dumps(alarm(70, plain)) + "\n")
        tab.wait(f"{rows}[49].cells[0].textContent === '70'")
        tab.run(
            "[...document.querySelectorAll('#runs button')]"
            ".find(b => b.firstChild.textContent === 'b').click()"
        )
        tab.wait(f"{rows}.length === 1 && {rows}[0].cells[0].textContent === '7'")


BIG_STEPS = 2000
BIG_ROLLOUTS, LONG = 200, 4096
UPDATES = 10
POLL = 2.05  # seconds between two questions of the page, and a little


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Two thousand steps, as many names as a real run logs, 200 rollouts of 4,096 tokens."""
    path = tmp_path_factory.mktemp("big") / "runs" / "big"
    write_run(path, steps=20, planned=BIG_STEPS + 500)
    add_steps(path, 21, BIG_STEPS)
    lines = []
    for line in (path / "metrics.jsonl").read_text().splitlines():
        extra = {f"diag/reverse_kl@pos{128 * i}-{128 * i + 127}": 0.123456 for i in range(160)}
        lines.append(json.dumps(json.loads(line) | extra))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with (path / "timings.jsonl").open("a") as timings:
        for step in range(21, BIG_STEPS + 1):
            timings.write(json.dumps({"step": step, "time/step_s": 1.0}) + "\n")
    write_long_rollouts(path, BIG_STEPS, BIG_ROLLOUTS, LONG)
    yield path
    shutil.rmtree(path)


@slow_browser
def test_a_big_run_is_painted_within_a_second_and_updated_within_50_ms(big):
    """CPU time of the main thread for everything: answers read, scripts, layout, painting."""
    with served(big.parent) as url, browser_page() as tab:
        tab.screen(1440, 900)
        tab.open(f"{url}/#token={TOKEN}")
        tab.wait("document.querySelectorAll('#charts path').length > 5")
        first = tab.busy_seconds()
        scripts, updates = [], []
        for k in range(UPDATES):
            add_steps(big, BIG_STEPS + 1 + k, BIG_STEPS + 1 + k)
            before = tab.busy_seconds()
            time.sleep(POLL)
            updates.append(1000 * (tab.busy_seconds() - before))
            scripts.append(tab.run("performance.getEntriesByName('opd-update').at(-1).duration"))
        assert f"{BIG_STEPS + UPDATES:,}" in tab.run("document.querySelector('#steps').textContent")
        before = tab.busy_seconds()
        tab.run("document.querySelector('#rollouts').open = true")
        tab.wait("document.querySelector('.sample')")
        opened = tab.busy_seconds() - before
        size = tab.run("document.documentElement.outerHTML.length")
        sys.stdout.write(
            f"first paint {first:.2f} s of the main thread; an update {median(updates):.0f} ms "
            f"(largest {max(updates):.0f}), its script {median(scripts):.0f} ms by the clock; "
            f"rollouts opened in {1000 * opened:.0f} ms; page {size / 1000:.0f} kB\n"
        )
        assert first < 1
        assert median(updates) < 50
        assert opened < 1


@slow_browser
def test_small_percents_and_thousands_can_be_read_from_a_chart(tmp_path):
    series = good_run() | {
        "rollout/truncated": lambda s: 0.002 * (s % 5),
        "rollout/length": lambda s: 4000.0 + s,
    }
    write_run(tmp_path / "runs" / "a", series=series)
    with served(tmp_path / "runs") as url, browser_page() as tab:
        tab.screen(1440, 3000)
        tab.open(f"{url}/#token={TOKEN}")
        tab.wait("document.querySelectorAll('#charts path').length > 5")
        ticks = tab.run(
            "Object.fromEntries([...document.querySelectorAll('figure.chart')].map(f => ["
            "f.querySelector('b').textContent, [...f.querySelectorAll('text[text-anchor=end]')]"
            ".map(t => t.textContent).slice(0, -1)]))"
        )
        assert "4,010" in ticks["Length"]
        assert all(len(set(labels)) == len(labels) for labels in ticks.values())
        assert "0.5%" in ticks["Truncated by the token limit"]
