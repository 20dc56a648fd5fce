"""`reelset demo-train`: a handful of made clips through everything: curated, compressed, learned by heart, drawn again.

OUTPUT/corpus, curated    six films and the shards that `reelset run` makes of them
OUTPUT/tae                the autoencoder's training, on pieces of those shards
OUTPUT/small              the shards to learn by heart: 16 frames of 64 pixels of each clip, and their latents
OUTPUT/flow               the flow model's training
OUTPUT/samples.png, loss.png, demo.json
"""

import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.engine import EngineConfig, PoolConfig
from curation.errors import ConfigError
from jobs.demo_films import Film, Truth
from jobs.demo_scenes import Camera, Shot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training_bridge.dit.finished import Drawer
    from training_bridge.tae.encoder import TaeEncoder

FILMS = (
    ("meadow.mp4", "Green hills under a blue sky, the camera moves to the right", "meadow", Camera(pan=2.0)),
    ("reef.mp4", "A coral reef in deep blue water, the camera comes nearer", "reef", Camera(zoom=0.002, pan=0.6)),
    ("desert.mp4", "Orange rocks in a desert under a pink sky", "desert", Camera(pan=-1.5)),
    ("dusk.mp4", "Dark mountains before the last red light", "dusk", Camera(pan=1.8, tilt=0.2)),
    ("snow.mp4", "A white ridge of snow, the camera moves to the left", "snow", Camera(pan=-2.2)),
    ("forest.mp4", "Deep green woods, the camera moves slowly to the right", "forest", Camera(pan=1.2)),
)
SIZE, FRAMES = (512, 288), 150
SUBSET = "everyday"
SAMPLE_FRAMES, SAMPLE_PX = 16, 64
LEAST_DB = 25.0
"""What every sample must reach against its own clip's reconstruction."""


@dataclass(frozen=True)
class Budget:
    """Steps of the two trainings; the defaults take some nine and four minutes on two cores."""

    tae_steps: int = 700
    flow_steps: int = 400


@dataclass(frozen=True)
class Drawn:
    """A caption's sample beside its clip."""

    caption: str
    db: float
    """PSNR against the autoencoder's reconstruction of its own clip."""
    nearest: str
    """The caption of the clip whose reconstruction it is nearest to."""

    @property
    def ok(self) -> bool:
        return self.db >= LEAST_DB and self.nearest == self.caption


def demo(output: Path, engine: str, budget: Budget) -> int:
    """Do everything below `output`, or go on with it. Returns 0 where every caption is drawn well, else 1."""
    times: dict[str, float] = {}
    with _timed("curate", times):
        shards = curate(output, engine)
    with _timed("autoencoder", times):
        tae = train_tae(output / "tae", shards, budget.tae_steps)
    with _timed("encode", times):
        small = store_small(shards, output / "small")
        encode(small, tae)
    with _timed("flow model", times):
        model = train_flow(output / "flow", small, tae, budget.flow_steps)
    with _timed("sample", times):
        drawn = compare(output, model, small, tae)
    loss_curve(output / "flow" / "log.jsonl", output / "loss.png")
    page = {"seconds": times, "samples": [vars(one) | {"ok": one.ok} for one in drawn]}
    (output / "demo.json").write_text(json.dumps(page, indent=1) + "\n")
    for one in drawn:
        right = "right" if one.nearest == one.caption else f"wrong: {one.nearest}"
        print(f"{one.db:5.1f} dB  nearest clip {right}  {one.caption}")
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    print(
        f"{sum(one.ok for one in drawn)} of {len(drawn)} captions are drawn well (at least {LEAST_DB:g} dB, nearest clip right)"
    )
    print(f"look at {output / 'samples.png'} and {output / 'loss.png'}")
    return int(not all(one.ok for one in drawn))


@contextmanager
def _timed(name: str, times: dict[str, float]) -> Iterator[None]:
    print(f"--- {name}", flush=True)
    began = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - began, 1)


def curate(output: Path, engine: str) -> Path:
    """Make the films and curate them; returns the folder of the shards. Raises ConfigError where a film was not kept."""
    from jobs import pipeline
    from jobs.config import load, rule_list
    from jobs.demo_corpus import write_film

    corpus, run = output / "corpus", output / "curated"
    corpus.mkdir(parents=True, exist_ok=True)
    with (corpus / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "licence"])
        rows.writerows([name, caption, "CC0-1.0"] for name, caption, _, _ in FILMS)
    for number, (name, caption, world, camera) in enumerate(FILMS):
        if not (corpus / name).exists():
            shot = Shot(world, FRAMES, camera, seed=number + 1, things=3)
            write_film(corpus, Film(Truth(name, caption), (shot,), size=SIZE))
    everyday = rule_list(SUBSET).model_copy(update={"validation_share": 0.0})
    config = load(None, [f"engine.kind={engine}"]).model_copy(update={"subsets": (everyday,)})
    pipeline.run(str(corpus / "manifest.csv"), str(run.absolute()), config)
    shards = run / "shards" / SUBSET / "train"
    kept = len(_index(shards).table)
    if kept != len(FILMS):
        raise ConfigError(f"{kept} of {len(FILMS)} films were kept: see {run / 'report/index.html'}")
    return shards


def _index(shards: Path) -> Any:
    from training_bridge import index

    try:
        return index.read(str(shards))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def train_tae(folder: Path, shards: Path, steps: int) -> Path:
    """Train the autoencoder on random pieces of the clips; returns its file."""
    from training_bridge import settings
    from training_bridge.data import DataConfig, DatasetConfig
    from training_bridge.loop import LoopConfig
    from training_bridge.tae import run
    from training_bridge.tae.task import TaeConfig
    from training_bridge.view import View

    clips = DatasetConfig(path=str(shards.absolute()), view=View(SAMPLE_FRAMES, SAMPLE_PX, SAMPLE_PX))
    data = DataConfig(train={"clips": clips}, global_tokens=32 * len(FILMS), workers=1)
    loop = LoopConfig(steps=steps, lr=1e-3, warmup_steps=20, schedule="cosine", ema_decay=0.99, log_every=50)
    settings.write(folder, run.TaeRun(loop=loop, data=data, tae=TaeConfig(size="tiny")))
    _finish(run.train(folder))
    run.export(folder, folder / "tae.pt")
    return folder / "tae.pt"


def _finish(code: int) -> None:
    if code:
        raise SystemExit(code)


def store_small(shards: Path, run: Path) -> Path:
    """Store a 16-frame, 64-pixel piece of each clip, with its caption, as shards of their own: latents are of whole samples.

    The piece is the largest square at a random place and time: the loader's view, drawn once. Returns the shards' folder.
    """
    import pyarrow.parquet as pq

    from bucketing.shard_format import CAPTION, STORY, VIDEO, Facts, TarWriter, story
    from training_bridge.media import write_video
    from training_bridge.plan import Sample
    from training_bridge.reader import PIXELS, Reader, Source
    from training_bridge.view import View

    place = run / "shards" / "small" / "train" / f"v{SAMPLE_PX}-1x1-f{SAMPLE_FRAMES}" / "shard-000000"
    if place.with_suffix(".parquet").exists():
        return place.parents[1]
    place.parent.mkdir(parents=True, exist_ok=True)
    source = Source(_index(shards), View(SAMPLE_FRAMES, SAMPLE_PX, SAMPLE_PX, "fit"))
    reader = Reader({"clips": source}, seed=0)
    piece = place.with_name("_piece.mp4")
    with place.with_suffix(".tar").open("wb") as out:
        tar = TarWriter(out)
        for row, known in enumerate(source.index.table.to_pylist()):
            example = reader.read(Sample("clips", row, known["key"], 0))
            write_video(piece, example.arrays[PIXELS].transpose(1, 2, 3, 0), known["fps"])
            facts = Facts(SAMPLE_FRAMES, known["fps"], SAMPLE_PX, SAMPLE_PX)
            members = {VIDEO: piece.read_bytes(), STORY: story({"clip_id": known["key"]}, vars(facts))}
            for extension, data in (members | {CAPTION: example.text.encode()}).items():
                tar.add(known["key"], extension, data, facts)
        tar.close()
    piece.unlink()
    pq.write_table(tar.index(), place.with_suffix(".parquet"))
    return place.parents[1]


def encode(small: Path, tae: Path) -> None:
    """Latents of the small clips, beside them."""
    from jobs.encode import encode_latents

    print(encode_latents(str(small.parents[2].absolute()), str(tae), EngineConfig(kind="inline"), PoolConfig()))


def train_flow(folder: Path, small: Path, tae: Path, steps: int) -> Path:
    """Train the flow model until it knows the clips by heart; returns its file.

    Four datasets of one folder: a step has each clip four times, with other noise and times.
    """
    from training_bridge import settings
    from training_bridge.data import DataConfig, DatasetConfig
    from training_bridge.dit import finished, recipe
    from training_bridge.dit.flow import FlowConfig
    from training_bridge.dit.run import FlowRun
    from training_bridge.dit.task import DitConfig
    from training_bridge.loop import LoopConfig

    clips = DatasetConfig(path=str(small.absolute()))
    data = DataConfig(train=dict.fromkeys("abcd", clips), global_tokens=32 * 4 * len(FILMS), workers=0)
    loop = LoopConfig(steps=steps, lr=1e-3, warmup_steps=50, schedule="cosine", ema_decay=0.99, log_every=50)
    dit = DitConfig(
        size="tiny", lengths=(2, 4, 4), objective=FlowConfig(text_drop=0.0), prompt="{prompt}", tae=str(tae.absolute())
    )
    settings.write(folder, FlowRun(loop=loop, data=data, dit=dit))
    _finish(recipe.train(folder))
    finished.write(folder / "flow.safetensors", finished.read(folder))
    return folder / "flow.safetensors"


def compare(output: Path, model: Path, small: Path, tae_file: Path) -> list[Drawn]:
    """Draw every caption, and lay it beside the clips; writes the picture."""
    from training_bridge.dit.finished import Drawer, read
    from training_bridge.encoded import LATENT, Encoded
    from training_bridge.plan import Sample
    from training_bridge.reader import LATENTS, PIXELS, Reader, Source
    from training_bridge.tae.encoder import TaeEncoder

    tae, drawer, index = TaeEncoder(str(tae_file)), Drawer(read(model)), _index(small)
    tae.open()
    samples = [Sample("clips", row, key, 0) for row, key in enumerate(index.table["key"].to_pylist())]
    encoded = Reader({"clips": Source(index, encoded=(Encoded(LATENT, tae.fingerprint),))}, 0)
    stored = Reader({"clips": Source(index)}, 0)
    examples = [encoded.read(sample) for sample in samples]
    clips = [stored.read(sample).arrays[PIXELS].transpose(1, 2, 3, 0) for sample in samples]
    made = [tae.decode(example.arrays[LATENTS], SAMPLE_FRAMES) for example in examples]
    captions = [example.text for example in examples]
    drawn = [_draw(drawer, tae, caption, number) for number, caption in enumerate(captions)]
    _picture(output / "samples.png", [clips, made, drawn])
    found = []
    for caption, own, film in zip(captions, made, drawn, strict=True):
        distances = [psnr(film, other) for other in made]
        found.append(Drawn(caption, round(psnr(film, own), 2), captions[distances.index(max(distances))]))
    return found


def _draw(drawer: "Drawer", tae: "TaeEncoder", caption: str, number: int) -> "NDArray[np.uint8]":
    from training_bridge.dit.sample import SamplerConfig
    from training_bridge.index import Shape

    shape = Shape(SAMPLE_FRAMES, SAMPLE_PX, SAMPLE_PX)
    return tae.decode(drawer.draw(caption, number, shape, 0, SamplerConfig(guidance=1.0)), SAMPLE_FRAMES)


def psnr(one: "NDArray[np.uint8]", other: "NDArray[np.uint8]") -> float:
    """Of two films, in dB; equal ones have 100."""
    import numpy as np

    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def _picture(place: Path, rows: Sequence[Sequence["NDArray[np.uint8]"]]) -> None:
    """The middle frame of films: clips, reconstructions and samples, a row each."""
    import numpy as np
    from PIL import Image

    whole = np.concatenate([np.concatenate([film[len(film) // 2] for film in row], axis=1) for row in rows])
    Image.fromarray(whole).resize((3 * whole.shape[1], 3 * whole.shape[0]), Image.Resampling.NEAREST).save(place)


def loss_curve(log: Path, place: Path) -> None:
    """Draw the loss over the steps of a run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    steps = [line for line in map(json.loads, log.read_text().splitlines()) if line["kind"] == "step"]
    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], linewidth=0.8)
    axes.set(yscale="log", xlabel="step", ylabel="velocity error")
    figure.tight_layout()
    figure.savefig(place, dpi=100)
    pyplot.close(figure)
