-- Each score of the clips that are not in error: how many have it, its mean and its exact quantiles.
WITH totals AS (
    SELECT score, kind, count(*) AS clips, count(value) AS measured, avg(value) AS mean, min(value) AS low, max(value) AS high
    FROM scores GROUP BY score, kind
), ranked AS (
    SELECT score, kind, value, row_number() OVER (PARTITION BY score, kind ORDER BY value) - 1 AS place
    FROM scores WHERE value IS NOT NULL
), shares AS (
    SELECT share FROM (VALUES (0.01E0), (0.05E0), (0.25E0), (0.5E0), (0.75E0), (0.95E0), (0.99E0)) AS given (share)
), wanted AS (
    SELECT score, kind, share, share * (measured - 1) AS at, CAST(floor(share * (measured - 1)) AS BIGINT) AS below
    FROM totals CROSS JOIN shares WHERE measured > 0
), quantiles AS (
    SELECT w.score, w.kind, w.share, min(r.value) + (w.at - w.below) * (max(r.value) - min(r.value)) AS value
    FROM wanted w JOIN (SELECT score, kind, value, place FROM ranked
                        UNION ALL SELECT score, kind, value, place - 1 FROM ranked WHERE place > 0) r
        ON r.score = w.score AND r.kind = w.kind AND r.place = w.below
    GROUP BY w.score, w.kind, w.share, w.at, w.below
)
SELECT t.score, t.kind, t.clips, t.measured, t.mean, t.low,
       max(q.value) FILTER (WHERE q.share = 0.01E0) AS p01, max(q.value) FILTER (WHERE q.share = 0.05E0) AS p05,
       max(q.value) FILTER (WHERE q.share = 0.25E0) AS p25, max(q.value) FILTER (WHERE q.share = 0.5E0) AS p50,
       max(q.value) FILTER (WHERE q.share = 0.75E0) AS p75, max(q.value) FILTER (WHERE q.share = 0.95E0) AS p95,
       max(q.value) FILTER (WHERE q.share = 0.99E0) AS p99, t.high
FROM totals t LEFT JOIN quantiles q ON q.score = t.score AND q.kind = t.kind
GROUP BY t.score, t.kind, t.clips, t.measured, t.mean, t.low, t.high ORDER BY t.score, t.kind
