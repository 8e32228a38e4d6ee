"""Handing over: the exported folder is the trained student, its card says what it is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from opd.commands.export import MERGED, SAME, export_run
from opd.errors import UserError
from opd.reports.model_card import model_card
from opd.reports.read import read_run
from opd.run.checkpoint import find_newest_checkpoint
from support.runs import run_config, run_to_end

LORA = {"student": {"lora": {"rank": 4}}, "optim": {"lr": 0.005}}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "full"
    run_to_end(run_config(folder, steps=2))
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "lora"
    run_to_end(run_config(folder, steps=2, **LORA))
    return folder


def test_full_weights_are_those_of_the_checkpoint_bit_for_bit(full, tmp_path):
    made = export_run(full, tmp_path / "out")
    assert (made.kind, made.step, made.allowed) == ("weights", 2, SAME)
    assert made.difference <= SAME
    model = transformers.AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    tensors, _ = find_newest_checkpoint(full / "checkpoints").load()
    mine = dict(model.named_parameters())
    assert all(torch.equal(mine[name], value) for name, value in tensors["student"].items())


def test_a_full_student_is_exported_where_its_base_is_not(full, tmp_path, monkeypatch):
    """A run on models named by relative paths, exported from another folder."""
    moved = tmp_path / "moved"
    shutil.copytree(full, moved)
    settings = json.loads((moved / "config.json").read_text("utf-8"))
    settings["student"]["model"] = "./models/student"
    (moved / "config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    assert export_run(moved, tmp_path / "out").difference <= SAME


@pytest.mark.parametrize("merge", [False, True])
def test_lora_is_an_adapter_or_merged(lora, tmp_path, merge):
    made = export_run(lora, tmp_path / "out", merge=merge)
    assert made.kind == ("merged weights" if merge else "adapter")
    assert made.difference <= (MERGED[torch.float32] if merge else SAME)
    assert (made.path / "adapter_config.json").exists() is not merge
    trained = load(made.path, merge)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        read_run(lora).config["student"]["model"], dtype=torch.float32
    )
    ids = torch.tensor([[1, 4, 6, 13, 25, 11]])
    gap = (trained(input_ids=ids).logits - base(input_ids=ids).logits).abs().max()
    assert gap > 1e-3  # the adapter did something


def load(path, merge: bool):
    if merge:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    import peft

    return peft.AutoPeftModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_an_export_that_differs_is_refused(lora, tmp_path, monkeypatch):
    """A tolerance of nothing is not met by a merge: the check does compare."""
    monkeypatch.setitem(MERGED, torch.float32, 0.0)
    with pytest.raises(UserError, match="differs from the trained student"):
        export_run(lora, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(full, tmp_path):
    with pytest.raises(UserError, match="exists and stays"):
        export_run(full, tmp_path)


def test_card_has_results_with_intervals_training_and_licences(full, tmp_path):
    made = export_run(full, tmp_path / "out")
    text = (made.path / "README.md").read_text("utf-8")
    assert text.startswith('---\nbase_model: "student"\n')
    accuracy = read_run(full).evals[0].student[-1].accuracy
    assert f"{100 * accuracy.value:.1f}% ({100 * accuracy.low:.1f} to" in text
    for words in ("`reverse_kl` on `student_topk`, k = 16", "## Licences", "Reload check"):
        assert words in text


def stopped(full, folder, action: str):
    """The run as an alarm that it recorded after its first step leaves it."""
    shutil.copytree(full, folder)
    line = {"step": 1, "name": "repetition", "message": "Loops.", "action": action}
    (folder / "alarms.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_a_run_that_an_alarm_stopped_without_a_best_student_exports_its_last(full, tmp_path):
    """No set is evaluated along the way: `stop` keeps the student of the last step."""
    run = stopped(full, tmp_path / "run", "stop")
    alarm = {"step": 2, "name": "repetition", "message": "Loops.", "action": "stop"}
    (run / "summary.json").write_text(json.dumps({"stopped": alarm, "steps": 2, "sets": {}}))
    assert export_run(run, tmp_path / "out").step == 2


def test_the_card_says_what_alarms_changed_before_the_exported_step(full, tmp_path):
    done = "loss.mode is tail from the next step on"
    data = read_run(stopped(full, tmp_path / "run", done))
    late = model_card(data, kind="weights", step=2, reload_check="")
    assert "mode `paper`" in late
    assert "mode is tail from the next step on" in late
    assert "`repetition`, after step 1" in late
    assert "is tail" not in model_card(data, kind="weights", step=1, reload_check="")
    warned = read_run(stopped(full, tmp_path / "warned", "warn"))
    assert "repetition" not in model_card(warned, kind="weights", step=2, reload_check="")


def test_hostile_names_stay_text_in_the_card(full, tmp_path):
    data = read_run(full)
    data.config["teacher"]["model"] = "a`b|c\n# heading\x1b[31m"
    data.config["student"]["model"] = '"\n---\nlicense: mit\n---'
    text = model_card(data, kind="weights", step=2, reload_check="")
    assert "\x1b" not in text
    assert "\n# heading" not in text
    assert "\nlicense: mit" not in text
    assert text.count("\n---\n") == 1  # the end of the front matter
