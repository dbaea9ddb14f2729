"""Set-up of the process that runs a trial: device, threads, deterministic kernels, memory."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.data import host
from harness.errors import UserError
from harness.lazy import torch


@dataclass(frozen=True)
class Placement:
    """Where a trial runs. Must not affect results, apart from device- and thread-dependent rounding."""

    device: str = "cpu"
    threads: int = 1
    device_share: int = 1
    """Number of trials that may run on the device at the same time."""
    gpu_share: float = 1.0
    """Fraction of the GPU's memory that each process of the trial may use."""
    sharing: int = 1
    """Number of processes that may be on the machine at the same time, and share its memory."""
    checkpoint_minutes: float = 0.0
    """Minutes between two checkpoints within a cycle; 0: there are none."""


def chosen_device(requested: str) -> str:
    """Return 'cpu' or 'cuda' for ``where.device``. Raises UserError if it requires a GPU and there is none."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError("where.device: cuda: torch sees no GPU on this machine; allowed here: auto, cpu")
    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


def emulates_bfloat16() -> bool:
    """Return whether oneDNN has no bfloat16 for this processor (without AVX-512, say): torch's own loops are slow."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepare_process(threads: int, deterministic: bool) -> None:
    """Set the number of threads, disable TF32, and use deterministic kernels only if ``deterministic``."""
    torch.set_num_threads(threads)
    # cuBLAS needs this to be deterministic, and reads it when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    # cuDNN allows TF32 by default, also in float32; under autocast it would only affect the classifier of label maps
    torch.backends.cudnn.allow_tf32 = False


def limit_memory(device: torch.device, placement: Placement) -> None:
    """Limit this process to its share of a GPU's memory, so that a trial that needs more does not make others fail.

    Of the host's memory, it limits only what data may take.
    """
    host.sharing = placement.sharing
    if device.type == "cuda":
        # it refuses a device without an index
        torch.cuda.set_per_process_memory_fraction(placement.gpu_share, device.index)


def available(device: torch.device, share: float) -> int:
    """Return the bytes that a trial can have: its share of the GPU, or what is free on this machine; 0: not known."""
    if device.type == "cuda":
        return int(share * torch.cuda.get_device_properties(device).total_memory)
    return host.free_memory() or 0


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of the peak memory, because a process runs several cycles and trials."""
    with contextlib.suppress(OSError):  # not Linux, or not permitted: the peak is then that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory since the last reset, in bytes; see CycleRecord.peak_memory_bytes."""
    peaks = {}
    try:
        status = Path("/proc/self/status").read_text()
        peaks["host"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        peaks["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks["host"] *= 1 if sys.platform == "darwin" else 1024  # bytes on macOS
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks
