"""A row of a curve."""

from __future__ import annotations

from eval.rows import Row


def row(method: str, steps: int | None, fid: float, **changes) -> Row:
    """A row of digits by 449 images; steps None: a floor."""
    sampled = {
        "sampler": "ddim",
        "steps": steps,
        "nfe": float(steps or 0),
        "guidance_scale": 1.0,
        "threshold": "none",
        "grid": "time",
        "ema": "raw",
        "seed": 0,
        "config_sha256": method,
    }
    values = {
        "dataset": "digits",
        "method": method,
        "run": method,
        "metric": "FD",
        "fid": fid,
        "fid_std": fid / 10,
        "fid_error": "bootstrap 20",
        "n": 449,
        "extractor": "digits-cnn",
        "extractor_sha256": "ab" * 32,
        "reference": "digits train",
        "reference_sha256": "cd" * 32,
        "weights_sha256": method,
        **({"sampler": None} if steps is None else sampled),
    }
    return Row(**values | changes)


def changed(row: Row, **changes) -> Row:
    """The row with other values, checked as if read from a file."""
    kept = row.model_dump(exclude={"sets", "resamples"} if "fid_error" in changes else set())
    return Row(**kept | changes)
