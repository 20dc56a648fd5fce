"""`reelset`, the command line: thin over the jobs, one verb a function."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from curation.errors import ConfigError, ReelsetError

app = typer.Typer(
    name="reelset",
    help="Turns raw video into curated video-text training sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PIPED_WIDTH = 160
"""Columns of what no terminal shows."""
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run folder, or its URL.")]
Input = Annotated[str, typer.Option("--input", "-i", help="A folder, a manifest (.txt, .csv, .parquet) or a URL of either.")]
Output = Annotated[str, typer.Option("--output", "-o", help="The run folder: new, or one to go on with.")]
File = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as a.b=value; may be repeated.")]
Engine = Annotated[str | None, typer.Option("--engine", help="ray (actor pools) or inline (one process).")]
Address = Annotated[str | None, typer.Option("--address", help="A Ray cluster to join.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N sources; estimates the whole.")]


def _config(file: Path | None, sets: list[str] | None, engine: str | None = None, address: str | None = None) -> Any:
    from jobs.config import load

    overrides = list(sets or [])
    overrides += [f"engine.kind={engine}"] if engine else []
    overrides += [f"engine.address={address}"] if address else []
    return load(file, overrides)


def main() -> None:
    """Entry point: known errors are one message and an exit code (1 work failed, 2 usage or config), never a trace."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except ConfigError as error:
        typer.echo(f"reelset: {error}", err=True)
        sys.exit(2)
    except (ReelsetError, OSError) as error:
        typer.echo(f"reelset: {error}", err=True)
        sys.exit(1)
    except Exception:
        # A library that called us back, as DuckDB does for rows, has made an error of its own of the interrupt.
        if not interrupts:
            raise
        typer.echo("Aborted.", err=True)
        sys.exit(128 + signal.SIGINT)


@app.command()
def run(
    input: Input,
    output: Output,
    config: File = None,
    set: Set = None,
    engine: Engine = None,
    address: Address = None,
    limit: Limit = None,
) -> None:
    """Curate: raw videos in, shards, tables and a report out. Run again to go on where it stopped."""
    from jobs import pipeline

    settings = _config(config, set, engine, address)
    raise typer.Exit(pipeline.run(input, _place(output), settings, limit))


@app.command()
def analyze(
    input: Input,
    output: Output,
    config: File = None,
    set: Set = None,
    engine: Engine = None,
    address: Address = None,
    limit: Limit = None,
) -> None:
    """Only measure: fill the tables of sources, clips, series and frames."""
    from jobs import pipeline

    settings = _config(config, set, engine, address)
    raise typer.Exit(pipeline.run(input, _place(output), settings, limit, parts=("analyze",)))


@app.command()
def select(run: Run, config: File = None, set: Set = None, rules: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Decide again over a measured run, with its own lists or others (--rules NAME_OR_FILE); decodes nothing."""
    _again(run, config, set, rules, ("select",))


@app.command()
def caption(
    run: Run,
    config: File = None,
    set: Set = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again about clips that have no good caption.")
    ] = False,
    engine: Engine = None,
    address: Address = None,
) -> None:
    """Cut and caption what the selection planned; what has a caption is never asked again."""
    _again(run, config, set, None, ("caption",), engine, address, retry_errors)


@app.command("caption-servers")
def caption_servers(config: File = None, set: Set = None, address: Address = None) -> None:
    """Start the config's vLLM servers, watch them, and stop them all on Ctrl-C or SIGTERM."""
    from captioning import servers

    settings = _config(config, set, None, address)
    servers.serve(settings.caption, settings.engine, lambda line: typer.echo(line, err=True))


@app.command()
def shard(run: Run, config: File = None, set: Set = None, engine: Engine = None, address: Address = None) -> None:
    """Cut, caption and pack what the selection planned and the run folder lacks."""
    _again(run, config, set, None, ("produce",), engine, address)


def _again(
    run: str,
    config: Path | None,
    sets: list[str] | None,
    rules: list[str] | None,
    parts: tuple[str, ...],
    engine: str | None = None,
    address: str | None = None,
    retry_errors: bool = False,
) -> None:
    from jobs import pipeline

    overrides = list(sets or [])
    overrides += [f"engine.kind={engine}"] if engine else []
    overrides += [f"engine.address={address}"] if address else []
    raise typer.Exit(pipeline.again(_place(run), config, overrides, rules, parts, retry_errors))


@app.command()
def report(run: Run) -> None:
    """Write report/index.html: the funnel, histograms, example frames, errors and costs."""
    from jobs.report import write_report

    typer.echo(write_report(_place(run)))


@app.command()
def status(run: Run) -> None:
    """How far a run is, live or dead, read from its folder."""
    from jobs import status as job

    _print(lambda: job.status(_place(run)))


@app.command("inspect")
def inspect_(
    run: Run,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="A clip_id or source_id.")] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Measure this source or cut this clip again; 0 where it comes out the same, else 1."),
    ] = None,
) -> None:
    """One clip's or source's whole story: what was measured, each rule's verdict, where its sample is."""
    from jobs import inspect
    from jobs import replay as job

    if (id is None) == (replay is None):
        raise ConfigError("inspect takes one thing: the ID of a clip or source, or --replay ID")
    if replay is None:
        _print(lambda: inspect.story(_place(run), str(id)))
        return
    again = job.replay(_place(run), replay)
    _print(again.page)
    raise typer.Exit(0 if again.equal else 1)


@app.command()
def sql(
    run: Run,
    query: Annotated[str, typer.Argument(help="SQL over the tables sources, clips, selection, produced, ...")],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask the run's tables with DuckDB; every table is a view."""
    from jobs import inspect

    _print(lambda: inspect.sql(_place(run), query, csv=csv))


@app.command()
def stats(
    run: Run,
    name: Annotated[list[str] | None, typer.Option("--name", help="One of the list, or all; may be repeated.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The shipped statistics, by name; without one, what there is."""
    from jobs import stats as job

    _print(lambda: job.stats(_place(run), name or [], csv))


@app.command("what-if")
def what_if(
    run: Run,
    rules: Annotated[list[str] | None, typer.Option("--rules", help="A shipped list's name or a YAML file of rules.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="A rule instead of the list's own over the same columns, or one more; may be repeated."),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="The run's list that --rule changes; its only one without.")] = None,
    write: Annotated[str | None, typer.Option(metavar="NAME", help="Select so, under this name; `shard` writes it.")] = None,
) -> None:
    """What other thresholds would keep, drop, or cannot know; decodes nothing."""
    from jobs import pipeline
    from jobs import what_if as job

    if not rules and not rule:
        raise ConfigError("what-if takes --rule 'column > number', or --rules with a list's name or file")
    if write is not None and not rule:
        raise ConfigError("--write NAME writes what --rule makes; a whole list is selected by: reelset select RUN --rules LIST")
    place = _place(run)
    for name in rules or ():
        _print(lambda name=name: job.what_if(place, name))  # type: ignore[misc]
    if rule:
        new, base = job.supposed(place, rule, subset, write)
        _print(lambda: job.compared(place, new, base, rule))
    if write is not None:
        raise typer.Exit(pipeline.again(place, None, (), [*job.lists(place), new.model_dump(mode="json")], ("select",)))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="The run before.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The run after.")],
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures too.")] = None,
) -> None:
    """Two runs of one corpus: settings, verdicts that changed and why, scores that drifted."""
    from jobs import diff as job

    found = job.compare(_place(first), _place(second))
    _print(lambda: job.listed(found))
    if page is not None:
        job.page(first, second, found, page)
        typer.echo(page)


@app.command()
def search(
    run: Run,
    text: Annotated[str | None, typer.Argument(help="What is looked for, in words (needs an open_clip embedding).")] = None,
    like: Annotated[list[str] | None, typer.Option(metavar="CLIP_ID", help="Clips to be like; may be repeated.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, max=10_000, help="How many clips.")] = 20,
    model: Annotated[str | None, typer.Option(help="The embedding, by name.")] = None,
    subset: Annotated[str | None, typer.Option(help="Only clips that this subset keeps.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of frames too.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """The nearest clips to a text or to other clips; of several clips, to their mean."""
    from jobs import search as job

    place = _place(run)
    found = job.search(place, text, like or [], count, model, subset)
    _print(lambda: job.listed(found, csv))
    if page is not None:
        job.page(place, found, text if text is not None else "like " + ", ".join(like or []), page)
        typer.echo(page, err=csv)


@app.command()
def encode(
    run: Run,
    tae: Annotated[str | None, typer.Option(metavar="FILE", help="An autoencoder's file, as train-tae writes it.")] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of text encoders, or a training run's.")] = None,
    subset: Annotated[list[str] | None, typer.Option(help="Only this subset's shards; may be repeated.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Each actor holds a GPU (engine.gpu); else CPUs (engine.cpu).")] = False,
    config: File = None,
    set: Set = None,
    engine: Engine = None,
    address: Address = None,
) -> None:
    """Write latents and texts' encodings of finished shards beside them, once; trainers read these instead of pixels."""
    from jobs import encode as job

    if tae is None and text is None:
        raise ConfigError("encode takes --tae, --text or both")
    settings = _config(config, set, engine, address).engine
    pool = settings.gpu if gpu else settings.cpu
    if tae is not None:
        typer.echo(job.encode_latents(_place(run), tae, settings, pool, subset or []))
    for line in job.encode_texts(_place(run), text, settings, pool, subset or []) if text else ():
        typer.echo(line)


@app.command("train-tae")
def train_tae(
    output: Annotated[Path, typer.Option("--output", "-o", help="The training run's folder: new, or one to go on with.")],
    config: File = None,
    set: Set = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = 1,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only write the settings; say how to start the ranks.")] = False,
) -> None:
    """Train the temporal autoencoder on shards. Run again to go on where it stopped."""
    from jobs import training

    raise typer.Exit(training.train_tae(config, set or [], output, ranks, prepare))


@app.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="The training run's folder: new, or one to go on with.")],
    config: File = None,
    set: Set = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = 1,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only write the settings; say how to start the ranks.")] = False,
    layout: Annotated[str | None, typer.Option(metavar="auto", help="Take the fastest layout of --ranks, and say why.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Write a trace of three steps.")] = False,
) -> None:
    """Train the flow model on latents and captions: one run, or a recipe's stages. Run again to go on where it stopped."""
    from jobs import training

    raise typer.Exit(training.train(config, set or [], output, ranks, prepare, layout, profile))


@app.command("train-parity")
def train_parity(
    ranks: Annotated[int, typer.Option(min=2, help="Processes on this machine.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps at each layout.")] = 2,
    above: Annotated[float, typer.Option(help="Name each parameter whose gradients differ by more; 0 names all.")] = 1e-5,
) -> None:
    """Do layouts agree? Train a few steps at each, and compare losses and gradients with those of one rank."""
    from jobs import training

    raise typer.Exit(training.parity(ranks, steps, above))


@app.command()
def sample(
    words: Annotated[list[str], typer.Argument(metavar="[PROMPT]... MODEL", help="Prompts; last a run or an exported file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="An .mp4; .png for images. Several get numbers.")],
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="More prompts, a line each.")] = None,
    size: Annotated[str, typer.Option(help="Frames x height x width.")] = "128x192x336",
    fps: Annotated[int, typer.Option(min=1, help="Frames a second; the model is told.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed, the same film.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Euler's steps, linear-quadratic.")] = 50,
    guidance: Annotated[float, typer.Option(help="1: none.")] = 7.5,
    tae: Annotated[Path | None, typer.Option(metavar="FILE", help="The autoencoder; else as the model's settings say.")] = None,
    rewrite: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of a server that rewrites prompts.")] = None,
) -> None:
    """Draw films for prompts with a trained flow model's averaged weights."""
    from jobs import sample as job

    *asked, model = words
    asked += [line for line in (prompts.read_text().splitlines() if prompts else []) if line.strip()]
    if not asked:
        raise ConfigError("sample takes a prompt before the model, or --prompts FILE")
    job.sample(Path(model), asked, output, job.Options(size, fps, seed, steps, guidance, tae, rewrite))


@app.command()
def average(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Checkpoints, runs or exported files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write (.safetensors).")],
    weight: Annotated[list[float] | None, typer.Option(help="The share of each, in their order; else equal.")] = None,
) -> None:
    """The mean of several flow models' averaged weights, as one file."""
    from jobs import sample as job

    job.average(models, weight, output)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of train or train-tae, or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write a trained model's averaged weights as one file: what sample, or encode, takes."""
    from jobs import sample as job

    typer.echo(f"{output} is made of {job.export(run, output)}")


@app.command()
def review(
    run: Run,
    subset: Annotated[str, typer.Option(help="A subset whose list has a `review:` section.")] = "finetune",
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8765,
    token: Annotated[str | None, typer.Option(envvar="REELSET_REVIEW_TOKEN", help="What reviewers must know.")] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Let other machines in; needs a token.")] = False,
    name: Annotated[list[str] | None, typer.Option(help="Another name by which browsers call this server.")] = None,
    concepts: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of target concepts and their quotas.")] = None,
    quota: Annotated[int, typer.Option(min=1, help="Clips of each concept, where no file says.")] = 50,
    store: Annotated[str | None, typer.Option(metavar="FILE", help="Where decisions are kept; else in the run folder.")] = None,
    export: Annotated[bool, typer.Option("--export", help="Only write review/SUBSET.parquet.")] = False,
) -> None:
    """Serve the page where people pick, trim and caption clips; `select` and `shard` go by what they decided."""
    from jobs.review import serve as job

    if export:
        job.write(_place(run), subset, store, typer.echo)
        return
    options = job.Options(host, port, token, allow_remote, tuple(name or ()), concepts, quota, store)
    job.serve(_place(run), subset, options, lambda line: typer.echo(line, err=True))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the corpus and the run.")] = Path("demo"),
    engine: Engine = None,
) -> None:
    """Make a small corpus whose truth is known, run everything on it, and compare."""
    from jobs import demo as job

    raise typer.Exit(job.demo(output, engine or "ray"))


@app.command("demo-train")
def demo_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path("demo-train"),
    engine: Engine = None,
    tae_steps: Annotated[int, typer.Option(min=1, help="Steps of the autoencoder's training.")] = 700,
    flow_steps: Annotated[int, typer.Option(min=1, help="Steps of the flow model's training.")] = 400,
) -> None:
    """Curate six made clips, train an autoencoder and a flow model on them, and draw them again from their captions."""
    from jobs import demo_train as job

    raise typer.Exit(job.demo(output, engine or "inline", job.Budget(tae_steps, flow_steps)))


def _place(run: str) -> str:
    """A run folder as a URL, or an absolute path: workers on this machine may stand in other folders."""
    from curation import storage

    return run.rstrip("/") if storage.is_remote(run) else str(storage.local_path(run).absolute())


def _print(make: Callable[[], Any]) -> None:
    from rich.console import Console

    made = make()
    if isinstance(made, str):
        typer.echo(made, nl=not made.endswith("\n"))
    else:
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = PIPED_WIDTH
        console.print(made)


if __name__ == "__main__":
    main()
