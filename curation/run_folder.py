"""The run folder's front page, `run.json`: the resolved config, versions and fingerprints, and who may go on with it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from curation import storage
from curation.errors import ConfigError
from curation.tables import FORMAT_VERSION

PACKAGES = (
    *("reelset", "av", "numpy", "scipy", "faiss-cpu", "opencv-python-headless", "pyarrow", "duckdb", "ray"),
    *("scenedetect-headless", "rapidocr"),
)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a tree of settings, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed between two trees of settings, a line a setting."""
    before, after = flatten(old), flatten(new)
    keys = [k for k in sorted(before | after) if before.get(k, "(unset)") != after.get(k, "(unset)")]
    return "\n".join(f"  {k}: {before.get(k, '(unset)')!r} -> {after.get(k, '(unset)')!r}" for k in keys)


def read(run: str) -> dict[str, Any]:
    """The run's `run.json`. Raises ConfigError where the folder is no run, or one of another format version."""
    place = storage.join(run, "run.json")
    if not storage.exists(place):
        raise ConfigError(f"{run!r} is no run folder: it has no run.json")
    page: dict[str, Any] = json.loads(storage.read_bytes(place))
    if page.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{run!r} has format version {page.get('format_version')}; this reelset reads and writes {FORMAT_VERSION}"
        )
    return page


def resume(run: str, decides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The `run.json` of a folder to go on with, None for a new one; nothing is written yet.

    `decides` has the settings that decide each part (`analyze`, `select`, `produce`). Raises ConfigError for a folder
    that is no run, and for one whose *analyze* settings differ, with the difference: its measures would mean two things.
    """
    if storage.exists(storage.join(run, "run.json")):
        page = read(run)
        check(page, run, decides, "analyze")
        return page
    if storage.names(run):
        raise ConfigError(f"output {run!r} exists and is no run folder: give an empty or a new folder")
    return None


def write(run: str, config: Mapping[str, Any], decides: Mapping[str, Mapping[str, Any]]) -> None:
    """Commit `run.json`."""
    page = {
        "format_version": FORMAT_VERSION,
        "seed": config.get("seed"),
        "config": config,
        "decides": decides,
        "fingerprints": {part: fingerprint(settings) for part, settings in decides.items()},
        "versions": {"python": platform.python_version(), **_versions()},
    }
    storage.write_bytes(storage.join(run, "run.json"), json.dumps(page, indent=2, sort_keys=True).encode())


def check(page: Mapping[str, Any], run: str, decides: Mapping[str, Mapping[str, Any]], part: str) -> None:
    """Refuse to go on where the settings that decide `part` are not those the run was made with."""
    old, new = page["decides"][part], decides[part]
    if fingerprint(old) != fingerprint(new):
        raise ConfigError(
            f"{run!r} was made with other settings of {part}:\n{difference(old, new)}\n"
            "Use the old settings, or another output folder."
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
