"""Loading a model: logits must be head(hidden), and what cannot be trained is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from opd.errors import UserError
from opd.models.lm import LM, check_head, load_lm
from opd.testing import TINY_VOCAB as VOCAB
from opd.testing import tiny_model

KEY = "student.model"

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 1.0,  # large logits, so that scaling and soft-capping change them
}
LAYERS = {"head_dim": 8}
FALCON = {
    "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}  # fmt: skip
RECURRENT = {"lru_width": 16, "attention_window_size": 8, "block_types": ["attention"]}


def build(family: str, **changes) -> LM:
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for parameter in model.parameters():  # biases start at 0 and would hide a missing one
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape)
    return LM(model, VOCAB, family)


# What each family does to its logits is written in config.json; _logit_transform knows these.
KNOWN = {
    "plain": ("Llama", {}),
    "tied": ("Qwen3", LAYERS | {"tie_word_embeddings": True}),
    "multiplied": ("Cohere2", {"logit_scale": 0.25}),
    "divided": ("Granite", {"logits_scaling": 8.0}),
    "soft-capped": ("Gemma2", LAYERS | {"final_logit_softcapping": 3.0}),
    "with a bias": ("Phi", {}),
}
# These do it under names that opd does not know.
UNKNOWN = {
    "multiplied": ("FalconH1", FALCON | {"lm_head_multiplier": 0.5}),
    "soft-capped": ("RecurrentGemma", RECURRENT | {"logits_soft_cap": 3.0}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_logits_of_known_families_are_head_of_hidden(name):
    family, changes = KNOWN[name]
    lm = build(family, **changes)
    check_head(lm, KEY)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.head.logits(lm.hidden(ids)), lm.causal(ids).logits)


@pytest.mark.parametrize("name", ["multiplied", "divided", "soft-capped", "with a bias"])
def test_a_head_without_the_familys_transform_is_refused(name, monkeypatch):
    # The fixtures above can tell: each transform changes the logits by more than rounding.
    family, changes = KNOWN[name]
    lm = build(family, **changes)
    monkeypatch.setattr("opd.models.lm._logit_transform", lambda config: (1.0, None))
    if name == "with a bias":
        hidden, bias = lm.causal.lm_head.forward, lm.causal.lm_head.bias
        lm.causal.lm_head.forward = lambda x: hidden(x) + bias  # twice
    with pytest.raises(UserError, match=rf"{KEY}={family}.*largest difference"):
        check_head(lm, KEY)


@pytest.mark.parametrize("name", UNKNOWN)
def test_families_with_an_unknown_transform_are_refused(name):
    family, changes = UNKNOWN[name]
    with pytest.raises(UserError, match=rf"{family}ForCausalLM.*largest difference"):
        check_head(build(family, **changes), KEY)
    neutral = {"lm_head_multiplier": 1.0} if family == "FalconH1" else {"logits_soft_cap": 1e6}
    check_head(build(family, **changes | neutral), KEY)  # nothing else of the family is in the way


@pytest.mark.parametrize(
    ("dtype", "relative", "refused"),
    [
        (torch.float64, 1e-6, False),
        (torch.float64, 3e-3, True),
        (torch.float32, 3e-3, True),
        (torch.bfloat16, 0.0, False),  # its own rounding passes
        (torch.bfloat16, 0.1, True),
    ],
)
def test_how_large_a_difference_counts_depends_on_the_dtype(dtype, relative, refused):
    model = tiny_model(0, dtype=dtype)
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) * (1 + relative)
    lm = LM(model, VOCAB, "scaled")
    if refused:
        with pytest.raises(UserError, match="wrong distribution"):
            check_head(lm, KEY)
    else:
        check_head(lm, KEY)


def test_logits_that_are_not_numbers_are_refused(make_lm):
    lm = make_lm(0)
    lm.causal.lm_head.forward = lambda hidden: hidden.new_full(
        (*hidden.shape[:-1], VOCAB), torch.nan
    )
    with pytest.raises(UserError, match="largest difference nan"):
        check_head(lm, KEY)


def test_padding_rows_of_the_head_are_not_compared(make_lm):
    lm = make_lm(0, tie=False)
    lm.vocab = VOCAB - 5
    lm.causal.lm_head.weight.data[VOCAB - 5 :] = torch.nan
    check_head(lm, KEY)


def test_a_model_without_a_backbone_is_refused(make_lm):
    lm = make_lm(0)
    lm.causal.base_model_prefix = ""  # then it is its own base model, and returns logits alone
    with pytest.raises(UserError, match=rf"{KEY}=tiny-0.*no backbone"):
        check_head(lm, KEY)


# ---------------------------------------------------------------- loading


@pytest.fixture
def saved(tmp_path):
    """A folder with a model that loads."""
    tiny_model(0, dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16),
     ("float64", torch.float64)],
)  # fmt: skip
def test_a_model_is_loaded_in_the_dtype_asked_for(saved, asked, dtype):
    lm = load_lm(str(saved), dtype=asked)
    assert {p.dtype for p in lm.model.parameters()} == {dtype}
    assert (lm.vocab, lm.name, lm.model.training) == (VOCAB, str(saved), False)


def test_float16_is_refused_as_stored_and_loaded_as_something_else(tmp_path):
    folder = str(tmp_path / "half")
    tiny_model(0, dtype=torch.float16).save_pretrained(folder)
    with pytest.raises(UserError, match=r"teacher\.model=.*float16.*teacher\.dtype to bfloat16"):
        load_lm(folder, key="teacher.model")
    assert load_lm(folder, dtype="float32").model.dtype == torch.float32


def no_config(folder):
    (folder / "config.json").unlink()


def not_causal(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))


def pickled_only(folder):
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def damaged(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of a model was run')")


@pytest.mark.parametrize("spoil", [no_config, not_causal, pickled_only, damaged, own_code])
def test_a_folder_that_is_no_usable_model_is_refused(saved, spoil):
    spoil(saved)
    with pytest.raises(UserError, match=rf"{KEY}={saved}"):
        load_lm(str(saved))


def test_a_name_that_the_hub_does_not_give_is_refused():
    with pytest.raises(UserError, match=r"student\.model=nobody/nothing: cannot be loaded"):
        load_lm("nobody/nothing")


def test_a_model_whose_logits_are_not_head_of_hidden_is_refused_when_it_is_loaded(tmp_path):
    family, changes = UNKNOWN["multiplied"]
    build(family, **changes).model.save_pretrained(tmp_path / "falcon")
    with pytest.raises(UserError, match="wrong distribution"):
        load_lm(str(tmp_path / "falcon"))
