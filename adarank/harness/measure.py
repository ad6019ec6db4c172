"""Where it runs, how long it took, how much memory it held."""

import platform
import time
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


def base_mib(model: nn.Module) -> dict[str, float]:
    """MiB of the parameters that are not the adapters' factors: as held (a 4-bit layer's scales and tables included), and
    what they would take in fp32 and in bf16."""
    inside = {id(p) for a in adapters_of(model).values() for p in (a.Q, a.lam, a.P)}
    base = [p for p in model.parameters() if id(p) not in inside]
    tensors = [t for p in base for t in (_here(p), *_quantisation(getattr(p, "quant_state", None)))]
    held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    weights = sum(layers.numel(p) for p in base)
    return {"held": sum(held.values()) / 2**20, "fp32": 4 * weights / 2**20, "bf16": 2 * weights / 2**20}


def _here(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _quantisation(state: Any) -> list[Tensor]:
    """The tensors of bitsandbytes' quantisation state, those of the scales' own state included."""
    if state is None:
        return []
    return [v for v in vars(state).values() if isinstance(v, Tensor)] + _quantisation(state.state2)


def clock(device: torch.device) -> float:
    """Seconds, with the device's queue drained: call it where a record is due, not in every step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
