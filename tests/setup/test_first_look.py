"""What is wrong is said before torch is imported, and all at once before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opd import config
from opd.demo.run_config import PAIR
from opd.models import tokenizers
from opd.models.tokenizer_files import have_same_ids
from opd.models.vocabulary import read_vocabulary, token_differences
from opd.run.console import Console
from opd.run.disk import DISK
from opd.setup import memory_bound, memory_plan, preflight
from opd.setup.first_look import look_first
from opd.setup.memory_models import DeviceMemory
from opd.setup.memory_plan import PROCESS
from opd.setup.problems import Problems, listed
from support.mistakes import make_workspace, run_yaml, type_command


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    return tmp_path


def parsed(**changes):
    return config.parse(run_yaml(**changes))


def test_a_run_that_is_right_gives_no_message(workspace):
    assert look_first(parsed(), trains=True) == ([], True, [])


@pytest.mark.parametrize("python", ["no/python", "student", "'{problem}'"])
@pytest.mark.parametrize("command", ["train", "select", "check"])
def test_a_server_that_opd_starts_has_no_address_yet(workspace, command, python):
    """The first look took its missing address for one, and every command ended with a traceback."""
    launch = f"teacher={{model: teacher, launch: {{python: {python}}}}}"
    outcome = type_command(workspace, command, "run.yaml", launch, "select={output: x.jsonl}")
    assert (outcome.code, outcome.changed) == (2, ()), outcome.text
    program = python.strip("'")
    assert f"teacher.launch.python={program}: there is no such program" in outcome.text


@pytest.mark.parametrize("command", ["check"])
def test_a_null_character_in_a_path_is_named(workspace, command):
    outcome = type_command(workspace, command, "run.yaml", 'output.dir="a\\0b"')
    assert (outcome.code, outcome.changed) == (2, ())
    assert "holds a null character" in outcome.text


WRONG = ["prompts.path=no.jsonl", "loss.k=999", "teacher.device=gpu", "eval.0.name=../x"]


@pytest.mark.parametrize("words", [WRONG, []])
def test_nothing_heavy_is_imported_for_a_first_look(workspace, words):
    """The whole list is there before torch: that is what keeps it below two seconds."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom opd.commands.look import load_and_look\n"
        f"try: load_and_look(Path('run.yaml'), {words}, trains=True)\n"
        "except Exception as error: print(error, file=sys.stderr)\n"
        "heavy = ('torch', 'transformers', 'sympy', 'scipy')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    for said in words[:4] if words is WRONG else ():
        assert said.partition("=")[2] in done.stderr
    assert words is WRONG or not done.stderr


def test_the_whole_list_is_said_at_once(workspace):
    outcome = type_command(workspace, "train", "run.yaml", *WRONG, "output.trackers=[wandb]")
    assert "5 things are wrong" in outcome.text
    assert "Looking for more" not in outcome.text
    for said in ("no.jsonl", "../x", "wandb", "teacher.device=gpu", "loss.k=999"):
        assert said in outcome.text
    assert (outcome.code, outcome.changed) == (2, ())


def test_what_the_first_look_finds_is_in_the_final_list(workspace):
    """A tokenizer that only transformers knows: the rest of the list comes with it."""
    (workspace / "student").unlink()
    shutil.copytree(PAIR / "student", workspace / "student")
    settings = workspace / "student" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": {}}))
    outcome = type_command(workspace, "train", "run.yaml", *WRONG, "output.trackers=[wandb]")
    first, final = outcome.text.split("Looking for more ...")
    for said in ("no.jsonl", "../x", "wandb", "teacher.device=gpu"):
        assert said in final
    for said in ("no.jsonl", "../x", "wandb"):
        assert said in first
    assert outcome.changed == ()


@pytest.mark.parametrize(
    "words",
    [
        ["prompts.template='{prompt}'", "prompts.path=no.jsonl"],
        ["rollout.max_new_tokens=96", "loss.mode=tail", "loss.support=sampled"],
        ["teacher.prompt='{hint} {prompt}'", "eval.0.path=no.jsonl", "prompts.chat={thinkng: 1}"],
        [
            "loss.terms={sft_path: train.jsonl, sft_weight: 0.1}",
            "rollout.top_p=0.9",
            "loss.support=sampled",
        ],
    ],
)
def test_files_and_transformers_give_the_same_list(workspace, words):
    """One list, made twice: with what files say, and by the command itself."""
    cfg = config.load(workspace / "run.yaml", words)
    first = look_first(cfg, trains=True)
    assert first.complete
    with pytest.raises(preflight.UserError) as refused:
        preflight.read_inputs(cfg, Console("quiet"))
    problems = Problems()
    problems.messages = first.messages
    assert len(first.messages) >= 2
    assert sorted(str(refused.value).split("\n")[1:]) == sorted(
        listed(problems.messages).split("\n")[1:]
    )


def test_disk_memory_and_the_run_folder_are_in_the_one_list(workspace, monkeypatch):
    monkeypatch.setattr(type(DISK), "free", lambda self, path: 1000)
    monkeypatch.setattr(memory_bound, "free_host_bytes", lambda: 1000)
    (workspace / "run").mkdir()
    (workspace / "run" / "notes.txt").write_text("mine")
    outcome = type_command(workspace, "train", "run.yaml", "prompts.path=no.jsonl")
    assert outcome.code == 2
    for said in ("Not enough disk", "no.jsonl", "run"):
        assert said in outcome.text
    outcome = type_command(workspace, "train", "run.yaml")
    for said in ("3 things", "Not enough disk", "Not enough memory", "already has content"):
        assert said in outcome.text
    assert outcome.changed == ()


def test_a_run_that_may_fit_is_warned_of_and_one_that_cannot_is_refused(
    workspace, monkeypatch, caplog
):
    for free, messages in ((PROCESS // 2, 0), (1000, 1)):
        memory = DeviceMemory.idle({"cpu": free})
        monkeypatch.setattr(memory_plan, "machine_memory", lambda devices, m=memory: m)
        problems = Problems()
        problems.attempt(preflight.require_memory, parsed())
        assert len(problems.messages) == messages
    assert "planned" in caplog.text


def test_a_full_list_leaves_no_run_folder(workspace):
    with pytest.raises(preflight.UserError, match="2 things"):
        preflight.read_inputs(
            parsed(prompts={"path": "no.jsonl"}, loss={"k": 999}), Console("quiet")
        )
    assert not Path("run").exists()


def copy_teacher(workspace, **files) -> str:
    (workspace / "teacher").unlink()
    shutil.copytree(PAIR / "teacher", workspace / "teacher")
    for name, content in files.items():
        (workspace / "teacher" / name).write_text(content)
    return str(workspace / "teacher")


def test_tokenizers_that_differ_in_their_template_are_read_once(workspace, monkeypatch):
    teacher = copy_teacher(workspace)
    (workspace / "teacher" / "chat_template.jinja").write_text("{{ messages }}")
    own = tokenizers.load_tokenizer("student")
    monkeypatch.setattr(tokenizers, "load_tokenizer", None)
    other = tokenizers.load_like(own, "student", teacher)
    assert other.chat_template == "{{ messages }}" != own.chat_template
    assert tokenizers.share_ids(own, other)
    assert other.encode("sum pig gnu") == own.encode("sum pig gnu")


def test_tokenizers_of_other_tokens_or_another_kind_of_model_are_no_copies(workspace):
    teacher = copy_teacher(workspace)
    assert have_same_ids("student", teacher)
    file = workspace / "teacher" / "config.json"
    kind = json.loads(file.read_text()) | {"model_type": "llama"}
    file.write_text(json.dumps(kind))
    assert not have_same_ids("student", teacher)


def test_other_tokens_are_found_without_transformers(workspace):
    teacher = copy_teacher(workspace)
    file = workspace / "teacher" / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(data))
    vocabularies = [read_vocabulary(Path(f)) for f in ("student", teacher)]
    assert "2 tokens differ" in token_differences(*vocabularies)
    found = look_first(parsed()).messages
    assert any("different tokenizers" in message for message in found)
    assert look_first(parsed(), judges_pair=True).messages == []
