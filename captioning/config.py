"""The settings of captioning: which models, where they are served, what they are asked."""

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
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
    frames: PositiveInt | None = None
    """Pictures of a clip that the model is shown, spread evenly over it, half as many each time they do not fit its context.
    None: the whole cut, of which the server takes what it wants, or 16 with `sends: frames`."""


class CaptionConfig(BaseModel):
    """Who captions, how, and with what patience. Without models there are no captions but those of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ModelConfig, ...] = ()
    book: str | None = None
    """The file or URL where `caption-servers` writes the servers' addresses, and where the job reads them."""
    key_env: str = "REELSET_CAPTION_KEY"
    """Name of the environment variable that holds the servers' API key, on every node. The key itself stands nowhere."""
    files: str | None = None
    """Folder that servers may read (vLLM's `--allowed-local-media-path`), for models with `sends: file`."""
    prompt: str = "caption-v1"
    """A shipped prompt by name, or a text file."""
    language: str | None = Field("en", pattern="^[a-z]{2}$")
    """The language that captions must be in (ISO 639-1), as the prompt asks; None: any."""
    temperature: float = Field(0.2, ge=0, le=2)
    second_temperature: float = Field(0.8, ge=0, le=2)
    """Of the second and last try, where an answer was no good."""
    max_tokens: PositiveInt = 768
    """Longest answer. A caption of 100 words and its fields take some 300."""
    timeout_s: PositiveFloat = 300.0
    """Longest wait for one answer."""
    attempts: PositiveInt = 3
    """Failures of a server over one clip, while it answers others, after which the clip is given up."""
    most_at_once: PositiveInt = 256
    """Most requests at once of one worker to one server; how many there are is found out on the way."""
    wait_s: PositiveFloat = 1800.0
    """How long all servers of a model may be away before the job ends. What is done stays; the next one goes on."""
    text: str = "{fps} {camera} {caption}"
    """The training text of a video clip. `{fps}` is the token `FPS-16`, `{camera}` the camera's motion in words."""
    camera_confidence: float = Field(0.8, ge=0, le=1)
    """Least `camera_confidence` of a clip for its camera label to stand in the training text."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two models have one name: {', '.join(twice)}")
        if self.files is None and any(model.sends == "file" for model in self.models):
            raise ValueError("a model with `sends: file` needs `caption.files`, a folder that its servers may read")
        try:
            self.text.format(fps="", camera="", caption="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"text {self.text!r} may hold {{fps}}, {{camera}} and {{caption}} and nothing else: {error}"
            ) from error
        if "{caption}" not in self.text:
            raise ValueError(f"text {self.text!r} lacks {{caption}}")
        return self

    def decides(self) -> dict[str, Any]:
        """The settings that decide what a caption says; servers, keys and patience do not."""
        own = self.model_dump(mode="json", include={"prompt", "language", "temperature", "second_temperature", "max_tokens"})
        own |= self.model_dump(mode="json", include={"text", "camera_confidence"})
        shown = {"name", "share", "path", "sends", "frames"}
        return own | {"models": {model.name: model.model_dump(mode="json", include=shown) for model in self.models}}
