"""Train a teacher, a student or a flow from a YAML config; the same command goes on after an
interruption.

    python -m scripts.train configs/digits/teacher.yaml run=runs/teacher budget.images=200000
    python -m scripts.train --help progressive          the keys of a method's configs

Several GPUs, or processes on a processor:

    accelerate launch --num_processes 8 -m scripts.train configs/fashion_mnist/teacher.yaml
    torchrun --standalone --nproc_per_node 2 -m scripts.train configs/digits/teacher.yaml"""

from __future__ import annotations

import argparse

from core.config import read_config
from core.errors import UserError, command_line
from core.training.config import RunConfig, parse_run_config
from core.training.method import Context
from lab import METHODS, feature_network, load, method_class
from scripts.keys import keys_of


class Help(argparse.Action):
    """`--help`, or `--help METHOD` for the keys of its configs."""

    def __call__(self, parser, namespace, method, option_string=None):
        if method is None:
            parser.print_help()
        else:
            own = keys_of(method_class(method).Config, "method.")
            shared = (key for key in keys_of(RunConfig) if not key.name.startswith("method."))
            print(*own, *shared, sep="\n")
        parser.exit()


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", nargs="?", metavar="METHOD", action=Help)
    parser.add_argument(
        "config", help=f"a YAML file; its method.name is one of {', '.join(METHODS)}"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as optimizer.lr=1e-4 or run=runs/mine",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU even if there is one")
    arguments = parser.parse_intermixed_args()

    values = read_config(arguments.config, arguments.overrides)
    train(resolved(values, arguments.config), arguments.cpu)


def resolved(values: dict, source: str) -> RunConfig:
    """The values of a run's config, with the section of its method typed."""
    method_section = values.get("method")
    if not isinstance(method_section, dict) or "name" not in method_section:
        raise UserError(f"{source}: key 'method.name' is missing (one of {', '.join(METHODS)})")
    return parse_run_config(values, method_class(method_section["name"]), source)


def train(config: RunConfig, cpu: bool = False) -> None:
    """Trains the run, or goes on with it, or does nothing where it is finished."""
    from pathlib import Path

    from accelerate import Accelerator

    from core.processes import start_processes
    from core.training.config import check_run_folder
    from core.training.trainer import Trainer

    check_run_folder(config, Path(config.run))  # before anything slow
    state = start_processes(cpu, config.train.tf32)
    # What is computed how is this config's alone to say, whatever accelerate's own config asks for:
    # the rows know nothing of that.
    accelerator = Accelerator(
        cpu=state.device.type == "cpu", mixed_precision="no", dynamo_backend="no"
    )
    cls = method_class(config.method.name)
    method = cls.from_config(
        config.method,
        Context(
            config.data,
            config.model,
            config.train.seed,
            accelerator.device,
            load,
            feature_network,
            Path(config.run).parent / ".cache",
        ),
    )
    Trainer(config, method, accelerator).run()
    accelerator.end_training()


if __name__ == "__main__":
    main()
