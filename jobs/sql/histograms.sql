-- Each score of the clips that are not in error in 24 bins; a long tail goes into the last one.
WITH counted AS (
    SELECT score, count(*) AS clips, min(value) AS low, max(value) AS high FROM scores WHERE value IS NOT NULL GROUP BY score
), ranked AS (
    SELECT score, value, row_number() OVER (PARTITION BY score ORDER BY value) - 1 AS place FROM scores WHERE value IS NOT NULL
), tails AS (
    SELECT c.score, min(c.low) AS low, min(c.high) AS high, min(r.value) AS p99
    FROM counted c JOIN ranked r ON r.score = c.score AND r.place = CAST(floor(0.99E0 * (c.clips - 1)) AS BIGINT)
    GROUP BY c.score
), edges AS (
    SELECT score, low, (CASE WHEN high - low > 4 * (p99 - low) AND p99 > low THEN p99 WHEN high > low THEN high
                        ELSE low + 1 END - low) / 24 AS width
    FROM tails
), binned AS (
    SELECT s.score, CAST(least(23E0, floor((s.value - e.low) / e.width)) AS INT) AS bin, count(*) AS clips
    FROM scores s JOIN edges e ON e.score = s.score WHERE s.value IS NOT NULL
    GROUP BY s.score, CAST(least(23E0, floor((s.value - e.low) / e.width)) AS INT)
)
SELECT b.score, b.bin, e.low + b.bin * e.width AS bin_from, e.low + (b.bin + 1) * e.width AS bin_to, b.clips
FROM binned b JOIN edges e ON e.score = b.score ORDER BY b.score, b.bin
