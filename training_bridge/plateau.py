"""When validation stands still, the rate falls: how that is decided, and where a run stands with it."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """When the rate falls: at a validation that is the `patience`-th in a row without a new best."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    measure: str = "loss"
    """Of those that validation says; smaller is better."""
    min_delta: float = 0.001
    """A new best is smaller than the best before by more than this share of it."""
    patience: int = 3
    factor: float = 0.5
    least_frac: float = 0.1
    """The rate falls no lower than this share of `lr`."""

    def __post_init__(self) -> None:
        if not (self.min_delta >= 0 and self.patience >= 1 and 0 < self.factor < 1 and 0 < self.least_frac <= 1):
            raise ValueError(f"min_delta >= 0, patience >= 1, 0 < factor < 1 and 0 < least_frac <= 1 are wanted, not {self}")


@dataclass
class Plateau:
    """Where a run stands with its plateaus; a part of its checkpoints."""

    scale: float = 1.0
    """What the rate is multiplied with."""
    best: float | None = None
    waited: int = 0
    """Validations since the best, or since the last fall."""

    def see(self, value: float, config: PlateauConfig) -> bool:
        """A validation's measure; returns whether the rate falls."""
        if self.best is None or value < self.best * (1 - config.min_delta):
            self.best, self.waited = value, 0
            return False
        self.waited += 1
        if self.waited < config.patience or self.scale <= config.least_frac:
            return False
        self.scale, self.waited = max(self.scale * config.factor, config.least_frac), 0
        return True
