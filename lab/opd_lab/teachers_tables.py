"""Tables of E17 and E18; see `opd_lab.teachers_trial`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.core import stats

HINT_ALARMS = ("hint-leaking", "responses-alike")
OTHER_ALARMS = "any other alarm"
CHOSEN_ON = 3  # seeds of E18 on which the thresholds of HINT_ALARMS were chosen; later ones judge

Results = dict[str, dict[str, float]]


def table(results: Sequence[Results], prefixes: tuple[str, ...] = ("",)) -> str:
    """Mean over seeds with Student's interval, one row per arm.

    Args:
        results: by seed.
        prefixes: of the columns that are shown.
    """
    names = dict.fromkeys(c for r in results for arm in r.values() for c in arm)
    columns = [name for name in names if name.startswith(prefixes)]
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in results[0]:
        cells = []
        for column in columns:
            values = [r[arm][column] for r in results if column in r[arm]]
            if not values:
                cells.append("-")
                continue
            mean = stats.mean(np.array(values))
            interval = f" [{mean.low:.2f}, {mean.high:.2f}]" if len(values) > 1 else ""
            cells.append(f"{mean.value:.2f}{interval}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def alarms_raised(e18: Sequence[Results]) -> str:
    """How often each alarm was raised: where its threshold was chosen, and where it is judged."""
    names = (*HINT_ALARMS, OTHER_ALARMS)
    parts = [
        "Runs in which an alarm was raised, by today's rules over the metrics of the runs. The "
        f"thresholds of `{HINT_ALARMS[0]}` and\n`{HINT_ALARMS[1]}` were chosen on the first "
        f"{CHOSEN_ON} seeds."
    ]
    for label, results in (
        ("Where the two thresholds were chosen", e18[:CHOSEN_ON]),
        ("Fresh seeds", e18[CHOSEN_ON:]),
    ):
        if results:
            lines = [f"| {label} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            for arm in results[0]:
                counts = [f"{sum(r[arm][n] for r in results):.0f} of {len(results)}" for n in names]
                lines.append(f"| {arm} | {' | '.join(counts)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)
