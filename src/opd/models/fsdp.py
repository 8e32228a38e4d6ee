"""A student in pieces: FSDP2, so that weights, gradients and moments are shared out.

Each decoder layer is gathered when it runs and let go again; embeddings, last norm and head form
one more unit that stays whole from a forward to the end of the update, because the losses read the
head's weight themselves. Every forward and backward gathers, so all processes must make equally
many of them (`keep_pace`); `whole` puts the weights together for work of unequal length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from opd.models.lm import LM


class Backbone(nn.Module):
    """The way from ids to hidden states as one module: what FSDP2 hangs its gathering on."""

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self.model = lm.model  # so that the head, which no forward here reaches, is shared out too
        self.lm = lm

    def forward(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """See `LM.hidden`."""
        return self.lm.plain_hidden(input_ids, **kwargs)


def shard(lm: LM, processes: int) -> None:
    """Share the weights of `lm` out among the processes of the default group, in place.

    Call it before an optimizer is made. Gradients are summed, not averaged: each loss is divided by
    the tokens of the whole step.
    """
    mesh = init_device_mesh(lm.device.type, (processes,))
    names = set(lm.causal._no_split_modules or ())
    backbone = Backbone(lm)
    for module in list(lm.causal.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    lm.sharded = backbone
    for unit in _units(backbone):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has neither averages nor scaled sums
    _keep_root(backbone)
    with torch.no_grad():
        lm.hidden(_one_token(lm))  # the first forward decides which unit is the outermost
    rest(lm)


def keep_pace(lm: LM) -> None:
    """A forward and a backward without effect, for a process that has no micro-batch left.

    Every parameter gets its zero, the head's too: processes must reduce the same ones.
    """
    hidden = lm.hidden(_one_token(lm))[0]
    (lm.head.full(hidden).sum() * 0).backward()  # type: ignore[no-untyped-call]


def rest(lm: LM) -> None:
    """Let go of everything gathered: parameters are shards again, as the optimizer knows them."""
    if lm.sharded is not None:
        for unit in _units(lm.sharded):
            unit.reshard()


@contextmanager
def whole(lm: LM) -> Iterator[None]:
    """All weights on every process meanwhile, without gradients: forwards need nobody else.

    Entering and leaving is done by all processes. Without effect on a model that is not sharded.
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
        rest(lm)
        root.set_reshard_after_forward(True)
        _keep_root(root)


def full(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes; one that is not in pieces stays as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This process's piece of `tensor`, cut as `pattern` is, and on its device."""
    tensor = tensor.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return tensor
    # Every process read the same file, so nothing needs to be sent.
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def collected(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Each tensor put together, one after another, on the CPU; empty where not `keep`.

    All processes take part, in the order of `tensors`.
    """
    found = {}
    for name, tensor in tensors.items():
        put_together = full(tensor.detach())
        if keep:
            found[name] = put_together.cpu()
    return found


def assembled(lm: LM, *, keep: bool) -> LM | None:
    """A plain copy of a sharded model on the CPU, for saving; None where not `keep`.

    All processes take part.
    """
    state = collected(lm.model.state_dict(), keep=keep)
    if not keep:
        return None
    causal = type(lm.causal)(copy.deepcopy(lm.causal.config))
    causal.generation_config = lm.causal.generation_config
    model: Any = causal
    if lm.is_lora:
        import peft

        model = peft.get_peft_model(causal, lm.model.peft_config["default"])  # type: ignore[index]
    model.load_state_dict(state, assign=True)
    causal.tie_weights()
    return LM(model.eval(), lm.vocab, lm.name)


def _units(root: nn.Module) -> list[FSDPModule]:
    return [m for m in root.modules() if isinstance(m, FSDPModule)]


def _keep_root(root: nn.Module) -> None:
    """The unit of embeddings and head stays whole between a forward and `rest`."""
    assert isinstance(root, FSDPModule)
    root.set_reshard_after_forward(False, recurse=False)
    root.set_reshard_after_backward(False, recurse=False)


def _one_token(lm: LM) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=lm.device)
