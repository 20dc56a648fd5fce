"""The path of the data, top to bottom: read this first.

    input -> units -> analyze, embed -> compare -> select -> cut, caption -> pack -> report

`analyze` decodes each source once and writes what it measured and a few frames; `embed` turns those frames into vectors;
`compare` finds near-duplicates and concepts among these; `select` decides by rules over the tables, keeps one of each group of
near-duplicates and balances the concepts; `cut` makes the samples that the selection planned, `caption` shows them to the
models that the config names, and `pack` writes the shards. Each part skips what the run folder already has, so running again
after any kind of death goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bucketing import cut
from captioning import camera, client
from curation import embedding, engine, lock, rules, run_folder, sources, storage
from curation.errors import ConfigError
from filters import aesthetic, faces, text
from jobs import analyze, caption, content, embed, metrics, produce, selecting
from jobs.budget import Budget
from jobs.config import Config
from jobs.content import Content
from jobs.events import Events, log
from jobs.report import write_report
from jobs.review import store

PARTS = ("analyze", "select", "produce", "report")


def run(location: str, folder: str, config: Config, limit: int | None = None, parts: Sequence[str] = PARTS) -> int:
    """The whole path over an input. Returns the exit code: 0, or 3 where more sources failed than `error_budget` allows.

    Raises ConfigError before any work where the input, the config or the folder will not do.
    """
    check(config)
    listing = sources.list_input(location)
    with lock.hold(folder):
        page = run_folder.resume(folder, config.decides())
        embed.check(folder, config)
        Content(folder, config)  # refuses what does not go with shards that exist
        if page is not None:
            produce.prepare(folder, page["decides"]["produce"], config.decides()["produce"])
        run_folder.write(folder, {"input": location, **config.model_dump(mode="json")}, config.decides())
        storage.sweep(folder)
        with log(folder) as events:
            wanted = listing if limit is None else sources.first(listing, limit)
            say_input(events, listing, wanted)
            units = sources.plan_units(folder, wanted, config.units, config.limits.max_bytes)
            follow(folder, config, events, parts, units)
            code = outcome(folder, config, events)
            if limit is not None:
                say_estimate(events, folder, len(listing.sources))
    return code


def again(
    folder: str,
    file: Path | None,
    overrides: Sequence[str],
    rules: Sequence[str | Mapping[str, Any]] | None,
    parts: Sequence[str],
    retry_errors: bool = False,
) -> int:
    """Some parts once more on a measured run, with its own settings but for those given.

    With `retry_errors` clips that captioners failed on are asked about again.
    """
    page = run_folder.read(folder)
    settings = {k: v for k, v in page["config"].items() if k != "input"}
    config = selecting.settings(settings, file, overrides, rules)
    now = config.decides()
    old, new = ({k: v for k, v in d["analyze"].items() if k != "gates"} for d in (page["decides"], now))
    if run_folder.fingerprint(old) != run_folder.fingerprint(new):
        raise ConfigError(f"{folder!r} was measured with other settings:\n{run_folder.difference(old, new)}")
    check(config)
    if "caption" in parts and not config.caption.models:
        raise ConfigError("caption.models is empty: name the models and where they are served (docs/captions.md)")
    with lock.hold(folder):
        Content(folder, config)
        produce.prepare(folder, page["decides"]["produce"], now["produce"])
        resolved = {"input": page["config"].get("input"), **config.model_dump(mode="json")}
        run_folder.write(folder, resolved, {**now, "analyze": page["decides"]["analyze"]})
        with log(folder) as events:
            if retry_errors:
                events.say(f"captions: {caption.forget_errors(folder)} failed ones are asked for again")
            follow(folder, config, events, (*parts, "report"), [])
            return outcome(folder, config, events)


def follow(folder: str, config: Config, events: Events, parts: Sequence[str], units: Sequence[str]) -> None:
    """The parts in order, each doing only what is missing."""
    marks = storage.join(folder, "attempts")
    storage.remove(marks)  # of a driver that died
    done = set(analyze.done_units(folder))
    todo = [{"unit": unit} for unit in units if unit not in done]
    if {"caption", "produce"} & set(parts) and (todo or produce.missing(folder, config).cuts):
        client.check(config.caption)
    if "analyze" in parts:
        budget = Budget(folder, config.error_budget)
        budget.read()
        if budget.over:
            return
        path = embed.after(analyze.steps(folder, config), embed.steps(folder, config))
        results = engine.run(todo, path, config.engine, marks)
        for result in events.track("analyze", results, total=len(units), done=len(units) - len(todo)):
            events.event("unit", **result)
            budget.spend(result)
            metrics.standing(folder, budget.states, budget.codes)
            if budget.over:
                return
        left = embed.missing(folder, config, [unit for unit in units if unit in done])
        embedded = engine.run(left, embed.steps(folder, config), config.engine, marks)
        for item in events.track("embed", embedded, total=len(left)):
            events.event("embedded", **item)
    if "select" in parts:
        compare(folder, config, events, marks)
        for subset in config.subsets:
            if subset.review is not None:
                store.refresh(folder, subset.name, subset.review)
            events.say(selecting.select(folder, config, subset))
    if {"caption", "produce"} & set(parts):
        plan = produce.missing(folder, config)
        cuts = engine.run(plan.cuts, produce.cut_steps(folder, config), config.engine, marks)
        for result in events.track("cut", cuts, total=len(plan.cuts)):
            events.event("cut", **produce.counted(result))
        if config.caption.models:
            events.say(caption.said(folder))
    if "produce" in parts:
        shards = engine.run(plan.shards, produce.pack_steps(folder, config), config.engine, marks)
        for result in events.track("pack", shards, total=len(plan.shards)):
            events.event("shard", **result)
        produce.clean(folder, config)
    if "report" in parts:
        events.say(f"report: {write_report(folder)}")


def compare(folder: str, config: Config, events: Events, marks: str) -> None:
    """What the clips' vectors say, before any rule looks at them."""
    units = analyze.done_units(folder)
    whole = Content(folder, config)
    whole.drop_stale()

    def each(part: str, items: Sequence[engine.Item], worker: type[content.Worker]) -> None:
        for result in events.track(part, whole.work(worker, items, marks), total=len(items)):
            events.event(part, **result)

    each("index", whole.unindexed(units), content.Index)
    each("compare", whole.uncompared(), content.Compare)
    events.say(whole.group(units))
    if trained := whole.train():
        events.say(trained)
    each("assign", whole.unassigned(), content.Assign)
    whole.describe()


def check(config: Config) -> None:
    """Refuse a config that names what this machine lacks, before any work."""
    for subset in config.subsets:
        rules.check(subset, unconfigured(config))
    faces.check(config.faces)
    text.check(config.text)
    aesthetic.check(config.aesthetic)
    cut.check()
    for model in config.embeddings:
        embedding.check(model, f"embeddings.{model.name}")
    content.check(config)
    analyze.stages(config)


def unconfigured(config: Config) -> dict[str, str]:
    """Clip columns that this config leaves null, and what to set to have them."""
    off = {} if config.camera.enabled else dict.fromkeys(camera.COLUMNS, "camera.enabled")
    if not config.faces.enabled:
        off |= dict.fromkeys(faces.COLUMNS, "faces.enabled")
    if not config.text.enabled:
        off |= dict.fromkeys(("text_score", "text_scene_score", "text_area_frac"), "text.enabled")
    if not config.aesthetic.enabled:
        off["aesthetic"] = "aesthetic.weights and aesthetic.head"
    return off


def say_input(events: Events, listing: sources.Listing, wanted: sources.Listing) -> None:
    """What was found, and what was passed over."""
    events.event("input", sources=len(wanted.sources), listed=len(listing.sources), skipped=listing.skipped)
    skipped = ", ".join(f"{n} {suffix}" for suffix, n in sorted(listing.skipped.items()))
    events.say(
        f"input: {len(wanted.sources)} sources"
        + (f" of {len(listing.sources)}" if wanted is not listing else "")
        + (f"; passed over, no video or image by name: {skipped}" if skipped else "")
    )


def outcome(folder: str, config: Config, events: Events) -> int:
    """Say how the sources ended; 3 where too large a share is in error."""
    budget = Budget(folder, config.error_budget)
    budget.read()
    count, codes = budget.states, budget.codes
    assert count["ok"] + count["rejected"] + count["error"] == budget.seen, "a source ended in no known state"
    events.event("outcome", **count, codes=codes, over_budget=budget.over)
    said = f" ({', '.join(f'{n} {code}' for code, n in codes.most_common())})" if codes else ""
    events.say(f"sources: {budget.seen} = {count['ok']} ok + {count['rejected']} rejected + {count['error']} error{said}")
    if not budget.over:
        return 0
    events.show(budget.table())
    events.say(budget.hint)
    events.say(f"{budget.verdict}. What is done stays: raise error_budget and run again to go on")
    return 3


def say_estimate(events: Events, folder: str, listed: int) -> None:
    """What the whole input would cost, from what the part cost."""
    costs = storage.read_table(storage.join(folder, "costs"), columns=["cpu_s"])
    done = storage.read_table(storage.join(folder, "sources"), columns=["source_id"]).num_rows
    cpu_h = sum(costs["cpu_s"].to_pylist()) / max(done, 1) * listed / 3600
    size = sum(storage.size(url) for url in storage.walk(storage.join(folder, "shards"), ".tar"))
    events.say(
        f"estimate for all {listed} sources, from {done}: {cpu_h:.2f} CPU-hours of analysis, "
        f"{size / max(done, 1) * listed / 2**30:.2f} GiB of shards"
    )
