"""Configuration: strict, forgiving of habits from elsewhere, and documented."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opd import config
from opd.config.template import RUN_YAML
from opd.errors import UserError
from opd.setup.chat_template import choose_template

ROOT = Path(__file__).parents[1]
MINIMAL = {
    "student": {"model": "s"},
    "teacher": {"model": "t"},
    "prompts": {"path": "p.jsonl"},
    "output": {"dir": "runs/x"},
}


OUTCOME = "loss.terms.outcome_weight=1"
SELF = 'teacher={from: student, prompt: "{prompt} {answer}"'


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss.beta=0.3"], r"loss\.beta=0\.3 changes nothing with loss\.divergence=reverse_kl"),
        (["loss.estimator=k2"], r"loss\.estimator=k2 changes nothing with loss\.support=student"),
        ([SELF + ", decay: 0.5}"], r"teacher\.decay=0\.5 changes nothing .*weights=frozen"),
        (
            ['teacher={from: student, weights: live, prompt: "{prompt}"}'],
            r"teacher\.prompt='\{prompt\}' adds nothing .* the loss is then 0",
        ),
        (["prompts.by=tokens"], r"prompts\.by=tokens changes nothing with one teacher"),
        (["rollout.sync_dir=/x"], r"rollout\.sync_dir=/x changes nothing without a rollout server"),
        (["rollout.api_key_env=K"], r"rollout\.api_key_env=K changes nothing"),
        (["optim.offload=cpu", "student.lora={}"], r"optim\.offload=cpu changes nothing .*lora"),
        (["optim.offload=cpu", "student.precision=float32"], r"changes nothing .*=float32"),
        (["loss.k=4", "loss.support=full"], r"loss\.k=4 changes nothing with loss\.support=full"),
        (["loss.k=4", "loss.support=sampled"], r"loss\.k=4 changes nothing .*=sampled"),
        (["loss.mode=reference", "loss.support=sampled"], r"mode=reference changes nothing"),
        (["teacher=null", OUTCOME, "loss.divergence=jsd"], r"divergence=jsd changes .*without a t"),
        (["teacher=null", OUTCOME, "loss.teacher_temperature=2"], r"temperature=2\.0 changes"),
        ([OUTCOME, "rollout.n=1"], r"outcome_weight=1\.0 changes nothing with rollout\.n=1"),
        (["loss.terms.position_decay=1.0"], r"position_decay=1\.0 changes nothing"),
        (["loss.terms.entropy_forward_kl=99"], r"no teacher is so uncertain"),
        (["prompts={files: [{path: p, weight: 3}]}"], r"files\.0\.weight=3\.0 .* with one file"),
        (["coldstart={path: p, top_p: 0.5}"], r"coldstart\.top_p=0\.5 .* with coldstart\.path"),
        (["coldstart={path: p, max_new_tokens: 5}"], r"coldstart\.max_new_tokens=5 changes"),
        (["horizon={}"], r"horizon=\{\} changes nothing"),
        (["horizon={grow: {start: 1024, until: 9}}"], r"horizon\.grow\.start=1024 changes"),
        (["alarms.rules={forgetting: {action: 'off', threshold: 0.3}}"], r"the rule is off"),
        (["alarms={action: 'off', rules: {forgetting: {threshold: 1}}}"], r"the rule is off"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(tmp_path, overrides, said):
    """Each of them was taken, and changed nothing."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    for read in (config.load, config.load_each):
        with pytest.raises(UserError, match=said):
            read(file, overrides)


def test_a_teacher_template_beside_another_tokenizer_is_refused_with_the_reason():
    """It was said not to be in this process, where it was."""
    overrides = ["prompts.teacher_template=true", "teacher.tokenizer=t"]
    with pytest.raises(UserError, match=r"tokenizer of its own \(teacher\.tokenizer\)"):
        choose_template(config.parse(MINIMAL, overrides), None, None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.beta=0.3", "loss.divergence=jsd"],
        ["loss.estimator=k2", "loss.support=sampled"],
        [SELF + ", weights: ema, decay: 0.5}"],
        ["rollout.sync_dir=/x", "rollout.url=http://h/v1", "rollout.model=m"],
        ["optim.offload=cpu"],
        ["loss.k=4", "loss.support=full", "loss.terms.entropy_forward_kl=0.5"],
        ["loss.mode=reference", "loss.support=full"],
        ["teacher=null", OUTCOME],
        ["coldstart={top_p: 0.5}"],
        ["horizon={grow: {start: 8, until: 9}}"],
        ["alarms={action: 'off', rules: {forgetting: {action: warn, threshold: 1}}}"],
        ["optim.offload=cpu", "student.precision=bf16_mixed"],
    ],
)
def test_settings_with_an_effect_are_taken(tmp_path, overrides):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    run = config.load(file, overrides)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(config.dump(run)))
    assert config.load(stored) == run


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("teacher.prompt={prompt}", "{prompt}"),
        ("teacher.prompt='{prompt}'", "{prompt}"),
        ("prompts.template={problem}", "{problem}"),
        ("output.dir=7", "7"),
        ("teacher.prompt={prompt} {answer}", "{prompt} {answer}"),
        ("prompts.template=Problem: {problem}: solve # now", "Problem: {problem}: solve # now"),
        ("prompts.template=# {problem}", "# {problem}"),
        ("prompts.template=[{problem}", "[{problem}"),
        ('prompts.template="{problem}: a\\nb"', "{problem}: a\nb"),
        ("prompts.template= ~ ", None),
        ("prompts.template=null", None),
        ("student.model=[x]", "[x]"),
    ],
)
def test_text_on_the_command_line_needs_no_quotes(word, value):
    """`teacher.prompt={prompt}` was a mapping to YAML, and the message spoke of a type."""
    run = config.parse(MINIMAL, [word])
    section, key = word.partition("=")[0].split(".")
    assert getattr(getattr(run, section), key) == value


def test_text_that_yaml_takes_for_a_mapping_is_named():
    with pytest.raises(UserError, match=r"teacher\.prompt: .*put the text in quotes"):
        config.parse(MINIMAL | {"teacher": {"model": "t", "prompt": {"prompt": None}}})


def test_minimal_file_is_the_papers_recipe():
    cfg = config.parse(MINIMAL)
    assert (cfg.loss.support, cfg.loss.k, cfg.loss.mode) == ("student_topk", 16, "paper")
    assert (cfg.train.prompts_per_step, cfg.rollout.n, cfg.optim.lr) == (64, 4, 1e-6)
    assert (cfg.rollout.temperature, cfg.rollout.top_p, cfg.optim.grad_clip) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stpes=3", r"train\.stpes: unknown key\. Did you mean train\.steps\?"),
        ("learning_rate=1", r"Here it is optim\.lr"),
        ("optim.learning_rate=1", r"Here it is optim\.lr"),
        ("max_completion_length=9", r"rollout\.max_new_tokens"),
        ("rollout.n=many", r"rollout\.n: .*found 'many'"),
        ("rollout.n=0", r"rollout\.n: .*greater than or equal to 1"),
        ("loss.mode=papre", r"loss\.mode: .*'paper', 'reference' or 'tail'"),
        ("loss.terms.reward_scale=1.25", r"needs loss\.terms\.reference"),
        ("loss.terms.sft_weight=0.1", "go together"),
        ("loss.terms.reference=m", "changes nothing"),
        ("teacher=null loss.terms.outcome_weight=1 loss.support=full", "teacher is null"),
        ("eval=[{path: teacher-x.jsonl}]", "are kept for results of the teacher"),
        ("teacher=null", "nothing trains the student"),
        ("eval=[{path: a/x.jsonl},{path: b/x.jsonl}]", "share a name"),
        ("eval.0.n=3", "has no element 0"),
        ("student.model.x=3", "is a value, not a section"),
        ("no-equals", "not key=value"),
        ("train.steps={", "not a YAML value"),
    ],
)
def test_a_mistake_is_told_with_its_fix(override, said):
    with pytest.raises(UserError, match=said):
        config.parse(MINIMAL, override.split(" ") if "[" not in override else [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("loss.k=1", "zero gradient"),
        ("rollout.top_p=0.9 loss.support=sampled", "biased"),
        ("rollout.temperature=0.7 loss.support=sampled", "biased"),
        ("loss.mode=reference loss.divergence=jsd", "no such form"),
        ("loss.mode=tail loss.support=full", "loss.mode=tail needs"),
        ("loss.support=sampled loss.divergence=forward_kl", "estimates reverse KL"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_before_anything_is_loaded(overrides, said):
    from opd.setup.objective import make_objective

    with pytest.raises(UserError, match=said):
        make_objective(config.parse(MINIMAL, overrides.split(" ")))


def test_scientific_notation_without_a_dot_is_a_number():
    # YAML 1.1 reads 1e-4 as text; fields that want a number take it all the same.
    assert config.parse(MINIMAL, ["optim.lr=1e-4"]).optim.lr == 1e-4


def test_overrides_reach_into_lists_and_absent_sections():
    data = MINIMAL | {"eval": [{"path": "e.jsonl"}]}
    cfg = config.parse(data, ["eval.0.n=8", "student.lora.rank=4", "loss.terms.outcome_weight=1"])
    assert cfg.eval[0].n == 8
    assert cfg.student.lora is not None
    assert cfg.student.lora.rank == 4
    assert cfg.loss.terms.outcome_weight == 1


def test_a_dumped_run_parses_to_itself():
    cfg = config.parse(MINIMAL, ["student.lora.rank=4", "eval=[{path: e.jsonl}]"])
    assert config.parse(config.dump(cfg)) == cfg


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1, 2\n", "\x00", ""])
def test_files_that_are_no_configuration(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        config.load(tmp_path / "run.yaml")


def test_yaml_tags_build_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("student: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        config.load(tmp_path / "run.yaml")


def test_the_template_of_init_validates():
    cfg = config.parse(yaml.safe_load(RUN_YAML))
    assert cfg.loss == config.Loss()


def test_docs_list_every_key():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config.reference()


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("train.tokens_per_microbatch", "Allowed: `auto`, a whole number."),
        ("eval.grader", "`auto`, `python:` and a name."),
        ("loss.mode", "Allowed: `paper`, `reference`, `tail`."),
    ],
)
def test_the_page_of_keys_lists_what_is_allowed_beside_words(key, allowed):
    (row,) = (r for r in config.reference().splitlines() if r.startswith(f"| `{key}`"))
    assert allowed in row


def test_well_known_names_point_to_keys_that_exist():
    known = config.known_keys()
    for place in config.WELL_KNOWN.values():
        key = place.split(" ")[0].replace(".N.", ".")
        assert key in known, place


# Every section that may be absent, so that a removed key of any of them has a place.
EVERY_SECTION = MINIMAL | {
    "student": {"model": "s", "lora": {}},
    "eval": [{"path": "e.jsonl"}],
    "coldstart": {},
    "horizon": {"prune": {}},
    "select": {"output": "s.jsonl"},
}
each_removed = pytest.mark.parametrize("key", config.REMOVED)


def default_of(key: str) -> object:
    """The value of a removed key that is still what happens."""
    default = config.REMOVED[key].default
    return default(EVERY_SECTION) if callable(default) else default


def with_key(key: str, value: object) -> dict:
    """A configuration that sets a removed key."""
    data = json.loads(json.dumps(EVERY_SECTION))
    *sections, leaf = key.split(".")
    node = data
    for name in sections:
        node = node.setdefault(name, {})
        node = node[0] if isinstance(node, list) else node
    node[leaf] = value
    return data


@each_removed
def test_a_removed_key_is_refused_with_what_became_of_it(tmp_path, key):
    removed = config.REMOVED[key]
    assert key not in config.known_keys()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(with_key(key, default_of(key))))
    as_override = f"{key.replace('eval.', 'eval.0.')}={json.dumps(default_of(key))}"
    for path, overrides in [("run.yaml", ()), ("plain.yaml", [as_override])]:
        (tmp_path / "plain.yaml").write_text(yaml.safe_dump(EVERY_SECTION))
        with pytest.raises(UserError, match=r"was removed in 0\.2") as refusal:
            config.load(tmp_path / path, overrides)
        assert removed.reason in str(refusal.value)


# Keys whose stored value is carried over to where it is said now.
MOVED = ("student.dtype", "student.revision", "teacher.revision")


@pytest.mark.parametrize("key", [k for k in config.REMOVED if k not in MOVED])
def test_a_stored_configuration_may_hold_a_removed_key_that_changes_nothing(tmp_path, key, caplog):
    removed, plain = config.REMOVED[key], config.parse(EVERY_SECTION)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(with_key(key, default_of(key))))
    assert config.load(stored) == plain
    assert not caplog.records
    stored.write_text(json.dumps(with_key(key, "another")))
    if removed.affects_results:
        with pytest.raises(UserError, match=f"{key}.* was removed in") as refusal:
            config.load(stored)
        assert removed.reason in str(refusal.value)
    else:
        assert config.load(stored) == plain
        assert removed.reason in caplog.text


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float64", "float64"), ("auto", "float32")],
)
def test_a_stored_dtype_is_the_precision_the_run_began_with(tmp_path, dtype, precision):
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(with_key("student.dtype", dtype)))
    assert config.load(stored).student.precision == precision


def test_a_stored_revision_stands_behind_the_name(tmp_path):
    stored = tmp_path / "config.json"
    for role in ("student", "teacher"):
        stored.write_text(json.dumps(with_key(f"{role}.revision", None)))
        assert config.load(stored) == config.parse(EVERY_SECTION)
        stored.write_text(json.dumps(with_key(f"{role}.revision", "v1")))
        assert getattr(config.load(stored), role).model == f"{role[0]}@v1"


@each_removed
def test_the_changelog_names_every_removed_key(key):
    _, _, removed = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Removed\n")
    assert f"`{key}`" in removed.partition("\n### ")[0]


@each_removed
def test_the_constant_named_for_a_removed_key_has_its_value(key):
    removed = config.REMOVED[key]
    if removed.constant is not None:
        module, name = removed.constant.split(":")
        constant = getattr(importlib.import_module(module), name)
        assert json.loads(json.dumps(constant)) == removed.default


@pytest.mark.parametrize("module", ["opd", "opd.config", "opd.cli", "opd.types", "opd.reports"])
def test_light_modules_do_not_import_torch(module):
    code = (
        f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "m", "decay": -7}, "teacher.decay=-7: only a teacher with teacher.from=student"),
        ({"url": "http://x", "model": "m", "offload": "disk"}, "'disk': only a teacher with"),
        ({"python": "a:b", "dtype": "int8"}, "teacher.dtype='int8': only a teacher with"),
        ({"model": "m", "lunch": 1}, "teacher.lunch: unknown key. Did you mean teacher.launch?"),
    ],
)
def test_a_key_of_another_kind_of_teacher_is_named_as_one(teacher, message):
    """It was called unknown, and the suggestion was the key itself."""
    sections = {"student": {"model": "a"}, "prompts": {"path": "x"}, "output": {"dir": "r"}}
    with pytest.raises(UserError) as raised:
        config.parse(sections | {"teacher": teacher})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"teachers": {"a.b": {"model": "m"}}},
            ["teachers: 'a.b' is no name for a teacher. It may have up to 32 letters, digits, -"],
        ),
        (
            {"teachers": {"1": {"model": "m"}}, "prompts": [{"path": "x", "teacher": 1}]},
            ["prompts.files.0.teacher=1: a teacher is a name, or names with weights above 0"],
        ),
        (
            {"teachers": {"a": {"model": "m"}}, "prompts": [{"path": "x", "teacher": {"a": "b"}}]},
            ["prompts.files.0.teacher={'a': 'b'}: a teacher is a name, or names with weights"],
        ),
    ],
)
def test_what_is_no_teachers_name_is_one_line_about_a_key_that_there_is(changes, lines):
    """There were two, about prompts.files.0.teacher.str and .dict[str,float]."""
    sections = {"student": {"model": "a"}, "prompts": {"path": "x"}, "output": {"dir": "r"}}
    with pytest.raises(UserError) as raised:
        config.parse(sections | changes)
    found = str(raised.value).splitlines()[1:]
    assert len(found) == len(lines)
    assert all(line in text for line, text in zip(lines, found, strict=True)), found
