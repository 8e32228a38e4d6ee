"""Tokenizers and configurations read from files are those that transformers reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jinja2
import pytest
import torch

from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.models.device_names import KINDS, require_device
from opd.models.file_facts import read_file_facts
from opd.models.file_tokenizer import NAMED, NotInFiles, read_file_tokenizer
from opd.models.model_files import read_facts
from opd.models.tokenizers import PROBES, eos_ids, load_tokenizer

TURNS = (
    [{"role": "user", "content": "sum pig gnu"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1 + 1\n<b>?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)
TEMPLATES = (
    "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "{{ bos_token }}{%- for m in messages %}\n  {%- if loop.first %}{% continue %}{% endif %}\n"
    "    {{ m | tojson }}\n{%- endfor %}{{ eos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ 'think' if enable_thinking }}",
)
REAL = [
    Path(name)
    for variable in ("OPD_SMOLLM2", "OPD_QWEN")
    for name in os.environ.get(variable, "").split(os.pathsep)
    if name
]


def require_equal(folder: Path) -> None:
    """Compare everything that checks of a run ask of a tokenizer and of a configuration."""
    files, real = read_file_tokenizer(str(folder)), load_tokenizer(str(folder))
    for role in NAMED:
        assert getattr(files, f"{role}_id") == getattr(real, f"{role}_id"), role
    assert files.get_vocab() == real.get_vocab()
    assert files.chat_template == real.chat_template
    added, wanted = (
        {i: (str(t), t.special) for i, t in tok.added_tokens_decoder.items()}
        for tok in (files, real)
    )
    assert added == wanted
    for plain in (True, False):
        ids, expected = (tok(list(PROBES), add_special_tokens=plain) for tok in (files, real))
        assert ids["input_ids"] == expected["input_ids"]
    assert files.encode(PROBES[0]) == real.encode(PROBES[0])
    for turns in TURNS:
        words = {"tokenize": False, "add_generation_prompt": True}
        for template in (None, *TEMPLATES):
            given = words if template is None else words | {"chat_template": template}
            assert rendered(files, turns, given) == rendered(real, turns, given)
    facts, expected_facts = (read(str(folder), "x") for read in (read_file_facts, read_facts))
    assert facts.vocab == expected_facts.vocab
    assert facts.context_length == expected_facts.context_length
    assert facts.identity == expected_facts.identity
    assert eos_ids(files, facts.end_tokens) == eos_ids(real, expected_facts.end_tokens)


def rendered(tokenizer, turns, words) -> str:
    try:
        return tokenizer.apply_chat_template(turns, **words)
    except jinja2.TemplateError as error:
        return f"refused: {error}"


def test_files_say_what_transformers_says():
    require_equal(PAIR / "student")


@pytest.mark.slow
def test_files_of_real_models_say_what_transformers_says():
    if not REAL:
        pytest.skip("OPD_SMOLLM2 and OPD_QWEN name no folder of a real model")
    for folder in REAL:
        require_equal(folder)


def copy_with(tmp_path, name="tokenizer_config.json", **changes) -> str:
    folder = tmp_path / "model"
    shutil.copytree(PAIR / "student", folder)
    data = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(data))
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"auto_map": {"AutoTokenizer": ["x", None]}},
        {"eos_token": "<not in the vocabulary>"},
        {"added_tokens_decoder": {"99999": {"content": "<new>"}}},
    ],
)
def test_a_tokenizer_out_of_the_ordinary_is_left_to_transformers(tmp_path, changes):
    with pytest.raises(NotInFiles):
        read_file_tokenizer(copy_with(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes", [{"model_type": "phi3"}, {"hidden_size": "64"}, {"num_attention_heads": 0}]
)
def test_a_configuration_out_of_the_ordinary_is_left_to_transformers(tmp_path, changes):
    with pytest.raises(NotInFiles):
        read_file_facts(copy_with(tmp_path, "config.json", **changes), "student.model")


@pytest.mark.parametrize(
    "template", ["{{ messages.__class__ }}", "{{ messages|attr('x') }}", "{{ dict(a=1) }}"]
)
def test_a_template_out_of_the_ordinary_is_left_to_transformers(template):
    tokenizer = read_file_tokenizer(str(PAIR / "student"))
    with pytest.raises(NotInFiles):
        tokenizer.apply_chat_template(TURNS[0], tokenize=False, chat_template=template)


@pytest.mark.parametrize("device", [*sorted(KINDS), "cpu:0", "cuda:1", "gpu", "CPU", "cuda:x", ""])
def test_names_of_devices_are_those_of_torch(device):
    try:
        known = bool(torch.device(device).type)
    except RuntimeError:
        known = False
    try:
        require_device(device, "teacher.device", gpus=2)
        said = "fits"
    except UserError as error:
        said = "unknown" if "no such device" in str(error) else "not here"
    assert (said != "unknown") == known
    assert (said == "fits") == (device in ("cpu", "cpu:0", "cuda", "cuda:1"))
