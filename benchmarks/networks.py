"""Speed of the networks of a study, measured by turns: what equal seconds are.

    python -m benchmarks.networks configs/ablations/digits_transformer.yaml

Every cell's network takes a training step and a forward, one after the other in one process, in an
order that alternates from round to round, so that all see the same machine. The table gives
medians over the rounds of the ratio to the first cell within a round. Cells that share a network
are measured once. On one thread the clock is the processor's, which other jobs change less than
the wall's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.speed import CLOCKS, Action, forwards, median_ratio, paired, training
from core.errors import UserError, command_line
from core.training.config import RunConfig
from core.training.method import Context, images_and_spec
from eval.ablation.cells import make_cells
from eval.ablation.config import read_study
from lab import load
from scripts.train import resolved

Sized = tuple[str, int, Action, Action]  # name, parameters, a training step, a forward


def measured(name: str, config: RunConfig, batch: int, device: torch.device) -> Sized:
    """What is timed of a cell's network, with random images of its data's shape."""
    context = Context(config.data, config.model, config.train.seed, device, load)
    _, spec = images_and_spec(context)
    networks = [spec.build().network.to(device) for _ in range(2)]
    x = torch.randn(batch, *spec.shape, device=device)
    t = torch.linspace(0.01, 0.99, batch, device=device)
    label = torch.arange(batch, device=device) % spec.num_classes if spec.num_classes else None
    return (
        name,
        sum(parameter.numel() for parameter in networks[0].parameters()),
        training(networks[0].train(), x, t, label, spec.autocast),
        forwards(networks[1].eval(), x, torch.tensor([0.5]), label, spec.autocast),
    )


def table(cells: list[Sized], batch: int, repeats: int, device: torch.device) -> Iterator[str]:
    """Lines: parameters, milliseconds per image in training and in a forward, and both beside the
    first cell."""
    clock = CLOCKS["cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"]
    steps = paired({name: step for name, _, step, _ in cells}, repeats, device, clock)
    passes = paired({name: forward for name, *_, forward in cells}, repeats, device, clock)
    width = max(len(name) for name, *_ in cells) + 2
    titles = ("parameters", "training ms", "beside", "forward ms", "beside")
    yield " " * width + "".join(f"{title:>13}" for title in titles)
    first = cells[0][0]
    for name, size, *_ in cells:
        numbers = f"{size:>13,}"
        for seconds in (steps, passes):
            milliseconds = 1000 * statistics.median(seconds[name]) / batch
            numbers += f"{milliseconds:>13.3f}{median_ratio(seconds[name], seconds[first]):>13.2f}"
        yield f"{name:<{width}}{numbers}"


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "study", type=Path, help="a YAML file with cells that are trained from scratch"
    )
    parser.add_argument("--batch", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    args = parser.parse_args()
    for name in ("batch", "repeats", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    torch.set_num_threads(args.threads)
    device, sized = torch.device(args.device), {}
    study, values = read_study(args.study)
    for cell in make_cells(study, values, resolved, str(args.study)):
        if cell.problem:
            raise UserError(cell.problem)
        config = resolved({**cell.values, "run": "run"}, str(args.study))
        if config.model is None:
            raise UserError(
                f"{args.study}: {cell.levels[0]} copies a trained model: no network is its own"
            )
        shape = config.model.model_dump_json()
        if shape not in sized:
            sized[shape] = measured(", ".join(cell.levels), config, args.batch, device)
    if len(sized) < 2:
        raise UserError(f"{args.study}: all cells have the same network: nothing to compare")
    print(f"{device}, {args.threads} threads, batches of {args.batch}, {args.repeats} rounds")
    for line in table(list(sized.values()), args.batch, args.repeats, device):
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
