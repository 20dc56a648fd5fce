-- Clips and hours of each subset, split and bucket: planned, and written into shards.
WITH planned AS (
    SELECT subset, split, bucket, count(*) AS clips, coalesce(sum(duration_s), 0) / 3600 AS hours, count(DISTINCT shard) AS shards
    FROM decided WHERE kept GROUP BY subset, split, bucket
), written AS (
    SELECT subset, split_part(shard, '/', 1) AS split, bucket, count(*) FILTER (WHERE status = 'ok') AS samples,
           count(*) FILTER (WHERE status <> 'ok') AS failed,
           coalesce(sum(frames / nullif(fps, 0)) FILTER (WHERE status = 'ok'), 0) / 3600 AS hours,
           CAST(coalesce(sum(bytes) FILTER (WHERE status = 'ok'), 0) AS BIGINT) AS bytes
    FROM produced GROUP BY subset, split_part(shard, '/', 1), bucket
)
SELECT p.subset, p.split, p.bucket, p.clips AS planned, p.shards, p.hours AS hours_planned, coalesce(w.samples, 0) AS written,
       coalesce(w.failed, 0) AS failed, coalesce(w.hours, 0E0) AS hours_written, coalesce(w.bytes, 0) AS bytes
FROM planned p LEFT JOIN written w ON w.subset = p.subset AND w.split = p.split AND w.bucket = p.bucket
ORDER BY p.subset, p.split, p.bucket
