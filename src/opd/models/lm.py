"""A causal language model as opd uses it: a backbone that computes hidden states, and a head.

With the two apart, a step computes only the rows of the vocabulary that it needs. Any
`AutoModelForCausalLM` whose logits are `head(backbone(ids))` works; anything else is refused when
it is loaded, with the difference that was measured.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from opd.errors import NO_MEMORY, UserError
from opd.models.attention import use_grouped_attention
from opd.models.away import leave_file
from opd.models.configs import context_length_of
from opd.models.device_names import require_device
from opd.models.head import SPARSE_VOCAB, Head
from opd.models.hub_name import split_revision
from opd.models.lora_modules import no_match, require_target_modules, without_peft_warnings
from opd.models.norms import use_fused_norms
from opd.models.quantised import QuantisationNoise, quantise, unpacked_count
from opd.models.weight_checks import require_all_weights, require_finite_weights
from opd.rng import Stream, torch_seed
from opd.types import Dtype, Scheme

if TYPE_CHECKING:
    from opd.models.away import AwayWeights
    from opd.models.cache_support import CacheSupport

_DTYPES: dict[Dtype, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(eq=False)
class LM:
    """A loaded model: `model` is what is trained and saved, `hidden` and `head` are how it is used.

    Attributes:
        model: the plain Hugging Face model, or the peft model around it for a LoRA student.
        vocab: usable vocabulary: ids from there on are padding of the head.
        name: local folder or hub name, for messages.
        sharded: the module that computes hidden states of a sharded model (`opd.models.fsdp`).
        prefix_cache_works: result of `opd.models.prefix_cache.supports_prefix_cache`, once known.
        cache_support: result of `opd.models.cache_support.cache_support`, once known.
        masters: float32 weights that the optimizer updates, where the model's own are of lower
            precision (`opd.models.master_weights`); empty otherwise.
        noise: what quantising its weights has changed; None if they are not quantised.
        away: its weights, if they are on the device only while they are used.
    """

    model: nn.Module
    vocab: int
    name: str
    sharded: nn.Module | None = None
    prefix_cache_works: bool | None = None
    cache_support: CacheSupport | None = None
    masters: dict[str, nn.Parameter] = field(default_factory=dict)
    noise: QuantisationNoise | None = None
    away: AwayWeights | None = None

    def release(self) -> None:
        """Send weights away that are only there while they are used (`opd.models.away`)."""
        if self.away is not None:
            self.away.release()

    @property
    def causal(self) -> Any:
        """The Hugging Face causal LM inside (LoRA layers, if any, are in its modules)."""
        return self.model.get_base_model() if self.is_lora else self.model  # type: ignore[operator]

    @property
    def is_lora(self) -> bool:
        """Whether only adapters are trained."""
        return type(self.model).__module__.startswith("peft.")

    @property
    def config(self) -> Any:
        """The text configuration of the model."""
        return self.causal.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def working_dtype(self) -> torch.dtype:
        """Of its forward passes: what shards are gathered in, else what the weights are."""
        gathered: torch.dtype | None = getattr(self.sharded, "working_dtype", None)
        dtype: torch.dtype = gathered or self.causal.dtype
        return dtype

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model takes; None if its config does not say."""
        return context_length_of(self.config)

    @property
    def head(self) -> Head:
        """The output head, sharing the model's own parameters."""
        module = self.causal.get_output_embeddings()
        scale, softcap = _logit_transform(self.config)
        return Head(module.weight, module.bias, self.vocab, scale, softcap)

    def hidden(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Last hidden states (B, L, H) of ids (B, L); the head is not applied.

        Right padding needs no mask: attention is causal, and hidden states of padding are not used.
        """
        if self.sharded is not None:
            return self.sharded(input_ids, kwargs)  # type: ignore[no-any-return]
        return self.local_hidden(input_ids, **kwargs)

    def local_hidden(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """`hidden` without the collectives of a sharded model."""
        out = self.causal.base_model(input_ids=input_ids, **({"use_cache": False} | kwargs))
        return out.last_hidden_state  # type: ignore[no-any-return]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; a tied weight appears once."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates and a checkpoint holds: masters, else the parameters."""
        return {name: self.masters.get(name, p) for name, p in self.parameters().items()}

    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        there: int = sum(p.numel() for p in self.model.parameters())
        if self.away is not None and not self.away.there:
            return there + self.away.count
        return there + unpacked_count(self.model)


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """(scale, softcap) of the families that transform logits: Cohere, Granite, Gemma."""
    scale = 1.0
    if (cohere := getattr(config, "logit_scale", None)) is not None:
        scale = float(cohere)
    elif (granite := getattr(config, "logits_scaling", None)) is not None:
        scale = 1.0 / float(granite)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, None if softcap is None else float(softcap)


def load_lm(
    name: str,
    *,
    dtype: Dtype = "auto",
    device: str | torch.device | None = None,
    key: str = "student.model",
    quantised: tuple[Scheme, Tensor | None] | None = None,
) -> LM:
    """Load a causal LM from a local folder or the hub, in evaluation mode.

    Args:
        name: local folder or hub name, with @revision if it is not the newest.
        dtype: auto, float32, bfloat16 or float64.
        device: null picks the accelerator if there is one.
        key: configuration key named in errors.
        quantised: bits of its linear layers, and ids (1, L) of a text on which the change is
            measured, if it is; None: as `dtype` says.

    Raises:
        UserError: no such model, not a causal LM, pickled or damaged weights, float16, or logits
            that are not head(backbone).
    """
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{key}={name}: the folder has no config.json; give a Hugging Face folder.")
    transformers.utils.logging.disable_progress_bar()  # opd has its own console
    source, revision = split_revision(name)
    target = resolve_device(device, f"{key.partition('.')[0]}.device")
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{key}={name}: cannot be loaded as a causal language model: {first}\n"
            "Give a local Hugging Face folder with safetensors weights, or a hub name."
        ) from None
    require_all_weights(loading, f"{key}={name}")
    noise = None if quantised is None else _quantise(model, *quantised)
    model = model.to(target).eval()
    use_grouped_attention(model)
    if model.device.type == "cuda":
        use_fused_norms(model)
    if model.dtype == torch.float16:
        raise UserError(
            f"{key}={name} is stored in float16, whose range loses small gradients and scores. Set "
            f"{key.partition('.')[0]}.dtype to bfloat16 or float32."
        )
    lm = LM(model, model.config.get_text_config().vocab_size, name, noise=noise)
    check_head(lm, key)
    return lm


def default_device() -> torch.device:
    """CUDA if there is one, else the CPU: sampling needs float64, which Apple's GPUs lack."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(device: str | torch.device | None, key: str) -> torch.device:
    """The device of a name, if this machine has it; None: the default one.

    Raises:
        UserError: naming the key, and what there is.
    """
    if device is None:
        return default_device()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    require_device(str(device), key, gpus=gpus)
    return torch.device(device)


@torch.no_grad()
def check_head(lm: LM, key: str) -> None:
    """Check that the logits of a model are head(backbone(ids)).

    Raises:
        UserError: with the largest difference seen.
    """
    ids = torch.arange(8, device=lm.device)[None] % lm.vocab
    expected = lm.causal(input_ids=ids, use_cache=False).logits[0, :, : lm.vocab].float()
    try:
        logits = lm.head.logits(lm.hidden(ids)[0]).float()
    except AttributeError as error:
        raise UserError(
            f"{key}={lm.name}: {type(lm.causal).__name__} has no backbone that gives hidden states "
            f"apart from its head ({error}), which every loss here needs."
        ) from None
    gap = (expected - logits).abs().max().item()
    # bf16 rounds a logit of 16 by up to 0.06; anything larger is another function.
    tolerance = 0.1 if lm.causal.dtype == torch.bfloat16 else 1e-3
    if math.isnan(gap):
        require_finite_weights(lm.model, f"{key}={lm.name}")
    if not gap <= tolerance * max(1.0, expected.abs().max().item() / 16):  # NaN is refused too
        raise UserError(
            f"{key}={lm.name}: this architecture ({type(lm.causal).__name__}) transforms its "
            f"logits in a way opd does not know (largest difference {gap:.3g}). Training would "
            "optimise the wrong distribution, so it is refused."
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; often only the error's message says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        part in str(error) for part in NO_MEMORY
    )


def free_memory() -> None:
    """Release what a failed computation held; call it after its exception is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_lora(lm: LM, *, rank: int, alpha: float, target_modules: Any, seed: int) -> LM:
    """Wrap a student with peft adapters; only these are trained and saved.

    Raises:
        UserError: no such modules, or adapters on the head, which the row-wise loss ignores.
    """
    import peft

    require_target_modules(lm.model, target_modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.LORA_INIT))
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            # None: the update would train another network than the one that has sampled.
            lora_dropout=0.0,
            target_modules=target_modules,
            task_type="CAUSAL_LM",
        )
        try:
            with without_peft_warnings():
                model = peft.get_peft_model(lm.model, config)
        except ValueError as error:
            if "not found in the base model" in str(error):
                raise no_match(lm.model, target_modules) from None
            raise UserError(f"student.lora.target_modules={target_modules!r}: {error}") from None
    model.eval()  # peft's new layers are in training mode
    wrapped = LM(model, lm.vocab, lm.name, noise=lm.noise)
    head = wrapped.causal.get_output_embeddings()
    embedding = wrapped.causal.get_input_embeddings()
    # Gemma has an embedding class of its own, so that its class alone says nothing.
    adapted = type(embedding).__module__.startswith("peft.")
    if adapted and wrapped.config.tie_word_embeddings:
        raise UserError(
            f"student.lora.target_modules={target_modules!r} puts an adapter on an embedding that "
            "is also the output head: merging it would change the head. Leave the embedding out."
        )
    if type(head) is not nn.Linear:
        raise UserError(
            f"student.lora.target_modules={target_modules!r} puts an adapter on the output head, "
            "which the loss and most inference engines do not apply. Leave the head out."
        )
    return wrapped


def _quantise(model: Any, scheme: Scheme, probe: Tensor | None) -> QuantisationNoise | None:
    noise = quantise(model.eval(), scheme, probe)
    leave_file(model)
    return noise


def enable_checkpointing(lm: LM) -> None:
    """Recompute activations in the backward pass instead of storing them."""
    renamed = getattr(lm.causal, "activation_checkpointing_enable", None)  # transformers 5.2x on
    (renamed or lm.causal.gradient_checkpointing_enable)({"use_reentrant": False})
    if lm.is_lora:
        lm.causal.enable_input_require_grads()


@contextmanager
def sparse_gradients(lm: LM) -> Iterator[Head | None]:
    """Gradients of embedding rows and head rows stay sparse until they are added to `.grad`.

    Dense ones would cost twice the size of the vocabulary in every micro-batch. `.grad` itself is
    dense and made here, so that no other code meets a sparse one. Without effect on sharded
    weights, whose reduction needs dense gradients, and on small vocabularies.

    Yields:
        The head to compute losses with; None for the student's own, as it is after a forward (which
        gathers sharded weights).
    """
    embedding, head = lm.causal.get_input_embeddings(), lm.head
    worth_it = lm.sharded is None and head.weight.shape[0] >= SPARSE_VOCAB
    if not worth_it or not isinstance(embedding, nn.Embedding):
        yield None
        return
    for weight in (embedding.weight, head.weight):
        if weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype)
    before, embedding.sparse = embedding.sparse, True
    try:
        yield replace(head, sparse=True)
    finally:
        embedding.sparse = before


def copy_on_cpu(model: nn.Module, changed: Collection[int] | None = None) -> nn.Module:
    """A deep copy whose parameters and buffers are in host memory; none is copied on the device.

    Args:
        model: any.
        changed: ids of the parameters that will be written to; the copy shares others that are in
            host memory already. None: all are copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        kept = changed is not None and id(parameter) not in changed
        if kept and parameter.device.type == "cpu":
            memo[id(parameter)] = parameter
            continue
        copied = parameter.detach().to("cpu", copy=True)
        memo[id(parameter)] = nn.Parameter(copied, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, memo)
