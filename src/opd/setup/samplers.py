"""Samplers of a configuration: everything that a run generates, in this process or on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from opd.config import Run
from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Refusal, Transient, read_key
from opd.http.launched import STARTUP, LaunchedServer
from opd.http.sglang import model_info
from opd.http.vllm import model_cards, served_length
from opd.models.lm import LM
from opd.run.bad_answers import Quarantine
from opd.run.layout import SYNC, WRONG_ANSWERS
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.releasing import ReleasingSampler
from opd.samplers.replay import ReplaySampler, read_rollouts
from opd.samplers.routed import RoutedSampler
from opd.samplers.sampling import MakeSampler
from opd.samplers.sampling_server import ANSWER_SECONDS, SamplingServer
from opd.samplers.sglang_server import SglangServer
from opd.samplers.vllm import StatisticsSampler, VllmSampler
from opd.samplers.weight_sync import Destination, WeightSync
from opd.samplers.weight_transfer import BroadcastTransfer, IpcTransfer
from opd.setup.launch import STUDENT, server_dtype, shares_gpu, transfer_backend
from opd.setup.own_sampler import own_sampler
from opd.setup.pair import Pair
from opd.setup.token_budget import token_budget
from opd.teachers.local import LocalTeacher
from opd.training.distributed import SINGLE, Ranks, RankZeroSampler, ShardedSampler, ShardedTeacher
from opd.training.eval_task import EvalTask
from opd.types import Sampler, Teacher

TRANSFERS = {"ipc": IpcTransfer, "nccl": BroadcastTransfer}


def rollout_decoding(cfg: Run) -> Decoding:
    """How training rollouts are sampled."""
    r = cfg.rollout
    return Decoding(r.max_new_tokens, r.temperature, r.top_p)


def student_samplers(cfg: Run, pair: Pair, folder: Path, ranks: Ranks = SINGLE) -> MakeSampler:
    """What generates with the student: the rollout server if there is one, else this process.

    Samplers of one server share it: weights that one of them has sent are those of all.

    Args:
        cfg: the run.
        pair: of which the student is sampled.
        folder: for weights and wrong answers.
        ranks: the processes that share the work.
    """
    if cfg.rollout.engine == "vllm":
        return server_samplers(cfg, pair, folder, ranks)
    if cfg.rollout.python is not None:
        return own_samplers(cfg, cfg.rollout.python, pair, ranks)
    return local_samplers(pair.student, pair.stop, ranks)


def local_samplers(lm: LM, stop: frozenset[int], ranks: Ranks = SINGLE) -> MakeSampler:
    """What generates with a model in this process."""

    def make(decoding: Decoding, k: int | None) -> Sampler:
        sampler: Sampler = HFSampler(lm, decoding, stop=stop, capture=1 if k is None else k)
        if lm.away is not None:
            sampler = ReleasingSampler(sampler, lm.release)
        return sampler if ranks.size == 1 else ShardedSampler(sampler, ranks, lm)

    return make


def own_samplers(cfg: Run, name: str, pair: Pair, ranks: Ranks = SINGLE) -> MakeSampler:
    """What generates with the user's code."""

    def make(decoding: Decoding, k: int | None) -> Sampler:
        scorer = student_scorer(cfg, pair, decoding.temperature)
        sampler = own_sampler(name, pair, decoding, scorer, k)
        return sampler if ranks.size == 1 else ShardedSampler(sampler, ranks, pair.student)

    return make


def server_samplers(cfg: Run, pair: Pair, folder: Path, ranks: Ranks = SINGLE) -> MakeSampler:
    """What generates with the student on the rollout server."""
    weights = weight_sync(cfg, pair, folder)
    server = weights.server

    def make(decoding: Decoding, k: int | None) -> Sampler:
        asking = VllmSampler(server, decoding, stop=pair.stop, logp=k is not None, weights=weights)
        sampler = asking if ranks.size == 1 else RankZeroSampler(asking, ranks, pair.student)
        if k is None:
            return sampler
        scorer: Teacher = student_scorer(cfg, pair, decoding.temperature)
        if ranks.size > 1:
            scorer = ShardedTeacher(scorer, ranks)
        return StatisticsSampler(sampler, pair.student, scorer, min(k, pair.student.vocab))

    return make


def student_scorer(cfg: Run, pair: Pair, temperature: float) -> LocalTeacher:
    """What gives log-probs, entropies and top tokens of the student in this process."""
    tokens = token_budget(cfg)
    return LocalTeacher(pair.student, tokens_per_batch=tokens, temperature=temperature)


def require_alone(cfg: Run, ranks: Ranks) -> None:
    """Refuse rollout.ahead where nothing can go on beside an update.

    Raises:
        UserError: several processes, or a rollout server on the trainer's GPU.
    """
    if not cfg.rollout.ahead:
        return
    if ranks.size > 1:
        raise UserError(
            f"rollout.ahead=1 with {ranks.size} processes: one process samples ahead. Set "
            "rollout.ahead=0, or start one process."
        )
    if shares_gpu(cfg):
        raise UserError(
            "rollout.ahead=1 with a rollout server on the trainer's GPU, where they take turns. "
            "Set rollout.ahead=0, or give rollout.launch.gpus another GPU."
        )


def weight_sync(cfg: Run, pair: Pair, folder: Path) -> WeightSync:
    """The rollout server and the way of the student's weights to it."""
    r = cfg.rollout
    launched: LaunchedServer | None = r.launched
    http = connect(cfg)
    kind = SamplingServer if launched is not None else kind_of_server(http)
    server = kind(http, r.model or STUDENT, Quarantine(folder / WRONG_ANSWERS))
    destination = Destination(folder / SYNC if r.sync_dir is None else Path(r.sync_dir))
    if launched is not None:
        backend = transfer_backend(cfg)
        server.patience, server.given_up = STARTUP, launched.ended
        server.sleeps = shares_gpu(cfg)
        destination = replace(
            destination,
            dtype=server_dtype(cfg),
            restart=lambda model: launched.restart(str(model)),
            transfer=None if backend is None else TRANSFERS[backend](http, pair.student.device),
        )
    return WeightSync(server, pair.student, pair.tokenizer, destination)


def training_sampler(cfg: Run, make: MakeSampler, student: LM, ranks: Ranks = SINGLE) -> Sampler:
    """The sampler of training rollouts; records as many top tokens as the loss needs."""
    r = cfg.rollout
    if r.path is None:
        return make(rollout_decoding(cfg), cfg.loss.k)
    sampler = ReplaySampler(
        read_rollouts(Path(r.path)), Path(r.path), capture=cfg.loss.k, max_length=r.max_new_tokens
    )
    return sampler if ranks.size == 1 else ShardedSampler(sampler, ranks, student)


def eval_sampler(make: MakeSampler) -> Callable[[EvalTask], Sampler]:
    """Samplers for held-out sets: they record only what evaluations report."""
    return lambda task: make(task.decoding, None)


def routed_eval_sampler(
    makers: Mapping[str, MakeSampler],
) -> Callable[[EvalTask], Sampler | None]:
    """Samplers in which each held-out prompt is answered by its own teacher.

    Args:
        makers: by name, of the teachers that generate. For a set of which a prompt has another
            teacher, or none, there is no sampler.
    """

    def sampler(task: EvalTask) -> Sampler | None:
        names = dict.fromkeys(task.teachers)
        if not names or not names.keys() <= makers.keys():
            return None
        return RoutedSampler({n: makers[n](task.decoding, None) for n in names}, task.routes)

    return sampler


def connect(cfg: Run) -> Http:
    """A connection to the rollout server.

    Raises:
        UserError: no address, or a key that is not set.
    """
    r = cfg.rollout
    assert r.address is not None
    return Http(
        Endpoint(
            r.address.rstrip("/").removesuffix("/v1"),
            role="rollout server",
            key="rollout.url",
            api_key=read_key(r.api_key_env, "rollout.api_key_env"),
        ),
        limits=Limits(answer=ANSWER_SECONDS),
    )


def kind_of_server(http: Http) -> type[SamplingServer]:
    """SGLang or vLLM, by what the server answers.

    Raises:
        UserError: it does not answer.
    """
    try:
        return SamplingServer if model_info(http) is None else SglangServer
    except (Transient, Refusal) as error:
        raise UserError(f"{http.key}={http.url}: {error}") from None


class ServedContext(NamedTuple):
    """What a rollout server takes.

    Attributes:
        tokens: of prompt and completion, at most; None: it does not say.
        option: of its command line that sets it.
        unused: tokens of the context beyond them.
    """

    tokens: int | None
    option: str
    unused: int


def require_rollout_server(cfg: Run) -> ServedContext:
    """Check that the rollout server answers, before models are loaded for it.

    Returns:
        How long a prompt with its completion may be.

    Raises:
        UserError: it does not answer.
    """
    http = connect(cfg)
    try:
        cards = model_cards(http, once=True) or {}
        kind = SamplingServer if model_info(http, once=True) is None else SglangServer
    except Transient as error:
        raise UserError(
            f"rollout.url={cfg.rollout.address}: the rollout server does not answer ({error}). "
            "Start it first."
        ) from None
    except Refusal as error:
        raise UserError(f"rollout.url={cfg.rollout.address}: {error}") from None
    finally:
        http.close()
    length = served_length(cards.get(cfg.rollout.model or STUDENT, {}))
    tokens = None if length is None else length - kind.unused
    return ServedContext(tokens, kind.context_option, kind.unused)
