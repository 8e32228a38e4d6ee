"""A vLLM server without vLLM: it scores, samples and takes weights, or fails as a test wants."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from opd.http.vllm import COMPLETIONS, MODELS
from opd.samplers.sampling_server import (
    LOAD_ADAPTER,
    RESET_PREFIX_CACHE,
    RPC,
    SERVER_INFO,
    UNLOAD_ADAPTER,
    UPDATE_VERSION,
    WEIGHT_INFO,
)
from opd.teachers.vllm_api import GENERATE, TOKENIZE
from opd.testing.clients import FakeClock, json_response, raw_response
from opd.testing.language import NextLogp, encode_letters
from opd.testing.weight_receiver import WeightReceiver

Json = dict[str, Any]


@dataclass(eq=False)
class FakeVllmServer(httpx2.BaseTransport):
    """A transport of `opd.http.Http` that speaks vLLM's API.

    Routes: models, completions (with `prompt_logprobs` to score, else to sample), tokenize,
    /inference/v1/generate where `scores_chosen_ids`, LoRA adapters and `reload_weights`. `top_p`
    and `top_k` of a request are ignored.

    Attributes:
        logp: next-token log-probs.
        model: name of the served model.
        max_len: maximum tokens of prompt + completion.
        max_logprobs: maximum top tokens per position.
        scores_chosen_ids: whether it scores student-chosen ids.
        accepts_weights: whether it takes adapters and weights.
        load: the model that a folder of weights or of an adapter makes of it; None: weights change
            nothing.
        versions: whether it keeps a label of its weights.
        dtype: of its arithmetic, as it says; None: it does not say.
        tokenize: text to token ids; None: no such route.
        receiver: takes weights without files, where the server was started so.
        clock: time as hooks see it.
        fault: replaces the answer to a request, unless it returns None.
        edit_scores: changes (server, ids, rows, choice) of an answer to a scoring request.
        edit_completion: changes (answer, choice) of a sampled completion.
        calls: path and JSON body of every request so far.
        adapters: names and folders of the loaded adapters.
        last_ids: of the scoring request before this one.
    """

    logp: NextLogp
    model: str = "m"
    max_len: int = 4096
    max_logprobs: int = 20
    scores_chosen_ids: bool = False
    accepts_weights: bool = True
    load: Callable[[Path], NextLogp] | None = None
    versions: bool = True
    dtype: str | None = None
    tokenize: Callable[[str], list[int]] | None = encode_letters
    receiver: WeightReceiver | None = None
    clock: FakeClock = field(default_factory=FakeClock)
    fault: Callable[[FakeVllmServer, httpx2.Request], httpx2.Response | None] | None = None
    edit_scores: Callable[[FakeVllmServer, list[int], list[Any], Json], None] | None = None
    edit_completion: Callable[[Json, Json], None] | None = None
    calls: list[tuple[str, Json]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    last_ids: list[int] = field(default_factory=list)
    weight_version: str = field(default="default", init=False)
    asleep: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._adapted: dict[str, NextLogp] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request at a time: a fault's answer, else the right one."""
        body = request.read()
        with self._lock:
            self.calls.append((request.url.path, json.loads(body) if body else {}))
            if self.fault is not None:
                answer = self.fault(self, request)
                if answer is not None:
                    return answer
            return self.answer(request)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        """The answer without faults, for a fault that changes it."""
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if self.receiver is not None and (taken := self.receiver.answer(path, body)) is not None:
            return taken
        if path == MODELS:
            cards = [
                {"id": n, "root": self.model, "max_model_len": self.max_len} for n in self.models
            ]
            return json_response({"object": "list", "data": cards})
        if path == TOKENIZE and self.tokenize is not None:
            return json_response({"tokens": self.tokenize(body["prompt"])})
        if path == COMPLETIONS:
            return self._sample(body) if "seed" in body else self._score(body)
        if path == GENERATE and self.scores_chosen_ids:
            return self._score_chosen_ids(body)
        if path in (LOAD_ADAPTER, UNLOAD_ADAPTER, RPC, RESET_PREFIX_CACHE) and self.accepts_weights:
            return self._take_weights(path, body)
        if path == UPDATE_VERSION and self.versions:
            self.weight_version = body["new_version"]
            return json_response({"success": True})
        if path in ("/sleep", "/wake_up"):
            self.asleep = path == "/sleep"
            return json_response({})
        if self.asleep and path in (COMPLETIONS, RPC, LOAD_ADAPTER):
            return json_response({"detail": "the engine sleeps"}, 500)
        if path == SERVER_INFO and self.dtype is not None:
            return json_response({"vllm_config": f"model='m', dtype=torch.{self.dtype}, seed=0"})
        if path == WEIGHT_INFO and self.versions:
            return json_response({"weight_version": self.weight_version})
        return json_response({"detail": "Not Found"}, 404)

    @property
    def models(self) -> list[str]:
        """Names of the served model and of its adapters."""
        return [self.model, *self.adapters]

    def _score(self, body: Json) -> httpx2.Response:
        k, ids = body["prompt_logprobs"], body["prompt"]
        if k > self.max_logprobs:
            message = f"Requested prompt logprobs of {k}, greater than max {self.max_logprobs}"
            return json_response({"error": {"message": message}}, 400)
        scored = zip(self.logp(ids), ids[1:], strict=False)
        rows = [None, *(prompt_logprobs(logp, token, k) for logp, token in scored)]
        choice = {"index": 0, "text": "x", "prompt_logprobs": rows, "prompt_token_ids": list(ids)}
        if self.edit_scores is not None:
            self.edit_scores(self, ids, rows, choice)
        self.last_ids = ids
        return json_response({"model": self.model, "choices": [choice]})

    def _score_chosen_ids(self, body: Json) -> httpx2.Response:
        chosen = body["sampling_params"]["prompt_logprob_token_ids"]
        start = body["sampling_params"]["prompt_logprob_start"]
        logp = self.logp(body["token_ids"])[start:-1]
        if len(chosen) != len(logp):
            return json_response({"error": {"message": "rows mismatch"}}, 400)
        values = np.take_along_axis(logp, np.array(chosen), 1).astype(np.float32)
        data = io.BytesIO()
        np.save(data, values)
        text = base64.b64encode(data.getvalue()).decode()
        answer = {"model": self.model, "choices": [], "prompt_token_id_logprobs": text}
        return json_response(answer)

    def _sample(self, body: Json) -> httpx2.Response:
        if body["model"] not in self.models:
            return json_response({"error": {"message": "no such model"}}, 404)
        choices = [self._complete(body, i) for i in range(body.get("n", 1))]
        answer = {"model": body["model"], "choices": choices}
        if self.edit_completion is not None:
            for choice in choices:
                self.edit_completion(answer, choice)
        return json_response(answer)

    def _complete(self, body: Json, index: int) -> Json:
        """One choice: as vLLM does it, by the seed of the request plus its index."""
        model = self._adapted.get(body["model"], self.logp)
        rng = np.random.default_rng(body["seed"] + index)
        ids: list[int] = []
        token_logprobs = []
        while len(ids) < body["max_tokens"] and not set(ids) & set(body["stop_token_ids"]):
            logp = model([*body["prompt"], *ids])[-1]
            token = sample_token(logp, body["temperature"], rng)
            ids.append(token)
            token_logprobs.append(float(logp[token]))
        choice: Json = {"index": index, "token_ids": ids, "prompt_token_ids": body["prompt"]}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": token_logprobs}
        if "prompt_logprobs" in body:
            scored = zip(model(body["prompt"]), body["prompt"][1:], strict=False)
            choice["prompt_logprobs"] = [None, *(prompt_logprobs(p, t, 0) for p, t in scored)]
        return choice

    def _take_weights(self, path: str, body: Json) -> httpx2.Response:
        """Load or unload; a folder without weights is a mistake of the caller's."""
        if path == UNLOAD_ADAPTER:
            self.adapters.pop(body["lora_name"])
        elif path == LOAD_ADAPTER:
            self.adapters[body["lora_name"]] = body["lora_path"]
            _require_file(Path(body["lora_path"]) / "adapter_model.safetensors")
            if self.load is not None:
                self._adapted[body["lora_name"]] = self.load(Path(body["lora_path"]))
        elif path == RPC:
            _require_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            if self.load is not None:
                self.logp = self.load(Path(body["kwargs"]["weights_path"]))
        return raw_response(b"Success")


def prompt_logprobs(logp: np.ndarray, token: int, k: int) -> dict[str, Json]:
    """One row of vLLM's `prompt_logprobs`: the k best tokens of (V,), and `token` beside them."""
    best = np.argsort(-logp, kind="stable")[:k].tolist()
    row = {str(v): {"logprob": float(logp[v]), "rank": r + 1} for r, v in enumerate(best)}
    if token not in best:
        rank = int((logp > logp[token]).sum()) + 1
        row = {str(token): {"logprob": float(logp[token]), "rank": rank}} | row
    return row


def sample_token(logp: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """A token of (V,) log-probs at a temperature; the best one at 0."""
    if temperature == 0:
        return int(logp.argmax())
    probs = np.exp((logp - logp.max()) / temperature)
    return int(rng.choice(len(probs), p=probs / probs.sum()))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(path)
