-- How captioning ended: a row a model and error code.
WITH summed AS (
    SELECT model, status, error_code, count(*) AS clips, min(error_message) AS example, avg(latency_s) AS latency_mean_s
    FROM captions GROUP BY model, status, error_code
)
SELECT model, status, error_code, clips, clips / sum(clips) OVER (PARTITION BY model) AS share, example, latency_mean_s
FROM summed ORDER BY model NULLS LAST, clips DESC, status, error_code NULLS FIRST
