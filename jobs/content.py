"""*Compare*: what the clips' vectors say before any rule looks at them: an index, near-duplicates, and concepts.

    embeddings -> index (a block of clips each) -> pairs (each block by each) -> duplicates
                                                -> centroids (of a sample) -> concepts (a block each) -> clusters

Blocks, pairs and concepts are made by Ray actors, a file each, and are there already when the job is run again. What other
settings made goes, unless shards were made by it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import attempts, clusters, duplicates, embedding, engine, run_folder, storage, vectors
from curation.embedding import EmbeddingConfig
from curation.engine import EngineConfig, Item, Step
from curation.errors import ConfigError
from curation.layout import Vector
from curation.tables import CLIPS, CLUSTERS, DUPLICATES, SOURCES
from curation.vectors import Block
from jobs import embed
from jobs.config import Config
from jobs.selecting import MADE_OF, READERS, concepts, covered, made_of, of_units, stream, unit_span, units_of

ROOM = 2_000_000
"""Pairs that are held before they are thinned to what holds their groups together."""


def check(config: Config) -> None:
    """Raise ConfigError where a named embedding is not there, or a subset asks for concepts that nothing finds."""
    duplicates.chosen(config.duplicates, config.embeddings)
    meaning = clusters.chosen(config.clusters, config.embeddings)
    if config.clusters.people:
        clusters.sentences(config.clusters)
        if meaning is None or meaning.kind != "open_clip":
            have = "none" if meaning is None else f"{meaning.name} ({meaning.kind})"
            raise ConfigError(f"clusters.people needs clusters of an embedding that reads text, open_clip; they are of {have}")
    for subset in config.subsets:
        if subset.resample is not None and meaning is None:
            raise ConfigError(f"subset {subset.name!r}: resample needs concepts: set clusters.enabled, and an embedding")
        if subset.people is not None and subset.people.least_similarity is not None and not config.clusters.people:
            raise ConfigError(f"subset {subset.name!r}: people.least_similarity needs clusters.people")


class Content:
    """The comparison of a run's clips: what is missing of it, and who makes that."""

    def __init__(self, run: str, config: Config) -> None:
        """Raises ConfigError where shards exist that other settings made. Changes nothing yet."""
        self.run, self.config = run, config
        self.copies = duplicates.chosen(config.duplicates, config.embeddings)
        self.meaning = clusters.chosen(config.clusters, config.embeddings)
        self._decide()

    def _decide(self) -> None:
        """What settings make each table, and which tables others made."""
        index = {m.name: _made_by(self.config, m) for m in self.config.embeddings}
        of_pairs = None
        if self.copies:
            model, threshold = self.copies
            of_pairs = {**index[model.name], "threshold": threshold, "min_ratio": self.config.duplicates.min_ratio}
        of_centroids, of_concepts = None, None
        if self.meaning:
            own = self.config.clusters
            of_centroids = {**index[self.meaning.name], "number": own.number, "same": self._same(), "seed": self.config.seed}
            of_centroids |= {"without": of_pairs}
            of_concepts = {**of_centroids, "centroids": self._centroids()}
            if own.people:
                of_concepts |= {"people": hashlib.sha256("\n".join(clusters.sentences(own)).encode()).hexdigest()[:16]}
        self.made_by = {"duplicates": of_pairs, "index/pairs": of_pairs}
        self.made_by |= {"clusters": of_concepts, "concepts": of_concepts, "index/centroids": of_centroids}
        self.made_by |= {f"index/blocks/{name}": made_by for name, made_by in index.items()}
        made = {table: made_of(storage.join(self.run, table)) for table in self.made_by}
        self.stale = {table: old for table, old in made.items() if old is not None and old != self.made_by[table]}
        for table in ("duplicates", "concepts"):
            if table in self.stale and storage.walk(storage.join(self.run, "produced"), ".parquet"):
                raise ConfigError(
                    f"{table}/ was made with other settings, and shards exist:\n"
                    f"{run_folder.difference(self.stale[table], self.made_by[table] or {})}\n"
                    "Use the old settings, or remove shards/ and produced/ first"
                )

    def drop_stale(self) -> None:
        """Remove what other settings made, the last made first: what a kill leaves is seen again."""
        for table in self.stale:
            storage.remove(storage.join(self.run, table))

    def _same(self) -> float:
        assert self.meaning is not None, "there is a model that is clustered"
        return self.config.clusters.same or clusters.SAME[self.meaning.kind]

    def _centroids(self) -> str | None:
        """What tells the run's centroids from others; None where there are none."""
        place = storage.join(self.run, "index", "centroids", "centroids.parquet")
        return hashlib.sha256(storage.read_bytes(place)).hexdigest()[:16] if storage.exists(place) else None

    def blocks(self, model: EmbeddingConfig) -> list[str]:
        """The names of a model's indexed blocks, in order; a block is named by its first and last unit."""
        return [place.rsplit("/", 1)[1] for place in blocks(self.run, model.name)]

    def unindexed(self, units: Sequence[str]) -> list[Item]:
        """The blocks that are missing of these measured units, each with its own.

        Raises ConfigError where a unit was not embedded, or by a model of another width than the others.
        """
        items = []
        for model in self.config.embeddings:
            have = covered(_index(self.run, model.name))
            new = [unit for unit in units if unit not in have]
            for block in _blocks(self.run, model, new, units[0], self.config.index.block_clips) if new else ():
                items.append({"block": unit_span(block), "model": model.name, "units": block})
        return items

    def uncompared(self) -> list[Item]:
        """The pairs of blocks that were not searched for near-duplicates yet."""
        if self.copies is None:
            return []
        blocks = self.blocks(self.copies[0])
        done = set(storage.names(storage.join(self.run, "index", "pairs"), ".parquet"))
        every = [{"block": b, "beside": a} for place, b in enumerate(blocks) for a in blocks[: place + 1]]
        return [item for item in every if f"{_pair(item)}.parquet" not in done]

    def unassigned(self) -> list[Item]:
        """The blocks whose clips have no concept yet."""
        if self.meaning is None or not storage.names(storage.join(self.run, "index", "centroids")):
            return []
        done = set(storage.names(storage.join(self.run, "concepts"), ".parquet"))
        return [{"block": block} for block in self.blocks(self.meaning) if f"{block}.parquet" not in done]

    def work(self, worker: "type[Worker]", items: Sequence[Item], marks: str) -> Iterator[Item]:
        """The results of these items, by actors; one item is not worth an actor, and has all cores of this machine."""
        pool = self.config.engine.cpu
        alone = len(items) < 2 or self.config.engine.kind == "inline"
        threads = os.cpu_count() or 1 if alone else max(1, int(pool.cpus))
        where = EngineConfig(kind="inline") if alone else self.config.engine
        return engine.run(items, [Step(worker(self, threads), pool)], where, marks)

    def write(self, table: str, name: str, rows: pa.Table, units: Sequence[str] = ()) -> None:
        """Commit a file of a table, with the settings that made it and the units that it speaks of."""
        made_by = json.dumps(self.made_by[table], sort_keys=True).encode()
        place = storage.join(self.run, table, f"{name}.parquet")
        storage.write_table(place, rows.replace_schema_metadata({MADE_OF: made_by, **of_units(units)}))

    def group(self, units: Sequence[str]) -> str:
        """Write the near-duplicates of those of the measured units that have none yet, from the pairs. A line for people.

        Rows once written stay.
        """
        if self.copies is None:
            return "duplicates: not looked for: " + (
                "no embedding of a kind that tells copies" if self.config.duplicates.enabled else "duplicates.enabled is false"
            )
        model, threshold = self.copies
        place = storage.join(self.run, "duplicates")
        have = covered(place)
        new = [unit for unit in units if unit not in have]
        if not new:
            return "duplicates: nothing new"
        found, facts = self._pairs(units, set(new))
        ids, is_new = facts["clip_id"], facts["new"].to_numpy()
        decided = storage.read_table(place, DUPLICATES)
        kept_then = pc.coalesce(
            decided["duplicate_of"].take(pc.index_in(ids, decided["clip_id"].combine_chunks())) if decided.num_rows else ids,
            ids,
        )
        stands = pc.index_in(kept_then, ids)
        assert not stands.null_count, "what was kept of an earlier clip's group is among the facts"
        before = np.where(is_new, -1, stands.to_numpy())
        kept, similarity = duplicates.groups(found, before)
        rows = np.flatnonzero(is_new & (kept != np.arange(len(ids))))
        table = pa.table(
            {
                "clip_id": ids.take(pa.array(rows)),
                "duplicate_of": ids.take(pa.array(kept[rows])),
                "similarity": similarity[rows],
                "model": pa.array([model.name] * len(rows), pa.string()),
            },
            schema=DUPLICATES,
        )
        self.write("duplicates", unit_span(new), table.sort_by("clip_id"), new)
        sizes = self._sizes(model)
        return (
            f"duplicates: {table.num_rows} of {sum(sizes)} clips, by {model.name} at {threshold:g}, "
            f"{vectors.how(max(sizes, default=0), self.config.index)}"
        )

    def _compared(self) -> list[str]:
        return blocks(self.run, self.copies[0].name) if self.copies else []

    def _sizes(self, model: EmbeddingConfig) -> list[int]:
        return [footer.num_rows for footer in _footers([f"{place}.parquet" for place in blocks(self.run, model.name)])]

    def _pairs(self, units: Sequence[str], new: set[str]) -> tuple[duplicates.Pairs, pa.Table]:
        """The pairs with a clip of a new unit in them, and their clips (`clip_id`, `new`) in order of `BEST`.

        The clip that was kept of a decided clip's group is among them too.
        """
        place = storage.join(self.run, "index", "pairs")
        held = {place.rsplit("/", 1)[1]: bool(new & set(units_of(f"{place}.parquet"))) for place in self._compared()}
        pairs, room = duplicates.PAIRS.empty_table(), ROOM
        for name in storage.names(place, ".parquet"):
            if any(held[block] for block in name.removesuffix(".parquet").split("+")):
                with storage.open_read(storage.join(place, name)) as file:
                    pairs = pa.concat_tables([pairs, pq.read_table(file).replace_schema_metadata(None)])
            if pairs.num_rows > room:
                pairs = duplicates.thinned(pairs)
                room = 2 * max(ROOM, pairs.num_rows)
        query = f"""
            WITH mentioned AS (SELECT clip_id FROM pairs UNION SELECT other_id FROM pairs),
                 whole AS (FROM mentioned UNION SELECT duplicate_of FROM decided JOIN mentioned USING (clip_id))
            SELECT clip_id, unit IN (SELECT unit FROM new_units) AS new
            FROM clips SEMI JOIN whole USING (clip_id)
            JOIN sources USING (source_id)
            ORDER BY {duplicates.BEST}"""
        of_clips, of_sources = ("clip_id", "source_id", *duplicates.OF_CLIP), ("source_id", "unit", *duplicates.OF_SOURCE)
        with storage.database() as connection:
            connection.register("pairs", pairs)
            connection.register("decided", storage.read_table(storage.join(self.run, "duplicates"), DUPLICATES))
            connection.register("new_units", pa.table({"unit": sorted(new)}))
            connection.register("clips", stream(self.run, "clips", units if pairs.num_rows else (), CLIPS, of_clips))
            connection.register("sources", stream(self.run, "sources", units if pairs.num_rows else (), SOURCES, of_sources))
            facts = connection.sql(query).to_arrow_table().combine_chunks()
        ends = [pc.index_in(pairs[name], facts["clip_id"].combine_chunks()).to_numpy() for name in ("clip_id", "other_id")]
        a, b = (np.asarray(function(*ends), np.int64) for function in (np.minimum, np.maximum))
        return duplicates.Pairs(a, b, pairs["similarity"].to_numpy()), facts

    def train(self) -> str | None:
        """Write the centroids of the run's concepts where there are none yet; a line for people."""
        if self.meaning is None:
            return None
        same = storage.read_table(storage.join(self.run, "duplicates"), DUPLICATES, ["clip_id"])["clip_id"].combine_chunks()
        number = clusters.number(self.config.clusters, max(0, sum(self._sizes(self.meaning)) - len(same)))
        known = storage.read_table(storage.join(self.run, "index", "centroids"), clusters.CENTROIDS).num_rows
        if known:
            few = (
                f"clusters: {known}, trained when the run had fewer clips; now there would be {number}: to begin anew, remove "
            )
            return f"{few}index/centroids and concepts" if number > 2 * known else None
        sampler = clusters.Sampler(clusters.SAMPLE * number, self.config.seed)
        for block in self.blocks(self.meaning):
            sampler.add(vectors.load(storage.join(_index(self.run, self.meaning.name), block)), same)
        number = min(number, len(sampler.vectors))
        if not number:
            return "clusters: none: no clip has a vector"
        centroids = clusters.train(sampler.vectors, number, self._same(), self.config.seed)
        self.write("index/centroids", "centroids", clusters.centroids_table(centroids))
        self.made_by["concepts"] = self.made_by["clusters"] = {
            **(self.made_by["concepts"] or {}),
            "centroids": self._centroids(),
        }
        few = f" ({self.config.clusters.number} were asked for)" if (self.config.clusters.number or 0) > number else ""
        return f"clusters: {number} by {self.meaning.name}{few}, {int(centroids.cluster.max()) + 1} concepts"

    def describe(self) -> None:
        """Write `clusters/`: the size, weight, tightness and exemplars of every concept of the run."""
        if self.meaning is None:
            return
        with storage.database() as connection:
            connection.register("concepts", concepts(self.run))
            same = storage.read_table(storage.join(self.run, "duplicates"), DUPLICATES, ["clip_id"])
            connection.register("duplicates", same)
            table = connection.sql(clusters.CLUSTERED).to_arrow_table().cast(CLUSTERS)
        self.write("clusters", "clusters", table)


class Worker:
    """What the three have in common: no result depends on FAISS's number of threads."""

    name = ""

    def __init__(self, content: Content, threads: int) -> None:
        self.content = content
        self.threads = threads

    def open(self) -> None:
        import faiss

        faiss.omp_set_num_threads(self.threads)

    def close(self) -> None:
        pass

    def __call__(self, item: Item) -> Item:
        raise NotImplementedError


class Index(Worker):
    """Makes blocks of vectors that can be searched."""

    name = "index"

    def __call__(self, item: Item) -> Item:
        attempts.at()
        run, made_by = self.content.run, self.content.made_by[f"index/blocks/{item['model']}"]
        place = storage.join(_index(run, item["model"]), item["block"])
        unusable = 0
        if not storage.exists(f"{place}.parquet"):
            ids, found, unusable = vectors.read(embed.folder(run, item["model"]), item["units"])
            metadata = {MADE_OF: json.dumps(made_by, sort_keys=True).encode(), **of_units(item["units"])}
            facts = _facts(run, item["units"], ids).replace_schema_metadata(metadata)
            vectors.save(place, vectors.build(ids, found, self.content.config.index), facts)
        return {"block": item["block"], "model": item["model"], "unusable": unusable}


class Compare(Worker):
    """Looks for near-duplicates between two blocks, or within one. Both stay, as the next item may have one of them."""

    name = "compare"

    def open(self) -> None:
        super().open()
        self.held: dict[str, Block] = {}

    def close(self) -> None:
        self.held = {}

    def __call__(self, item: Item) -> Item:
        attempts.at()
        assert self.content.copies is not None, "there is a model that tells copies"
        model, threshold = self.content.copies
        names = (item["beside"], item["block"])
        self.held = {name: block for name, block in self.held.items() if name in names}
        for name in names:
            if name not in self.held:
                self.held[name] = vectors.load(storage.join(_index(self.content.run, model.name), name))
        one, other = (self.held[name] for name in names)
        min_ratio = self.content.config.duplicates.min_ratio
        found = duplicates.pairs(one, None if one is other else other, threshold, min_ratio)
        self.content.write("index/pairs", _pair(item), found)
        return {**item, "pairs": found.num_rows}


class Assign(Worker):
    """Gives a block's clips their concepts, and says how like people's doings they are where that is asked."""

    name = "assign"
    people: Vector | None = None

    def open(self) -> None:
        super().open()
        settings, model = self.content.config.clusters, self.content.meaning
        if settings.people and model is not None:
            loaded = embedding.load(model, f"embeddings.{model.name}")
            assert isinstance(loaded, embedding.OpenClip), "the config was checked"
            self.people = loaded.text(clusters.sentences(settings))

    def close(self) -> None:
        self.people = None

    def __call__(self, item: Item) -> Item:
        attempts.at()
        assert self.content.meaning is not None, "there is a model that is clustered"
        run = self.content.run
        block = vectors.load(storage.join(_index(run, self.content.meaning.name), item["block"]))
        centroids = clusters.centroids_of(storage.read_table(storage.join(run, "index", "centroids")))
        self.content.write("concepts", item["block"], clusters.assign(block, centroids, self.people))
        return item


def blocks(run: str, model: str) -> list[str]:
    """Where the indexed blocks of a model's vectors are (`vectors.load`), in order."""
    place = _index(run, model)
    return [storage.join(place, name.removesuffix(".parquet")) for name in storage.names(place, ".parquet")]


def _index(run: str, model: str) -> str:
    return storage.join(run, "index", "blocks", model)


def _pair(item: Mapping[str, str]) -> str:
    return f"{item['beside']}+{item['block']}"


def _made_by(config: Config, model: EmbeddingConfig) -> dict[str, Any]:
    return {"model": model.decides(), "index": config.index.model_dump(mode="json")}


def _blocks(run: str, model: EmbeddingConfig, units: Sequence[str], first: str, most: int) -> list[list[str]]:
    """These units in blocks of at least `most` clips, but for the last. The run's `first` unit says how wide vectors are."""
    place = embed.folder(run, model.name)
    footers = _footers([storage.join(place, f"{unit}.parquet") for unit in (first, *units)])
    widths = [footer.schema.to_arrow_schema().field("vector").type.list_size for footer in footers]
    blocks: list[list[str]] = []
    room = 0
    for unit, footer, width in zip(units, footers[1:], widths[1:], strict=True):
        if width != widths[0]:
            raise ConfigError(
                f"{place!r}: the vectors of {unit} have {width} numbers, those of {first} have {widths[0]}: the model was "
                "replaced under its name. Give the new one another name, or remove the folder and run again"
            )
        if room <= 0:
            blocks.append([])
            room = most
        blocks[-1].append(unit)
        room -= footer.num_rows
    return blocks


def _footers(urls: Sequence[str]) -> list[pq.FileMetaData]:
    """What Parquet files say of themselves. Raises ConfigError where one is missing."""

    def read(url: str) -> pq.FileMetaData:
        try:
            with storage.open_read(url) as file:
                return pq.read_metadata(file)
        except FileNotFoundError:
            raise ConfigError(f"{url!r} is missing: run `reelset run` again, which embeds what is missing") from None

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, urls))


def _facts(run: str, units: Sequence[str], ids: pa.Array) -> pa.Table:
    """`vectors.FACTS` of these clips, in their order."""
    query = """SELECT clip_id, CAST(md5_number_lower(coalesce(exact_copy_of, source_id)) >> 1 AS BIGINT) AS film,
                      CASE WHEN kind = 'video' THEN coalesce(duration_s, 0) ELSE 0 END AS seconds
               FROM clips JOIN sources USING (source_id)"""
    with storage.database() as connection:
        connection.register("clips", stream(run, "clips", units, CLIPS, ("clip_id", "source_id", "kind", "duration_s")))
        connection.register("sources", stream(run, "sources", units, SOURCES, ("source_id", "exact_copy_of")))
        found = connection.sql(query).to_arrow_table().combine_chunks()
    return found.take(pc.index_in(ids, found["clip_id"].combine_chunks())).cast(vectors.FACTS)
