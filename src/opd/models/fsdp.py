"""A student sharded with FSDP2: weights, gradients and optimizer state split among processes.

Each decoder layer is gathered when it runs and resharded after; embeddings, last norm and head form
one more unit that stays gathered from a forward to the end of the update, because the losses read
the head's weight themselves. Every forward and backward is a collective, so all processes must make
equally many of them (`dummy_step`); `unsharded` gathers all weights for work of unequal length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from opd.models.cache_support import cache_support
from opd.models.lm import LM
from opd.models.lora_modules import without_peft_warnings
from opd.models.norms import use_fused_norms

WHOLE_GRADIENTS = 0.2  # of a device's memory that unsharded gradients may take


class Backbone(nn.Module):
    """The forward from ids to hidden states as one module, for FSDP2's hooks."""

    def __init__(
        self, lm: LM, working_dtype: torch.dtype | None, *, reduces_once: bool = True
    ) -> None:
        """Of a model.

        Args:
            lm: to be sharded.
            working_dtype: that shards are gathered in; None: their own.
            reduces_once: gradients add up whole on each process until the end of a step.
        """
        super().__init__()
        self.working_dtype, self.reduces_once = working_dtype, reduces_once
        self.model = lm.model  # so that the head, which no forward here uses, is sharded too
        self.lm = lm

    def forward(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """See `LM.hidden`."""
        return self.lm.local_hidden(input_ids, **kwargs)


def shard_model(
    lm: LM,
    processes: int,
    *,
    mixed: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Shard the weights of `lm` over the processes of the default group, in place.

    Call it before an optimizer is made. Gradients are summed, not averaged: each loss is divided by
    the tokens of the whole step. Weights are moved and converted one unit at a time, a decoder
    layer or the embeddings with the head, so that a device never holds more of them whole.

    Args:
        lm: the model, in host memory or on its device.
        processes: how many.
        mixed: gather float32 shards in bf16 for forward and backward, and reduce gradients in
            float32 (bf16_mixed).
        device: of the shards; None: where the weights are.
        dtype: of the shards; None: that of the weights.
    """
    cache_support(lm)  # forwards of a sharded model are collectives
    device = device or lm.device
    if device.type == "cuda" and lm.device.type != "cuda":  # else they are since it was loaded
        use_fused_norms(lm.model)
    policy = MixedPrecisionPolicy()
    if mixed:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (processes,))
    layer_types = set(lm.causal._no_split_modules or ())
    fits = whole_gradients_fit(lm.num_parameters(), _smallest_memory(device))
    backbone = Backbone(lm, policy.param_dtype, reduces_once=fits)
    layers = [m for m in lm.causal.modules() if type(m).__name__ in layer_types]
    for unit in (*layers, backbone):
        _move(unit, device, dtype)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    lm.sharded = backbone
    for unit in _units(backbone):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has neither averages nor scaled sums
    _keep_root_gathered(backbone)
    with torch.no_grad():
        lm.hidden(_one_token(lm))  # the first forward decides which unit is the outermost
    reshard(lm)


def _move(unit: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move the weights of a unit that are not shards yet, and convert all but its buffers."""
    for parameter in unit.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.detach().to(device, dtype)
    for module in unit.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def dummy_step(lm: LM) -> None:
    """A forward and backward with zero gradient, for a process that has no micro-batch left.

    Every parameter gets a gradient, the head's too: processes must reduce the same ones.
    """
    hidden = lm.hidden(_one_token(lm))[0]
    (lm.head.logits(hidden).sum() * 0).backward()  # type: ignore[no-untyped-call]


def delay_reduction(lm: LM) -> None:
    """Let gradients add up on each process until `reduce_gradients`, where memory allows it.

    They are then whole on every process: one collective per step instead of one per micro-batch,
    for 4 bytes per parameter of the model.
    """
    if lm.sharded is None:
        return
    assert isinstance(lm.sharded, Backbone)
    for unit in _units(lm.sharded):
        unit.set_requires_gradient_sync(not lm.sharded.reduces_once)


def whole_gradients_fit(parameters: int, memory: float) -> bool:
    """Whether unsharded float32 gradients take little enough of a device of so many bytes."""
    return 4 * parameters <= WHOLE_GRADIENTS * memory


def reduce_gradients(lm: LM) -> None:
    """Sum the gradients of all processes into the shards, by a pass with zero gradient."""
    if lm.sharded is None:
        return
    for unit in _units(lm.sharded):
        unit.set_requires_gradient_sync(True)
    dummy_step(lm)


def _smallest_memory(device: torch.device) -> float:
    """Bytes of the smallest card of all processes, which must all reduce equally often."""
    memory = torch.tensor(_device_memory(device), dtype=torch.float64)
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    return memory.item()


def _device_memory(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    return torch.cuda.get_device_properties(device).total_memory


def reshard(lm: LM) -> None:
    """Free what was gathered: parameters are shards again, as the optimizer knows them."""
    if lm.sharded is not None:
        for unit in _units(lm.sharded):
            unit.reshard()


@contextmanager
def unsharded(lm: LM) -> Iterator[None]:
    """All weights on every process for the time of the context, without gradients.

    Forwards inside need no other process; entering and leaving is done by all of them. Without
    effect on a model that is not sharded.
    """
    if lm.sharded is None:
        yield
        return
    root = lm.sharded
    assert isinstance(root, FSDPModule)
    root.set_reshard_after_forward(False)
    for unit in _units(root):
        unit.unshard()
    try:
        yield
    finally:
        reshard(lm)
        root.set_reshard_after_forward(True)
        _keep_root_gathered(root)


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered from all processes; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This process's shard of `tensor`, with the layout and on the device of `pattern`."""
    tensor = tensor.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return tensor
    # Every process read the same file, so nothing needs to be sent.
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def gather_tensors(
    tensors: Mapping[str, Tensor], *, keep: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Each tensor gathered, one after another, on the CPU.

    All processes take part, in the order of `tensors`.

    Args:
        tensors: sharded or not.
        keep: whether this process wants the result; if not, it is empty.
        dtype: of what was sharded, in the result; None: as it is.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = full_tensor(tensor.detach())
        if keep:
            cast = dtype if isinstance(tensor, DTensor) else None
            gathered[name] = value.to("cpu", cast)
    return gathered


def gather_model(lm: LM, *, keep: bool) -> LM | None:
    """An unsharded copy of a sharded model on the CPU, for saving and for servers.

    All processes take part. Weights have the dtype that they are used in, as in one process; those
    of adapters keep theirs.

    Args:
        lm: a sharded model.
        keep: whether this process wants the copy; if not, the result is None.
    """
    assert isinstance(lm.sharded, Backbone)
    dtype = None if lm.is_lora else lm.sharded.working_dtype
    state = gather_tensors(lm.model.state_dict(), keep=keep, dtype=dtype)
    if not keep:
        return None
    with torch.device("meta"):  # random weights would be drawn, only to be replaced
        causal = type(lm.causal)(copy.deepcopy(lm.causal.config))
    causal.generation_config = lm.causal.generation_config
    _copy_buffers(lm.causal, causal)
    model: Any = causal
    if lm.is_lora:
        import peft

        with without_peft_warnings():
            model = peft.get_peft_model(causal, lm.model.peft_config["default"])  # type: ignore[index]
    model.load_state_dict(state, assign=True)
    causal.tie_weights()
    return LM(model.eval(), lm.vocab, lm.name)


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Give a model made on the meta device real buffers; state dicts lack the temporary ones."""
    modules = dict(target.named_modules())
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        modules[owner]._buffers[leaf] = full_tensor(buffer).detach().to("cpu", copy=True)


def _units(root: nn.Module) -> list[FSDPModule]:
    return [m for m in root.modules() if isinstance(m, FSDPModule)]


def _keep_root_gathered(root: nn.Module) -> None:
    """The unit of embeddings and head stays gathered between a forward and `reshard`."""
    assert isinstance(root, FSDPModule)
    root.set_reshard_after_forward(False, recurse=False)
    root.set_reshard_after_backward(False, recurse=False)


def _one_token(lm: LM) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=lm.device)
