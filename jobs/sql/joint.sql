-- Joint survival: of every two rules of a list, how many clips pass each and both.
WITH patterns AS (
    SELECT subset, kind, pattern, count(*) AS clips FROM verdicts GROUP BY subset, kind, pattern
), rules AS (
    SELECT subset, kind, place, step AS rule FROM steps WHERE about LIKE '%rule' AND fate = 'dropped'
), pairs AS (
    SELECT a.subset, a.kind, a.place AS place_a, b.place AS place_b, a.rule AS rule_a, b.rule AS rule_b, p.clips,
           substr(p.pattern, a.place, 1) = 'p' AS pass_a, substr(p.pattern, b.place, 1) = 'p' AS pass_b
    FROM rules a JOIN rules b ON b.subset = a.subset AND b.kind = a.kind AND b.place > a.place
    JOIN patterns p ON p.subset = a.subset AND p.kind = a.kind
)
SELECT subset, kind, rule_a, rule_b, CAST(sum(clips) AS BIGINT) AS clips,
       CAST(sum(CASE WHEN pass_a THEN clips ELSE 0 END) AS BIGINT) AS pass_a,
       CAST(sum(CASE WHEN pass_b THEN clips ELSE 0 END) AS BIGINT) AS pass_b,
       CAST(sum(CASE WHEN pass_a AND pass_b THEN clips ELSE 0 END) AS BIGINT) AS pass_both,
       sum(CASE WHEN pass_a AND pass_b THEN clips ELSE 0 END) * sum(clips)
           / nullif(1E0 * sum(CASE WHEN pass_a THEN clips ELSE 0 END) * sum(CASE WHEN pass_b THEN clips ELSE 0 END), 0) AS lift
FROM pairs GROUP BY subset, kind, place_a, place_b, rule_a, rule_b ORDER BY subset, kind, place_a, place_b
