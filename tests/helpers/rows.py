"""A row of a curve, as a dictionary."""

from __future__ import annotations

from eval.rows import IDENTITY


def row(method: str, steps: int | None, fid: float, **changes) -> dict:
    values = dict.fromkeys(IDENTITY) | {
        "dataset": "digits",
        "method": method,
        "run": method,
        "n": 449,
        "metric": "FD",
    }
    values |= {
        "steps": steps,
        "nfe": None if steps is None else float(steps),
        "sampler": None if steps is None else "ddim",
    }
    values |= {
        "guidance_scale": 1.0,
        "fid": fid,
        "fid_std": fid / 10,
        "fid_error": "bootstrap 20",
        "extractor": "digits-cnn",
    }
    values |= {
        "extractor_sha256": "ab" * 32,
        "reference": "digits train",
        "reference_sha256": "cd" * 32,
        "ema": "raw",
    }
    return (
        values
        | {"seed": 0, "samples": None, "weights_sha256": method, "config_sha256": method}
        | changes
    )
