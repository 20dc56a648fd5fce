"""The one training loop: a task brings the model and its loss, the data brings batches, everything else is here.

    batches -> loss x weight, summed -> backward over micro-batches -> clip -> AdamW -> EMA -> log, validate, checkpoint

A step's gradient is the sum of weight x loss over all its samples, divided by their number, whatever the number of ranks
and micro-batches. With the same layout a resumed run is the uninterrupted one, bit for bit; with another the samples, visits
and draws are the same, and the loss differs by rounding.
"""

import contextlib
import math
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from training_bridge.checkpoint import Checkpoints, newest_of, state_of
from training_bridge.ema import Ema
from training_bridge.initial import materialise
from training_bridge.launch import Ranks
from training_bridge.layout import Layout, Meshes
from training_bridge.metrics import Clock, Log, peak_flops, peak_memory_gb
from training_bridge.plateau import Plateau, PlateauConfig
from training_bridge.task import Data, Task

if TYPE_CHECKING:
    from training_bridge.loader import Batch

STOPPED = 75
"""Exit code of a run that was told to stop (SIGTERM, SIGUSR1) and wrote a checkpoint: start it again to go on."""
SPIKE_OVER = 50
"""Steps of a shape whose mean loss a spike is measured against."""
PROFILE_FROM, PROFILE_STEPS = 10, 3

DIGEST_BYTES = 16


class NotFinite(Exception):
    """A loss or gradient that is no number; the text names the step and its samples."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Which weights a run begins with, instead of drawn ones. Once it has a checkpoint of its own it goes on from that."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    """Another run's folder, whose newest checkpoint is taken, or a checkpoint."""
    weights: Literal["averaged", "plain"] = "averaged"
    """`averaged`: its EMA. The new run's EMA begins as a copy of what it begins with, its decay warming up again."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """`kept`: AdamW's moments and their count of steps too."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the loop."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int
    """The run ends after so many."""
    seed: int = 0
    """Of the first weights; the data's draws have a seed of their own."""
    lr: float = 1e-4
    warmup_steps: int = 100
    """The rate rises linearly over these."""
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """After the warm-up; `cosine` ends at `final_lr_frac` of the rate, `plateau` lowers it as `plateau` says."""
    final_lr_frac: float = 0.1
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    init: InitConfig | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    """Largest norm of the gradient of each part of the model."""
    skip_norm: float | None = None
    """A step whose gradient is longer than this, before clipping, leaves the weights as they are; counted and logged."""
    spike_ratio: float = 3.0
    """A loss of so many times the shape's recent mean is an event that names the step's samples."""
    mean: Literal["sample", "token"] = "sample"
    """`sample`: a step's loss is the mean over its samples. `token`: steps weigh by their latent tokens, so that one with
    fewer than `global_tokens` counts for less."""
    ema_decay: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 with fp32 masters on a GPU and fp32 on a CPU, where bf16 is a hundred times slower."""
    checkpoint_every: int = 1000
    keep: int = 3
    """Checkpoints that are kept, newest first, beside pinned ones."""
    validate_every: int = 1000
    log_every: int = 10
    tensorboard: bool = False
    profile: bool = False
    """Write what rank 0 does in steps 10 to 12 after a start to `profile/`, for chrome://tracing or Perfetto."""
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        """Raises ValueError for what no run can have."""
        counts = ("steps", "checkpoint_every", "validate_every", "log_every")
        if wrong := [name for name in counts if getattr(self, name) < 1]:
            raise ValueError(f"loop.{wrong[0]} is 1 or more, not {getattr(self, wrong[0])}")
        if min(self.warmup_steps, self.keep) < 0 or self.lr <= 0 or self.clip_norm <= 0:
            raise ValueError("loop.warmup_steps and loop.keep are 0 or more, loop.lr and loop.clip_norm above 0")


def prepare(task: Task, config: LoopConfig, ranks: Ranks) -> tuple[nn.ModuleDict, Optimizer, Ema]:
    """The model on its device and over its ranks, with its optimizer and average, at the weights of `config.seed`."""
    layout = config.layout.fitted(ranks.world)
    torch.manual_seed(config.seed)
    model = task.build()
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if not on_meta:
        model.to(ranks.device)
    meshes = Meshes.of(layout, ranks.device) if ranks.world > 1 else None
    task.parallelize(model, layout, meshes)
    if meshes is not None:
        low = precision(config, ranks.device)
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for module in (*task.blocks(model), *model.values()):
            fully_shard(module, mesh=meshes.fsdp, mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the loss is a sum over local samples: gradients are added, not averaged
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    if on_meta:
        materialise(model, ranks.device, config.seed)
    optimizer = AdamW(task.groups(model), lr=config.lr, betas=config.betas)
    return model, optimizer, Ema(model, task.averaged, config.ema_decay)


def precision(config: LoopConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of matrices, None for fp32 throughout."""
    low = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if low else None


def learning_rate(config: LoopConfig, step: int, scale: float = 1.0) -> float:
    """The rate of a step, from 0 on; `scale` is what plateaus have left of it."""
    if step < config.warmup_steps:
        return scale * config.lr * (step + 1) / config.warmup_steps
    if config.schedule != "cosine":
        return scale * config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (config.final_lr_frac + (1 - config.final_lr_frac) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def step_digest(digests: Iterable[bytes]) -> str:
    """Of all samples of a step, from the digests of their slots: those of rank 0's micro-batches, then rank 1's, ...

    That is the order of the step's samples at any world size. Zeros, with which an all-gather fills up ranks that have
    fewer, are passed over.
    """
    return blake2b(b"".join(digest for digest in digests if any(digest)), digest_size=DIGEST_BYTES).hexdigest()


class Trainer:
    """One run: made on every rank alike, then `run`."""

    def __init__(self, task: Task, data: Data, config: LoopConfig, ranks: Ranks, folder: Path) -> None:
        """Builds the model, and goes on from the newest checkpoint below `folder` where there is one.

        Raises ValueError where that is of another model or other data.
        """
        self.task, self.data, self.config, self.ranks, self.folder = task, data, config, ranks, folder
        self.layout = config.layout.fitted(ranks.world)
        self.model, self.optimizer, self.ema = prepare(task, config, ranks)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep, ranks.control)
        self.step = 0
        self.recent: dict[str, list[float]] = {}
        """The last losses of each shape."""
        self.plateau = Plateau()
        if (place := self.checkpoints.newest()) is not None:
            self._resume(place)
        elif config.init is not None:
            self._begin(config.init)
        self.stop = False
        first = ranks.rank == 0
        self.log = Log(folder, first, config.log_every, start=self.step, tensorboard=config.tensorboard)

    def _resume(self, place: Path) -> None:
        state = state_of(place)
        check_fingerprint(place, state["task"], self.task.fingerprint())
        self.step = self.data.resume(state["data"])
        self.recent, self.plateau = state["recent"], Plateau(**state["plateau"])
        self.checkpoints.load(place, self.model, self.optimizer, self.ema)

    def _begin(self, init: InitConfig) -> None:
        """Take another run's weights."""
        place = newest_of(Path(init.path))
        check_fingerprint(place, state_of(place)["task"], self.task.fingerprint(), self.task.grows)
        kept = self.optimizer if init.optimizer == "kept" else None
        self.checkpoints.begin(place, self.model, kept, self.ema, init.weights == "averaged", self.task.grow)

    def run(self) -> int:
        """Train to the last step. Returns 0, or STOPPED after a signal.

        Raises NotFinite at the step where a loss or gradient is no number, the last good checkpoint pinned.
        """
        self.checkpoints.sweep()
        with self._signals(), self._profiler() as profiler:
            batches = self.data.batches(self.step)
            while self.step < self.config.steps:
                stopping = self._train_step(batches)
                profiler.step()
                last = self.step == self.config.steps or stopping
                due = self.step % self.config.validate_every == 0
                if due or self.step == self.config.steps:
                    numbers = self.validate()
                    if due and self.config.schedule == "plateau":
                        self._lower(numbers)
                if self.step % self.config.checkpoint_every == 0 or last:
                    self.save()
                self.checkpoints.poll()
                if stopping:
                    break
            self.checkpoints.finish()
            self.log.close()
        return 0 if self.step == self.config.steps else STOPPED

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self.stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Any]:
        if not (self.config.profile and self.ranks.rank == 0):
            yield _NoProfiler()
            return
        from torch.profiler import profile, schedule

        place = self.folder / "profile" / f"step-{self.step:08d}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        with profile(
            schedule=schedule(wait=PROFILE_FROM - 1, warmup=1, active=PROFILE_STEPS, repeat=1),
            on_trace_ready=lambda made: made.export_chrome_trace(str(place)),
        ) as profiler:
            yield profiler

    def _lower(self, numbers: Mapping[str, float]) -> None:
        """Lower the rate where validation stands still, and say so."""
        own = self.config.plateau
        if own.measure not in numbers:
            raise ValueError(f"schedule plateau: validation says no {own.measure!r} but {', '.join(numbers) or 'nothing'}")
        if self.plateau.see(numbers[own.measure], own):
            said = {"event": "plateau", "measure": numbers[own.measure], "best": self.plateau.best, "scale": self.plateau.scale}
            self.log.write("event", self.step, said)

    def _train_step(self, batches: Iterator["Batch"]) -> bool:
        """One step; returns whether any rank was told to stop."""
        clock, rate = Clock(), learning_rate(self.config, self.step, self.plateau.scale)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        digests: list[bytes] = []
        bad: list[tuple[str, str]] = []
        more = True
        while more:
            clock.enter("data")
            batch = next(batches)
            assert batch.step == self.step, f"the data is at step {batch.step}, the loop at {self.step}"
            clock.enter("compute")
            more = batch.micro < batch.micros - 1
            parts = self._backward(batch, last=not more)
            sums = {name: sums.get(name, 0) + value for name, value in parts.items()}
            digests += batch.digests
            bad += batch.bad
        scale = self._scale(batch)
        bad = bad if self.layout.peers(self.ranks.rank, batch.shape.frames)[0] == self.ranks.rank else []
        numbers = self._reduced(sums, {"replaced": len(bad), "stop": float(self.stop), "data_s": clock.parts["data"]})
        parts_of_loss = {name: numbers[name] * scale for name in sums}
        if not math.isfinite(parts_of_loss["loss"]):
            self._not_finite("loss", parts_of_loss["loss"])
        norms = self._clip()
        for name, norm in norms.items():
            if not math.isfinite(norm):
                self._not_finite(name, norm)
        skipped = self.config.skip_norm is not None and max(norms.values()) > self.config.skip_norm
        if not skipped:
            self.optimizer.step()
            self.ema.update()
        clock.enter("")
        self._watch(str(batch.shape), parts_of_loss["loss"])
        count = batch.total_weight
        line = {**parts_of_loss, **norms, "lr": rate, "shape": str(batch.shape), "samples": int(count)}
        line |= {"skipped": int(skipped)} if self.config.skip_norm is not None else {}
        if numbers["replaced"]:
            line["replaced"] = int(numbers["replaced"])
            self._name(bad)
        line |= self._speed(batch, clock, numbers["data_s"] / self.ranks.world)
        self.log.write("step", self.step, {**line, "digest": self._digest(digests, batch)})
        self.step += 1
        return bool(numbers["stop"])

    def _scale(self, batch: "Batch") -> float:
        """What a step's sums are multiplied with."""
        share = batch.step_tokens / self.data.global_tokens if self.config.mean == "token" else 1.0
        return share / batch.total_weight

    def _backward(self, batch: "Batch", last: bool) -> dict[str, Tensor]:
        """Gradients of one micro-batch are added; returns its sums, which is not yet what is logged."""
        batch = batch.to(self.ranks.device)
        for module in self.model.values():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last)
                module.set_is_last_backward(last)
        with self._autocast():
            loss, parts = self.task.loss(self.model, batch, self.step)
        (loss * self._scale(batch)).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 on one rank; on several, FSDP casts."""
        low = precision(self.config, self.ranks.device)
        if low is None or self.ranks.world > 1:
            return contextlib.nullcontext()
        return torch.autocast(self.ranks.device.type, low)

    def _reduced(self, sums: Mapping[str, Tensor], more: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks; tensor ranks hold the same loss, and count once."""
        values = torch.stack([value.double() for value in sums.values()]).cpu() / self.layout.tensor
        whole = torch.cat([values, torch.tensor(list(more.values()), dtype=torch.float64)])
        dist.all_reduce(whole, group=self.ranks.control)
        return dict(zip([*sums, *more], whole.tolist(), strict=True))

    def _clip(self) -> dict[str, float]:
        """Clip each part's gradient; returns the norms before."""
        norms: dict[str, float] = {}
        for name, part in self.model.items():
            norm = nn.utils.clip_grad_norm_(part.parameters(), self.config.clip_norm)
            norms["grad_norm" if not norms else f"grad_norm_{name}"] = float(_whole(norm))
        return norms

    def _not_finite(self, what: str, value: float) -> None:
        pinned = self.checkpoints.pin(self.step, f"the last before step {self.step}, whose {what} is {value}")
        kept = f"the last good checkpoint, {pinned.name}, is pinned" if pinned else "there is no checkpoint before it"
        text = f"step {self.step}: {what} is {value}; {kept}; its samples: {', '.join(self.data.keys(self.step))}"
        self.log.write("event", self.step, {"event": "not_finite", "what": what, "keys": self.data.keys(self.step)})
        self.log.close()
        raise NotFinite(text)

    def _name(self, bad: list[tuple[str, str]]) -> None:
        """Say which samples were bad, on any rank, and why; others stand in for them."""
        gathered: list[list[tuple[str, str]] | None] = [None] * self.ranks.world
        dist.all_gather_object(gathered, bad, group=self.ranks.control)
        found = sorted({(key, why) for own in gathered for key, why in own or ()})
        said = {"event": "replaced", "keys": [key for key, _ in found], "why": [why for _, why in found]}
        self.log.write("event", self.step, said)

    def _watch(self, shape: str, loss: float) -> None:
        """Remember a shape's losses, and say when one is far above them, with whose samples."""
        recent = self.recent.setdefault(shape, [])
        if len(recent) == SPIKE_OVER and loss > self.config.spike_ratio * sum(recent) / len(recent):
            ratio = loss * len(recent) / sum(recent)
            self.log.write(
                "event", self.step, {"event": "spike", "loss": loss, "ratio": ratio, "keys": self.data.keys(self.step)}
            )
        self.recent[shape] = [*recent[-SPIKE_OVER + 1 :], loss]

    def _speed(self, batch: "Batch", clock: Clock, data_s: float) -> dict[str, float]:
        wall_s = clock.total_s
        tokens = batch.step_tokens
        numbers = {"wall_s": wall_s, "tokens": tokens, "tokens_per_s": tokens / wall_s, "data_wait_share": data_s / wall_s}
        if (peak := peak_flops(self.ranks.device)) is not None:
            numbers["mfu"] = self.task.flops(batch.shape) * batch.total_weight / wall_s / (peak * self.ranks.world)
        return numbers | {"peak_memory_gb": peak_memory_gb(self.ranks.device)}

    def _digest(self, own: Sequence[bytes], batch: "Batch") -> str:
        """The step's digest from all ranks' parts, in the order of the step."""
        mine = torch.zeros(batch.micros * len(batch.weights), DIGEST_BYTES, dtype=torch.uint8)
        if own:
            mine[: len(own)] = torch.frombuffer(bytearray(b"".join(own)), dtype=torch.uint8).view(-1, DIGEST_BYTES)
        rows = [torch.empty_like(mine) for _ in range(self.ranks.world)]
        dist.all_gather(rows, mine, group=self.ranks.control)
        first = [r for r in range(self.ranks.world) if self.layout.peers(r, batch.shape.frames)[0] == r]
        return step_digest(bytes(digest) for r in first for digest in rows[r].tolist())

    def validate(self) -> dict[str, float]:
        """Measures over the held-out samples with the averaged weights, all shapes together and each alone."""
        sums: dict[str, Tensor] = {}
        films: dict[str, Tensor] = {}
        self.model.eval()
        with torch.no_grad(), self.ema.swapped(), self._autocast():
            for number, batch in enumerate(self.data.held_out()):
                on = batch.to(self.ranks.device)
                weight = on.weights.sum() / (len(self.layout.peers(self.ranks.rank, on.shape.frames)) // self.layout.tensor)
                for name, value in {**self.task.validate(self.model, on), "weight": weight}.items():
                    for key in (name, f"{name}/{on.shape}"):
                        sums[key] = sums.get(key, torch.zeros(())) + value.detach().cpu()
                if number == 0:
                    films = self.task.pictures(self.model, on)
            for module in self.model.modules():
                if isinstance(module, FSDPModule):  # without a backward they stay whole, and would keep the averages
                    module.reshard()
        self.model.train()
        if not sums:
            return {}
        numbers = _means(self._reduced(sums, {}))
        numbers |= self.task.validated(self.ranks.control)
        self.log.write("validation", self.step, numbers)
        if self.ranks.rank == 0:
            for name, film in films.items():
                place = self.folder / "pictures" / f"{name}-{self.step:08d}.mp4"
                place.parent.mkdir(exist_ok=True)
                self.data.write_film(place, film.cpu())
        return numbers

    def save(self) -> None:
        """Begin to write a checkpoint."""
        state = {"step": self.step, "data": self.data.state(self.step), "task": self.task.fingerprint(), "recent": self.recent}
        state |= {"layout": str(self.layout), "name": self.task.name, "plateau": vars(self.plateau)}
        self.checkpoints.save(self.model, self.optimizer, self.ema, state)


class _NoProfiler:
    def step(self) -> None:
        """Nothing is recorded."""


def check_fingerprint(place: Path, there: Mapping[str, Any], here: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Raises ValueError where a checkpoint's fingerprint is another, in anything but what is `free`."""
    if wrong := [name for name in here if there.get(name) != here[name] and name not in free]:
        said = "; ".join(f"{name}: {there.get(name)!r} there, {here[name]!r} here" for name in wrong)
        raise ValueError(f"{str(place)!r} is of another model: {said}")


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums divided by their weights: `name`, and `name/shape` where there are several shapes."""
    several = sum(name.startswith("weight/") for name in sums) > 1
    found = {}
    for name, value in sums.items():
        kind, _, shape = name.partition("/")
        if kind != "weight" and (several or not shape):
            found[name] = value / sums[f"weight/{shape}" if shape else "weight"]
    return found


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
