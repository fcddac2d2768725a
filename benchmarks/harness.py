"""Speed of the harness: what measuring a point costs on top of sampling it and extracting features,
and what metrics cost.

    python -m benchmarks.harness runs/quickstart/teacher --steps 16 --n 2000
    python -m benchmarks.harness runs/quickstart/teacher --metrics-n 10000

Harness and bare loop run in the same process, in alternation, so that both see the same machine;
the overhead is the median of their ratio within a pair. On the processor, seconds are the process's
own (CPU time). Metrics are timed on features of the extractor's width, drawn at random, against
5,000 kept features.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from core.config import parse
from core.errors import UserError, command_line
from core.processes import start_processes
from core.sampling.sample import sample_images
from eval.features.extractors import Extractor
from eval.metrics import distances
from eval.metrics.of_a_row import measure
from eval.metrics.reference import Reference, shared_reference
from eval.sweep.config import SweepConfig
from eval.sweep.run import Sweep, Task
from lab import load

OVERHEAD, METRICS_SECONDS = 0.10, 5.0  # goals


def seconds_of(action: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call: on a GPU wall clock, its queue emptied before and after; on the
    processor those that this process computed (summed over its threads), which other jobs on the
    machine change less."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def overhead(config: SweepConfig, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds [repeats] of the harness for one point, and of the bare loop over the same images;
    one round of warming up."""
    sweep = Sweep(config, start_processes(cpu=config.device == "cpu"), load)
    (m,) = sweep.measurements
    extractor, point = m.extractor, m.point
    task = Task(point, [m], sweep.store_of(m), [])
    sweep.references[extractor.name] = shared_reference(
        sweep.data, extractor, sweep.config.cache, sweep.state
    )

    def harness() -> None:
        sweep.measure_task(task, tqdm(disable=True))

    def bare() -> None:
        for indices in torch.arange(config.n).split(config.batch_size):
            extractor(sample_images(point.run.model, point.setting, indices, config.seed))

    with_it, without = [], []
    for round_ in range(repeats + 1):
        pairs = [(harness, with_it), (bare, without)]
        for action, seconds in pairs[:: 1 if round_ % 2 else -1]:
            took = seconds_of(action, sweep.device)
            if round_:
                seconds.append(took)
    return with_it, without


def metric_seconds(width: int, n: int, bootstrap: int) -> dict[str, float]:
    """Seconds of all metrics of one row, and of each, for n random features against 5,000 kept
    ones."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    features, kept = (torch.randn(size, width, generator=generator) @ mixing for size in (n, 5000))
    reference = Reference(distances.statistics(kept), kept, 5000, "", {})
    cpu = torch.device("cpu")  # features are kept there, whatever device made them
    parts = {
        "distance": lambda: distances.frechet_distance(
            distances.statistics(features), reference.statistics
        ),
        "bootstrap": lambda: distances.bootstrap_std(features, reference.statistics, bootstrap),
        "kid": lambda: distances.kernel_distance(features, kept),
        "precision and recall": lambda: distances.precision_recall(features, kept),
        "all of a row": lambda: measure(features, reference, 1, bootstrap),
    }
    return {name: seconds_of(action, cpu) for name, action in parts.items()}


def extraction_seconds(extractor: Extractor, channels: int, side: int, n: int) -> float:
    """Seconds that the extractor takes for n images, from those of 500 or fewer."""
    few = torch.zeros(min(n, 500), channels, side, side, dtype=torch.uint8)
    extractor(few[:8])
    return seconds_of(lambda: extractor(few), extractor.device) * n / len(few)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--extractor", default="digits-cnn", help="default: %(default)s")
    parser.add_argument("--sampler", help="default: the model's own")
    parser.add_argument("--steps", type=int, default=16, help="default: %(default)s")
    parser.add_argument(
        "--n", type=int, default=2000, help="images of the point (default: %(default)s)"
    )
    parser.add_argument(
        "--metrics-n",
        type=int,
        default=10_000,
        help="features for the metrics (default: %(default)s)",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=20, help="resamples of both (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="pairs (default: %(default)s)")
    parser.add_argument("--device", help="default: a GPU if there is one")
    a = parser.parse_args()
    if a.repeats < 1:
        raise UserError(f"--repeats {a.repeats}: at least 1")
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "out": str(Path(folder) / "curves.jsonl"),
            "extractor": a.extractor,
            "n": a.n,
            "bootstrap": a.bootstrap,
            "device": a.device,
            "floor": False,
            "reconstructions": False,
            "entries": [{"run": a.run, "samplers": a.sampler and [a.sampler], "steps": [a.steps]}],
        }
        config = parse(SweepConfig, values, "command line")
        with_it, without = overhead(config, a.repeats)
        sweep = Sweep(config, start_processes(cpu=a.device == "cpu"), load)
    (extractor,), (point,) = sweep.extractors, sweep.points
    ratio = statistics.median(x / y for x, y in zip(with_it, without, strict=True))
    print(f"| {a.n} images, {point.setting.label()}, {a.extractor} | seconds | to bare |")
    print("|---|---:|---:|")
    print(f"| sampling and extracting alone | {statistics.median(without):.2f} | 1 |")
    print(f"| a point of the harness | {statistics.median(with_it):.2f} | {ratio:.3f} |")
    print()
    parts = metric_seconds(extractor.width, a.metrics_n, a.bootstrap)
    extraction = extraction_seconds(extractor, sweep.data.channels, sweep.data.side, a.metrics_n)
    print(
        f"| metrics of {a.metrics_n} features of width {extractor.width} | seconds | to extracting them |"
    )
    print("|---|---:|---:|")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.2f} | {seconds / extraction:.2f} |")
    whole = parts["all of a row"]
    for words, value, goal in [
        ("overhead", ratio - 1, OVERHEAD),
        ("seconds of all metrics", whole, METRICS_SECONDS),
    ]:
        print(
            f"{words}: {value:.3f}, goal at most {goal:g}: {'met' if value <= goal else 'MISSED'}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
