"""Names of devices; no torch."""

from __future__ import annotations

import re

from opd.errors import UserError

# Kinds that torch knows by name.
KINDS = {"cpu", "cuda", "xpu", "mps", "meta", "hpu", "mtia", "xla", "hip", "ve", "fpga", "ipu"}
KINDS |= {"maia", "lazy", "vulkan", "opengl", "opencl", "ideep", "privateuseone"}


def require_device(device: str, key: str, *, gpus: int) -> None:
    """Check that a name is that of a device of this machine.

    Args:
        device: such as cpu, cuda or cuda:1.
        key: that names it.
        gpus: CUDA devices there are.

    Raises:
        UserError: naming the key, and what there is.
    """
    here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
    match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", device)
    if match is None or match[1] not in KINDS:
        raise UserError(f"{key}={device}: no such device. This machine has: {here}.")
    kind, index = match[1], int(match[2] or 0)
    if kind == "cpu" or (kind == "cuda" and index < gpus):
        return
    why = " Sampling needs float64, which it lacks." if kind == "mps" else ""
    raise UserError(
        f"{key}={device}: opd cannot use that device here.{why} This machine has: {here}."
    )
