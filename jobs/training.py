"""The trainer's verbs: settings are resolved here, and ranks do the rest."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.errors import ConfigError
from jobs.config import apply, tree

REFUSED = 2
"""Exit code of ranks whose settings will not do."""


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
    """Start the ranks on this machine by torchrun, hand signals on to them, and wait for them."""
    from training_bridge.loop import STOPPED

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    told = False
    with subprocess.Popen([*command, *arguments]) as process:

        def hand_on(number: int, frame: object) -> None:
            nonlocal told
            told = True
            process.terminate()  # torchrun hands SIGTERM on, and waits for the ranks' checkpoint

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return STOPPED if told and code else code
