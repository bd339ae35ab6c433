"""In which numbers a network is trained: float32, bfloat16, or float16 with a scaled loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blastwatch.errors import DataError

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


def check_going_on(begun: str | None, now: Precision, *, wanted: str, key: str) -> None:
    """Refuse to go on from a checkpoint in other numbers than it was trained in.

    Args:
        begun: kind that the checkpoint names, None where it names none. That one was trained in the kind that was asked
            for, since another one asked for is another training; what `auto` took is not known.
        wanted: what is asked for. key: the parameter that says so.

    Raises:
        DataError: naming the parameter.
    """
    if begun is None and wanted != "auto":
        begun = wanted
    if begun == now.kind:
        return
    told = f"was trained in {begun}" if begun else "does not say whether it was trained in float32 or in less"
    raise DataError(
        f"The checkpoint {told}, and {key}={wanted} is {now.kind} on this machine. Go on where it was begun, or begin "
        f"anew: {key}={now.kind}."
    )
