"""An SGLang server without SGLang: the routes that `opd` asks, from their documented schema."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from opd.http.sglang import GENERATE, MODEL_INFO
from opd.http.vllm import MODELS
from opd.samplers.sglang_server import (
    LOAD_ADAPTER,
    LOAD_WEIGHTS,
    SERVER_INFO,
    UNLOAD_ADAPTER,
    UPDATE_VERSION,
)
from opd.teachers.vllm_api import TOKENIZE
from opd.testing.clients import json_response
from opd.testing.language import NextLogp, encode_letters
from opd.testing.vllm_server import sample_token

Json = dict[str, Any]


@dataclass(eq=False)
class FakeSglangServer(httpx2.BaseTransport):
    """A transport of `opd.http.Http` that speaks SGLang's API.

    Attributes:
        logp: next-token log-probs.
        model: name of the served model.
        max_len: maximum tokens of prompt + completion.
        scores_chosen_ids: whether it takes a list of chosen ids per position; else the field is
            ignored, as stock SGLang does.
        load: the model that a folder of weights or of an adapter makes of it; None: weights change
            nothing.
        tokenize: text to token ids; None: no such route.
        fault: replaces the answer to a request, unless it returns None.
        edit: changes `meta_info` of an answer.
        calls: path and JSON body of every request so far.
        adapters: names and folders of the loaded adapters.
        weight_version: label of the weights.
    """

    logp: NextLogp
    model: str = "m"
    max_len: int = 4096
    scores_chosen_ids: bool = False
    load: Callable[[Path], NextLogp] | None = None
    tokenize: Callable[[str], list[int]] | None = encode_letters
    fault: Callable[[FakeSglangServer, httpx2.Request], httpx2.Response | None] | None = None
    edit: Callable[[Json], None] | None = None
    calls: list[tuple[str, Json]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    weight_version: str = "default"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._adapted: dict[str, NextLogp] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request at a time: a fault's answer, else the right one."""
        body = request.read()
        with self._lock:
            values = json.loads(body) if body else {}
            self.calls.append((request.url.path, values))
            if self.fault is not None:
                answer = self.fault(self, request)
                if answer is not None:
                    return answer
            return self.answer(request.url.path, values)

    def answer(self, path: str, body: Json) -> httpx2.Response:
        """The answer without faults."""
        if path == MODELS:
            names = [self.model, *self.adapters]
            cards = [{"id": n, "root": self.model, "max_model_len": self.max_len} for n in names]
            return json_response({"object": "list", "data": cards})
        if path in MODEL_INFO:
            info = {"model_path": self.model, "is_generation": True}
            return json_response(info | {"weight_version": self.weight_version})
        if path == SERVER_INFO:
            return json_response({"model_path": self.model, "dtype": "auto"})
        if path == TOKENIZE and self.tokenize is not None:
            return json_response({"tokens": self.tokenize(body["prompt"])})
        if path == GENERATE:
            return self._generate(body)
        if path == UPDATE_VERSION:
            self.weight_version = body["new_version"]
            return json_response({"success": True})
        if path in (LOAD_ADAPTER, UNLOAD_ADAPTER, LOAD_WEIGHTS):
            return self._take_weights(path, body)
        return json_response({"detail": "Not Found"}, 404)

    def _generate(self, body: Json) -> httpx2.Response:
        name = body.get("lora_path")
        if name is not None and name not in self.adapters:
            return json_response({"error": {"message": f"{name} is not loaded"}}, 400)
        model = self._adapted.get(name or "", self.logp)
        ids, params = body["input_ids"], body["sampling_params"]
        if ids and isinstance(ids[0], list):
            return json_response(
                [self._complete(model, body, *x) for x in zip(ids, params, strict=True)]
            )
        # The n answers have one seed, as with --enable-deterministic-inference: they are the same.
        answers = [self._complete(model, body, ids, params) for _ in range(params.get("n", 1))]
        return json_response(answers if len(answers) > 1 else answers[0])

    def _complete(self, model: NextLogp, body: Json, prompt: list[int], params: Json) -> Json:
        rng = np.random.default_rng(params.get("sampling_seed", 0))
        stop = set() if params.get("ignore_eos") else set(params.get("stop_token_ids", ()))
        ids: list[int] = []
        made = []
        while len(ids) < params["max_new_tokens"] and not set(ids) & stop:
            row = model([*prompt, *ids])[-1]
            ids.append(sample_token(row, params["temperature"], rng))
            made.append([float(row[ids[-1]]), ids[-1], None])
        info: Json = {"weight_version": self.weight_version, "prompt_tokens": len(prompt)}
        if body.get("return_logprob"):
            info |= {"output_token_logprobs": made}
            start = body.get("logprob_start_len", -1)
            if start >= 0:
                info |= self._score(model(prompt), prompt, start, body)
        if self.edit is not None:
            self.edit(info)
        return {"text": "x", "output_ids": ids, "meta_info": info}

    def _score(self, logp: np.ndarray, prompt: Sequence[int], start: int, body: Json) -> Json:
        """What stands under `input_...`: the first position has null for want of a predictor."""
        later = range(start + 1, len(prompt))
        pairs = [[float(logp[t - 1, prompt[t]]), prompt[t], None] for t in later]
        scored: Json = {"input_token_logprobs": [[None, prompt[start], None], *pairs]}
        k = body.get("top_logprobs_num", 0)
        if k:
            best = [np.argsort(-logp[t - 1], kind="stable")[:k] for t in later]
            rows = [_pairs(logp[t - 1], ids) for t, ids in zip(later, best, strict=True)]
            scored["input_top_logprobs"] = [None, *rows]
        chosen = body.get("token_ids_logprob_positions")
        if chosen is not None and self.scores_chosen_ids:
            rows = [_pairs(logp[t - 1], np.array(chosen[t], dtype=int)) for t in later]
            scored["input_token_ids_logprobs"] = [None, *rows]
        return scored

    def _take_weights(self, path: str, body: Json) -> httpx2.Response:
        """Load or unload; a folder without weights is refused as SGLang does it."""
        if path == UNLOAD_ADAPTER:
            del self.adapters[body["lora_name"]]
            return json_response({"success": True})
        folder = Path(body["lora_path" if path == LOAD_ADAPTER else "model_path"])
        name = "adapter_model" if path == LOAD_ADAPTER else "model"
        if not (folder / f"{name}.safetensors").is_file():
            return json_response({"success": False, "message": f"no weights in {folder}"}, 400)
        if path == LOAD_ADAPTER:
            self.adapters[body["lora_name"]] = str(folder)
            if self.load is not None:
                self._adapted[body["lora_name"]] = self.load(folder)
        else:
            self.weight_version = body.get("weight_version") or self.weight_version
            if self.load is not None:
                self.logp = self.load(folder)
        return json_response({"success": True, "message": "Succeeded."})


def _pairs(logp: np.ndarray, ids: np.ndarray) -> list[list[Any]]:
    return [[float(logp[i]), int(i), None] for i in ids]
