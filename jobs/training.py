"""The trainer's verbs: settings are resolved here, and ranks do the rest."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.errors import ConfigError
from jobs.config import tree


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

    try:
        if file is None and not overrides:
            settings.read(output, kind)
        else:
            settings.write(output, settings.checked(kind, tree(file, overrides)))
        if prepare:
            print(f"start it: torchrun --nproc-per-node N -m {module} {output}")
            return 0
        if ranks == 1:
            return int(train(output))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except NotFinite as error:
        print(f"reelset: {error}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    return subprocess.run([*command, str(output)], check=False).returncode
