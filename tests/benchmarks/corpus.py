"""The videos that every figure is taken on: a fixed list of real files at 480p, 720p and 1080p, and the machine's name."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HEIGHTS = (480, 720, 1080)
"""Classes by short side: a video counts at the largest of these it reaches."""

FILES = (
    "bbb_480p_30s.mp4",
    "cosmos_video_30s.mp4",
    "fv_ltx2_ai.mp4",
    "mdn_frog.mp4",
    "mdn_monster.mp4",
    "vl_applausing.mp4",
    "ask_jesse_dance.mp4",
    "lp_s18.mp4",
    "sam2_coffee.mp4",
    "sam2_cups.mp4",
    "sam2_dog.mp4",
    "skv_bigbuckbunny.mp4",
    "fv_crush_cube.mp4",
    "libav_bunny_1080p60.mp4",
    "moviepy_smpte2997.mp4",
)
"""Camera, animation and generated video, 24 to 60 frames a second, H.264; six at 480p, six at 720p, three at 1080p."""

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True)
class Video:
    """One file and its class."""

    path: Path
    height: int


def videos(folder: Path | None = None) -> tuple[Path, list[Video]]:
    """The folder used and its videos: those of `FILES`, or all of at least 480p where it has none of them.

    Without `folder`: REELSET_VIDEOS, ../shared/videos, or a generated corpus under build/.
    """
    folder = folder or _folder()
    listed = [folder / name for name in FILES if (folder / name).is_file()]
    found = listed or sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES)
    chosen = [v for v in map(_video, found) if v is not None]
    if not chosen:
        raise SystemExit(f"no video of at least {HEIGHTS[0]}p in {folder}: set REELSET_VIDEOS")
    return folder, chosen


def _folder() -> Path:
    places = [os.environ.get("REELSET_VIDEOS"), "../shared/videos"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    made = Path("build/bench-corpus")
    if not (made / "truth.json").exists():
        from jobs.demo_corpus import make_corpus

        print(f"no folder of videos (REELSET_VIDEOS): making a corpus in {made}")
        make_corpus(made)
    return made


def _video(path: Path) -> Video | None:
    """The file's class; None where it is damaged or smaller than the smallest."""
    from curation.errors import SourceError
    from curation.media import MediaLimits, probe

    try:
        row = probe(str(path), MediaLimits())
    except SourceError:
        return None
    short = min(row["width"], row["height"])
    return Video(path, max(h for h in HEIGHTS if h <= short)) if short >= HEIGHTS[0] else None


def machine() -> str:
    """The machine and the versions that decide the figures, in one line; the load of others too."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("av", "opencv-python-headless", "numpy", "ray"))
    ffmpeg = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB; Python {platform.python_version()}, "
        f"{packages}, ffmpeg {ffmpeg}; load {os.getloadavg()[0]:.1f}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
