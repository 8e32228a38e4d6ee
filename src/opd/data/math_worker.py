"""The child of `math_sandbox`: {"text", "answer", "marked"} in, {"equal", "reason"} out.

JSON lines. Runs by its file name, imports only math-verify and the standard library. It reads model
text, so it can neither write files, open sockets nor start processes, and its memory and CPU time
are limited: if the parent is killed, a child inside a huge power still ends by itself.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "ctypes.",
)


def main(memory: int, seconds: float) -> None:
    """Answer requests until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever the libraries print must not look like a reply
    compare = load()
    confine(memory)
    send(replies, {"ready": True})
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = math.ceil(used.ru_utime + used.ru_stime + seconds + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.RLIM_INFINITY))
        request = json.loads(line)
        try:
            is_equal = compare(request["text"], request["answer"], request["marked"])
            reply = {"equal": is_equal, "reason": "equal" if is_equal else "not equal"}
        except MemoryError:
            reply = {"equal": False, "reason": "out of memory"}
        except RecursionError:
            reply = {"equal": False, "reason": "nested too deeply"}
        send(replies, reply)


def load() -> Callable[[str, str, bool], bool]:
    """Load the comparison and run it once: grammars and modules are read before `confine`."""
    import math_verify

    # Timeouts off: math-verify's are signals, which cannot interrupt one long C call.
    def compare(text: str, answer: str, marked: bool) -> bool:
        truth = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
        given = math_verify.parse(f"\\boxed{{{text}}}" if marked else text, parsing_timeout=None)
        return bool(math_verify.verify(truth, given, timeout_seconds=None))

    compare("\\frac{1}{2}", "x^2+\\sqrt{2}", True)
    compare("it is $2$ or 3", "5", False)
    return compare


def confine(memory: int) -> None:
    """Drop permissions and limit memory: a calculator needs neither files nor processes."""
    if sys.platform != "darwin":  # where address space cannot be limited
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(refuse)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: no sockets, no processes, no writing."""
    if event.startswith(FORBIDDEN) or (
        event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    ):
        raise PermissionError(f"the math checker may not {event}")


def send(replies: Any, reply: dict[str, Any]) -> None:
    """Write one line."""
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
