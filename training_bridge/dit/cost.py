"""What a step costs in each layout: compute, memory and communication by arithmetic, to choose one before anything runs.

B samples of S tokens in a micro-batch, D width. Model FLOPs are those of forward and backward (twice forward), attention at its
real length, nothing recomputed. Activations are counted in units of one tensor (B S, D) in bfloat16 of one block, as the blocks
of `model.py` save them. What a card reaches of its peak is an assumption: figures compare layouts, they foretell no run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from training_bridge.dit.model import BackboneConfig, parameters_of
from training_bridge.dit.parallel import Recompute

STATE_BYTES = 20
"""Of a parameter, divided: weight, gradient, two moments and EMA in float32."""
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The cards and what joins them. Rates are of one card and what is reached of them, not what is sold."""

    memory_gb: float = 80.0
    usable: float = 0.9
    """Share of the memory that a layout may fill; the rest is the allocator's and the libraries'."""
    peak_flops: float = 989e12
    """Dense bfloat16 of H100 and H200."""
    matmul: float = 0.7
    attention: float = 0.6
    """Shares of the peak that matrix products and attention kernels reach."""
    node: int = 8
    node_gbs: float = 350.0
    """Gigabytes a second between cards of a node, each way (NVLink)."""
    network_gbs: float = 40.0
    """... and between nodes (400 Gbit/s a card)."""
    felt: float = 0.15
    """Share of FSDP's communication that is felt although compute hides it: it takes processors and memory bandwidth."""
    latency_s: float = 20e-6
    """Of one collective."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained."""

    config: BackboneConfig
    tokens: int
    text: int = 512
    """Tokens of text of a sample."""
    batch: int
    """Samples of a step."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout and what a step of it costs."""

    replicate: int
    shard: int
    context: int
    tensor: int
    exchange: Literal["none", "ulysses", "gather"]
    recompute: Recompute
    micro: int
    """Samples of a micro-batch."""
    accumulate: int
    """Micro-batches of a step."""
    memory_gb: float
    compute_s: float
    tensor_s: float
    context_s: float
    shard_s: float
    """What is felt of FSDP's communication beside the compute."""
    replicate_s: float
    mfu: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.tensor_s + self.context_s + self.shard_s + self.replicate_s


def forward_flops(config: BackboneConfig, tokens: int, text: int) -> tuple[float, float]:
    """Of one sample's forward pass: matrix products, and attention itself."""
    d = config.width
    block = 6 * d * d * tokens + 2 * d * d * text + 3 * d * config.ffn * tokens
    products = 2 * (config.layers * block + 2 * config.patch * d * tokens)
    return float(products), float(config.layers * 4 * d * tokens * (tokens + text))


def model_flops(config: BackboneConfig, tokens: int, text: int) -> float:
    """Of one sample's forward and backward: three times forward."""
    return 3 * sum(forward_flops(config, tokens, text))


def mfu(config: BackboneConfig, tokens: int, text: int, samples_per_s: float, peak_flops: float) -> float:
    """Share of the peak of a card (or of all cards together) that is spent on the model's own FLOPs."""
    return samples_per_s * model_flops(config, tokens, text) / peak_flops


def ranked(work: Workload, gpus: int, machine: Machine | None = None) -> list[Candidate]:
    """The best layout that fits for each pair of context and tensor, the fastest first.

    Raises ValueError with the numbers where none fits.
    """
    machine = machine or Machine()
    best: dict[tuple[int, int], Candidate] = {}
    least: Candidate | None = None
    for candidate in _candidates(work, gpus, machine):
        least = min(least or candidate, candidate, key=lambda c: c.memory_gb)
        if candidate.memory_gb <= machine.usable * machine.memory_gb:
            pair = candidate.context, candidate.tensor
            best[pair] = min(best.get(pair, candidate), candidate, key=lambda c: c.step_s)
    if not best:
        need = f"the smallest needs {least.memory_gb:.0f} GB a card of {machine.memory_gb:g}: {_named(least)}" if least else ""
        raise ValueError(
            f"no layout of {gpus} cards takes steps of {work.batch} samples of {work.tokens} tokens; "
            f"{need or 'more cards than samples, and neither heads nor tokens divide between those left over'}"
        )
    return sorted(best.values(), key=lambda c: c.step_s)


def explained(candidates: Sequence[Candidate], count: int = 8) -> str:
    """A table of the best ones, and in a line what decided."""
    head = "layout                                  recompute  micro  GB    step s  compute  tensor  context  shard  repl.  MFU"
    rows = [
        f"{_named(c):39} {c.recompute:9}  {c.micro}x{c.accumulate:<4} {c.memory_gb:4.0f}  {c.step_s:7.2f}  {c.compute_s:7.2f}  "
        f"{c.tensor_s:6.2f}  {c.context_s:7.2f}  {c.shard_s:5.2f}  {c.replicate_s:5.2f}  {c.mfu:.0%}"
        for c in candidates[:count]
    ]
    return "\n".join([head, *rows, _why(candidates)])


def _why(candidates: Sequence[Candidate]) -> str:
    first = candidates[0]
    if len(candidates) == 1:
        return f"{_named(first)}: nothing else fits"
    second = candidates[1]
    parts = ("compute_s", "tensor_s", "context_s", "shard_s", "replicate_s")
    gains = {part[:-2]: getattr(second, part) - getattr(first, part) for part in parts}
    gain, loss = max(gains, key=lambda p: gains[p]), min(gains, key=lambda p: gains[p])
    against = f", against {-gains[loss]:.2f} s more of {loss}" if gains[loss] < -0.005 else ""
    return f"{_named(first)} before {_named(second)}: {gains[gain]:.2f} s less of {gain}{against}"


def _named(c: Candidate) -> str:
    exchange = f" ({c.exchange})" if c.context > 1 else ""
    return f"rep {c.replicate} shard {c.shard} ctx {c.context}{exchange} tp {c.tensor}"


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2


def _candidates(work: Workload, gpus: int, machine: Machine) -> Iterator[Candidate]:
    """Every layout whose numbers divide, whether it fits the memory or not."""
    config = work.config
    for tensor in _powers(min(machine.node, gpus)):
        if config.heads % tensor or config.ffn % tensor or gpus % tensor:
            continue
        for context in _powers(gpus // tensor):
            if work.tokens % (context * tensor) or gpus % (context * tensor):
                continue
            data = gpus // (context * tensor)
            if work.batch % data:
                continue
            for shard in _powers(data):
                if data % shard == 0:
                    for micro in (m for m in _powers(work.batch // data) if work.batch // data % m == 0):
                        for recompute in RECOMPUTES:
                            yield _costed(work, machine, (data // shard, shard, context, tensor), micro, recompute)


def _costed(work: Workload, machine: Machine, axes: tuple[int, int, int, int], micro: int, recompute: Recompute) -> Candidate:
    replicate, shard, context, tensor = axes
    accumulate = work.batch // (replicate * shard * micro)
    ulysses = work.config.heads // tensor % context == 0
    compute_s = accumulate * _compute_s(work, machine, micro / (context * tensor), recompute)
    step = {
        "compute_s": compute_s,
        "tensor_s": accumulate * _tensor_s(work, machine, micro, context, tensor, recompute),
        "context_s": accumulate * _context_s(work, machine, micro, context, tensor, recompute, ulysses),
        "shard_s": _shard_s(work, machine, shard * context, tensor, accumulate, compute_s),
        "replicate_s": _replicate_s(work, machine, replicate, shard * context * tensor),
    }
    rate = work.batch / sum(step.values()) / (replicate * shard * context * tensor)
    return Candidate(
        replicate=replicate,
        shard=shard,
        context=context,
        tensor=tensor,
        exchange="none" if context == 1 else "ulysses" if ulysses else "gather",
        recompute=recompute,
        micro=micro,
        accumulate=accumulate,
        memory_gb=_memory_gb(work, micro, shard, context, tensor, recompute, ulysses),
        mfu=mfu(work.config, work.tokens, work.text, rate, machine.peak_flops),
        **step,
    )


def _compute_s(work: Workload, machine: Machine, samples: float, recompute: Recompute) -> float:
    """Of one micro-batch: forward, backward, and what is computed once more."""
    products, attention = forward_flops(work.config, work.tokens, work.text)
    products *= 3 if recompute == "none" else 4
    attention *= 4 if recompute == "full" else 3
    return samples * (products / machine.matmul + attention / machine.attention) / machine.peak_flops


def _tokens_gb(work: Workload, micro: int, context: int) -> float:
    """One tensor (B S, D) of a context rank."""
    return micro * work.tokens / context * work.config.width * 2 / 1e9


def _passes(recompute: Recompute) -> int:
    """How often a block's communication is done: forward, backward, and again where its activations are made again."""
    return 2 if recompute == "none" else 3


def _tensor_s(work: Workload, machine: Machine, micro: int, context: int, tensor: int, recompute: Recompute) -> float:
    """Three all-gathers and three reduce-scatters of all tokens in a block and pass, inside a node."""
    if tensor == 1:
        return 0.0
    each = _tokens_gb(work, micro, context) * (tensor - 1) / tensor / machine.node_gbs + machine.latency_s
    return 6 * _passes(recompute) * work.config.layers * each


def _context_s(
    work: Workload, machine: Machine, micro: int, context: int, tensor: int, recompute: Recompute, ulysses: bool
) -> float:
    """Queries, keys, values and output by all-to-all; or keys and values to everybody."""
    if context == 1:
        return 0.0
    rate = machine.node_gbs if context * tensor <= machine.node else machine.network_gbs
    own = _tokens_gb(work, micro, context) / tensor
    sent = 4 * own * (context - 1) / context if ulysses else 2 * own * (context - 1)
    return _passes(recompute) * work.config.layers * (sent / rate + 2 * machine.latency_s)


def _shard_s(work: Workload, machine: Machine, ranks: int, tensor: int, accumulate: int, compute_s: float) -> float:
    """Weights gathered twice a micro-batch in bfloat16 and gradients scattered in float32, beside the compute."""
    if ranks == 1:
        return 0.0
    rate = machine.node_gbs if ranks * tensor <= machine.node else machine.network_gbs
    traffic = parameters_of(work.config) / tensor * (2 + 2 + 4) / 1e9 * (ranks - 1) / ranks
    first = traffic / work.config.layers / rate  # nothing hides the first block's weights
    whole = accumulate * traffic / rate
    return max(machine.felt * whole, whole - compute_s) + first


def _replicate_s(work: Workload, machine: Machine, replicate: int, division: int) -> float:
    """Gradients summed between replicas, once a step."""
    if replicate == 1:
        return 0.0
    rate = machine.node_gbs if replicate * division <= machine.node else machine.network_gbs
    return 2 * parameters_of(work.config) / division * 4 / 1e9 * (replicate - 1) / replicate / rate


def _memory_gb(work: Workload, micro: int, shard: int, context: int, tensor: int, recompute: Recompute, ulysses: bool) -> float:
    """State, two gathered blocks and the ends, activations that are kept, and those of the block at work."""
    config = work.config
    total = parameters_of(config)
    block = 8 * config.width**2 + 3 * config.width * config.ffn
    states = total * STATE_BYTES / (shard * context * tensor)
    gathered = (2 * block + (total - config.layers * block)) / tensor * (2 + 4) if shard * context > 1 else 0.0
    unit = _tokens_gb(work, micro, context)
    wide = config.ffn / config.width
    all_of_block = (18 + 4 * wide) / tensor + 3  # what enters attention, cross-attention and FFN is whole on each tensor rank
    kept = {"none": all_of_block, "selective": 3 / tensor, "full": 1 / tensor}[recompute] * config.layers
    exchanged = (8 / tensor if ulysses else 4 * context / tensor) if context > 1 else 0.0
    at_work = all_of_block * (1 if recompute == "none" else 2) + exchanged + 2 * config.patch / config.width * 3
    return (states + gathered) / 1e9 + (kept + at_work + 2 / tensor) * unit
