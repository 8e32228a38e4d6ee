"""Rollouts by a vLLM server: token ids in, token ids, log-probs and top-k ids out.

The server is given the student's weights by what stock vLLM offers: a LoRA student as an adapter
under a new name, a full student by `reload_weights`. Each answer must come from the version that
was asked for. Entropies are not known here and are NaN.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from opd.errors import UserError
from opd.http import Http, Refusal, Transient, clean
from opd.models.lm import LM
from opd.rng import seed_of
from opd.run.bad_answers import Exchange, Quarantine
from opd.samplers.hf import Decoding
from opd.types import Prompt, Rollout

logger = logging.getLogger(__name__)

COMPLETIONS, MODELS = "/v1/completions", "/v1/models"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RPC, FORGET = "/collective_rpc", "/reset_prefix_cache"
TOKEN = "token_id:"
ADAPTER = "opd-student"
TRIES = 2  # a wrong answer is asked for once more


class WrongRollout(ValueError):
    """An answer that is not a completion of what was asked."""


class VllmSampler:
    """`opd.types.Sampler` for a vLLM server."""

    def __init__(
        self,
        http: Http,
        model: str,
        student: LM,
        tokenizer: Any,
        decoding: Decoding,
        *,
        stop: frozenset[int],
        capture: int,
        sync_dir: Path,
        concurrency: int = 32,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Make a sampler; the first `sync` gives the server its weights.

        Args:
            http: client of the server's root.
            model: the name the server gives the student's base model.
            student: where weights come from.
            tokenizer: saved beside full weights, which vLLM wants.
            decoding: temperature, truncation and length.
            stop: token ids that end a completion; they are part of it.
            capture: K, how many of the student's top tokens to record a position.
            sync_dir: where weights are put; the server must see the same path.
            concurrency: most completions under way.
            quarantine: where wrong answers are kept.
        """
        self.http, self.model, self.student, self.tokenizer = http, model, student, tokenizer
        self.decoding, self.stop, self.capture = decoding, stop, capture
        self.sync_dir, self.concurrency = sync_dir.absolute(), concurrency
        self.quarantine = quarantine
        self.version = -1
        self.served = model  # the name that stands for the current version

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`.

        Raises:
            UserError: the server cannot be given weights, with what to start it with.
        """
        self.send(self.student, version)

    def send(self, student: LM, version: int) -> None:
        """Give the server these weights, which may be a copy of the student's; see `sync`."""
        folder = self.sync_dir / f"step-{version}"
        try:
            if student.is_lora:
                self._sync_adapter(student, version, folder)
            else:
                self._sync_full(student, folder)
        except Transient as error:
            raise UserError(
                f"The rollout server at {self.http.url} does not answer ({error}). Start it, then "
                "continue with `opd train ... --resume`."
            ) from None
        self.version = version
        for old in self.sync_dir.glob("step-*"):
            if old.name != folder.name:
                shutil.rmtree(old, ignore_errors=True)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; tokens depend on the server's arithmetic too.

        Raises:
            UserError: the server does not answer, refuses, or gives wrong answers.
        """
        longest = self.decoding.max_new_tokens
        limit = longest if limit is None else min(limit, longest)
        requests = [(prompt, i) for prompt in prompts for i in range(n)]
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="rollout")
        try:
            waiting = [pool.submit(self._one, prompt, i, key, limit) for prompt, i in requests]
            return [future.result() for future in waiting]
        except Transient as error:
            raise UserError(
                f"The rollout server at {self.http.url} does not answer ({error}). Start it, then "
                "continue with `opd train ... --resume`."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, prompt: Prompt, sample: int, key: Sequence[int], limit: int) -> Rollout:
        body = {
            "model": self.served,
            "prompt": list(prompt.ids),
            "max_tokens": limit,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "top_k": self.decoding.top_k or -1,
            "seed": request_seed(key, prompt.index, sample),
            "logprobs": self.capture,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": sorted(self.stop),
            "skip_special_tokens": False,
        }
        for last in range(TRIES):
            with self.http.capture() as heard:
                try:
                    answer = self.http.post_json(COMPLETIONS, body)
                    return self._read(answer, prompt, sample, limit)
                except WrongRollout as error:
                    wrong = f"{error}."
                    if self.quarantine is not None:
                        wrong += self.quarantine.keep([Exchange(*e) for e in heard], str(error))
            logger.warning("Rollout server: %s%s", wrong, "" if last else " Asking again.")
        raise UserError(
            f"The rollout server at {self.http.url} gave a wrong answer twice: {wrong} Nothing "
            "was trained on it."
        )

    def _read(self, answer: Any, prompt: Prompt, sample: int, limit: int) -> Rollout:
        if not isinstance(answer, dict) or answer.get("model") != self.served:
            name = clean(str(answer.get("model"))) if isinstance(answer, dict) else "nobody"
            raise WrongRollout(f"{name!r} wrote it, and {self.served!r} was asked: stale weights")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise WrongRollout("the answer does not hold exactly one completion")
        choice = choices[0]
        if choice.get("prompt_token_ids") not in (None, list(prompt.ids)):
            raise WrongRollout("it continues another prompt")
        ids, listed = choice.get("token_ids"), choice.get("logprobs")
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise WrongRollout("no token_ids; the server is too old for return_token_ids")
        if not isinstance(listed, dict) or not 0 < len(ids) <= limit:
            raise WrongRollout(f"{len(ids)} tokens, or no log-probs")
        finish = "stop" if ids[-1] in self.stop else "length"
        if any(i in self.stop for i in ids[:-1]) or (finish == "length" and len(ids) < limit):
            raise WrongRollout("it does not end where it should")
        logp = np.array(_numbers(listed.get("token_logprobs"), len(ids)), dtype=np.float32)
        tops = listed.get("top_logprobs")
        if not isinstance(tops, list) or len(tops) != len(ids):
            raise WrongRollout("top log-probs are missing")
        top = [_top(row, self.capture) for row in tops]
        return Rollout(
            prompt,
            sample,
            np.array(ids, dtype=np.int32),
            logp,
            np.full(len(ids), math.nan, dtype=np.float32),
            np.array([[i for i, _ in row] for row in top], dtype=np.int32),
            np.array([[p for _, p in row] for row in top], dtype=np.float32),
            "stop" if finish == "stop" else "length",
            self.version,
        )

    def _sync_adapter(self, student: LM, version: int, folder: Path) -> None:
        """A new adapter name a version, so that no answer can come from an old one unseen."""
        self._write(folder, lambda tmp: student.model.save_pretrained(tmp))  # type: ignore[operator]
        name = f"{ADAPTER}-{version}"
        loaded = self._loaded()
        if name in loaded:
            self.http.post_text(UNLOAD, {"lora_name": name})
        try:
            self.http.post_text(LOAD, {"lora_name": name, "lora_path": str(folder)})
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take LoRA adapters: start vLLM with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, --max-lora-rank of at least "
                "student.lora.rank, and a rollout.sync_dir that it can read."
            ) from None
        for old in loaded:
            if old.startswith(ADAPTER) and old != name:
                self.http.post_text(UNLOAD, {"lora_name": old})
        self.served = name

    def _sync_full(self, student: LM, folder: Path) -> None:
        """All weights from a folder; nothing of the old ones may stay in the prefix cache."""

        def save(tmp: Path) -> None:
            student.model.save_pretrained(tmp)  # type: ignore[operator]
            self.tokenizer.save_pretrained(tmp)

        self._write(folder, save)
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.http.post_text(RPC, call)
            self.http.post_text(FORGET, {})
        except Refusal as error:
            raise UserError(
                f"{error}\nThe rollout server must take new weights: start vLLM with "
                "VLLM_SERVER_DEV_MODE=1 on a private address, or train a LoRA student "
                "(student.lora), whose adapters stock vLLM reloads."
            ) from None

    def _write(self, folder: Path, save: Callable[[Path], None]) -> None:
        """A folder of weights that appears by one rename."""
        self.sync_dir.mkdir(parents=True, exist_ok=True)
        tmp = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        save(tmp)
        shutil.rmtree(folder, ignore_errors=True)
        tmp.rename(folder)

    def _loaded(self) -> list[str]:
        listed = self.http.get_json(MODELS)
        cards = listed.get("data") if isinstance(listed, dict) else None
        names = [str(c.get("id")) for c in cards or [] if isinstance(c, dict)]
        if self.model not in names:
            raise UserError(
                f"rollout.model={self.model}: the server at {self.http.url} serves "
                f"{', '.join(map(clean, names)) or 'nothing'}."
            )
        return names


def request_seed(key: Sequence[int], prompt: int, sample: int) -> int:
    """The request's seed, a function of (key, prompt, sample) alone."""
    return seed_of((*key, prompt, sample)) & 0x7FFFFFFF


def _numbers(values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise WrongRollout("log-probs of the tokens are missing")
    if not all(isinstance(v, int | float) and -9998.0 < v <= 1e-4 for v in values):
        raise WrongRollout("a log-prob is above 0 or not a number")
    return [float(v) for v in values]


def _top(row: Any, k: int) -> list[tuple[int, float]]:
    """The k best of a position, best first; the drawn token may stand beside them."""
    if not isinstance(row, dict) or len(row) < k:
        raise WrongRollout(f"fewer than {k} top tokens; start vLLM with --max-logprobs {k}")
    try:
        entries = [(int(name.removeprefix(TOKEN)), float(p)) for name, p in row.items()]
    except ValueError:
        raise WrongRollout("top tokens are not given as ids") from None
    return sorted(entries, key=lambda e: -e[1])[:k]
