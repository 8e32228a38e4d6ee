"""The client on real sockets, and what it refuses before any byte is sent."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Refusal, Transient, check_url, clean, read_key

LIMITS = Limits(connect=0.5, answer=0.6, attempts=1)


@contextmanager
def serving(behave):
    """A server on loopback whose connections are handled by `behave(socket, request bytes)`."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = connection.recv(65536)
                seen.append(data)
                behave(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def ask(url: str, api_key: str | None = None):
    http = Http(Endpoint(url, "teacher", "teacher.url", api_key), limits=LIMITS)
    try:
        return http.get_json("/v1/models")
    finally:
        http.close()


def sending(*parts: bytes, pause: float = 0.0):
    def behave(connection: socket.socket) -> None:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                return  # the client has had enough
            time.sleep(pause)

    return behave


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def test_an_answer_is_read_and_the_key_is_sent():
    with serving(sending(HEAD + b"content-length: 7\r\n\r\n[1, 2] ")) as (url, seen):
        assert ask(url, api_key="s3cret") == [1, 2]
    assert b"authorization: Bearer s3cret" in seen[0]
    assert b"accept-encoding: identity" in seen[0]


@pytest.mark.parametrize(
    "behave",
    [
        sending(),
        sending(HEAD + b"content-length: 100\r\n\r\n[1, 2"),
        sending(b"no HTTP at all\r\n\r\n"),
        sending(HEAD[:20]),
        sending(HEAD + b"content-length: 40\r\n\r\n", *([b" "] * 12), pause=0.1),
        sending(b"", pause=1.0),
        sending(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    ],
    ids=["closed", "cut", "garbage", "half a head", "dripping", "silent", "bad chunk"],
)
def test_what_the_wire_does_wrong_is_transient_and_in_time(behave):
    began = time.monotonic()
    with serving(behave) as (url, _), pytest.raises(Transient):
        ask(url)
    assert time.monotonic() - began < 8  # a loaded machine; the deadline itself is 0.6 s


def test_nobody_there_is_transient():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Transient, match="failed"):
        ask(f"http://127.0.0.1:{port}")


def test_a_redirect_is_refused_and_the_key_stays_here():
    with serving(sending(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")) as (other, stolen):
        head = f"HTTP/1.1 302 Found\r\nlocation: {other}/v1/models\r\ncontent-length: 0\r\n\r\n"
        with serving(sending(head.encode())) as (url, _), pytest.raises(Refusal, match="redirects"):
            ask(url, api_key="s3cret")
    assert stolen == []


def test_a_key_that_the_server_repeats_is_not_shown():
    body = b'{"error": {"message": "bad key s3cret \x1b[31m"}}'
    head = b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serving(sending(head + body)) as (url, _), pytest.raises(Refusal) as caught:
        ask(url, api_key="s3cret")
    assert "s3cret" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "ftp://host/",
        "127.0.0.1:8000",
        "http://",
        "http://user:pass@host/v1",
        "http://host/v1?key=abc",
        "http://host/v1#x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://[fd00:ec2::254]/",
        "http://metadata.google.internal/",
        "http://METADATA.google.internal./",
        "javascript:alert(1)",
        "",
    ],
)
def test_addresses_that_are_no_teachers(url):
    with pytest.raises(UserError, match=r"teacher\.url"):
        check_url(url, "teacher.url")


def test_a_key_in_clear_over_the_network_is_warned_of(caplog):
    check_url("http://127.0.0.1:8000", "teacher.url", with_api_key=True)
    check_url("https://far.example", "teacher.url", with_api_key=True)
    assert not caplog.records
    check_url("http://far.example", "teacher.url", with_api_key=True)
    assert "unencrypted" in caplog.text


def test_a_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "abc")
    assert read_key("TEACHER_KEY", "teacher.api_key_env") == "abc"
    assert read_key(None, "teacher.api_key_env") is None
    monkeypatch.setenv("TEACHER_KEY", "a\nb")
    for name in ("TEACHER_KEY", "NOT_SET_AT_ALL"):
        with pytest.raises(UserError, match=name):
            read_key(name, "teacher.api_key_env")


def test_foreign_words_are_made_harmless():
    assert clean("a\x1b[2J\u202eb\n\nc\x00") == "a [2J b c"


def test_an_endpoint_does_not_show_its_key():
    assert "s3cret" not in repr(Endpoint("http://127.0.0.1", "teacher", "teacher.url", "s3cret"))
