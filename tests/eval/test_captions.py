"""The measure of captions, on samples whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.data import load_data
from core.networks.captions import caption_set
from core.networks.text import TextConfig
from core.setting import Setting
from eval import captions as module
from eval.captions import fidelity, real_row, table
from eval.features.extractors import make_extractor
from tests.core.data.test_emoji import here


@here
def test_right_pictures_are_right_and_swapped_ones_are_not(monkeypatch):
    """A generator that gives the real image of each caption is as right as real images, at distance
    0; one that gives that of another caption is not, though the distance stays 0."""
    data, extractor = load_data("emoji", "test"), make_extractor("emoji-cnn")
    spec = SimpleNamespace(text=TextConfig())
    model = SimpleNamespace(network=nn.Identity())
    run = SimpleNamespace(
        spec=spec, model=model, folder="run", name="run", weights_sha256="0", train_images=1
    )
    real = {caption: image for caption, image in zip(data.captions, data.images, strict=True)}
    held_out = caption_set("emoji").held_out
    rows = [real_row(data, extractor)]
    for shift in (0, 29):

        def known(model, setting, indices, seed=0, shift=shift):
            names = [held_out[(i + shift) % len(held_out)] for i in indices.tolist()]
            return torch.stack([real[name] for name in names])

        monkeypatch.setattr(module, "sample_images", known)
        setting = Setting(sampler="ddim", steps=1)
        rows.append(fidelity(run, data, extractor, setting, len(held_out)))
    truth, same, swapped = rows
    assert same.shares == pytest.approx(truth.shares) and truth.shares["all"] > 0.9
    assert abs(same.fd) < 1e-2 and abs(swapped.fd) < 1e-2
    assert swapped.shares["tone"] < 0.4 and swapped.shares["all"] < 0.3
    assert len(table(rows).splitlines()) == 5
