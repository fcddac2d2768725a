"""Puts the reference of a data set in an extractor's features (mean and covariance) into the
repository, for those who would need hours to compute it.

    python -m scripts.maintain.ship_reference fashion_mnist inception-v3-compat-bf16
    torchrun --standalone --nproc_per_node 2 -m scripts.maintain.ship_reference \\
        fashion_mnist inception-v3-compat-bf16

Interrupted, the same command goes on. The file's name is a hash of the data and of the extractor's
weights, and it carries a hash of its content, so it is used for these two only and only whole.
Features of single images are not in it: measured against it, a row has no KID, precision and
recall.
"""

from __future__ import annotations

import argparse

from core.data import load_data
from core.errors import UserError, command_line
from core.processes import start_processes
from eval.features.extractors import check_reads, make_extractor
from eval.metrics.reference import CACHE, LARGEST, SHIPPED, cache_file, shared_reference, ship


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.maintain.ship_reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="digits, fashion_mnist or cifar10")
    parser.add_argument("extractor", help="such as inception-v3-compat")
    parser.add_argument("--split", default="train", help="train or test (default: %(default)s)")
    parser.add_argument("--root", help="where the data set's files are")
    parser.add_argument("--cache", default=str(CACHE), help="default: %(default)s")
    a = parser.parse_args()
    state = start_processes()
    data, extractor = (
        load_data(a.dataset, a.split, a.root),
        make_extractor(a.extractor, state.device),
    )
    check_reads(extractor, data)
    if (size := 2 * extractor.width * (extractor.width + 3)) > LARGEST:
        raise UserError(
            f"{a.extractor}: {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:g} MB that belong in a repository"
        )
    if (there := SHIPPED / cache_file(data, extractor, SHIPPED).name).is_file():
        raise UserError(f"{there} exists: it is this data and this extractor already")
    shared_reference(data, extractor, a.cache, state)
    if state.is_main_process:
        print(ship(data, extractor, a.cache, SHIPPED))


if __name__ == "__main__":
    main()
