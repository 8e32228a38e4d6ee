"""Rollouts by a vLLM server: token ids in, token ids, log-probs and top-k ids out.

The server gets the student's weights through stock vLLM routes: a LoRA student as an adapter under
a new name, a full student by `reload_weights`. Each answer must come from the version that was
asked for. vLLM returns no entropies: they are NaN.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd.errors import UserError
from opd.http import Http, Refusal, Transient, clean
from opd.http.vllm import COMPLETIONS, MIN_LOGPROB, model_cards, only_choice
from opd.models.lm import LM
from opd.models.saved_folder import SYNC_MARK, replaced_folder
from opd.rng import seed_of
from opd.run.bad_answers import Exchange, Quarantine
from opd.samplers.hf import Decoding
from opd.types import Prompt, Rollout

logger = logging.getLogger(__name__)

LOAD_ADAPTER, UNLOAD_ADAPTER = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RPC, RESET_PREFIX_CACHE = "/collective_rpc", "/reset_prefix_cache"
TOKEN_PREFIX = "token_id:"
ADAPTER = "opd-student"
MAX_LOGPROB = 1e-4  # rounding may raise a log-prob above 0
TRIES = 2  # of a request whose answer is wrong
# Completions under way at once: a server decodes so many in nearly the time of one, and each still
# ends within `ANSWER_SECONDS` on a slow card.
CONCURRENCY, ANSWER_SECONDS = 32, 600.0


class WrongRollout(ValueError):
    """An answer that is not a completion of the prompt that was sent."""


@dataclass(frozen=True)
class RolloutServer:
    """A vLLM server that samples from the student.

    Attributes:
        http: client of the server's root.
        model: the name under which the server serves the student's base model.
        sync_dir: where weights are written; the server must see the same path.
        concurrency: maximum completions under way.
        quarantine: where wrong answers are kept.
    """

    http: Http
    model: str
    sync_dir: Path
    concurrency: int = CONCURRENCY
    quarantine: Quarantine | None = None


class VllmSampler:
    """`opd.types.Sampler` for a vLLM server."""

    def __init__(
        self,
        server: RolloutServer,
        student: LM,
        tokenizer: Any,
        decoding: Decoding,
        *,
        stop: frozenset[int],
        capture: int,
    ) -> None:
        """Make a sampler; the first `sync` sends the weights.

        Args:
            server: where completions are sampled.
            student: whose weights are sent.
            tokenizer: saved beside full weights, as vLLM requires.
            decoding: temperature, truncation and length.
            stop: token ids that end a completion; they are part of it.
            capture: K, how many of the student's top tokens to record per position.
        """
        self.server, self.http = server, server.http
        self.student, self.tokenizer, self.decoding = student, tokenizer, decoding
        self.stop, self.capture = stop, capture
        self.sync_dir = server.sync_dir.absolute()
        self.version = -1
        self.served = server.model  # name of the current version at the server

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`.

        Raises:
            UserError: the server does not take weights; the message says how to start it.
        """
        self.send(self.student, version)

    def send(self, student: LM, version: int) -> None:
        """Send these weights, which may be a copy of the student's, to the server; see `sync`."""
        folder = self.sync_dir / f"step-{version}"
        try:
            if student.is_lora:
                self._send_adapter(student, version, folder)
            else:
                self._send_full(student, folder)
        except Transient as error:
            raise self._unavailable(error) from None
        self.version = version
        for old in self.sync_dir.glob("step-*"):
            if old.name != folder.name and (old / SYNC_MARK).is_file():
                shutil.rmtree(old, ignore_errors=True)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; tokens depend on the server's arithmetic too.

        Raises:
            UserError: the server does not answer, refuses, or gives wrong answers.
        """
        max_length = self.decoding.max_new_tokens
        limit = max_length if limit is None else min(limit, max_length)
        pool = ThreadPoolExecutor(self.server.concurrency, thread_name_prefix="rollout")
        try:
            pending = [
                pool.submit(self._sample_one, prompt, i, key, limit)
                for prompt in prompts
                for i in range(n)
            ]
            return [future.result() for future in pending]
        except Transient as error:
            raise self._unavailable(error) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _unavailable(self, error: Transient) -> UserError:
        return UserError(
            f"The rollout server at {self.http.url} does not answer ({error}). Start it, then "
            "continue with `opd train ... --resume`."
        )

    def _sample_one(self, prompt: Prompt, sample: int, key: Sequence[int], limit: int) -> Rollout:
        body = {
            "model": self.served,
            "prompt": list(prompt.ids),
            "max_tokens": limit,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "top_k": -1,  # none; vLLM would take that of the model's generation_config
            "seed": request_seed(key, prompt.index, sample),
            "logprobs": self.capture,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": sorted(self.stop),
            "skip_special_tokens": False,
        }
        for attempt in range(TRIES):
            with self.http.capture() as exchanges:
                try:
                    answer = self.http.post_json(COMPLETIONS, body)
                    return self._parse(answer, prompt, sample, limit)
                except WrongRollout as error:
                    reason = f"{error}."
                    if (quarantine := self.server.quarantine) is not None:
                        reason += quarantine.keep([Exchange(*e) for e in exchanges], str(error))
            logger.warning("Rollout server: %s%s", reason, "" if attempt else " Asking again.")
        raise UserError(
            f"The rollout server at {self.http.url} gave a wrong answer twice: {reason} Nothing "
            "was trained on it."
        )

    def _parse(self, answer: Any, prompt: Prompt, sample: int, limit: int) -> Rollout:
        """A checked answer as a rollout.

        Raises:
            WrongRollout: another model, another prompt, or not a whole completion.
        """
        if not isinstance(answer, dict) or answer.get("model") != self.served:
            name = clean(str(answer.get("model"))) if isinstance(answer, dict) else "no model"
            raise WrongRollout(
                f"{name!r} generated it, and {self.served!r} was asked: stale weights"
            )
        choice = only_choice(answer)
        if choice is None:
            raise WrongRollout("the answer does not hold exactly one completion")
        if choice.get("prompt_token_ids") not in (None, list(prompt.ids)):
            raise WrongRollout("it continues another prompt")
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise WrongRollout("no token_ids; the server is too old for return_token_ids")
        if not isinstance(logprobs, dict) or not 0 < len(ids) <= limit:
            raise WrongRollout(f"{len(ids)} tokens, or no log-probs")
        stopped = ids[-1] in self.stop
        if any(i in self.stop for i in ids[:-1]) or (not stopped and len(ids) < limit):
            raise WrongRollout("it does not end where it should")
        logp = _parse_logp(logprobs.get("token_logprobs"), len(ids))
        rows = logprobs.get("top_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ids):
            raise WrongRollout("top log-probs are missing")
        topk = [_parse_topk(row, self.capture) for row in rows]
        return Rollout(
            prompt,
            sample,
            np.array(ids, dtype=np.int32),
            np.array(logp, dtype=np.float32),
            np.full(len(ids), math.nan, dtype=np.float32),
            np.array([[i for i, _ in row] for row in topk], dtype=np.int32),
            np.array([[p for _, p in row] for row in topk], dtype=np.float32),
            "stop" if stopped else "length",
            self.version,
        )

    def _send_adapter(self, student: LM, version: int, folder: Path) -> None:
        """A new adapter name per version: an answer from an old one is recognised by its name."""
        self._write_weights(folder, lambda tmp: student.model.save_pretrained(tmp))  # type: ignore[operator]
        name = f"{ADAPTER}-{version}"
        loaded = self._served_models()
        if name in loaded:
            self.http.post_text(UNLOAD_ADAPTER, {"lora_name": name})
        try:
            self.http.post_text(LOAD_ADAPTER, {"lora_name": name, "lora_path": str(folder)})
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take LoRA adapters: start vLLM with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, --max-lora-rank of at least "
                "student.lora.rank, and a rollout.sync_dir that it can read."
            ) from None
        for old in loaded:
            if old.startswith(ADAPTER) and old != name:
                self.http.post_text(UNLOAD_ADAPTER, {"lora_name": old})
        self.served = name

    def _send_full(self, student: LM, folder: Path) -> None:
        """All weights from a folder; the prefix cache of the old ones is reset."""

        def save(tmp: Path) -> None:
            student.model.save_pretrained(tmp)  # type: ignore[operator]
            self.tokenizer.save_pretrained(tmp)

        self._write_weights(folder, save)
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.http.post_text(RPC, call)
            self.http.post_text(RESET_PREFIX_CACHE, {})
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take new weights: start vLLM with "
                "VLLM_SERVER_DEV_MODE=1 on a private address, or train a LoRA student "
                "(student.lora), whose adapters stock vLLM reloads."
            ) from None

    def _write_weights(self, folder: Path, save: Callable[[Path], None]) -> None:
        """Write a folder of weights that appears by one rename.

        Raises:
            UserError: a folder of that name that no run has written for a server.
        """
        if folder.exists() and not (folder / SYNC_MARK).is_file():
            raise UserError(
                f"{folder} is there already and holds no weights that a run sent to a server; it "
                "stays as it is. Set rollout.sync_dir to a folder for such weights alone."
            )
        self.sync_dir.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new:
            save(new)
            (new / SYNC_MARK).touch()

    def _served_models(self) -> list[str]:
        names = list(model_cards(self.http) or {})
        if self.server.model not in names:
            raise UserError(
                f"rollout.model={self.server.model}: the server at {self.http.url} serves "
                f"{', '.join(map(clean, names)) or 'nothing'}."
            )
        return names


def request_seed(key: Sequence[int], prompt: int, sample: int) -> int:
    """The request's seed, a function of (key, prompt, sample) alone."""
    return seed_of((*key, prompt, sample)) & 0x7FFFFFFF


def _parse_logp(values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise WrongRollout("log-probs of the tokens are missing")
    if not all(isinstance(v, int | float) and MIN_LOGPROB < v <= MAX_LOGPROB for v in values):
        raise WrongRollout("a log-prob is above 0 or not a number")
    return [float(v) for v in values]


def _parse_topk(row: Any, k: int) -> list[tuple[int, float]]:
    """The k most probable tokens, best first; the sampled token may be in the row as well."""
    if not isinstance(row, dict) or len(row) < k:
        raise WrongRollout(f"fewer than {k} top tokens; start vLLM with --max-logprobs {k}")
    try:
        entries = [(int(name.removeprefix(TOKEN_PREFIX)), float(p)) for name, p in row.items()]
    except ValueError:
        raise WrongRollout("top tokens are not given as ids") from None
    return sorted(entries, key=lambda e: -e[1])[:k]
