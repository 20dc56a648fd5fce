-- What became of the clips of each container and codec, in each subset.
WITH joined AS (
    SELECT d.subset, coalesce(s.container, 'unknown') AS container, coalesce(s.video_codec, 'unknown') AS video_codec, d.reason,
           d.source_id, d.duration_s
    FROM decided d LEFT JOIN sources s ON s.source_id = d.source_id
), summed AS (
    SELECT subset, container, video_codec, reason, count(*) AS clips, count(DISTINCT source_id) AS sources,
           coalesce(sum(duration_s), 0) / 3600 AS hours
    FROM joined GROUP BY subset, container, video_codec, reason
)
SELECT subset, container, video_codec, reason, clips, sources, hours,
       clips / sum(clips) OVER (PARTITION BY subset, container, video_codec) AS share
FROM summed ORDER BY subset, container, video_codec, clips DESC, reason
