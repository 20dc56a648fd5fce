-- Each rule by itself: what passes it, what it drops in its place in the list, and what no other rule would drop.
WITH patterns AS (
    SELECT subset, kind, pattern, count(*) AS clips, coalesce(sum(duration_s), 0) / 3600 AS hours
    FROM verdicts GROUP BY subset, kind, pattern
), judged AS (
    SELECT r.subset, r.kind, r.place, r.step AS rule, p.clips, p.hours, substr(p.pattern, r.place, 1) AS verdict,
           length(replace(substr(p.pattern, 1, r.place - 1), 'p', '')) = 0 AS reached,
           length(replace(p.pattern, 'p', '')) = 1 AS only_one
    FROM patterns p JOIN steps r ON r.subset = p.subset AND r.kind = p.kind
    WHERE r.about LIKE '%rule' AND r.fate = 'dropped'
)
SELECT subset, kind, rule,
       CAST(sum(CASE WHEN verdict = 'p' THEN clips ELSE 0 END) AS BIGINT) AS passes,
       CAST(sum(CASE WHEN verdict = 'f' THEN clips ELSE 0 END) AS BIGINT) AS fails,
       CAST(sum(CASE WHEN verdict = 'u' THEN clips ELSE 0 END) AS BIGINT) AS unknown,
       sum(CASE WHEN verdict = 'p' THEN clips ELSE 0 END)
           / nullif(sum(CASE WHEN verdict <> 'u' THEN clips ELSE 0 END), 0) AS pass_share,
       CAST(sum(CASE WHEN reached THEN clips ELSE 0 END) AS BIGINT) AS reached,
       CAST(sum(CASE WHEN reached AND verdict <> 'p' THEN clips ELSE 0 END) AS BIGINT) AS stopped_here,
       CAST(sum(CASE WHEN only_one AND verdict <> 'p' THEN clips ELSE 0 END) AS BIGINT) AS stopped_only_here,
       sum(CASE WHEN only_one AND verdict <> 'p' THEN hours ELSE 0E0 END) AS hours_only_here
FROM judged GROUP BY subset, kind, place, rule ORDER BY subset, kind, place
