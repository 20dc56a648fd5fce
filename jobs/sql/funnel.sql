-- What each step of a subset's list took away, and what was left after it, in clips and hours.
WITH reasons AS (
    SELECT subset, kind, reason, count(*) AS clips, coalesce(sum(duration_s), 0) / 3600 AS hours
    FROM decided GROUP BY subset, kind, reason
), placed AS (
    SELECT r.subset, r.kind, coalesce(s.step, r.reason) AS step, coalesce(s.fate, 'dropped') AS fate, r.clips, r.hours,
           CASE WHEN r.reason LIKE 'error:%' THEN -1 WHEN r.reason = 'kept' THEN 9999 ELSE coalesce(s.place, 9998) END AS place
    FROM reasons r LEFT JOIN steps s ON s.subset = r.subset AND s.kind = r.kind AND s.reason = r.reason
), present AS (
    SELECT DISTINCT subset, kind FROM reasons
), every AS (
    SELECT subset, kind, step, place, fate, clips, hours FROM placed
    UNION ALL
    SELECT s.subset, s.kind, s.step, s.place, s.fate, 0, 0 FROM steps s JOIN present p ON p.subset = s.subset AND p.kind = s.kind
    WHERE s.about LIKE '%rule'
), summed AS (
    SELECT subset, kind, place, step, CAST(coalesce(sum(clips) FILTER (WHERE fate = 'dropped'), 0) AS BIGINT) AS dropped,
           CAST(coalesce(sum(clips) FILTER (WHERE fate = 'unknown'), 0) AS BIGINT) AS unknown, CAST(sum(clips) AS BIGINT) AS clips,
           sum(hours) AS hours
    FROM every GROUP BY subset, kind, place, step
), ordered AS (
    SELECT subset, kind, place, step, dropped, unknown, hours,
           sum(clips) OVER (PARTITION BY subset, kind ORDER BY place DESC, step DESC ROWS UNBOUNDED PRECEDING) - clips AS after,
           sum(hours) OVER (PARTITION BY subset, kind ORDER BY place DESC, step DESC ROWS UNBOUNDED PRECEDING) - hours AS hours_after
    FROM summed
)
SELECT subset, kind, step, CASE WHEN place = 9999 THEN 0 ELSE dropped END AS dropped, unknown,
       CASE WHEN place = 9999 THEN 0E0 ELSE hours END AS hours_gone,
       CAST(CASE WHEN place = 9999 THEN dropped ELSE after END AS BIGINT) AS clips_left,
       CASE WHEN place = 9999 THEN hours ELSE hours_after END AS hours_left
FROM ordered ORDER BY subset, kind, place, step
