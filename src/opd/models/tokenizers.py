"""Whether two models share a tokenizer, and which tokens end a completion.

Teacher and student exchange token ids, never text, so training against a teacher with another
vocabulary would go wrong silently. Everything here compares tokenizers and the sizes of heads.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import UserError
from opd.models.hub_name import split_revision
from opd.models.tokenizer_files import find_tokenizer, have_same_ids, read_template
from opd.models.vocabulary import join_differences, other_tokenizers, token_differences
from opd.types import Stop

logger = logging.getLogger(__name__)

# Equal vocabularies do not make equal tokenizers: merges, normalisers and pre-tokenizers matter
# too, and differences show on texts like these.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space,  two spaces,\ttab\nnewline\r\n\n\nthree newlines ",
    "don't WON'T it's Straße naïve e\u0301 É",
    "1234567890 3.14159 -0.5 1,000,000 2^{10} 50%",
    "\\frac{a}{b} $x_1^2 + \\sqrt{2}$ \\boxed{42}",
    "def f(x):\n    return {'a': [1, 2]}  # ok",
    "你好世界 こんにちは 안녕하세요 Привет مرحبا",
    "🙂👩‍👩‍👧 \u200b\u00a0\ufb01 ½ Ⅳ",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between two tokenizers.

    Attributes:
        kind: ids, added, special, merges, encoding, wrapping, head, eos, pad or template.
        message: a sentence about it.
        fatal: whether distillation over these tokenizers would train on wrong tokens.
    """

    kind: str
    message: str
    fatal: bool


def load_tokenizer(name: str, *, key: str = "model") -> Any:
    """A tokenizer from a folder or the hub; code that comes with a model is never run.

    Args:
        name: local folder or hub name, with @revision if it is not the newest.
        key: configuration key named in errors.

    Raises:
        UserError: no such folder, a folder without tokenizer, or a hub that does not answer.
    """
    import transformers  # seconds: not before a tokenizer is asked for

    path, revision = split_revision(name)
    folder = find_tokenizer(path, key)
    local = folder is not None
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder) if local else path, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - of any kind, as damaged files make them
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if local:
            raise UserError(
                f"{key}={path}: the tokenizer in this folder cannot be read: {first}\n"
                "Save it again with tokenizer.save_pretrained(folder)."
            ) from None
        and_revision = "" if revision is None else f" and the revision {revision!r}"
        raise UserError(
            f"{key}={path}: neither a local folder nor a model that the hub returns: {first}\n"
            f"Check the spelling{and_revision}, or download the model and give its folder."
        ) from None


def load_like(
    own: Any, student: str, teacher: str, load: Callable[..., Any] = load_tokenizer
) -> Any:
    """The teacher's tokenizer; the student's `own` again where only the chat template differs.

    Args:
        own: the student's, loaded.
        student: student.model.
        teacher: teacher.model.
        load: reads a tokenizer of a name and a key.

    Raises:
        UserError: as `load_tokenizer`.
    """
    if not have_same_ids(student, teacher):
        return load(teacher, key="teacher.model")
    other = copy.copy(own)
    other.chat_template = read_template(Path(split_revision(teacher)[0]).expanduser())
    return other


def share_ids(a: Any, b: Any) -> bool:
    """Whether two tokenizers are one, but for their chat template (`load_like`)."""
    backend = getattr(a, "backend_tokenizer", None)
    return a is b or (backend is not None and backend is getattr(b, "backend_tokenizer", None))


def vocab_size(tokenizer: Any) -> int:
    """One more than the largest token id: a head's further rows are padding."""
    return int(max(tokenizer.get_vocab().values())) + 1


def make_decoder(tokenizer: Any) -> Callable[[Any], str]:
    """A function from token ids to their text, special tokens left out."""
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def eos_ids(tokenizer: Any, generation_config: Any | None) -> frozenset[int]:
    """Ids that end a completion: the tokenizer's own and those of the generation config.

    Raises:
        UserError: there are none.
    """
    ids: set[int] = set()
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    configured = None if generation_config is None else generation_config.eos_token_id
    if configured is not None:
        several = isinstance(configured, list | tuple)
        ids |= {int(i) for i in (configured if several else [configured])}
    if not ids:
        raise UserError(
            f"The model {tokenizer.name_or_path!r} has no end token, so no completion would ever "
            "end. Set eos_token_id in its generation_config.json, or eos_token in "
            "tokenizer_config.json."
        )
    return frozenset(ids)


def compare(
    student_tok: Any, teacher_tok: Any, *, student_vocab: int, teacher_vocab: int
) -> list[Difference]:
    """All differences between two tokenizers.

    Args:
        student_tok: the student's tokenizer.
        teacher_tok: the teacher's.
        student_vocab: rows of the student's output head; may exceed the tokenizer's ids.
        teacher_vocab: rows of the teacher's output head.
    """
    same = share_ids(student_tok, teacher_tok)
    vocabularies = [] if same else [student_tok.get_vocab(), teacher_tok.get_vocab()]
    needed = vocab_size(student_tok)
    differences = [
        None if same else _ids(*vocabularies),
        None if same else _added(student_tok, teacher_tok),
        *(_special(student_tok, teacher_tok, name) for name in ("bos", "unk", "eos", "pad")),
        _head("student", student_tok, student_vocab, needed),
        _head("teacher", teacher_tok, teacher_vocab, needed if same else vocab_size(teacher_tok)),
        _head_sizes(student_vocab, teacher_vocab),
        _pad_is_eos("student", student_tok),
        _pad_is_eos("teacher", teacher_tok),
        _template(student_tok, teacher_tok),
    ]
    result = [d for d in differences if d is not None]
    # Different ids mean different encodings; these are for what the ids do not show.
    if not same and not any(d.fatal for d in result):
        hidden = (_merges(student_tok, teacher_tok), *_encodings(student_tok, teacher_tok))
        result += [d for d in hidden if d is not None]
    return result


def require_same(
    student_tok: Any, teacher_tok: Any, *, student_vocab: int, teacher_vocab: int
) -> int:
    """Check that equal ids mean equal tokens.

    Returns:
        The usable vocabulary: ids from there on are padding of a wider head, to be masked.

    Raises:
        UserError: with how many tokens differ and the first of them.
    """
    differences = compare(
        student_tok, teacher_tok, student_vocab=student_vocab, teacher_vocab=teacher_vocab
    )
    for difference in differences:
        logger.info("tokenizers: %s", difference.message)
    fatal = [d.message for d in differences if d.fatal]
    if fatal:
        raise other_tokenizers(fatal)
    return vocab_size(student_tok)


def resolve_stop(
    tokenizer: Any,
    student_eos: frozenset[int],
    teacher_eos: frozenset[int],
    choice: Stop | None,
) -> frozenset[int]:
    """The ids that end a rollout.

    Args:
        tokenizer: spells the ids in the error.
        student_eos: ids that end the student's completions.
        teacher_eos: ids that end the teacher's.
        choice: rollout.stop; None requires that the two agree.

    Raises:
        UserError: they differ and `choice` is None.
    """
    if student_eos == teacher_eos or choice == "student":
        return student_eos
    if choice == "teacher":
        return teacher_eos
    if choice == "union":
        return student_eos | teacher_eos
    raise UserError(
        "The models end a completion with different tokens and rollout.stop is not set:\n"
        f"  student: {_spell(tokenizer, student_eos)}\n"
        f"  teacher: {_spell(tokenizer, teacher_eos)}\n"
        "A student that learns an end token which does not stop its rollouts never ends them: "
        "lengths explode within a few dozen steps. Choose one:\n"
        "  rollout.stop=student  the student's end tokens; the teacher may give them low "
        "probability\n"
        "  rollout.stop=teacher  the teacher's end tokens; until the student has learned them, its "
        "rollouts run to the length limit\n"
        "  rollout.stop=union    the end tokens of both; every rollout can end, both are trained"
    )


def _spell(tokenizer: Any, ids: Iterable[int]) -> str:
    return ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(ids))


def _ids(student: dict[str, int], teacher: dict[str, int]) -> Difference | None:
    message = token_differences(student, teacher)
    return None if message is None else Difference("ids", message, True)


def _added(student_tok: Any, teacher_tok: Any) -> Difference | None:
    """Added tokens are matched before the vocabulary; `special` ones are left out of decoded text.

    End and pad tokens are compared by their role, in `_special`.
    """
    roles = {i for tok in (student_tok, teacher_tok) for i in (tok.eos_token_id, tok.pad_token_id)}
    student, teacher = (
        {i: (str(t), t.special) for i, t in tok.added_tokens_decoder.items()}
        for tok in (student_tok, teacher_tok)
    )
    differing = sorted(
        i for i in (student.keys() | teacher.keys()) - roles if student.get(i) != teacher.get(i)
    )
    if not differing:
        return None

    def describe(entry: tuple[str, bool] | None) -> str:
        return "not added" if entry is None else f"{entry[0]!r}{' (special)' * entry[1]}"

    lines = [
        f"id {i} is {describe(student.get(i))} for the student and "
        f"{describe(teacher.get(i))} for the teacher"
        for i in differing
    ]
    return Difference(
        "added", f"{len(differing)} added tokens differ: {join_differences(lines)}", True
    )


def _special(student_tok: Any, teacher_tok: Any, name: str) -> Difference | None:
    ids = {
        "bos": (student_tok.bos_token_id, teacher_tok.bos_token_id),
        "unk": (student_tok.unk_token_id, teacher_tok.unk_token_id),
        "eos": (student_tok.eos_token_id, teacher_tok.eos_token_id),
        "pad": (student_tok.pad_token_id, teacher_tok.pad_token_id),
    }[name]
    if ids[0] == ids[1]:
        return None
    seen = f"the {name} token is {ids[0]} for the student and {ids[1]} for the teacher"
    if name == "eos":
        return Difference("eos", f"{seen}; rollout.stop decides where rollouts end", False)
    if name == "pad":
        return Difference("pad", f"{seen}; padding is masked, so nothing depends on it", False)
    return Difference("special", seen, True)


def _head(role: str, tokenizer: Any, width: int, need: int) -> Difference | None:
    if width >= need:
        return None
    return Difference(
        "head",
        f"the {role}'s head has {width} rows for {need} token ids: token {width} "
        f"({tokenizer.convert_ids_to_tokens(width)!r}) could never be scored",
        True,
    )


def _head_sizes(student: int, teacher: int) -> Difference | None:
    if student == teacher:
        return None
    return Difference(
        "head",
        f"the heads have {student} (student) and {teacher} (teacher) rows; the padding is masked",
        False,
    )


def _pad_is_eos(role: str, tokenizer: Any) -> Difference | None:
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != tokenizer.eos_token_id:
        return None
    return Difference(
        "pad",
        f"the {role} pads with its end token {tokenizer.pad_token_id}; a real end still counts, "
        "because padding is masked by position and never by id",
        False,
    )


def _template(student_tok: Any, teacher_tok: Any) -> Difference | None:
    if student_tok.chat_template == teacher_tok.chat_template:
        return None
    return Difference(
        "template",
        "the chat templates differ; prompts are rendered with the student's, which may be "
        "unusual for the teacher",
        False,
    )


def _merges(student_tok: Any, teacher_tok: Any) -> Difference | None:
    if not (student_tok.is_fast and teacher_tok.is_fast):
        return None
    texts = [tok.backend_tokenizer.to_str() for tok in (student_tok, teacher_tok)]
    if texts[0] == texts[1]:
        return None
    student, teacher = (json.loads(text)["model"].get("merges") for text in texts)
    if student is None or teacher is None or student == teacher:
        return None
    rank = next(
        (i for i, (a, b) in enumerate(zip(student, teacher, strict=False)) if a != b),
        min(len(student), len(teacher)),
    )
    seen = [m[rank] if rank < len(m) else "none" for m in (student, teacher)]
    return Difference(
        "merges",
        f"the merges differ from number {rank} on: {seen[0]} for the student, {seen[1]} for the "
        "teacher, so the same text becomes other ids",
        True,
    )


def _encodings(student_tok: Any, teacher_tok: Any) -> list[Difference]:
    lines = []
    for text in PROBES:
        student, teacher = (
            tok.encode(text, add_special_tokens=False) for tok in (student_tok, teacher_tok)
        )
        if student != teacher:
            lines.append(
                f"{text!r} becomes {student[:6]}.. for the student, {teacher[:6]}.. for the teacher"
            )
    if lines:
        shown = join_differences(lines)
        message = f"{len(lines)} of {len(PROBES)} probe texts become different ids: {shown}"
        return [Difference("encoding", message, True)]
    encoded = [tok.encode(PROBES[0]) for tok in (student_tok, teacher_tok)]
    if encoded[0] == encoded[1]:
        return []
    message = (
        f"plain text becomes {encoded[0][:4]}.. for the student and {encoded[1][:4]}.. for the "
        "teacher: one adds special tokens and the other does not; prompts follow the student"
    )
    return [Difference("wrapping", message, False)]
