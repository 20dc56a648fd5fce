"""What is made of trained models: samples of prompts, averages, files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curation.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """How samples are drawn."""

    size: str = "128x192x336"
    """Frames x height x width in pixels."""
    fps: int = 16
    seed: int = 0
    steps: int = 50
    guidance: float = 7.5
    tae: Path | None = None
    """The autoencoder's file; None: the one that the model's settings name."""
    rewrite: Path | None = None
    """A YAML file of who rewrites prompts (`jobs/rewrite.py`)."""
    device: str = "auto"


def sample(model: Path, prompts: Sequence[str], output: Path, options: Options) -> list[Path]:
    """Draw a film, or an image, for each prompt, and write them: `output`, or where there are several `output` with numbers.

    The same prompts, model, seed and machine give the same bytes. Raises ConfigError where model, autoencoder and sizes do not
    go together.
    """
    from training_bridge.dit import finished
    from training_bridge.dit.sample import SamplerConfig
    from training_bridge.tae.encoder import TaeEncoder

    captions = _rewritten(prompts, options.rewrite) if options.rewrite else list(prompts)
    shape = _shape(options.size)
    try:
        sampler = SamplerConfig(steps=options.steps, emulated=max(250, options.steps), guidance=options.guidance)
        own = finished.read(model)
        drawer = finished.Drawer(own, options.device)
        drawer.task.check([shape])
        path = options.tae or (Path(own.config.tae) if own.config.tae else None)
        if path is None:
            raise ConfigError(f"{str(model)!r} names no autoencoder: name its file with --tae")
        tae = TaeEncoder(str(path), options.device)
        drawer.check_tae(tae)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    tae.open()
    made = []
    for number, caption in enumerate(captions):
        text = own.config.written(caption, shape.frames, options.fps)
        frames = tae.decode(drawer.draw(text, number, shape, options.seed, sampler), shape.frames)
        place = output if len(captions) == 1 else output.with_name(f"{output.stem}-{number:04d}{output.suffix}")
        _write(place, frames, options.fps)
        print(f"{place}: {text}", file=sys.stderr)
        made.append(place)
    return made


def _shape(size: str) -> Any:
    from training_bridge.index import Shape

    try:
        frames, height, width = map(int, size.split("x"))
    except ValueError:
        raise ConfigError(f"--size {size!r}: write it as frames x height x width, such as 128x192x336") from None
    if min(frames, height, width) < 1:
        raise ConfigError(f"--size {size!r}: all three are 1 or more")
    return Shape(frames, height, width)


def _write(place: Path, frames: Any, fps: int) -> None:
    """Frames (T, H, W, 3): a film as mp4, one frame as a picture."""
    from PIL import Image

    from training_bridge.media import write_video

    place.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) == 1:
        Image.fromarray(frames[0]).save(place)
    else:
        write_video(place, frames, fps)


def _rewritten(prompts: Sequence[str], file: Path) -> list[str]:
    from pydantic import ValidationError

    from jobs.rewrite import RewriteConfig, rewrite

    try:
        config = RewriteConfig.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"--rewrite {str(file)!r}: {error}") from error
    found = rewrite(prompts, config)
    if bad := [f"{one.prompt!r}: {one.fault}" for one in found if one.caption is None]:
        raise ConfigError("prompts that could not be rewritten: " + "; ".join(bad))
    return [str(one.caption) for one in found]


def average(models: Sequence[Path], shares: Sequence[float] | None, output: Path) -> None:
    """Write the mean of several models' averaged weights. Raises ConfigError where they are not of one kind."""
    from training_bridge.dit import finished

    try:
        finished.write(output, finished.averaged(models, shares))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def export(run: Path, output: Path) -> str:
    """Write the file of a run's model, of either kind; returns what it is made of. Raises ConfigError where there is none."""
    from training_bridge import settings
    from training_bridge.dit import finished
    from training_bridge.tae import run as tae

    try:
        if not run.is_file() and "tae" in json.loads(settings.text(run) or "{}"):
            return tae.export(run, output).name
        model = finished.read(run)
        finished.write(output, model)
        return model.place.name
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
