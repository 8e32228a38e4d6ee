"""An SGLang server as something that generates: its `/generate`, adapters and weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from opd.http import Refusal, Transient, clean
from opd.http.sglang import GENERATE, VERSION, logprob_pairs, meta_infos, model_info
from opd.http.vllm import MIN_LOGPROB
from opd.samplers.completions import (
    MAX_LOGPROB,
    CompletionRequest,
    TextScores,
    WrongRollout,
    require_end,
)
from opd.samplers.sampling_server import DTYPES, SamplingServer
from opd.types import Rollout

LOAD_ADAPTER, UNLOAD_ADAPTER = "/load_lora_adapter", "/unload_lora_adapter"
LOAD_WEIGHTS, SERVER_INFO = "/update_weights_from_disk", "/get_server_info"
UPDATE_VERSION = "/update_weight_version"


class SglangServer(SamplingServer):
    """`SamplingServer` of SGLang; a request is translated from vLLM's words.

    Every answer names the version of the weights that made it.
    """

    takes_adapters: ClassVar[str] = (
        "start SGLang with --enable-lora, --max-lora-rank of at least student.lora.rank, "
        "--lora-target-modules all, and a rollout.sync_dir that it can read"
    )
    takes_weights: ClassVar[str] = (
        "start SGLang on the student's model, with a rollout.sync_dir that it can read"
    )

    context_option: ClassVar[str] = "--context-length"
    # A completion ends there whatever its limit is (`max_req_len` of SGLang's scheduler).
    unused: ClassVar[int] = 2

    def _ask(self, request: CompletionRequest) -> list[Rollout]:
        """See `SamplingServer._ask`."""
        body = request.body
        params = {
            "max_new_tokens": body["max_tokens"],
            "temperature": body["temperature"],
            "top_p": body["top_p"],
            "top_k": body["top_k"],
            "stop_token_ids": body["stop_token_ids"],
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        # The completions of one request with `n` would share its seed, and be the same where the
        # server takes seeds (--enable-deterministic-inference).
        ids = list(request.prompt.ids)
        each = [params | {"sampling_seed": request.seed + i} for i in range(request.n)]
        asked: dict[str, Any] = {"input_ids": ids, "sampling_params": each[0]}
        if request.n > 1:
            asked = {"input_ids": [ids] * request.n, "sampling_params": each}
        wants_logp = "logprobs" in body
        answers = meta_infos(
            self.http.post_json(GENERATE, self._named(asked | {"return_logprob": wants_logp})),
            request.n,
        )
        if answers is None:
            raise WrongRollout(f"the answer does not hold exactly {request.n} completions")
        return [self._read(answer, request, i) for i, answer in enumerate(answers)]

    def _read(self, answer: dict[str, Any], request: CompletionRequest, i: int) -> Rollout:
        ids, info = answer.get("output_ids"), answer["meta_info"]
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise WrongRollout("no output_ids")
        if self.labelled and info.get(VERSION) != str(self.version):
            raise WrongRollout(
                f"weights of version {clean(str(info.get(VERSION)))[:40]} sampled it, and "
                f"{self.version} was sent"
            )
        require_end(ids, request.body)
        wanted = "logprobs" in request.body
        logp = _logp(info.get("output_token_logprobs"), ids) if wanted else None
        return self._made(ids, logp, request, i)

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with the adapter that is to answer it, if there is one."""
        return body if self.served == self.model else body | {"lora_path": self.served}

    def load_adapter(self, name: str, folder: Path) -> None:
        """See `SamplingServer.load_adapter`."""
        self._post(LOAD_ADAPTER, {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        """See `SamplingServer.unload_adapter`."""
        self._post(UNLOAD_ADAPTER, {"lora_name": name})

    def reload(self, folder: Path, version: int) -> None:
        """See `SamplingServer.reload`; the cache is dropped with the weights."""
        self._post(
            LOAD_WEIGHTS,
            {"model_path": str(folder), "flush_cache": True, "weight_version": str(version)},
        )

    def label(self, version: int) -> None:
        """See `SamplingServer.label`."""
        try:
            self._post(UPDATE_VERSION, {"new_version": str(version), "abort_all_requests": False})
            self.labelled = True
        except Refusal:  # an older server
            self.labelled = False
        self.version = version

    def _post(self, path: str, body: dict[str, Any]) -> None:
        """A command, which may fail with status 200.

        Raises:
            Refusal: it failed, in the server's words.
        """
        answer = self.http.post_text(path, body)
        try:
            outcome = json.loads(answer)
        except ValueError:
            return
        if isinstance(outcome, dict) and outcome.get("success") is False:
            reason = outcome.get("message") or outcome.get("error_message")
            raise Refusal(f"{path}: {clean(str(reason))[:400]}", 400)

    def _version_there(self) -> Any:
        return (model_info(self.http) or {}).get(VERSION)

    def score_text(self, ids: Sequence[int], tokens: int) -> TextScores:
        """See `SamplingServer.score_text`."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {
                "max_new_tokens": tokens,
                "temperature": 1.0,
                "ignore_eos": True,
                "sampling_seed": 0,
            },
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        answers = meta_infos(self.http.post_json(GENERATE, self._named(body)), 1)
        generated = None if answers is None else answers[0].get("output_ids")
        if answers is None or not isinstance(generated, list):
            raise WrongRollout("no output_ids")
        info = answers[0]["meta_info"]
        text = logprob_pairs(info.get("input_token_logprobs"), len(ids))
        if text is None or [i for _, i in text] != list(ids):
            raise WrongRollout("log-probs of the text are missing")
        values = [NAN if p is None else p for p, _ in text[1:]]
        made = _logp(info.get("output_token_logprobs"), generated)
        return TextScores(generated, made, np.array(values))

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """Of the server's arithmetic, where it was started with one by name."""
        try:
            answer = self.http.get_json(SERVER_INFO)
        except (Transient, Refusal):
            return None
        return DTYPES.get(str(answer.get("dtype"))) if isinstance(answer, dict) else None


NAN = float("nan")  # a log-prob that is null fails every comparison


def _logp(rows: Any, ids: Sequence[int]) -> np.ndarray:
    """Log-probs (T,) of sampled tokens.

    Raises:
        WrongRollout: they are missing, of other tokens, or no log-probs.
    """
    pairs = logprob_pairs(rows, len(ids))
    if pairs is None or [i for _, i in pairs] != list(ids):
        raise WrongRollout("log-probs of the tokens are missing")
    values = [p for p, _ in pairs]
    if not all(p is not None and MIN_LOGPROB < p <= MAX_LOGPROB for p in values):
        raise WrongRollout("a log-prob is above 0 or not a number")
    return np.array(values, dtype=np.float32)
