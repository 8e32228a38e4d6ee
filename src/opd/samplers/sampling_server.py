"""A vLLM server as something that generates: completions of token ids, each answer checked."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from opd.errors import UserError
from opd.http import Http, Refusal, Transient, clean
from opd.http.vllm import COMPLETIONS, MAX_ID, choices_of, model_cards, only_choice
from opd.run.bad_answers import Exchange, Quarantine
from opd.samplers.completions import (
    CompletionRequest,
    ServerLost,
    TextScores,
    WrongRollout,
    parse_logp,
    require_end,
)
from opd.types import Rollout

logger = logging.getLogger(__name__)

TRIES = 2  # of a request whose answer is wrong
# Completions under way at once: a GPU decodes so many in nearly the time of one, and each still
# ends within `ANSWER_SECONDS` on a slow card.
CONCURRENCY, ANSWER_SECONDS = 256, 600.0
SERVER_INFO = "/server_info"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOAD_ADAPTER, UNLOAD_ADAPTER = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RPC, RESET_PREFIX_CACHE = "/collective_rpc", "/reset_prefix_cache"
UPDATE_VERSION, WEIGHT_INFO = "/update_weight_version", "/weight_info"
SLEEP, WAKE = "/sleep?level=1", "/wake_up"
WAIT = 1.0  # seconds between questions whether a server is back
NOT_FOUND = 404  # what vLLM answers for a model that it does not have (any more)


@dataclass
class SamplingServer:
    """A vLLM server that completes prompts, and takes weights.

    Attributes:
        http: client of the server's root.
        model: the name under which it serves the base model.
        quarantine: where wrong answers are kept.
        concurrency: maximum completions under way.
        patience: seconds to wait for a server that has gone away.
        given_up: why a server that `opd` started will not come back; None while it may.
        vocab: token ids that it may sample are below this.
        served: name of what answers now: the base model, or an adapter.
        version: of the weights that answer now; goes into every rollout.
        labelled: whether the server keeps that version, and is asked for it after every call.
        sleeps: whether it gives its GPU away between calls, to a trainer on the same one.
        asleep: whether it does so now.
    """

    takes_adapters: ClassVar[str] = (
        "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, --max-lora-rank of "
        "at least student.lora.rank, and a rollout.sync_dir that it can read"
    )
    takes_weights: ClassVar[str] = (
        "start vLLM with VLLM_SERVER_DEV_MODE=1 on a private address, or train a LoRA student "
        "(student.lora), whose adapters stock vLLM reloads"
    )
    context_option: ClassVar[str] = "--max-model-len"
    unused: ClassVar[int] = 0  # last tokens of the context that no completion has
    http: Http
    model: str
    quarantine: Quarantine | None = None
    concurrency: int = CONCURRENCY
    patience: float = 0.0
    given_up: Callable[[], str | None] = lambda: None
    vocab: int = field(default=MAX_ID + 1, init=False)
    served: str = field(default="", init=False)
    version: int = field(default=0, init=False)
    labelled: bool = field(default=False, init=False)
    sleeps: bool = field(default=False, init=False)
    asleep: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.served = self.model

    def complete(
        self, requests: Sequence[CompletionRequest], results: dict[int, list[Rollout]]
    ) -> Iterator[int]:
        """Send requests, many at a time.

        Args:
            requests: what to complete.
            results: gets the rollouts of each, by index; those that are there are not sent again.

        Yields:
            The index of a request whose rollouts have arrived.

        Raises:
            ServerLost: after which `results` holds what was complete before.
            UserError: the server refuses, or answers wrongly more than once.
        """
        missing = [i for i in range(len(requests)) if i not in results]
        if not missing:
            return
        try:
            self.wake()
        except Transient as error:
            raise ServerLost(str(error)) from None
        width = max(1, self.concurrency // max(requests[i].n for i in missing))
        pool = ThreadPoolExecutor(min(width, len(missing)), thread_name_prefix="completion")
        try:
            pending = {pool.submit(self._complete_one, requests[i]): i for i in missing}
            for future in as_completed(pending):
                results[pending[future]] = self._result(future)
                yield pending[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        try:
            self.require_version()
        except ServerLost:
            for i in missing:
                del results[i]
            raise

    def _result(self, future: Future[list[Rollout]]) -> list[Rollout]:
        try:
            return future.result()
        except Transient as error:
            raise ServerLost(str(error)) from None
        except Refusal as error:
            if error.status != NOT_FOUND:
                raise
            raise ServerLost(str(error)) from None

    def _complete_one(self, request: CompletionRequest) -> list[Rollout]:
        for attempt in range(TRIES):
            with self.http.capture() as exchanges:
                try:
                    return self._ask(request)
                except WrongRollout as error:
                    reason = f"{error}."
                    if self.quarantine is not None:
                        kept = [Exchange(*e) for e in exchanges]
                        reason += self.quarantine.keep(kept, str(error))
            logger.warning(
                "%s: %s%s",
                self.http.role.capitalize(),
                reason,
                "" if attempt else " Asking again.",
            )
        raise UserError(
            f"The {self.http.role} at {self.http.url} gave a wrong answer twice: {reason} Nothing "
            "was trained on it."
        )

    def _ask(self, request: CompletionRequest) -> list[Rollout]:
        """Checked answers to one request.

        Raises:
            WrongRollout: another model, another prompt, or not `n` whole completions.
        """
        body = request.body | {
            "model": self.served,
            "prompt": list(request.prompt.ids),
            "n": request.n,
            "seed": request.seed,
        }
        answer = self.http.post_json(COMPLETIONS, body)
        if not isinstance(answer, dict) or answer.get("model") != self.served:
            name = clean(str(answer.get("model"))) if isinstance(answer, dict) else "no model"
            raise WrongRollout(
                f"{name!r} generated it, and {self.served!r} was asked: stale weights"
            )
        choices = choices_of(answer, request.n)
        if choices is None:
            raise WrongRollout(f"the answer does not hold exactly {request.n} completions")
        return [self._rollout(choice, request, i) for i, choice in enumerate(choices)]

    def _rollout(self, choice: dict[str, Any], request: CompletionRequest, i: int) -> Rollout:
        if choice.get("prompt_token_ids") not in (None, list(request.prompt.ids)):
            raise WrongRollout("it continues another prompt")
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise WrongRollout("no token_ids; the server is too old for return_token_ids")
        require_end(ids, request.body)
        logp = parse_logp(choice, len(ids)) if "logprobs" in request.body else None
        return self._made(ids, logp, request, i)

    def _made(
        self, ids: list[int], logp: np.ndarray | None, request: CompletionRequest, i: int
    ) -> Rollout:
        """Sample i of a request as a rollout.

        Raises:
            WrongRollout: a token id that the model does not have.
        """
        outside = next((token for token in ids if not 0 <= token < self.vocab), None)
        if outside is not None:
            raise WrongRollout(f"it holds token {outside}; the model has 0 to {self.vocab - 1}")
        nan, none = np.full(len(ids), math.nan, dtype=np.float32), np.zeros((len(ids), 0))
        return Rollout(
            request.prompt,
            request.first + i,
            np.array(ids, dtype=np.int32),
            nan if logp is None else logp,
            nan,
            none.astype(np.int32),
            none.astype(np.float32),
            "stop" if ids[-1] in request.body["stop_token_ids"] else "length",
            self.version,
        )

    def sleep(self) -> None:
        """Move its weights to host memory and drop its cache, if it `sleeps`."""
        if not self.sleeps or self.asleep:
            return
        try:
            self.http.post_text(SLEEP, {})
            self.asleep = True
        except (Transient, Refusal) as error:  # a server that is gone, or that cannot sleep
            logger.warning("%s stays awake: %s", self.http.role.capitalize(), error)

    def wake(self) -> None:
        """Take the GPU again.

        Raises:
            Transient: no answer.
        """
        if self.asleep:
            self.http.post_text(WAKE, {})
            self.asleep = False

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter under a new name. Raises Transient or Refusal."""
        self.http.post_text(LOAD_ADAPTER, {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises Transient or Refusal."""
        self.http.post_text(UNLOAD_ADAPTER, {"lora_name": name})

    def reload(self, folder: Path, version: int) -> None:
        """Load all weights from a folder, and drop what older ones have cached.

        Raises:
            Transient: no answer.
            Refusal: it does not do so.
        """
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.http.post_text(RPC, call)
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Drop what older weights have cached. Raises Transient or Refusal."""
        self.http.post_text(RESET_PREFIX_CACHE, {})

    def score_text(self, ids: Sequence[int], tokens: int) -> TextScores:
        """Score a text and go on with `tokens` sampled tokens.

        Raises:
            Transient: no answer.
            WrongRollout: the answer is not whole.
        """
        body = {
            "model": self.served,
            "prompt": list(ids),
            "max_tokens": tokens,
            "temperature": 1.0,
            "top_k": -1,
            "seed": 0,
            "logprobs": 0,
            "prompt_logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": [],
            "ignore_eos": True,
        }
        choice = only_choice(self.http.post_json(COMPLETIONS, body))
        if choice is None or not isinstance(choice.get("token_ids"), list):
            raise WrongRollout("no tokens")
        try:
            generated = [int(i) for i in choice["token_ids"]]
            rows = choice["prompt_logprobs"]
            text = np.array([rows[i + 1][str(t)]["logprob"] for i, t in enumerate(ids[1:])])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WrongRollout(str(error)) from None
        return TextScores(generated, parse_logp(choice, len(generated)), text)

    def label(self, version: int) -> None:
        """Have the server name its weights `version`, where it keeps such a label.

        Raises:
            Transient: no answer.
        """
        try:
            self.http.post_text(UPDATE_VERSION, {"new_version": str(version)})
            self.labelled = True
        except Refusal:  # an older server, or one without VLLM_SERVER_DEV_MODE
            self.labelled = False
        self.version = version

    def require_version(self) -> None:
        """Check that what answers are the weights that were sent, where the server says so.

        Raises:
            ServerLost: the server was started again, or somebody else sent it weights.
        """
        if not self.labelled:
            return
        try:
            now = self._version_there()
        except (Transient, Refusal) as error:
            raise ServerLost(str(error)) from None
        if now != str(self.version):
            raise ServerLost(
                f"its weights are of version {clean(str(now))[:40]} and not {self.version}"
            )

    def _version_there(self) -> Any:
        answer = self.http.get_json(WEIGHT_INFO)
        return answer.get("weight_version") if isinstance(answer, dict) else None

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """Of the server's arithmetic, where it says so (VLLM_SERVER_DEV_MODE=1)."""
        try:
            answer = self.http.get_json(SERVER_INFO)
        except (Transient, Refusal):
            return None
        config = answer.get("vllm_config") if isinstance(answer, dict) else None
        named = re.search(r"\bdtype=torch\.(float32|bfloat16|float16)\b", str(config))
        return None if named is None else DTYPES[named[1]]

    def require_model(self, *, once: bool = False) -> list[str]:
        """Names of the models that the server has now, the base model among them.

        Raises:
            Transient: no answer; at once if `once`.
            UserError: it does not have the base model.
        """
        names = list(model_cards(self.http, once=once) or {})
        if self.model not in names:
            raise UserError(
                f"{self.http.section}.model={self.model}: the server at {self.http.url} serves "
                f"{', '.join(map(clean, names)) or 'nothing'}."
            )
        return names

    def wait(self, reason: str) -> None:
        """Wait for a server that has gone away.

        Raises:
            UserError: it is not back after `patience` seconds, or will not come back.
        """
        timer = self.http.timer
        deadline = timer.now() + self.patience
        logger.warning("%s: %s", self.http.role.capitalize(), reason)
        self.asleep = False  # whoever comes back is awake
        while True:
            if (why := self.given_up()) is not None:
                raise UserError(f"The {self.http.role} at {self.http.url} has ended: {why}")
            try:
                self.require_model(once=True)
                return
            except Transient as error:
                reason = str(error)
            if timer.now() >= deadline:
                raise UserError(
                    f"The {self.http.role} at {self.http.url} does not answer ({reason}). Start "
                    "it, then continue with `opd train ... --resume`."
                )
            timer.sleep(WAIT)
