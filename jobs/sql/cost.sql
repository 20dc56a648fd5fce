-- What each stage cost, in all and for each hour that each subset keeps.
WITH stages AS (
    SELECT stage, CAST(sum(rows) AS BIGINT) AS n, sum(cpu_s) AS cpu_s, sum(wall_s) AS wall_s, max(peak_mb) AS peak_mb
    FROM costs GROUP BY stage
), totals AS (
    SELECT '(all)' AS stage, CAST(sum(n) AS BIGINT) AS n, sum(cpu_s) AS cpu_s, sum(wall_s) AS wall_s, max(peak_mb) AS peak_mb
    FROM stages
), kept AS (
    SELECT subset, coalesce(sum(duration_s), 0) / 3600 AS hours FROM decided WHERE kept GROUP BY subset
), every AS (
    SELECT stage, n, cpu_s, wall_s, peak_mb FROM stages UNION ALL SELECT stage, n, cpu_s, wall_s, peak_mb FROM totals WHERE n IS NOT NULL
)
SELECT e.stage, e.n AS rows_done, e.cpu_s, e.wall_s, e.peak_mb, k.subset, k.hours AS hours_kept,
       e.cpu_s / nullif(k.hours, 0) AS cpu_s_per_kept_hour, e.wall_s / nullif(k.hours, 0) AS wall_s_per_kept_hour
FROM every e LEFT JOIN kept k ON TRUE ORDER BY e.stage, k.subset NULLS FIRST
