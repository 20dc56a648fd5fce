"""The public tables of a run folder: their schemas, in one place.

Scores are float64, null when unmeasured, never NaN. Columns carry their unit in the name. A column whose meaning
changes gets a new name; columns may be added. `FORMAT_VERSION` rises when a reader of the old tables would err.
"""

import pyarrow as pa

FORMAT_VERSION = 1

GRADUAL = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())])

SOURCES = pa.schema(
    [
        ("unit", pa.string()),
        ("source_id", pa.string()),
        ("content_id", pa.string()),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("kind", pa.string()),
        ("container", pa.string()),
        ("video_codec", pa.string()),
        ("audio_codec", pa.string()),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
        ("is_vfr", pa.bool_()),
        ("frames_declared", pa.int64()),
        ("frames", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("pixel_aspect", pa.float64()),
        ("interlaced", pa.bool_()),
        ("bit_depth", pa.int32()),
        ("hdr", pa.bool_()),
        ("full_range", pa.bool_()),
        ("exact_copy_of", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("decode_errors", pa.int32()),
        ("cut_frames", pa.list_(pa.int32())),
        ("cut_times_s", pa.list_(pa.float64())),
        ("gradual", pa.list_(GRADUAL)),
    ]
)
"""One row a raw file. The manifest's own extra columns follow, as strings."""

CLIP_SCORES: tuple[str, ...] = (
    "motion_vmaf",
    "motion_mv",
    "motion_static_frac",
    "jitter_shots_per_s",
    "slideshow_score",
    "border_top_px",
    "border_bottom_px",
    "border_left_px",
    "border_right_px",
    "border_frac",
    "text_score",
    "text_scene_score",
    "text_area_frac",
    "aesthetic",
    "quality_sharpness",
    "quality_exposure",
    "quality_colorfulness",
    "quality_blockiness",
    "face_count_max",
    "people_score",
    "camera_confidence",
)

CAMERA_PAIRS: tuple[str, ...] = (
    "camera_trusted_frac",
    "camera_changed_frac",
    *(f"camera_{axis}{term}" for axis in "uv" for term in ("", "_x", "_y")),
    *(f"camera_{axis}{term}" for axis in "uv" for term in ("_xx", "_xy", "_yy")),
    "camera_inlier_frac",
    "camera_rest_along",
    "camera_rest_across",
    "camera_ahead",
    "camera_still_frac",
    *(f"camera_zone_{axis}_{row}{column}" for axis in "uv" for row in range(3) for column in range(3)),
)
"""What `filters/camera_series.py` keeps of a pair of frames beside its later frame, `camera_frame`."""

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("path", pa.string()),
        ("kind", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("duration_s", pa.float64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        *((name, pa.float64()) for name in CLIP_SCORES),
        ("camera", pa.string()),
        ("camera_code", pa.string()),
    ]
)
"""One row a span of one source; half-open [start_frame, end_frame) in decoded display order."""

SERIES = pa.schema(
    [
        ("source_id", pa.string()),
        # one value a frame; values about a pair of frames stand at the later frame, and are 0 at frame 0
        ("time_s", pa.list_(pa.float64())),
        ("cut_score", pa.list_(pa.float32())),
        ("luma_mean", pa.list_(pa.float32())),
        ("luma_std", pa.list_(pa.float32())),
        ("motion_vmaf", pa.list_(pa.float32())),
        ("changed_frac", pa.list_(pa.float32())),
        ("global_dx_px", pa.list_(pa.float32())),
        ("global_dy_px", pa.list_(pa.float32())),
        ("motion_px", pa.list_(pa.float32())),
        ("picture_step", pa.list_(pa.float32())),
        ("picture_change", pa.list_(pa.float32())),
        ("blend_residual", pa.list_(pa.float32())),
        ("wipe_roughness", pa.list_(pa.float32())),
        ("shot_probability", pa.list_(pa.float32())),
        # one a quarter of a second: which of 24 x 24 cells differ from a quarter of a second before, a bit each
        ("change_map", pa.list_(pa.binary())),
        # one value a pair of frames whose flow is measured; `camera_frame` is the later one
        ("camera_frame", pa.list_(pa.int32())),
        *((name, pa.list_(pa.float32())) for name in CAMERA_PAIRS),
        # one value a sampled frame; `sample_frame` says which
        ("sample_frame", pa.list_(pa.int32())),
        ("border_top", pa.list_(pa.int32())),
        ("border_bottom", pa.list_(pa.int32())),
        ("border_left", pa.list_(pa.int32())),
        ("border_right", pa.list_(pa.int32())),
        ("sharpness", pa.list_(pa.float32())),
        ("exposure", pa.list_(pa.float32())),
        ("colorfulness", pa.list_(pa.float32())),
        ("blockiness", pa.list_(pa.float32())),
    ]
)
"""One row a decoded source: per-frame measures, kept so that another threshold or clip policy needs no decode."""

FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("frame", pa.int64()),
        ("time_s", pa.float64()),
        ("jpeg", pa.binary()),
    ]
)
"""2 to 4 small JPEGs a clip, at most 640 pixels on the long side, upright, square pixels, SDR."""

COSTS = pa.schema(
    [
        ("unit", pa.string()),
        ("stage", pa.string()),
        ("rows", pa.int64()),
        ("cpu_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("bytes", pa.int64()),
        ("peak_mb", pa.float64()),
    ]
)

DUPLICATES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("duplicate_of", pa.string()),
        ("similarity", pa.float64()),
        ("model", pa.string()),
    ]
)
"""One row a clip that is nearly another: the best clip of its group, and the largest cosine to any clip of the group."""

CONCEPTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("cluster", pa.int64()),
        ("similarity", pa.float32()),
        ("people_similarity", pa.float32()),
    ]
)
"""One row a clip with a vector: its concept, its cosine to the nearest of the concept's centroids, and the largest cosine to a
sentence about what people do (null where that was not asked)."""

CLUSTERS = pa.schema(
    [
        ("cluster", pa.int64()),
        ("size", pa.int64()),
        ("weight", pa.float64()),
        ("tightness", pa.float64()),
        ("exemplars", pa.list_(pa.string())),
    ]
)
"""One row a concept of the run, near-duplicates not counted: 1 / sqrt(size), the mean cosine of its clips to the nearest of
its centroids, and up to six clips that are nearest."""

SELECTION = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("cluster", pa.int64()),
        ("weight", pa.float64()),
        ("people", pa.bool_()),
        ("split", pa.string()),
        ("bucket", pa.string()),
        ("bucket_why", pa.string()),
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("judgement", pa.string()),
    ]
)
"""One row a clip of a subset: kept or not, why, and where its sample goes. `judgement` names the row of `review` whose span
and caption the sample has, in subsets that people pick."""

CAPTIONS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("prompt_sha256", pa.string()),
        ("shown_key", pa.string()),
        ("shown_sha256", pa.string()),
        ("sends", pa.string()),
        ("frames_shown", pa.int32()),
        ("caption", pa.string()),
        ("subjects", pa.list_(pa.string())),
        ("actions", pa.list_(pa.string())),
        ("setting", pa.string()),
        ("lighting", pa.string()),
        ("style", pa.string()),
        ("people", pa.string()),
        ("visible_text", pa.list_(pa.string())),
        ("temperature", pa.float64()),
        ("requests", pa.int32()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""One row a clip that was shown to a captioner: what it was shown (the cut's name and sha256), by which prompt, and what it
wrote, or why that is none. Tokens and seconds are sums over all requests that the clip took."""

REVIEWS = pa.schema(
    [
        ("seq", pa.int64()),
        ("judgement", pa.string()),
        ("subset", pa.string()),
        ("clip_id", pa.string()),
        ("who", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("action", pa.string()),
        ("reason", pa.string()),
        ("undoes", pa.string()),
        ("settles", pa.bool_()),
        ("concept", pa.string()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("camera", pa.string()),
        ("shots", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("subjects", pa.list_(pa.string())),
        ("actions", pa.list_(pa.string())),
        ("setting", pa.string()),
        ("lighting", pa.string()),
        ("style", pa.string()),
        ("people", pa.string()),
        ("visible_text", pa.list_(pa.string())),
    ]
)
"""One row a decision of a person, in their order (`seq`), never changed: `action` is accept, reject, skip or undo (of the row
`undoes`). Frames are those of the source, half-open, inside the clip's."""

PRODUCED = pa.schema(
    [
        ("clip_id", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("bucket", pa.string()),
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""One row a planned clip of a subset: written, or why not."""
