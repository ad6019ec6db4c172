"""Where it runs, how long it took, how much memory it held."""

import platform
import time
from pathlib import Path

import torch

from adarank.errors import SettingError


def choose_device() -> torch.device:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def choose_precision(precision: str, device: torch.device) -> str:
    """auto: bf16 on CUDA hardware that has it, fp32 elsewhere; otherwise what was asked for."""
    if precision != "auto":
        if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise SettingError("train.precision=bf16 is not supported by this CUDA device; valid: fp32, auto")
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew: of the device where it counts, of this process on Linux otherwise."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        try:
            clear.write_text("5")
        except OSError:
            return  # then `peak_mib` is the process's peak since its start


def peak_mib(device: torch.device) -> float | None:
    """Peak since `reset_peak` in MiB: memory allocated on a CUDA device, resident memory of this process on Linux, else None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
    return int(line.split()[1]) / 1024 if line else None


def clock(device: torch.device) -> float:
    """Seconds, with the device's queue drained: call it where a record is due, not in every step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
