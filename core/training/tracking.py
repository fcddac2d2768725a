"""What a run says about itself: a progress bar, metrics.jsonl, and wandb when asked."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import torch
from tqdm import tqdm

from core.errors import UserError, reason
from core.files import append_line, read_text, write_text
from core.training.config import RunConfig

NOISE_LEVELS = 8  # bins of t for the loss by noise level


class Tracker:
    """Collects losses between two log lines.

    Args:
        images: seen when the run begins or resumes; lines of metrics.jsonl beyond it belong to work
            that was lost, and go.
        used: of the budget, when the run begins or resumes; not counted into the bar's speed.
        budget: in the unit of the config's budget, as `used`.
        stages: their names, shown as the phase.
        enabled: False on all but the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        images: int,
        used: float,
        budget: float,
        stages: list[str],
        enabled: bool,
    ):
        self.config, self.stages, self.enabled = config, stages, enabled
        self.file = Path(config.run) / "metrics.jsonl"
        self.bar = tqdm(
            total=round(budget),
            initial=round(used),
            unit="img" if config.budget.images is not None else "eval",
            unit_scale=True,
            disable=not enabled,
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self.wandb = None
        self._reset(images)
        if enabled:
            self._drop_lines_after(images)
            if config.log.wandb:
                self.wandb = self._start_wandb()

    def _reset(self, images: int) -> None:
        self.losses: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []
        self.norm: torch.Tensor | None = None
        self.since, self.since_images = time.perf_counter(), images

    def _drop_lines_after(self, images: int) -> None:
        if self.file.is_file():
            lines = [
                line
                for line in read_text(self.file).splitlines()
                if _images(line, images) <= images
            ]
            write_text(self.file, "".join(line + "\n" for line in lines))

    def _start_wandb(self):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "log.wandb is set, but wandb is not installed: pip install wandb, or log.wandb=null"
            ) from error
        try:
            return wandb.init(
                project=self.config.log.wandb_project,
                name=Path(self.config.run).name[:128],
                id=wandb_id(self.config.run),
                resume="allow" if self.config.log.wandb == "online" else None,
                mode=self.config.log.wandb,
                dir=self.config.run,
                config=self.config.model_dump(mode="json", serialize_as_any=True),
            )
        except wandb.errors.Error as error:  # no key, no network
            raise UserError(
                f"log.wandb={self.config.log.wandb}: {reason(error)}: mend that, or give "
                "log.wandb=offline or null"
            ) from error

    def step(self, images: int, used: float, stage: int, step: dict[str, torch.Tensor]) -> None:
        if not self.enabled:
            return
        self.losses.append(step["loss"])
        self.times.append(step["t"])
        self.norm = step["grad_norm"]
        self.bar.update(round(used) - self.bar.n)
        if len(self.losses) % 20 == 1:
            speed = (images - self.since_images) / max(time.perf_counter() - self.since, 1e-9)
            self.bar.set_description(
                f"{Path(self.config.run).name}: {self.stages[stage]}", refresh=False
            )
            self.bar.set_postfix_str(
                f"loss {float(step['loss'].mean()):.4f}, {speed:.0f} img/s", refresh=False
            )

    def write(self, images: int, evals: float, seconds: float, stage: int, rate: float) -> None:
        """Appends a line: means since the last one, and the loss in each of NOISE_LEVELS bins of t
        (null where none fell)."""
        if not self.enabled or not self.losses:
            return
        loss = torch.cat([part.cpu() for part in self.losses])
        t = torch.cat([part.cpu() for part in self.times])
        level = (t * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
        by_level = [
            float(loss[level == k].mean()) if bool((level == k).any()) else None
            for k in range(NOISE_LEVELS)
        ]
        row = {
            "images": images,
            "evals": evals,
            "seconds": round(seconds, 3),
            "stage": self.stages[stage],
            "loss": float(loss.mean()),
            "loss_by_t": by_level,
            "grad_norm": float(self.norm),
            "lr": rate,
            "images_per_second": (images - self.since_images)
            / max(time.perf_counter() - self.since, 1e-9),
        }
        append_line(self.file, json.dumps(row))
        if self.wandb is not None:
            levels = {f"loss_by_t/{k}": v for k, v in enumerate(by_level) if v is not None}
            self.wandb.log(
                {k: v for k, v in row.items() if k not in ("loss_by_t", "stage")} | levels,
                step=images,
            )
        self._reset(images)

    def state(self) -> dict:
        """What the next line of metrics.jsonl will be made of so far."""
        if not self.losses:
            return {}
        return {
            "loss": torch.cat([part.cpu() for part in self.losses]),
            "t": torch.cat([part.cpu() for part in self.times]),
            "grad_norm": self.norm,
        }

    def load_state(self, state: dict) -> None:
        """Takes up what `state` gave, so that a resumed run writes the line of one left alone."""
        if state:
            self.losses, self.times = [state["loss"]], [state["t"]]
            self.norm = state["grad_norm"]

    def close(self) -> None:
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()


def wandb_id(run: str) -> str:
    """A name for wandb from a run's folder, of characters that it takes; the same for the same
    folder, so that a run that goes on is one run there."""
    plain = run.strip("/").replace("/", "-")
    if re.fullmatch(r"[\w.+=-]{1,64}", plain, re.ASCII):
        return plain
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return re.sub(r"[^\w.+=-]+", "-", plain, flags=re.ASCII)[:50] + f"-{digest}"


def _images(line: str, otherwise: int) -> int:
    """The images of a metrics line; a line that a kill cut off counts as lost work."""
    try:
        images = json.loads(line)["images"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return otherwise + 1
    return images if isinstance(images, int) else otherwise + 1
