"""The processes and devices of a training run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from csr_deploy.errors import OptionError


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        device: Where this process computes, and where tensors must be to travel between processes.
        rank: Number of this process.
        size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        if self.size == 1:
            return list(values)
        # Metal has no float64; it has no process groups either.
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the main process's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share_bytes(self, content: bytes | None) -> bytes | None:
        """The main process's bytes, or None where it has none; what other processes pass is ignored."""
        if self.size == 1:
            return content
        length = torch.tensor([-1 if content is None else len(content)], device=self.device)
        dist.broadcast(length, src=0)
        if int(length) < 0:
            return None
        if self.main and content is not None:
            buffer = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).to(self.device)
        else:
            buffer = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(buffer, src=0)
        return buffer.cpu().numpy().tobytes()


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Joins the process group that torchrun set up, or stays alone; leaves it at the end.

    Raises:
        OptionError: If WORLD_SIZE asks for several processes without the rest of torchrun's variables.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield World(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:
        raise OptionError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the process group cannot be joined: {error}",
            fix="Start several processes with torchrun, or unset WORLD_SIZE.",
        ) from error
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
        # A process that leaves while another still works can be aborted in gloo's threads.
        dist.barrier()
    finally:
        # DistributedDataParallel sits in reference cycles, and must be gone before its group is.
        gc.collect()
        dist.destroy_process_group()


_DEVICES = "Use auto, cpu, cuda, cuda:N or mps."


def pick_device(name: str) -> torch.device:
    """The device of an option's value: "auto" (CUDA where there is one, else CPU) or a torch device.

    Under torchrun a plain "cuda" is the process's own GPU.

    Raises:
        OptionError: If the device is unknown or not there; never another one instead.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"unknown device '{name}'", where="--device", fix=_DEVICES) from error
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= found:
            raise OptionError(
                f"device '{device}' asked for, but torch sees {found} CUDA devices",
                where="--device",
                fix="Use --device cpu, or install the CUDA build of torch.",
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device 'mps' is not available here", where="--device", fix="Use --device cpu.")
    elif device.type not in ("cpu", "mps"):
        raise OptionError(f"cannot train on device '{name}'", where="--device", fix=_DEVICES)
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 natively; where it does not, autocast only slows training."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
