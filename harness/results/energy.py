"""The energy that a GPU has taken, where its driver counts it and the package nvidia-ml-py is installed."""

from __future__ import annotations

import contextlib

from harness.lazy import torch


def joules(device: torch.device) -> float | None:
    """Return the energy in joules that a device has taken since its driver was loaded; None if that is not known.

    It counts all processes on the device, and no other part of the machine.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))) / 1000
    return None
