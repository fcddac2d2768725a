"""Search for the times at which a student is best sampled in a few steps.

    python -m scripts.times runs/digits/consistency --steps 4 --n 1000 --extractor digits-cnn

Every candidate is sampled from the same noise and compared with the training images. What is found
is measured once more on fresh noise, beside the grid that it started from: a search flatters what it
finds. The result is a grid for --grid, or for `grid:` of a sweep.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

import lab
from core.diffusion.grids import given_grid
from core.errors import UserError, command_line
from core.noise import check_seed
from core.sampling.sample import grid_of, sample_images
from core.setting import Setting
from eval.best_times import search_times
from eval.features.extractors import check_reads, make_extractor
from eval.metrics.distances import frechet_distance, statistics
from scripts.setting_options import (
    add_setting_options,
    check_between,
    chosen_setting,
    chosen_steps,
)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of the run")
    add_setting_options(parser)
    add = parser.add_argument
    add("--extractor", required=True, help="whose features the distance is taken in")
    add("--n", type=int, default=1000, help="images a candidate (default: %(default)s)")
    add("--rounds", type=int, default=2, help="over all times (default: %(default)s)")
    add("--tolerance", type=float, default=1 / 32, help="of a time (default: %(default)s)")
    add("--seed", type=int, default=1000, help="of the search; + 1 measures (default: %(default)s)")
    add("--batch-size", type=int, default=250, help="default: %(default)s")
    a = parser.parse_args()
    check_between("--n", a.n, 2)
    check_between("--rounds", a.rounds, 1)
    check_between("--batch-size", a.batch_size, 1)
    if not 0 < a.tolerance < 1:
        raise UserError(f"--tolerance {a.tolerance}: between 0 and 1")
    check_seed(a.seed)
    check_seed(a.seed + 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = lab.load(a.run, "ema", device, chosen_steps(a))
    own = chosen_setting(a, run.spec.setting)
    if own.steps < 2:
        raise UserError("one step has no times to search for: give --steps of at least 2")
    if run.data is None:
        raise UserError(f"{a.run} does not say which images it was trained on")
    if run.spec.discrete_steps is not None:
        raise UserError(f"{a.run} knows {run.spec.discrete_steps} times only: nothing to search")
    data, extractor = run.data.load(), make_extractor(a.extractor, device)
    check_reads(extractor, data)
    reference = statistics(extractor(data.images))
    start = tuple(float(t) for t in grid_of(own, run.model)[1:-1])

    def measured(setting: Setting, seed: int) -> float:
        parts = torch.arange(a.n).split(a.batch_size)
        images = torch.cat([sample_images(run.model, setting, part, seed) for part in parts])
        return frechet_distance(statistics(extractor(images)), reference)

    with tqdm(unit="candidate", disable=None) as bar:

        def distance(times: tuple[float, ...]) -> float:
            bar.update()
            return measured(own.model_copy(update={"grid": given_grid(times)}), a.seed)

        times, found = search_times(distance, start, a.rounds, a.tolerance)
    best = own.model_copy(update={"grid": given_grid(times)})
    print(f"--sampler {own.sampler} --steps {own.steps} --grid {best.grid}")
    before, after = (measured(setting, a.seed + 1) for setting in (own, best))
    name = f"{extractor.metric_name}@{a.n}"
    print(f"{name} {found:.3g} in the search; on fresh noise {after:.3g}, {before:.3g} before it")


if __name__ == "__main__":
    main()
