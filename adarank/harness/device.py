"""Chooses the device and the precision, and measures time and memory on the device."""

import platform
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters import layers
from adarank.adapters.lowrank import adapters_of
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
    """For auto, bf16 on CUDA hardware that supports it and fp32 elsewhere; otherwise `precision` itself."""
    if precision != "auto":
        if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise SettingError("train.precision must be fp32 or auto on this CUDA device without bf16 (got bf16)")
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def emulates_bf16(device: torch.device) -> bool:
    """Whether products in bf16 take several times as long as in fp32: on x86 processors without AVX-512."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def choose_dtype(asked: str, stored: str, precision: str, device: torch.device) -> str:
    """The dtype in which frozen weights are stored, a key of `adarank.harness.models.DTYPES`.

    asked: the setting model.dtype; stored: the checkpoint's dtype; precision: the resolved compute precision. auto
    means bf16 for a bf16 checkpoint under bf16 autocast on CUDA, fp64 for an fp64 checkpoint, and fp32 otherwise.
    Raises SettingError for bf16 weights in an fp32 computation.
    """
    if asked == "bf16" and precision != "bf16":
        raise SettingError(
            f"model.dtype must be fp32 or auto with train.precision={precision} (got bf16); bf16 weights need "
            "train.precision=bf16"
        )
    if asked != "auto":
        return asked
    if stored == "bf16" and precision == "bf16" and device.type == "cuda":
        return "bf16"
    return "fp64" if stored == "fp64" else "fp32"


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 autocast if precision is "bf16", else a context manager that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32 if autocast left it in half precision; fp32 and fp64 are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def reset_peak(device: torch.device) -> None:
    """Restart the measurement of peak memory: of a CUDA device, or else of this process on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        try:
            clear.write_text("5")
        except OSError:
            return  # then `peak_mib` is the process's peak since its start


def peak_mib(device: torch.device) -> float | None:
    """Peak since `reset_peak` in MiB: memory allocated on a CUDA device, resident memory of this process on Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def base_mib(model: nn.Module) -> dict[str, float]:
    """MiB of all parameters but the adapters' factors: as stored (including the scales and tables of 4-bit layers), and
    as they would be in fp32 and bf16."""
    inside = {id(p) for a in adapters_of(model).values() for p in (a.Q, a.lam, a.P)}
    base = [p for p in model.parameters() if id(p) not in inside]
    here = [p.to_local() if hasattr(p, "to_local") else p for p in base]  # this process's shards of sharded ones
    tensors = here + [t for p in base for t in _quantisation(getattr(p, "quant_state", None))]
    held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    weights = sum(layers.numel(p) for p in base)
    return {"held": sum(held.values()) / 2**20, "fp32": 4 * weights / 2**20, "bf16": 2 * weights / 2**20}


def _quantisation(state: Any) -> list[Tensor]:
    """The tensors of bitsandbytes' quantisation state, including those of the scales' own state."""
    if state is None:
        return []
    return [v for v in vars(state).values() if isinstance(v, Tensor)] + _quantisation(state.state2)


def clock(device: torch.device) -> float:
    """The time in seconds, read after the device's queue is drained: call it only when a record is due, not every
    step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
