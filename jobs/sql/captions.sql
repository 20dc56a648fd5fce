-- Good captions of each model: how long they are, how many tokens and how much time they took.
WITH good AS (
    SELECT model, length(caption) AS characters, length(caption) - length(replace(caption, ' ', '')) + 1 AS words,
           input_tokens, output_tokens, requests, latency_s
    FROM captions WHERE status = 'ok' AND caption IS NOT NULL
), ranked AS (
    SELECT model, words, row_number() OVER (PARTITION BY model ORDER BY words) AS place, count(*) OVER (PARTITION BY model) AS n
    FROM good
), middle AS (
    SELECT model, min(CASE WHEN place >= n * 0.05E0 THEN words END) AS p05,
           min(CASE WHEN place >= n * 0.5E0 THEN words END) AS p50, min(CASE WHEN place >= n * 0.95E0 THEN words END) AS p95
    FROM ranked GROUP BY model
)
SELECT g.model, count(*) AS captions, avg(g.words) AS words_mean, CAST(m.p05 AS BIGINT) AS words_p05,
       CAST(m.p50 AS BIGINT) AS words_p50, CAST(m.p95 AS BIGINT) AS words_p95, CAST(min(g.words) AS BIGINT) AS words_min,
       CAST(max(g.words) AS BIGINT) AS words_max, avg(g.characters) AS characters_mean,
       count(*) FILTER (WHERE g.requests > 1) AS asked_again, CAST(sum(g.input_tokens) AS BIGINT) AS input_tokens,
       CAST(sum(g.output_tokens) AS BIGINT) AS output_tokens, avg(g.latency_s) AS latency_mean_s
FROM good g JOIN middle m ON m.model = g.model OR (m.model IS NULL AND g.model IS NULL)
GROUP BY g.model, m.p05, m.p50, m.p95 ORDER BY captions DESC, g.model NULLS LAST
