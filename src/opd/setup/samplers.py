"""Samplers of a configuration: training rollouts and held-out completions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opd.config import Run
from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Refusal, Transient, read_key
from opd.http.vllm import model_cards
from opd.models.lm import LM
from opd.run.bad_answers import Quarantine
from opd.run.layout import SYNC, WRONG_ANSWERS
from opd.samplers.hf import Decoding, HFSampler
from opd.samplers.replay import ReplaySampler, read_rollouts
from opd.samplers.vllm import ANSWER_SECONDS, RolloutServer, VllmSampler
from opd.setup.pair import Pair
from opd.training.distributed import SINGLE, Ranks, ShardedSampler
from opd.training.evaluate import EvalTask
from opd.types import Sampler


def rollout_decoding(cfg: Run) -> Decoding:
    """How training rollouts are sampled."""
    r = cfg.rollout
    return Decoding(r.max_new_tokens, r.temperature, r.top_p)


def student_sampler(cfg: Run, pair: Pair, folder: Path) -> Sampler:
    """The sampler of training rollouts; records as many top tokens as the loss needs."""
    r = cfg.rollout
    if r.engine == "vllm":
        return vllm_sampler(cfg, pair, folder)
    if r.path is not None:
        rollouts = read_rollouts(Path(r.path))
        return ReplaySampler(
            rollouts, Path(r.path), capture=cfg.loss.k, max_length=r.max_new_tokens
        )
    return HFSampler(pair.student, rollout_decoding(cfg), stop=pair.stop, capture=cfg.loss.k)


def eval_sampler(
    cfg: Run, lm: LM, stop: frozenset[int], ranks: Ranks = SINGLE
) -> Callable[[EvalTask], Sampler]:
    """Samplers for held-out sets: they record only what evaluations report."""

    def make(task: EvalTask) -> Sampler:
        sampler = HFSampler(lm, task.decoding, stop=stop, capture=1)
        return sampler if ranks.size == 1 else ShardedSampler(sampler, ranks, lm)

    return make


def connect(cfg: Run) -> Http:
    """A connection to the rollout server.

    Raises:
        UserError: no address, or a key that is not set.
    """
    r = cfg.rollout
    assert r.url is not None
    return Http(
        Endpoint(
            r.url.rstrip("/").removesuffix("/v1"),
            role="rollout server",
            key="rollout.url",
            api_key=read_key(r.api_key_env, "rollout.api_key_env"),
        ),
        limits=Limits(answer=ANSWER_SECONDS),
    )


def require_rollout_server(cfg: Run) -> None:
    """Check that the rollout server answers, before models are loaded for it.

    Raises:
        UserError: it does not.
    """
    http = connect(cfg)
    try:
        model_cards(http, once=True)
    except Transient as error:
        raise UserError(
            f"rollout.url={cfg.rollout.url}: the rollout server does not answer ({error}). Start "
            "it first."
        ) from None
    except Refusal as error:
        raise UserError(f"rollout.url={cfg.rollout.url}: {error}") from None
    finally:
        http.close()


def vllm_sampler(cfg: Run, pair: Pair, folder: Path) -> VllmSampler:
    """Rollouts by a vLLM server that is given the student's weights after every step."""
    r = cfg.rollout
    assert r.url is not None
    assert r.model is not None
    server = RolloutServer(
        connect(cfg),
        r.model,
        sync_dir=folder / SYNC if r.sync_dir is None else Path(r.sync_dir),
        quarantine=Quarantine(folder / WRONG_ANSWERS),
    )
    capture = min(cfg.loss.k, pair.student.vocab)
    return VllmSampler(
        server,
        pair.student,
        pair.tokenizer,
        rollout_decoding(cfg),
        stop=pair.stop,
        capture=capture,
    )
