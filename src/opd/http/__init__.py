"""HTTP to a teacher or rollout server: bounded waits and sizes, retries, no redirects."""

from opd.http.client import Http, Limits, Refusal, Timer, Transient, read_json
from opd.http.endpoint import Endpoint, check_url, read_key
from opd.http.text import clean, parse_json

__all__ = [
    "Endpoint",
    "Http",
    "Limits",
    "Refusal",
    "Timer",
    "Transient",
    "check_url",
    "clean",
    "parse_json",
    "read_json",
    "read_key",
]
