"""The options of a command line that say how a model is sampled."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from core.config import parse
from core.diffusion.grids import GRID_NAMES
from core.errors import UserError
from core.sampling.solvers import SAMPLERS
from core.setting import THRESHOLD_NAMES, Setting
from eval.sweep.config import Sampled


def add_setting_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """`--sampler`, `--steps` and the others; several: with commas between several samplers, steps
    and guidance scales."""
    more = ", with commas between several" if several else ""
    add = parser.add_argument_group(
        "setting", "how the model is sampled; what is left out is the model's own"
    ).add_argument
    add("--sampler", help=f"one of {', '.join(SAMPLERS)}{more}")
    add("--steps", help=f"intervals of the time grid{more}")
    add("--grid", help=f"spacing of the times: {', '.join(GRID_NAMES)}, or at:T,T,... for its own")
    add("--guidance-scale", help=f"classifier-free guidance; 1.0 is off{more}")
    add(
        "--guidance-interval",
        metavar="T,T",
        help="the times that guidance acts at, such as 0.2,0.8",
    )
    add("--threshold", help=f"clipping of the guess of x0: {', '.join(THRESHOLD_NAMES)}")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="an option of the sampler's own, such as eta=0.5 of ddim; may be repeated",
    )


def numbers(text: str, kind: Callable[[str], float], option: str) -> list:
    """ "1,2,4" -> [1, 2, 4]."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"{option} {text}: give numbers with commas between them, such as 1,2,4"
        ) from error


def check_between(option: str, value: int, lowest: int, highest: int = 2**53) -> None:
    """Raises UserError for a whole number that is out of range."""
    if not lowest <= value <= highest:
        words = f"at least {lowest}" if value < lowest else f"at most {highest:,}"
        raise UserError(f"{option} {value}: {words}")


def given_settings(a: argparse.Namespace) -> dict:
    """The options as keys of a sweep's entry, those that were given alone."""
    options = {}
    for text in a.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option {text}: give NAME=NUMBER, such as eta=0.5")
        if name in options:
            raise UserError(f"--option {name} is given twice: give it once")
        options[name], *more = numbers(value, float, f"--option {name}")
        if more:
            raise UserError(f"--option {text}: give one number")
    given = {
        "samplers": a.sampler and a.sampler.split(","),
        "steps": a.steps and numbers(a.steps, int, "--steps"),
        "guidance_scales": a.guidance_scale
        and numbers(a.guidance_scale, float, "--guidance-scale"),
        "guidance_interval": a.guidance_interval
        and numbers(a.guidance_interval, float, "--guidance-interval"),
        "threshold": a.threshold,
        "grid": a.grid,
        "options": options,
    }
    return {key: value for key, value in given.items() if value}


def chosen_steps(a: argparse.Namespace) -> int | None:
    """The one number of steps that was given, if it was: some runs keep a model for each."""
    found = numbers(a.steps, int, "--steps") if a.steps else [None]
    return found[0]


def chosen_setting(a: argparse.Namespace, own: Setting) -> Setting:
    """The one setting that the options describe; `own`: how the model is meant to be sampled. A
    sampler that is named begins with everything off that is not given.

    Raises:
        UserError: an option that is no setting, or several where one is wanted.
    """
    entry = parse(Sampled, given_settings(a), "command line")
    setting, *more = entry.settings(own)
    if more:
        raise UserError("several samplers, steps or guidance scales: give one of each")
    return setting
