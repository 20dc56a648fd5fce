-- Each concept: its size, how tight it is, and how many of its clips each subset had, resampled away and kept.
WITH chosen AS (
    SELECT subset, cluster, count(*) FILTER (WHERE kept) AS kept,
           count(*) FILTER (WHERE reason = 'resampled_out') AS resampled_out, count(*) AS clips,
           coalesce(sum(duration_s) FILTER (WHERE kept), 0) / 3600 AS hours_kept
    FROM decided WHERE cluster IS NOT NULL GROUP BY subset, cluster
)
SELECT c.cluster, c.size, c.weight, c.tightness, s.subset, coalesce(s.clips, 0) AS clips,
       coalesce(s.resampled_out, 0) AS resampled_out, coalesce(s.kept, 0) AS kept, coalesce(s.hours_kept, 0E0) AS hours_kept
FROM clusters c LEFT JOIN chosen s ON s.cluster = c.cluster ORDER BY c.size DESC, c.cluster, s.subset NULLS FIRST
