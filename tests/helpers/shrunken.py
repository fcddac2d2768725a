"""The shipped configs, so small that each takes a second: one rule for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scripts.planner import Config, Planner, read_configs

SCALE = 500  # what counts of images and evaluations are divided by
COUNTED = {"images", "evals", "count", "half_life", "target_half_life", "warmup",
           "metrics_every", "samples_every", "checkpoint_every"}  # fmt: skip
SIZES = {
    "blocks": 1,
    "groups": 4,  # a group of one channel makes the bias ahead of it nothing but rounding
    "latent": 4,
    "batch_size": 16,
    "n": 8,
    "bootstrap": 4,
    "keep_samples": 4,
    "among": 8,
    "transport": 8,
}


def shrunken(values: Any, key: str = "") -> Any:
    """Values of a config: thin networks, small batches, counts divided by SCALE, and of a list of
    steps the first two."""
    if isinstance(values, dict):
        return {name: shrunken(value, name) for name, value in values.items()}
    if key == "widths":
        return [8 for _ in values]
    if key == "steps" and isinstance(values, list):
        return values[:2]
    if isinstance(values, list):
        return [shrunken(value, key) for value in values]
    if key in COUNTED:
        return max(1, type(values)(values / SCALE))
    return min(values, SIZES[key]) if key in SIZES else values


def small_configs(folder: Path, dataset: str = "digits", **changes: Any) -> dict[str, Config]:
    """The configs of a data set, shrunken, as files in folder/configs/DATASET; what they make goes
    to folder/runs. changes: values of keys, wherever they are, or functions of those that are
    there."""
    configs = read_configs(dataset, str(folder / "runs"))
    place = folder / "configs" / dataset
    place.mkdir(parents=True)
    small = {}
    for name, config in configs.items():
        values = _changed(shrunken(config.values), changes)
        file = place / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        small[name] = Config(file, config.kind, [], values)
    return small


def _changed(values: Any, changes: dict) -> Any:
    if not isinstance(values, dict):
        return values
    changed = {k: _changed(v, changes) for k, v in values.items() if k not in changes}
    for key in values.keys() & changes.keys():
        new = changes[key]
        changed[key] = new(values[key]) if callable(new) else new
    return changed


def small_planner(folder: Path, **changes: Any) -> Planner:
    """The planner of `small_configs`; nothing ships."""
    return Planner(small_configs(folder, **changes), None)


def configs_of_methods(planner: Planner) -> dict[str, str]:
    """The first run of each method, by the method's name."""
    found: dict[str, str] = {}
    for name, config in planner.configs.items():
        if config.kind == "run":
            found.setdefault(config.values["method"]["name"], name)
    return found
