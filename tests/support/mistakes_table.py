"""The mistakes by class, from the junit file of `make test-mistakes`: how many, how fast.

python -m support.mistakes_table build/mistakes.xml
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from statistics import median


def write(line: str) -> None:
    """One line of the table."""
    sys.stdout.write(line + "\n")


def main(path: str) -> None:
    """Print the table."""
    rows: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for case in ET.parse(path).iter("testcase"):
        properties = {p.get("name"): p.get("value") for p in case.iter("property")}
        if "kind" not in properties:
            continue
        failure = case.find("failure")
        text = "" if failure is None else failure.text or ""
        result = "clear" if failure is None else _reason(text)
        rows[properties["kind"]].append((result, float(properties["seconds"])))
    names = ("clear", "unclear", "traceback", "silent", "late")
    write(
        f"{'class':16}{'n':>6}"
        + "".join(f"{n:>11}" for n in names)
        + f"{'median s':>10}{'max s':>8}"
    )
    for kind, cases in [*rows.items(), ("all", [c for each in rows.values() for c in each])]:
        counts = "".join(f"{sum(r == name for r, _ in cases):>11}" for name in names)
        times = [seconds for _, seconds in cases]
        write(f"{kind:16}{len(cases):>6}{counts}{median(times):>10.2f}{max(times):>8.2f}")


def _reason(text: str) -> str:
    if "has_traceback" in text or "bug of opd" in text:
        return "traceback"
    if "assert 0 == 2" in text or "outcome.changed" in text:
        return "silent"
    return "late" if "outcome.seconds" in text else "unclear"


if __name__ == "__main__":
    main(sys.argv[1])
