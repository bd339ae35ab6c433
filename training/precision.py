"""In which numbers a network is trained: float32, bfloat16, or float16 with a scaled loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KINDS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """kind: one of `KINDS`; device: where it is computed."""

    kind: str
    device: torch.device

    def autocast(self) -> Any:
        """The context in which the forward pass runs."""
        dtype = torch.float16 if self.kind == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.kind != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss of float16, whose small gradients would vanish (Micikevicius et al. 2018,
        arXiv:1710.03740); does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.kind == "fp16")


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """`auto` takes bf16 where the device computes in it; elsewhere fp16 on a GPU and fp32 on a CPU, which would only
    emulate the others."""
    if wanted != "auto":
        return Precision(wanted, device)
    if device.type == "cuda":
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", device)
    flags = Path("/proc/cpuinfo")
    computes = flags.is_file() and any(word in flags.read_text() for word in ("avx512_bf16", "amx_bf16"))
    return Precision("bf16" if computes else "fp32", device)
