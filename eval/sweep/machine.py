"""Where a number was measured: the device in words, and the commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from core.precision import tf32_allowed

COMMIT = "COMMIT"  # a file in the place of git, which scripts.carry writes


@cache
def commit() -> str | None:
    """The checked-out commit, with "-dirty" where tracked files differ from it; what the file
    COMMIT says where there is one; None without git."""
    here = Path(__file__).parent
    if (file := here.parents[1] / COMMIT).is_file():
        return file.read_text(encoding="utf-8").strip()
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(
            status, cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changed else "")


def device_words(device: torch.device) -> str:
    """For example "NVIDIA A100", "NVIDIA A100, TF32" or "Intel(R) Xeon(R) ..., 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + ", TF32" * tf32_allowed()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name
        )
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def reset_peak_memory(device: torch.device) -> None:
    """Begins a new measurement on a GPU; the processor's high-water mark cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """On a GPU, the most that tensors have taken since `reset_peak_memory`: weights, samples and
    the extractor, without what the allocator holds in reserve. Elsewhere the high-water mark of
    this process's resident memory since it started: Python and PyTorch included, and what earlier
    points took, so only the first point that raises it says anything."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kibibytes on Linux
