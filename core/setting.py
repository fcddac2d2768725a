"""Setting: everything that decides how a model is sampled, apart from the model and the seed."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from core.config import Strict

Threshold = Literal["none", "static", "static-x0", "dynamic"]
THRESHOLD_NAMES: tuple[str, ...] = get_args(Threshold)
MOST_STEPS = 1_000_000
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
GuidanceScale = Annotated[float, Field(ge=-1000, le=1000)]


def _increasing(guidance: tuple[float, float]) -> tuple[float, float]:
    if not guidance[0] < guidance[1]:
        raise ValueError(f"{list(guidance)}: the first weight must be smaller than the second")
    return guidance


def _forwards(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"{list(interval)}: the first time must not be above the second")
    return interval


GuidanceRange = Annotated[tuple[GuidanceScale, GuidanceScale], AfterValidator(_increasing)]
Time = Annotated[float, Field(ge=0, le=1)]
GuidanceInterval = Annotated[tuple[Time, Time], AfterValidator(_forwards)]
Option = Annotated[float, Field(ge=-1000, le=1000)]


class Setting(Strict):
    """How a model is sampled. Names are checked where they are used (core/sampling/sample.py)."""

    LATER = ("guidance_interval",)

    sampler: str
    """name of a solver (core/sampling/solvers)"""
    steps: Steps
    """intervals of the time grid"""
    grid: str | None = None
    """spacing of the times (core/diffusion/grids.py); null: the sampler's own"""
    guidance_scale: GuidanceScale = 1.0
    """weight of classifier-free guidance; 1.0 is off"""
    threshold: Threshold = "none"
    """clipping of the guess of x0 at every step"""
    options: dict[str, Option] = {}
    """the sampler's own options, such as eta of ddim"""
    guidance_interval: GuidanceInterval | None = None
    """the times that guidance acts at, both ends included; null: all"""

    def key(self) -> tuple:
        """All values, hashable, in a fixed order; what was added later only where it is given, so
        that keys from before stay."""
        options = tuple(sorted(self.options.items()))
        later = () if self.guidance_interval is None else (self.guidance_interval,)
        usual = (self.sampler, self.steps, self.grid, self.guidance_scale, self.threshold, options)
        return usual + later

    def guidance_words(self) -> str:
        """The guidance in words, "guidance 2 in [0.3, 0.8]"; empty where it is off."""
        if self.guidance_scale == 1.0:
            return ""
        within = self.guidance_interval
        words = "" if within is None else f" in [{within[0]:g}, {within[1]:g}]"
        return f"guidance {self.guidance_scale:g}{words}"

    def label(self) -> str:
        """The setting in words, for messages: "ddim eta 0.5, guidance 2, 8 steps"."""
        words = [" ".join([self.sampler, *(f"{k} {v:g}" for k, v in sorted(self.options.items()))])]
        if guidance := self.guidance_words():
            words.append(guidance)
        if self.threshold != "none":
            words.append(f"threshold {self.threshold}")
        if self.grid is not None:
            words.append(f"grid {self.grid}")
        return ", ".join([*words, f"{self.steps} step{'s' * (self.steps != 1)}"])
