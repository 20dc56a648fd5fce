-- The hundred sources of each subset that lost the most hours, and the reason that took most of them.
WITH reasons AS (
    SELECT subset, source_id, reason, count(*) AS clips, coalesce(sum(CAST(floor(duration_s * 1000 + 0.5E0) AS BIGINT)), 0) AS ms
    FROM decided GROUP BY subset, source_id, reason
), largest AS (
    SELECT subset, source_id, reason, ms, clips,
           row_number() OVER (PARTITION BY subset, source_id ORDER BY reason = 'kept', ms DESC, clips DESC, reason) AS place
    FROM reasons
), lost AS (
    SELECT subset, source_id, CAST(sum(clips) AS BIGINT) AS clips,
           CAST(sum(CASE WHEN reason = 'kept' THEN clips ELSE 0 END) AS BIGINT) AS kept,
           sum(CASE WHEN reason = 'kept' THEN 0 ELSE ms END) AS ms_lost, max(CASE WHEN place = 1 THEN reason END) AS main_reason
    FROM largest GROUP BY subset, source_id
), ranked AS (
    SELECT subset, source_id, clips, kept, ms_lost, main_reason,
           row_number() OVER (PARTITION BY subset ORDER BY ms_lost DESC, source_id) AS place
    FROM lost WHERE kept < clips
)
SELECT r.subset, r.source_id, s.path, s.video_codec, r.clips, r.kept, r.ms_lost / 3600000 AS hours_lost, r.main_reason
FROM ranked r LEFT JOIN sources s ON s.source_id = r.source_id
WHERE r.place <= 100 ORDER BY r.subset, r.place
