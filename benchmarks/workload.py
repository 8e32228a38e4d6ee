"""The work both sides do: prompts, recorded completion lengths, and the models.

Lengths were recorded once from SmolLM2-135M-Instruct at temperature 1, at most 128 tokens
(`python benchmarks/workload.py record --model FOLDER`): short facts, sentences, lists and stories,
so that rows end at very different times. Both sides end each completion at its recorded length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
LENGTHS = HERE / "lengths.json"
LIMIT = 128
WARM_UP = 16  # tokens: a first step that is not timed need not be long
LARGE_VOCAB = 262_144

THINGS = """gravity, bread, the moon, a bicycle, friendship, rain, a library, chess, honey, winter,
electricity, a bridge, music, a garden, the ocean, paper, a volcano, tea, a clock, democracy,
a rainbow, salt, an island, a map, glass, a forest, money, a mirror, cotton, the heart, a train,
a poem"""
QUESTIONS = (
    "What is {}? Answer with a few words.",
    "Explain {} in one sentence.",
    "Name three words that go with {}.",
    "Tell me a short story about {}.",
)


def questions() -> list[str]:
    """128 questions; their kinds alternate, so the first 32 contain every kind."""
    things = [x.strip() for x in THINGS.replace("\n", " ").split(",")]
    return [
        QUESTIONS[i % len(QUESTIONS)].format(thing)
        for thing in things
        for i in range(len(QUESTIONS))
    ]


def rows(count: int, *, large: bool = False) -> list[dict[str, Any]]:
    """`count` prompts as rows that both sides load."""
    if large:
        words = [
            [(i * 7919 + 31 * j) % 200_000 + 3 for j in range(24 + i % 17)] for i in range(count)
        ]
        return [{"prompt": " ".join(f"w{w}" for w in line)} for line in words]
    return [
        {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": question}]}
        for question in questions()[:count]
    ]


def lengths(count: int, limit: int = LIMIT) -> list[int]:
    """Recorded completion lengths of the first `count` prompts, the end token included."""
    recorded: list[int] = json.loads(LENGTHS.read_text(encoding="utf-8"))
    return [min(n, limit) for n in recorded[:count]]


def make_teacher(student: Path, folder: Path) -> Path:
    """A teacher of the student's shape that disagrees a little: its weights with noise."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=random)
                weight.add_(noise, alpha=0.02 * weight.std().item())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return folder


def make_large(folder: Path, seed: int, *, quick: bool) -> Path:
    """A random model of Gemma-3-270M's shape, 262,144 tokens, with a tokenizer of as many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    if (folder / "config.json").is_file():
        return folder
    vocab = 4096 if quick else LARGE_VOCAB
    config = Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=64 if quick else 640,
        intermediate_size=128 if quick else 2048,
        num_hidden_layers=2 if quick else 18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16 if quick else 256,
        sliding_window=512,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    words = ["<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(3, vocab)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def tiny_pair(folder: Path) -> tuple[Path, Path]:
    """Two small random models for `--quick`."""
    return tuple(make_large(folder / f"tiny-{i}", i, quick=True) for i in (0, 1))  # type: ignore


def record(model: Path) -> None:
    """Sample a completion of every question and store its length."""
    from opd.models.lm import load_lm
    from opd.models.tokenizers import eos_ids, load_tokenizer
    from opd.samplers.decoding import Decoding
    from opd.samplers.hf import HFSampler
    from opd.types import Prompt

    tokenizer = load_tokenizer(str(model), None, key="student.model")
    lm = load_lm(str(model), dtype="float32")
    prompts = []
    for i, row in enumerate(rows(len(questions()))):
        text = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompts.append(Prompt(i, tuple(ids), text))
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, Decoding(LIMIT), stop=stop, capture=1)
    recorded = [len(r) for r in sampler.sample(prompts, n=1, key=(0,))]
    LENGTHS.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    mean, truncated = sum(recorded) / len(recorded), sum(n == LIMIT for n in recorded)
    print(f"mean {mean:.1f}, {truncated} at the limit")


def make_all(model: Path, out: Path, *, quick: bool) -> None:
    """Make every model the benchmarks need, before several of them run in parallel."""
    if quick:
        tiny_pair(out)
        return
    make_teacher(model, out / "teacher")
    for i in (0, 1):
        make_large(out / f"large-{i}", i, quick=False)


def main() -> None:
    from harness import BUILD, make_parser

    parser = make_parser(__doc__)
    parser.add_argument("command", choices=["record", "models"])
    parser.add_argument("--model", type=Path, default=BUILD / "student")
    args = parser.parse_args()
    if args.command == "record":
        record(args.model)
    else:
        make_all(args.model, args.out, quick=args.quick)


if __name__ == "__main__":
    main()
