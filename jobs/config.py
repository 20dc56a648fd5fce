"""The job's whole configuration: one YAML, unknown keys refused with their path, `--set a.b=c` on top."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bucketing.cut import EncodeConfig
from bucketing.plan import ShardConfig
from captioning.camera import CameraConfig
from captioning.config import CaptionConfig
from curation.clips import ClipConfig
from curation.clusters import ClusterConfig
from curation.duplicates import DuplicateConfig
from curation.embedding import EmbeddingConfig
from curation.engine import EngineConfig
from curation.errors import ConfigError
from curation.media import MediaLimits
from curation.rules import SubsetConfig
from curation.sources import UnitConfig
from curation.vectors import IndexConfig
from filters.aesthetic import AestheticConfig
from filters.faces import FacesConfig
from filters.measure import FramesConfig
from filters.shots import ShotConfig
from filters.text import TextConfig


class Config(BaseModel):
    """Every setting of a run; the resolved form stands in `run.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    """Decides every random draw: spans, splits, quotas, shard order."""
    score_all: bool = False
    """Measure everything, rejected sources and clips that a cheap rule stopped included."""
    error_budget: float = Field(1.0, ge=0, le=1)
    """Largest share of sources in error; above it the job ends with exit code 3."""
    units: UnitConfig = UnitConfig()
    limits: MediaLimits = MediaLimits()
    shots: ShotConfig = ShotConfig()
    clips: ClipConfig = ClipConfig()
    frames: FramesConfig = FramesConfig()
    camera: CameraConfig = CameraConfig()
    faces: FacesConfig = FacesConfig()
    text: TextConfig = TextConfig()
    aesthetic: AestheticConfig = AestheticConfig()
    embeddings: tuple[EmbeddingConfig, ...] = (EmbeddingConfig(name="layout", kind="layout"),)
    """Models that embed every clip; another one, added later, reads the kept frames."""
    index: IndexConfig = IndexConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    clusters: ClusterConfig = ClusterConfig()
    subsets: tuple[SubsetConfig, ...] = Field(("everyday",), min_length=1, validate_default=True)
    encode: EncodeConfig = EncodeConfig()
    caption: CaptionConfig = CaptionConfig()
    shards: ShardConfig = ShardConfig()
    engine: EngineConfig = EngineConfig()

    @field_validator("embeddings")
    @classmethod
    def _apart(cls, models: tuple[EmbeddingConfig, ...]) -> tuple[EmbeddingConfig, ...]:
        names = [model.name for model in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two models have one name: {', '.join(twice)}")
        return models

    def decides(self) -> dict[str, dict[str, Any]]:
        """The settings that decide each part of the path; the engine, limits of time and addresses belong to none."""
        tree = self.model_dump(mode="json")
        subsets = {s["name"]: s for s in tree["subsets"]}
        gates = {} if self.score_all else {n: {k: s[k] for k in RULE_LISTS} for n, s in subsets.items()}
        measured = {k: tree[k] for k in ("seed", "score_all", "shots", "clips", "frames")}
        for scorer in (self.camera, self.faces, self.text, self.aesthetic):
            measured[scorer.__class__.__name__.removesuffix("Config").lower()] = scorer.model_dump(
                mode="json", exclude=set(scorer.RESOURCES)
            )
        return {
            "analyze": {**measured, "gates": gates},
            "select": {"subsets": subsets, **{k: tree[k] for k in ("seed", "shards", "index", "duplicates", "clusters")}},
            "produce": {"encode": tree["encode"]} | ({"caption": self.caption.decides()} if self.caption.models else {}),
        }


RULE_LISTS = ("source_rules", "clip_rules", "image_rules")


def load(file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file (or the defaults) with `a.b=c` overrides.

    Raises ConfigError naming the file and the key of every fault.
    """
    return resolve(tree(file, overrides))


def tree(file: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of a YAML file, unchecked, with `a.b=c` on top. Raises ConfigError where it is no mapping."""
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = yaml.safe_load(file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"config {str(file)!r}: {error}") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"config {str(file)!r}: must be a mapping of settings")
    for override in overrides:
        apply(settings, override)
    return settings


def resolve(settings: dict[str, Any]) -> Config:
    """Check a tree of settings; a subset may be the name of a shipped list, a YAML file, or a mapping."""
    try:
        named = settings.get("subsets", ["everyday"])
        named = [named] if isinstance(named, str) else named
        return Config.model_validate({**settings, "subsets": [_subset(s) for s in named]})
    except ValidationError as error:
        faults = [f"  {'.'.join(str(p) for p in e['loc']) or '(whole)'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("the config is wrong:\n" + "\n".join(faults)) from error


def _subset(given: Any) -> Any:
    return rule_list(given).model_dump() if isinstance(given, str) else given


def shipped_lists() -> list[str]:
    """Names of the rule lists that come with the package."""
    folder = files("jobs") / "configs" / "subsets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def rule_list(name: str) -> SubsetConfig:
    """A shipped rule list by name, or one in a YAML file of the user's (its name is the file's stem)."""
    place = Path(name)
    if name in shipped_lists():
        text = (files("jobs") / "configs" / "subsets" / f"{name}.yaml").read_text()
    elif place.suffix in (".yaml", ".yml") and place.is_file():
        text = place.read_text()
    else:
        raise ConfigError(f"subset {name!r} is neither a shipped list ({', '.join(shipped_lists())}) nor a YAML file")
    try:
        tree = yaml.safe_load(text)
        return SubsetConfig.model_validate({"name": place.stem, **tree})
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"rule list {name!r}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"rule list {name!r}: {faults}") from error


def apply(settings: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into a tree of settings."""
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override!r}: write it as a.b=value")
    *path, last = key.strip().split(".")
    place = settings
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is no group of settings")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {error}") from error
