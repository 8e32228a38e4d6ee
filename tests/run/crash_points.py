"""How many points a checkpoint save was interrupted at: `python tests/run/crash_points.py`.

Runs what `test_save_faults` asserts and prints the count; anything but the last good step, or a
folder that needs a hand, ends it with the assertion's traceback.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from faulty_disk import count_operations
from test_save_faults import (
    BEFORE,
    prepared,
    save,
    test_every_operation_fails_once,
    test_killed_at_every_operation,
    test_power_cut_at_every_operation,
)

WAYS = ("killed", "disk full", "EIO", "power cut, names kept", "power cut, names lost")


def main() -> None:
    logging.disable(logging.CRITICAL)  # each broken checkpoint is told, here on purpose
    say = sys.stdout.write
    say(f"| before the save | operations | {' | '.join(WAYS)} |\n|---|---|" + "---|" * len(WAYS))
    say("\n")
    total = 0
    for prepare, before in BEFORE.items():
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(i) for i in range(len(WAYS) + 1)]
            for place in places:
                place.mkdir()
            probe = places[-1] / "probe"
            shutil.copytree(prepared(places[-1], prepare), probe)
            count = count_operations(lambda ops, probe=probe: save(probe, 20, ops=ops))
            test_killed_at_every_operation(places[0], prepare, before)
            for place, code, sticky in (
                (places[1], errno.ENOSPC, True),
                (places[2], errno.EIO, False),
            ):
                test_every_operation_fails_once(place, prepare, before, code, sticky)
            for place, kept in ((places[3], True), (places[4], False)):
                test_power_cut_at_every_operation(place, prepare, before, kept)
        total += count * len(WAYS)
        say(f"| {prepare.__name__} | {count} |" + " ok |" * len(WAYS) + "\n")
    say(f"\n{total} crash points: always the last good step, nothing to clean up by hand.\n")


if __name__ == "__main__":
    main()
