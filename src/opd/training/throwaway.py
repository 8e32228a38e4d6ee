"""Training that leaves no trace: the student as it was, bit for bit, whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from opd.models.lm import LM
from opd.training.checkpoints import load_weights


@contextmanager
def throwaway(student: LM) -> Iterator[None]:
    """Undo at the end what is trained inside: weights, mode, gradients, torch's random state.

    The trained weights alone are copied (of a LoRA student the adapters, of one with master weights
    the masters), to host memory, so a device that holds the run holds this too. The optimizer is
    the caller's own and is to be dropped with the block.

    Args:
        student: trained in place inside the block.

    Raises:
        RuntimeError: the host has no memory for the copy; nothing was changed.
    """
    kept = {
        name: weight.detach().to("cpu", copy=True) for name, weight in student.weights().items()
    }
    devices = [student.device.index or 0] if student.device.type == "cuda" else []
    training = student.model.training
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            load_weights(student, kept)
            for parameter in student.parameters().values():
                parameter.grad = None
            for master in student.masters.values():
                master.grad = None
            student.model.train(training)
