"""The error classes, named by how far a failure reaches, and the one table of error codes.

ConfigError   nothing starts: a setting, a missing package, binary or weight file
SourceError   one source becomes an error row; the job goes on
ClipError     one clip becomes an error row (or one scorer's columns null with a code); the job goes on
StageError    one unit of work failed; it is tried again a bounded number of times
"""

CODES: dict[str, str] = {
    "missing": "the file named by a manifest does not exist",
    "unreadable": "the file or folder exists but may not be read",
    "empty": "the file has zero bytes",
    "not_media": "the content is no known video or image container",
    "unsupported_format": "a container that may refer to other files (playlist, concat list, manifest) is refused",
    "no_video_stream": "the container holds no video stream (audio only, data only)",
    "no_decoder": "no decoder for the video codec",
    "bad_header": "the container opens but its header is damaged (no size, no time base, no index)",
    "zero_frames": "decoding ended without a single frame",
    "decode_failed": "decoding broke off; fewer frames than the limit allows came out",
    "too_large": "width, height or byte count is above the limits",
    "too_long": "duration or frame count is above the limits",
    "timeout": "no progress within limits.stall_s, or more than limits.source_s in all; the child process was killed",
    "memory": "the decoding process went over limits.memory_mb",
    "worker_died": "the worker died each time it was at this source; it was given up after three deaths",
    "crashed": "the decoding process died (a signal, or an abnormal exit)",
    "disk": "no space, or a read-only place, for temporary data: the job ends, and the next one goes on",
    "read_failed": "the storage failed while the source was read",
    "encode_failed": "the cut could not be encoded",
    "frames_missing": "the cut came out with fewer frames than planned",
    "caption_empty": "the captioner wrote nothing, or hardly a word",
    "caption_truncated": "the captioner did not come to an end within caption.max_tokens",
    "caption_malformed": "the captioner's answer is not the JSON it was asked for",
    "caption_refused": "the captioner refused",
    "caption_repeated": "the captioner repeats itself",
    "caption_language": "the caption is in another language than caption.language",
    "caption_echo": "the captioner repeats the prompt",
    "caption_context": "the clip does not fit the captioner's context, not even with one picture",
    "caption_undecodable": "the server of the captioner refuses this clip",
    "caption_failed": "the server of the captioner fails on this clip every time, and on others not",
    "caption_mismatch": "the caption was written for other pictures than those of this sample: it is not used",
    "caption_missing": "there is no caption for this clip yet",
    "servers_down": "no server of a captioner answered for caption.wait_s",
    "scorer_failed": "one scorer failed on this clip; its columns are null",
    "internal": "an unexpected failure of our own code; the message has the exception",
    "stage_failed": "the unit failed in every attempt",
    "lock_lost": "another process took over the run folder's lock",
}


class ReelsetError(Exception):
    """Base of every error a user may see."""


class ConfigError(ReelsetError):
    """Nothing was started: the message names the setting, package, binary or weight file to fix."""


class CodedError(ReelsetError):
    """An error with a code of `CODES` and a message for people."""

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, f"unknown error code {code!r}"
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class SourceError(CodedError):
    """One source cannot be used. It becomes a row with status `error`."""


class ClipError(CodedError):
    """One clip, or one scorer on one clip, failed. It becomes a row with a code."""


class StageError(CodedError):
    """One unit of work failed as a whole (storage, a lost worker): it may be tried again."""
