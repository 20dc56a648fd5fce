"""The settings of captioning: which models, where they are served, what they are asked."""

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


class ServeConfig(BaseModel):
    """How `reelset caption-servers` starts the vLLM servers of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: PositiveInt = 1
    """Servers of this model."""
    gpus: NonNegativeFloat = 1.0
    """GPUs of one server, all on one node."""
    cpus: NonNegativeFloat = 1.0
    tensor_parallel: PositiveInt = 1
    max_model_len: PositiveInt | None = None
    """Longest context in tokens; None: what the model itself says."""
    limits: dict[str, int] = {"image": 32, "video": 1}
    """Most pictures and videos in one request."""
    python: str | None = None
    """The interpreter of an environment that has vLLM; None: the one that runs this."""
    args: tuple[str, ...] = ()
    """More of vLLM's own arguments, as on its command line."""
    env: dict[str, str] = {}
    """More environment variables of the server. No secrets: these stand in the config."""
    start_s: PositiveFloat = 1800.0
    """How long a server may take until it answers: weights are loaded and graphs compiled."""


class ModelConfig(BaseModel):
    """One captioner: its share of the clips, where it is served, and how a clip is shown to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")
    """The name it is served under, and the `model` of the captions it writes."""
    share: PositiveInt = 1
    """Its part of the clips, against the other models' shares: 70 and 30 as in the paper, or 7 and 3."""
    urls: tuple[str, ...] = ()
    """Servers that run already, as `http://host:port/v1`; empty: those that `reelset caption-servers` started."""
    path: str | None = None
    """What `caption-servers` loads, a hub name or a path; None: `name`."""
    serve: ServeConfig = ServeConfig()
    sends: Literal["video", "file", "frames"] = "video"
    """How a clip is shown: `video` sends the cut clip itself, `file` the URL of a file that the server may read, `frames`
    pictures of it, for models that take no video."""
    frames: PositiveInt = 16
    """Pictures shown with `frames`, spread evenly over the clip."""

    @field_validator("urls")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")) or "@" in url:
                raise ValueError(f"{url!r} is no http(s) URL without a password in it")
        return tuple(url.rstrip("/") for url in urls)


class CaptionConfig(BaseModel):
    """Who captions, how, and with what patience. Without models there are no captions but those of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ModelConfig, ...] = ()
    book: str | None = None
    """The file or URL where `caption-servers` writes the servers' addresses, and where the job reads them."""
    key_env: str = "REELSET_CAPTION_KEY"
    """Name of the environment variable that holds the servers' API key, on every node. The key itself stands nowhere."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two models have one name: {', '.join(twice)}")
        return self
