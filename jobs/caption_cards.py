"""What the report says of captions: who wrote how many at what cost, what failed, and a few with their frames."""

from typing import TYPE_CHECKING, Any

from curation.errors import CODES
from jobs.inspect import rows
from jobs.pictures import middle_frames

if TYPE_CHECKING:
    import duckdb

EXAMPLES = 6
PICTURE_BYTES = 2 << 20


def captions(connection: "duckdb.DuckDBPyConnection", run: str) -> dict[str, Any]:
    """A row a model, a row an error code, and examples that are spread over the models by a hash of the clip."""
    errors = rows(connection, ERRORS)
    examples = rows(connection, f"{SPREAD} LIMIT {EXAMPLES}")
    jpegs, room = middle_frames(connection, run, [row["clip_id"] for row in examples]), PICTURE_BYTES
    for row in examples:
        uri = jpegs.get(row["clip_id"])
        room -= len(uri or "")
        row["uri"] = uri if room >= 0 else None
    return {
        "models": rows(connection, MODELS),
        "errors": [row | {"meaning": CODES.get(row["error_code"], "")} for row in errors],
        "examples": examples,
        "cameras": rows(connection, CAMERAS),
    }


MODELS = """
    SELECT model, count(*) AS n, n / sum(n) OVER () AS part, count(*) FILTER (status = 'ok') AS good,
           count(*) FILTER (requests > 1) AS again, median(len(string_split(caption, ' '))) AS words,
           sum(input_tokens)::BIGINT AS input_tokens, sum(output_tokens)::BIGINT AS output_tokens,
           median(latency_s) AS p50, quantile_cont(latency_s, 0.95) AS p95
    FROM captions GROUP BY 1 ORDER BY n DESC, 1"""
ERRORS = """
    SELECT error_code, model, count(*) AS n, min(error_message) AS example FROM captions WHERE status <> 'ok'
    GROUP BY 1, 2 ORDER BY n DESC, 1, 2"""
SPREAD = """
    SELECT c.clip_id, c.model, c.caption, k.path, k.start_s FROM captions c JOIN clips k USING (clip_id) WHERE c.status = 'ok'
    ORDER BY row_number() OVER (PARTITION BY model ORDER BY md5(c.clip_id)), model"""
CAMERAS = """
    SELECT camera, count(*) AS n FROM clips JOIN (SELECT DISTINCT clip_id FROM captions WHERE status = 'ok') USING (clip_id)
    WHERE camera IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1"""
