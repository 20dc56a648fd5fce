"""The trainer's verbs: settings are resolved here, and ranks do the rest."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
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
    from training_bridge.tae import run

    code = _train(run.TaeRun, "training_bridge.tae", run.train, file, overrides, output, ranks, prepare)
    if code == 0 and not prepare:
        place = run.export(output, output / "tae.pt")
        print(f"{output / 'tae.pt'} is made of {place.name}; `reelset encode` takes it")
    return code


def _train(
    kind: Any,
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
        settings.write(output, settings.checked(kind, _settings(before, file, overrides, output)))
        if prepare:
            print(f"start it: torchrun --nproc-per-node N -m {module} {output}")
            return 0
        code = int(train(output)) if ranks == 1 else _launched(module, output, ranks)
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


def _launched(module: str, output: Path, ranks: int) -> int:
    """Start the ranks on this machine by torchrun, hand signals on to them, and wait for them."""
    from training_bridge.loop import STOPPED

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    told = False
    with subprocess.Popen([*command, str(output)]) as process:

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
