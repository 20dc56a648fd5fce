"""What a training run says of itself: one JSON line a step, one line for people, TensorBoard where it is asked for."""

import json
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 FLOP/s by a part of the card's name, from the vendor's data sheets (SXM)."""


def peak_flops(device: torch.device) -> float | None:
    """The card's dense bf16 peak; None where it is not known, and then there is no MFU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process ever held at once: of the card's memory in tensors, or of the machine's in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Clock:
    """Where the time of a step goes: seconds by name, and what is left."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.parts: dict[str, float] = {}
        self._since, self._name = self.start, ""

    def enter(self, name: str) -> None:
        """From now on the time is `name`'s."""
        now = time.perf_counter()
        if self._name:
            self.parts[self._name] = self.parts.get(self._name, 0.0) + now - self._since
        self._since, self._name = now, name

    @property
    def total_s(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.start


class Log:
    """Writes `log.jsonl`, appends on resume after dropping lines of steps that come again, and prints every `every` steps.

    Only rank 0 writes; the others' calls do nothing.
    """

    QUIET: ClassVar[frozenset[str]] = frozenset({"digest", "tokens", "wall_s", "step", "samples"})

    def __init__(self, folder: Path, first: bool, every: int, *, start: int = 0, tensorboard: bool = False) -> None:
        """`start` is the step that comes next. Raises ValueError where tensorboard is asked for and not installed."""
        self.every = every
        self.path = folder / "log.jsonl" if first else None
        self._board: Any = None
        if self.path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _drop_after(self.path, start)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("tensorboard: true needs the package tensorboard") from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """One line: `kind` is step, validation or event. Numbers that are not finite are written as null."""
        if self.path is None:
            return
        line = {"kind": kind, "step": step, **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps({k: _plain(v) for k, v in line.items()}) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind != "step" or step % self.every == 0:
            print(f"{kind} {step}  " + "  ".join(_short(k, v) for k, v in numbers.items() if k not in self.QUIET), flush=True)

    def close(self) -> None:
        """Write what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def _drop_after(path: Path, start: int) -> None:
    """A resumed run does its steps again: the log keeps one line a step, and no torn last line."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # the last line of a killed process
            continue
        if line["step"] < start or (line["kind"] != "step" and line["step"] <= start):
            kept.append(text)
    hidden = path.with_name(f"_{path.name}")
    hidden.write_text("".join(text + "\n" for text in kept))
    hidden.rename(path)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name} {value:.1%}" if name.endswith("_share") or name == "mfu" else f"{name} {value:.4g}"
    return f"{name} {value}"
