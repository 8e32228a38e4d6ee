"""Tokenizers of generated worlds: ordinary Hugging Face fast tokenizers of four kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.vocabulary import SPECIAL, word_tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


MERGES = 48  # of the byte-pair vocabulary: pairs such as `a3` and `;b`


@dataclass(frozen=True)
class Tokenization:
    """How a world's text becomes tokens.

    Attributes:
        name: in records.
        compact: text is written without spaces between its characters.
        train: a tokenizer without special tokens, from the world's words and sample texts.
    """

    name: str
    compact: bool
    train: Callable[[Sequence[str], Sequence[str]], Tokenizer] | None

    def tokenizer(
        self, words: Sequence[str], texts: Sequence[str], *, context: int
    ) -> PreTrainedTokenizerFast:
        """A tokenizer with the special tokens and the chat template of the lab.

        Args:
            words: every word of the world, separators included.
            texts: documents that a trained vocabulary is made from.
            context: longest sequence.
        """
        if self.train is None:
            return word_tokenizer(list(dict.fromkeys(words)), context=context)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self.train(words, texts),
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<user>", "<assistant>"],
            model_max_length=context,
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer


def _characters(words: Sequence[str], texts: Sequence[str]) -> Tokenizer:
    """One token per character that occurs."""
    characters = sorted({character for text in (*words, *texts) for character in text})
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_pairs(size: int) -> Callable[[Sequence[str], Sequence[str]], Tokenizer]:
    """Byte-level byte-pair encoding with `size` tokens; 262 are bytes alone."""

    def train(words: Sequence[str], texts: Sequence[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    return train


TOKENIZATIONS = {
    each.name: each
    for each in (
        Tokenization("word", compact=False, train=None),
        Tokenization("character", compact=True, train=_characters),
        Tokenization("byte", compact=True, train=_byte_pairs(len(SPECIAL) + 256)),
        Tokenization("bpe", compact=True, train=_byte_pairs(len(SPECIAL) + 256 + MERGES)),
    )
}
