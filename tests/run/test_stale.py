"""What a resumed run makes anew, because its alarms act in another way than before."""

from __future__ import annotations

import pytest
import torch

from opd.run.checkpoint import save_tensors
from opd.run.folder import RunFolder
from opd.types import Prompt, Rollout, Scores
from support.faulty_disk import Unsynced


def create(path, alarms, **flags):
    return RunFolder.create(path, {"alarms": alarms}, ops=Unsynced(), **flags)


@pytest.mark.parametrize(
    ("before", "now", "anew"),
    [
        ({"action": "act"}, {"action": "act"}, False),
        ({"action": "warn"}, {"action": "stop"}, False),
        ({"action": "act"}, {"action": "warn"}, True),
        ({"action": "warn"}, {"action": "warn", "rules": {"repetition": {"action": "act"}}}, True),
    ],
)
def test_later_steps_are_made_anew_where_alarms_act_otherwise(tmp_path, caplog, before, now, anew):
    """An alarm may have changed the students that they are of."""
    with create(tmp_path / "run", before) as run:
        for step in (2, 3):
            batch = [Rollout.of_ids(Prompt(0, (1, 2), ""), [3])]
            run.save_rollouts(step, batch, [Scores()], key={}, texts=["x"])
            run.save_eval(step, "sum", {"accuracy": 1}, [])
        save_tensors(run.checkpoints, 2, {"student": {"w": torch.zeros(1)}}, {})
        save_tensors(run.path / "best", 3, {"student": {"w": torch.zeros(1)}}, {})
    (run.path / "eval" / "step-3-mine.txt").write_text("mine")
    with create(run.path, now, resume=True):
        left = {p.name for f in ("rollouts", "eval", "best") for p in (run.path / f).iterdir()}
    earlier = {"step-2.parquet", "step-2-sum.json", "step-2-sum.parquet", "step-3-mine.txt"}
    later = {"step-3.parquet", "step-3-sum.json", "step-3-sum.parquet", "step-3"}
    assert left == (earlier if anew else earlier | later)
    assert ("no repetition of the run" in caplog.text) == anew
