"""The training loop: stages, roles, budget, checkpoints, logs. It knows images and roles, and no
method's name."""

from __future__ import annotations

import hashlib
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from ema_pytorch.post_hoc_ema import KarrasEMA

from core.autoencoders import keep_autoencoder
from core.config import config_sha256
from core.counting import count_evals
from core.data import Batch
from core.errors import UserError
from core.locks import only_one
from core.networks.dropout import dropout_of
from core.noise import Noise
from core.processes import sum_over
from core.training.checkpoints import (
    drop_others,
    keep_for_steps,
    latest_checkpoint,
    load_checkpoint,
    named_state,
    read_state,
    save_checkpoint,
)
from core.training.config import RunConfig, settle_run_folder
from core.training.interruption import Interruption, noted_signals
from core.training.method import Loss, Method, Progress, input_hashes
from core.training.preview import preview_samples, preview_setting, save_preview
from core.training.snapshots import drop_snapshots, keep_snapshot
from core.training.tracking import Tracker


class TrainingDiverged(UserError):
    """Loss or gradient became NaN or infinite; the batch that did it is on disk."""


class Trainer:
    """Trains a Method for a budget; the same call resumes.

    All that a resumed run needs is in the checkpoint: weights, averages and optimisers of the
    roles, helpers that change, counters. Randomness needs nothing, since every draw is addressed by
    the run's seed and images seen.
    """

    def __init__(self, config: RunConfig, method: Method, accelerator: Accelerator):
        self.config, self.method, self.accelerator = config, method, accelerator
        self.folder = Path(config.run)
        shard = accelerator.num_processes * config.train.accumulate
        if config.train.batch_size % shard:
            raise UserError(
                f"train.batch_size={config.train.batch_size} does not divide by "
                f"{accelerator.num_processes} processes times {config.train.accumulate} "
                "micro-batches"
            )
        self.micro = config.train.batch_size // shard
        preview_setting(config.log, method.student)  # refused before anything is trained
        for name, role in method.roles.items():
            kept = config.snapshots if name == "student" else None
            role.begin(config.optimizer, config.ema, config.train.batch_size, kept)
        self.stages = method.stages()
        self.spent = method.spent()
        self.budget = self._training_budget()
        total = sum(stage.share for stage in self.stages)
        self.stage_budget = [stage.share / total * self.budget for stage in self.stages]
        self.stage, self.images, self.stage_images = 0, 0, 0
        self.evals = self.stage_start_evals = 0.0
        self.seconds = self.spent.seconds
        self.interruption, self.stopping = Interruption(), False
        self.tracker: Tracker | None = None
        self.pending: dict = {}  # what a checkpoint holds of the next line of metrics.jsonl
        self.inputs = input_hashes(method)

    def _training_budget(self) -> float:
        """What training may use: images, or the evaluations that the method's inputs, such as
        stored pairs, have left."""
        if self.config.budget.images is not None:
            return self.config.budget.images
        left = self.config.budget.evals - self.spent.evals
        if left <= 0:
            raise UserError(
                f"budget.evals={self.config.budget.evals:g} is spent before training begins: what "
                f"the method is given, such as stored pairs, took {self.spent.evals:g} network "
                "evaluations; raise budget.evals or make fewer pairs"
            )
        return left

    # ---------------------------------------------------------------- progress

    def _used(self) -> float:
        """Of `budget`, in its unit."""
        return self.images if self.config.budget.images is not None else self.evals

    def _fraction(self) -> float:
        by_images = self.config.budget.images is not None
        used = self.stage_images if by_images else self.evals - self.stage_start_evals
        return min(1.0, used / self.stage_budget[self.stage])

    def progress(self) -> Progress:
        return Progress(self.images, self.stage, self._fraction())

    # ---------------------------------------------------------------- checkpoints

    COUNTERS = ("stage", "images", "stage_images", "evals", "stage_start_evals", "seconds")

    def _changing(self) -> dict[str, torch.nn.Module]:
        return {name: self.method.helpers[name] for name in self.method.changing}

    def _half_life(self) -> float | None:
        """Of the average that is sampled, as it is now."""
        student = self.method.roles["student"]
        return student.half_life() if "ema" in student.averages else None

    def save(self) -> None:
        if self.accelerator.is_main_process:
            state = {name: getattr(self, name) for name in self.COUNTERS}
            state["roles"] = {name: role.state() for name, role in self.method.roles.items()}
            state["inputs"] = self.inputs
            state["tracker"] = self.tracker.state() if self.tracker else {}
            price = {
                "images": self.images + self.spent.images,
                "evals": self.evals + self.spent.evals,
                "seconds": self.seconds,
                "processes": self.accelerator.num_processes,
                "teacher": self.method.teacher_name,
                "critic_features": list(self.method.critic_features),
                "config_sha256": config_sha256(self.config, without=("log",)),
                "half_life": self._half_life(),
            }
            save_checkpoint(self.folder, self.method.roles, self._changing(), state, price)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Loads the newest checkpoint, if there is one."""
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            return False
        state = read_state(checkpoint)
        with named_state(checkpoint):
            counters = {name: state[name] for name in self.COUNTERS}
            inputs, roles, self.pending = state["inputs"].items(), state["roles"], state["tracker"]
            stage = counters["stage"]
            if not 0 <= stage <= len(self.stages) or min(counters.values()) < 0:
                raise ValueError(f"its counters are {counters}")
        for what, digest in inputs:
            if self.inputs.get(what) != digest:
                raise UserError(
                    f"{self.folder} was begun with another {what}: bring that back to go on, or give "
                    "run=ANOTHER_FOLDER to train with this one"
                )
        if stage < len(self.stages):
            self.method.begin_stage(stage)  # for what is not weights; those are loaded next
        load_checkpoint(checkpoint, self.method.roles, self._changing())
        with named_state(checkpoint):
            for name, role in self.method.roles.items():
                role.load_state(roles[name])
        for name, value in counters.items():
            setattr(self, name, value)
        if self.accelerator.is_main_process:
            drop_others(checkpoint)  # a kill may have come as the others were being removed
        return True

    # ---------------------------------------------------------------- the loop

    def run(self) -> None:
        """Trains to the end of the budget.

        Raises:
            UserError: the folder holds a run of another config.
            TrainingDiverged: NaN or infinity.
        """
        main = self.accelerator.is_main_process
        busy = f"another training is at work in {self.folder}: wait for it, or give another run="
        with only_one(self.folder, busy) if main else nullcontext():
            if main:
                settle_run_folder(self.config, self.folder)
                keep_autoencoder(self.method.student.codec, self.folder)
            self.accelerator.wait_for_everyone()
            self._train_or_resume()

    def _train_or_resume(self) -> None:
        if not self.resume():
            if self.stages:
                self._begin_stage()
            else:
                self.save()
        if self.stage == len(self.stages):
            if not self._preview_file().exists():  # a kill came between the last two steps
                self._preview()
            return
        main, roles = self.accelerator.is_main_process, self.method.roles.values()
        for role in roles:
            role.wrap(self.accelerator)
        names = [stage.name for stage in self.stages]
        self.tracker = Tracker(
            self.config, self.images, self._used(), self.budget, names, enabled=main
        )
        self.tracker.load_state(self.pending)
        try:
            with noted_signals() as self.interruption:
                while self.stage < len(self.stages):
                    self._run_stage()
                    self._snapshot()
                    self._keep_stage_result()
                    self.stage, self.stage_images = self.stage + 1, 0
                    self.stage_start_evals = self.evals
                    if self.stage < len(self.stages):
                        self._begin_stage()
                    else:
                        self.method.finish()
                    self.save()
                self._preview()
        finally:
            for role in roles:
                role.unwrap()
            self.tracker.close()

    def _begin_stage(self) -> None:
        if self.accelerator.is_main_process:
            drop_snapshots(self.folder)  # averages begin anew, and none spans two stages
        self.method.begin_stage(self.stage)
        for role in self.method.roles.values():
            role.begin_stage()

    def _snapshot(self) -> None:
        """Keeps the averages that others are put together from after training."""
        if self.config.snapshots and self.accelerator.is_main_process:
            averages = self.method.roles["student"].averages
            kept = {name: a for name, a in averages.items() if isinstance(a, KarrasEMA)}
            size = self.config.train.batch_size
            keep_snapshot(self.folder, kept, self.images, self.stage, size)

    def _preview_file(self) -> Path:
        return self.folder / "samples" / f"{self.images:012d}.png"

    def _preview(self) -> None:
        if self.accelerator.is_main_process:
            stage = min(self.stage, len(self.stages) - 1)
            steps = self.stages[stage].steps if self.stages else None
            role = self.method.roles["student"]
            averaged = role.model.with_network(role.average().eval())
            images = self.method.preview(averaged, self.config.log.samples)
            if images is None:
                images = preview_samples(self.config.log, averaged, steps)
            save_preview(images, self._preview_file())

    def _keep_stage_result(self) -> None:
        """Keeps the weights of a stage that is meant to be sampled in its own number of steps."""
        steps = self.stages[self.stage].steps
        if steps is None:
            return
        self.save()
        if self.accelerator.is_main_process:
            keep_for_steps(self.folder, latest_checkpoint(self.folder), steps)

    def _run_stage(self) -> None:
        log, tracker = self.config.log, self.tracker
        last = time.perf_counter()

        def write() -> None:
            rate = self.method.roles["student"].rate
            tracker.write(self.images, self.evals, self.seconds, self.stage, rate)

        while self._fraction() < 1:
            seen = self._step()
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            tracker.step(self.images, self._used(), self.stage, seen)
            if self._passed(log.metrics_every):
                write()
            if self._passed(log.samples_every):
                self._preview()
                last = time.perf_counter()  # looking is not training
            if self.config.snapshots and self._passed(self.config.snapshots.every):
                self._snapshot()
                last = time.perf_counter()
            if self._fraction() < 1 and (self._passed(log.checkpoint_every) or self.stopping):
                self.save()
                last = time.perf_counter()
            if self.stopping and self._fraction() < 1:
                raise KeyboardInterrupt(f"stopped at a checkpoint of {self.images:,} images")
        write()

    def _passed(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of `interval` images."""
        return self.images // interval > (self.images - self.config.train.batch_size) // interval

    def _step(self) -> dict[str, torch.Tensor]:
        """One turn: a step of the optimiser of each role whose turn it is. Returns what the log
        wants to know of the last one, as tensors."""
        method, progress = self.method, self.progress()
        size = self.config.train.batch_size
        roles = method.roles.values()
        averages = [role.average(name) for role in roles for name in role.averages]
        networks = [*(role.network for role in roles if role.counted), *averages]
        seen: dict[str, torch.Tensor] = {}
        with count_evals(*networks, *method.helpers.values()) as counter:
            for name in method.turn(self.images // size):
                seen = self._train(name, progress)
        # What one process counts or is asked for, all must know alike.
        here = [counter.evals, float(self.interruption.wanted)]
        evals, wanted = sum_over(here, self.accelerator.state)
        self.evals, self.stopping = self.evals + evals, wanted > 0
        self.images += size
        self.stage_images += size
        return seen

    def _train(self, name: str, progress: Progress) -> dict[str, torch.Tensor]:
        """One optimiser step of a role, over all micro-batches."""
        a, accumulate = self.accelerator, self.config.train.accumulate
        role, whose = self.method.roles[name], "" if name == "student" else f" of the {name}"
        for other in self.method.roles.values():
            other.learns(other is role)
        role.network.train()
        losses: list[Loss] = []
        batches: list[Batch] = []
        for k in range(accumulate):
            first = self.images + (k * a.num_processes + a.process_index) * self.micro
            positions = torch.arange(first, first + self.micro)
            batch = self.method.source.draw(positions, a.device)
            self._seed_dropout(first)
            last = k == accumulate - 1
            addresses = torch.arange(first, first + self.micro, device=a.device)
            masks = Noise(self.config.train.seed, addresses)
            with nullcontext() if last else a.no_sync(role.prepared), dropout_of(masks):
                loss = self.method.loss(name, batch, progress)
                a.backward(loss.per_sample.mean() / accumulate)
            losses.append(loss)
            batches.append(batch)
        values = torch.cat([one.per_sample.detach() for one in losses])
        norm = role.step(self.stage_images, progress.fraction, values)
        if norm is None:
            for batch, loss in zip(batches, losses, strict=True):
                if not torch.isfinite(loss.per_sample).all():
                    self._diverged(f"loss{whose}", batch, loss)
            self._diverged(f"gradient{whose}", batch, loss)
        return {
            "loss": values,
            "t": torch.cat([one.t.detach() for one in losses]),
            "grad_norm": norm,
        }

    def _seed_dropout(self, position: int) -> None:
        """What still draws from PyTorch's global generator, dropout in a forward of other samples
        than the batch's, follows from (seed, position) too."""
        digest = hashlib.sha256(f"{self.config.train.seed} {position}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))

    def _diverged(self, what: str, batch: Batch, loss: Loss) -> None:
        process = self.accelerator.process_index
        file = self.folder / f"diverged-{self.images:012d}-process{process}.pt"
        kept = {
            "x0": batch.x0,
            **batch.condition.inputs(),
            "positions": batch.rng.indices,
            "t": loss.t,
            "loss": loss.per_sample.detach(),
        }
        torch.save(kept, file)
        bad = loss.t[~torch.isfinite(loss.per_sample.detach())]
        where = f" at t = {float(bad[0]):.4f}" if len(bad) else ""
        raise TrainingDiverged(
            f"{self.folder}: the {what} became NaN or infinite at {self.images} images, stage "
            f"'{self.stages[self.stage].name}'{where}; the batch is in {file}, the last checkpoint "
            "is intact: lower optimizer.lr, raise optimizer.warmup, or switch model.autocast off"
        )
