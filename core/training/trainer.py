"""The training loop: accelerate, EMA, learning rate, checkpoints, logs. It knows images and stages,
and no method's name."""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from ema_pytorch import EMA

from core.config import config_sha256
from core.counting import count_evals
from core.errors import UserError
from core.noise import Noise
from core.training.checkpoints import (
    keep_for_steps,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from core.training.config import OptimizerConfig, RunConfig, settle_run_folder
from core.training.method import Loss, Method, Progress
from core.training.preview import check_preview, save_preview
from core.training.tracking import Tracker


class TrainingDiverged(UserError):
    """Loss or gradient became NaN or infinite; the batch that did it is on disk."""


def learning_rate(config: OptimizerConfig, stage_images: int, fraction: float) -> float:
    """The rate after `stage_images` of a stage of which `fraction` (0..1) is spent."""
    warm = min(1.0, (stage_images + 1) / config.warmup) if config.warmup else 1.0
    left = {
        "constant": 1.0,
        "linear": 1 - fraction,
        "cosine": 0.5 * (1 + math.cos(math.pi * fraction)),
    }[config.decay]
    return config.lr * warm * left


class Trainer:
    """Trains a Method for a budget; the same call resumes.

    All that a resumed run needs is in the checkpoint: weights, average, frozen networks, optimiser,
    counters. Randomness needs nothing, since every draw is addressed by the run's seed and images
    seen.
    """

    def __init__(self, config: RunConfig, method: Method, accelerator: Accelerator):
        self.config, self.method, self.accelerator = config, method, accelerator
        self.folder = Path(config.run)
        shard = accelerator.num_processes * config.train.accumulate
        if config.train.batch_size % shard:
            raise UserError(
                f"train.batch_size={config.train.batch_size} does not divide by {accelerator.num_processes} processes "
                f"times {config.train.accumulate} micro-batches"
            )
        self.micro = config.train.batch_size // shard
        check_preview(config.log, method)
        self.network = method.model.network
        self.optimizer = self._new_optimizer()
        self.ema = self._new_ema()
        self.stages = method.stages()
        self.spent = method.spent()
        self.budget = self._training_budget()
        total = sum(stage.share for stage in self.stages)
        self.stage_budget = [stage.share / total * self.budget for stage in self.stages]
        self.stage, self.images, self.stage_images = 0, 0, 0
        self.evals = self.stage_start_evals = 0.0
        self.seconds = self.spent.seconds

    def _new_optimizer(self) -> torch.optim.AdamW:
        o = self.config.optimizer
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=o.lr,
            betas=o.betas,
            eps=o.eps,
            weight_decay=o.weight_decay,
            foreach=True,
        )

    def _new_ema(self) -> EMA:
        return EMA(
            self.network,
            beta=0.5 ** (self.config.train.batch_size / self.config.ema.half_life),
            update_after_step=0,
            update_every=1,
            power=self.config.ema.power,
            include_online_model=False,
            use_foreach=True,
        )

    def _training_budget(self) -> float:
        """What training may use: images, or the evaluations that the method's inputs, such as
        stored pairs, have left."""
        if self.config.budget.images is not None:
            return self.config.budget.images
        left = self.config.budget.evals - self.spent.evals
        if left <= 0:
            raise UserError(
                f"budget.evals={self.config.budget.evals:g} is spent before training begins: what the method is given, such "
                f"as stored pairs, took {self.spent.evals:g} network evaluations; raise budget.evals or make fewer pairs"
            )
        return left

    # ---------------------------------------------------------------- progress

    def _used(self) -> float:
        """Of `budget`, in its unit."""
        return self.images if self.config.budget.images is not None else self.evals

    def _fraction(self) -> float:
        used = (
            self.stage_images
            if self.config.budget.images is not None
            else self.evals - self.stage_start_evals
        )
        return min(1.0, used / self.stage_budget[self.stage])

    def progress(self) -> Progress:
        return Progress(self.images, self.stage, self._fraction())

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "ema_step": int(self.ema.step),
                "ema_initted": bool(self.ema.initted),
                "stage": self.stage,
                "images": self.images,
                "stage_images": self.stage_images,
                "evals": self.evals,
                "stage_start_evals": self.stage_start_evals,
                "seconds": self.seconds,
                "method": self.method.state(),
            }
            price = {
                "images": self.images + self.spent.images,
                "evals": self.evals + self.spent.evals,
                "seconds": self.seconds,
                "processes": self.accelerator.num_processes,
                "teacher": self.method.teacher_name,
                "config_sha256": config_sha256(self.config, without=("log",)),
            }
            save_checkpoint(
                self.folder,
                self.method.spec,
                self.network,
                self.ema.ema_model,
                self.method.frozen(),
                state,
                price,
            )
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Loads the newest checkpoint, if there is one."""
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            return False
        stage = read_state(checkpoint)["stage"]
        if stage < len(self.stages):
            self.method.begin_stage(
                stage, self.ema.ema_model
            )  # for what is not weights; those are loaded next
        state = load_checkpoint(checkpoint, self.network, self.ema.ema_model, self.method.frozen())
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.step.fill_(state["ema_step"])
        self.ema.initted.fill_(state["ema_initted"])
        for name in ("stage", "images", "stage_images", "evals", "stage_start_evals", "seconds"):
            setattr(self, name, state[name])
        self.method.load_state(state.get("method", {}))
        return True

    # ---------------------------------------------------------------- the loop

    def run(self) -> None:
        """Trains to the end of the budget.

        Raises:
            UserError: the folder holds a run of another config. TrainingDiverged: NaN or infinity.
        """
        main = self.accelerator.is_main_process
        settle_run_folder(self.config, self.folder, write=main)
        self.accelerator.wait_for_everyone()
        if not self.resume():
            if self.stages:
                self.method.begin_stage(0, self.ema.ema_model)
            self.ema.copy_params_from_model_to_ema()
            if not self.stages:
                self.save()
                self._preview()
        if self.stage == len(self.stages):
            return
        self.module = self.accelerator.prepare_model(self.network)
        self.method.model.network = self.module
        tracker = Tracker(
            self.config,
            self.images,
            self._used(),
            self.budget,
            [s.name for s in self.stages],
            enabled=main,
        )
        try:
            while self.stage < len(self.stages):
                self._run_stage(tracker)
                self._keep_stage_result()
                self.stage, self.stage_images, self.stage_start_evals = (
                    self.stage + 1,
                    0,
                    self.evals,
                )
                if self.stage < len(self.stages):
                    self.method.begin_stage(self.stage, self.ema.ema_model)
                    self.optimizer = self._new_optimizer()
                    self.ema.copy_params_from_model_to_ema()
                    self.ema.step.zero_()
                self.save()
            self._preview()
        finally:
            self.method.model.network = self.network
            tracker.close()

    def _preview(self) -> None:
        if self.accelerator.is_main_process:
            file = self.folder / "samples" / f"{self.images:012d}.png"
            steps = (
                self.stages[min(self.stage, len(self.stages) - 1)].steps if self.stages else None
            )
            save_preview(self.config.log, self.method, self.ema.ema_model, file, steps)

    def _keep_stage_result(self) -> None:
        """Keeps the weights of a stage that is meant to be sampled in its own number of steps."""
        steps = self.stages[self.stage].steps
        if steps is None:
            return
        self.save()
        if self.accelerator.is_main_process:
            keep_for_steps(self.folder, latest_checkpoint(self.folder), steps)

    def _run_stage(self, tracker: Tracker) -> None:
        log = self.config.log
        last = time.perf_counter()
        while self._fraction() < 1:
            loss = self._step()
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            tracker.step(self.images, self._used(), self.stage, loss)
            if self._passed(log.metrics_every):
                tracker.write(
                    self.images,
                    self.evals,
                    self.seconds,
                    self.stage,
                    self.optimizer.param_groups[0]["lr"],
                )
            if self._passed(log.samples_every):
                self._preview()
                last = time.perf_counter()  # looking is not training
            if self._passed(log.checkpoint_every) and self._fraction() < 1:
                self.save()
                last = time.perf_counter()
        tracker.write(
            self.images, self.evals, self.seconds, self.stage, self.optimizer.param_groups[0]["lr"]
        )

    def _passed(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of `interval` images."""
        return self.images // interval > (self.images - self.config.train.batch_size) // interval

    def _step(self) -> dict[str, torch.Tensor]:
        """One optimiser step; returns what the log wants to know, as tensors."""
        a, t = self.accelerator, self.config.train
        device = a.device
        rate = learning_rate(self.config.optimizer, self.stage_images, self._fraction())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        losses: list[Loss] = []
        with count_evals(*self.method.networks()) as counter:
            for k in range(t.accumulate):
                first = self.images + (k * a.num_processes + a.process_index) * self.micro
                positions = torch.arange(first, first + self.micro)
                batch = self.method.source.draw(positions, device)
                self._seed_dropout(first)
                last = k == t.accumulate - 1
                with nullcontext() if last else a.no_sync(self.module):
                    loss = self.method.loss(batch, self.progress())
                    a.backward(loss.per_sample.mean() / t.accumulate)
                losses.append(loss)
                if not bool(torch.isfinite(loss.per_sample).all()):
                    self._diverged("loss", batch, loss)
        clip = self.config.optimizer.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        if not bool(torch.isfinite(norm)):
            self._diverged("gradient", batch, loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.images += t.batch_size
        self.stage_images += t.batch_size
        self.evals += (counter.evals + self.method.unseen_evals) * a.num_processes
        self.method.unseen_evals = 0.0
        self.ema.update()
        self.method.after_step(self.progress(), t.batch_size)
        return {
            "loss": torch.cat([one.per_sample.detach() for one in losses]),
            "t": torch.cat([one.t.detach() for one in losses]),
            "grad_norm": norm.detach(),
        }

    def _seed_dropout(self, position: int) -> None:
        """Dropout masks, the one thing drawn from PyTorch's global generator, follow from (seed,
        position) too."""
        digest = hashlib.sha256(f"{self.config.train.seed} {position}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))

    def _diverged(self, what: str, batch, loss: Loss) -> None:
        file = (
            self.folder / f"diverged-{self.images:012d}-process{self.accelerator.process_index}.pt"
        )
        rng: Noise = batch.rng
        torch.save(
            {
                "x0": batch.x0,
                "label": batch.label,
                "positions": rng.indices,
                "t": loss.t,
                "loss": loss.per_sample.detach(),
            },
            file,
        )
        bad = loss.t[~torch.isfinite(loss.per_sample.detach())]
        where = f" at t = {float(bad[0]):.4f}" if len(bad) else ""
        raise TrainingDiverged(
            f"{self.folder}: the {what} became NaN or infinite at {self.images} images, stage "
            f"'{self.stages[self.stage].name}'{where}; the batch is in {file}, the last checkpoint is intact: "
            "lower optimizer.lr, raise optimizer.warmup, or switch model.autocast off"
        )
