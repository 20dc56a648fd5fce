"""The trainer's verbs: settings are resolved here, and ranks do the rest."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.errors import ConfigError
from jobs.config import apply, tree

REFUSED = 2
"""Exit code of ranks whose settings will not do."""
GRACE_S = 60.0
"""How long ranks may go on after one of them has failed."""
POLL_S = 0.1


def train_tae(file: Path | None, overrides: Sequence[str], output: Path, ranks: int, prepare: bool) -> int:
    """Train an autoencoder below `output`, or go on with it; then write `output/tae.pt`.

    `prepare` only writes the settings and says how to start the ranks elsewhere. Returns the exit code. Raises ConfigError
    where the settings, the shards or a checkpoint will not do.
    """
    from training_bridge import settings
    from training_bridge.tae import run

    def checked(tree: dict[str, Any]) -> run.TaeRun:
        return settings.checked(run.TaeRun, tree)

    code = _train(checked, "training_bridge.tae", run.train, file, overrides, output, ranks, prepare)
    if code == 0 and not prepare:
        place = run.export(output, output / "tae.pt")
        print(f"{output / 'tae.pt'} is made of {place.name}; `reelset encode` takes it")
    return code


def train(
    file: Path | None, overrides: Sequence[str], output: Path, ranks: int, prepare: bool, layout: str | None, profile: bool
) -> int:
    """Train a flow model, or a recipe's stages, below `output`, or go on with it. Returns the exit code.

    `layout` "auto" takes what the cost model says is fastest on `ranks` cards, and prints why. Raises ConfigError as
    `train_tae` does.
    """
    from training_bridge.dit import recipe

    if layout not in (None, "auto"):
        raise ConfigError(f"--layout {layout!r}: only auto; a layout of your own is --set loop.layout.context=2 and the like")

    def checked(tree: dict[str, Any]) -> Any:
        own = recipe.checked(tree, profile)
        return recipe.laid_out(own, ranks, _machine(), print) if layout else own

    return _train(checked, "training_bridge.dit", recipe.train, file, overrides, output, ranks, prepare)


def _machine() -> Any:
    """The cards here; H100s of 80 GB where there are none."""
    import torch

    from training_bridge.dit.cost import Machine
    from training_bridge.metrics import peak_flops

    if not torch.cuda.is_available():
        return Machine()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Machine(memory_gb=memory, peak_flops=peak_flops(torch.device("cuda")) or Machine().peak_flops)


def parity(ranks: int, steps: int, above: float) -> int:
    """Train a few steps at all layouts of `ranks` processes and compare; returns 1 where one does not agree."""
    return 1 if _launched("training_bridge.dit.parity", [f"--steps={steps}", f"--above={above}"], ranks) else 0


def _train(
    checked: Callable[[dict[str, Any]], Any],
    module: str,
    train: Any,
    file: Path | None,
    overrides: Sequence[str],
    output: Path,
    ranks: int,
    prepare: bool,
) -> int:
    from training_bridge import settings
    from training_bridge.loop import NotFinite

    before = settings.text(output)
    try:
        settings.write(output, checked(_settings(before, file, overrides, output)))
        if prepare:
            print(f"start it: torchrun --nproc-per-node N -m {module} {output}")
            return 0
        code = int(train(output)) if ranks == 1 else _launched(module, [str(output)], ranks)
    except ValueError as error:
        settings.restore(output, before)
        raise ConfigError(str(error)) from error
    except NotFinite as error:
        print(f"reelset: {error}", file=sys.stderr)
        return 1
    if code == REFUSED:
        settings.restore(output, before)
    return code


def _settings(before: str | None, file: Path | None, overrides: Sequence[str], output: Path) -> dict[str, Any]:
    """The settings of a file, or those that the run has, with `a.b=c` on top."""
    if file is not None:
        return tree(file, overrides)
    if before is None:
        raise ConfigError(f"{str(output)!r} is no training run yet: name its settings with --config FILE")
    own: dict[str, Any] = json.loads(before)
    for override in overrides:
        apply(own, override)
    return own


def _launched(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Start the ranks on this machine, hand signals on to them, and wait for them.

    Returns the code of the first that failed (LOST where it was killed), or 0. The others then have GRACE_S to end by
    themselves, as they watch each other. (torchrun ends with 1 whatever its ranks say, and kills them 30 s after a signal.)
    """
    from training_bridge.watch import LOST

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={"OMP_NUM_THREADS": "1", **os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]

    def hand_on(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        code = _first_failure(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return LOST if code < 0 else code


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, but no longer than GRACE_S after one has failed; returns its code, or 0."""
    failed, since = 0, 0.0
    while None in (codes := [process.poll() for process in started]):
        if not failed and (failed := next(filter(None, codes), 0)):
            since = time.monotonic()
        if failed and time.monotonic() - since > GRACE_S:
            break
        time.sleep(POLL_S)
    return failed or next(filter(None, codes), 0)
