"""Captions through training: every family by the real trainer, resuming to the bit, dropped
captions, stored pairs, an encoder that stays as it is."""

from __future__ import annotations

import pytest
import torch

import core.training.trainer
from core.condition import Condition
from core.data import Batch
from core.data.pairs import PairSource
from core.errors import UserError
from core.networks.text import TextConfig
from core.noise import Noise
from core.pairs import generate_pairs
from core.sampling.sample import sample, sample_images
from core.setting import Setting
from core.training.method import drop_labels
from lab import load
from tests.helpers.runs import assert_same_bits, weights
from tests.helpers.text import caption_of, captioned, text, tiny_bert  # noqa: F401
from tests.helpers.tiny import train_tiny

MAP = {"second_time": True, "time_scale": 1.0}
STUDENTS = {
    "progressive": {"start_steps": 2},
    "consistency": {"steps_start": 2, "steps_end": 4},
    "multistep-consistency": {},
    "scm": {},
    "guided-distillation": {"low": 1.0, "high": 3.0},
    "dmd2": {},
    "sid": {},
    "add": {},
}
FLOWS = {
    "rectified-flow": ({"label_dropout": 0.2}, {}, "u"),
    "meanflow": ({"label_dropout": 0.2, "guidance": 1.5}, MAP, "mean-velocity"),
    "shortcut": ({}, MAP, "mean-velocity"),
    "self-distilled": ({"loss": "lagrangian"}, MAP, "mean-velocity"),
    "consistency-training": ({}, {}, "v"),
}


def options(text: dict, changes: dict | None = None, **more) -> dict:  # noqa: F811
    network = {"attention": [0], "conditional": False, "text": text, **(changes or {})}
    return {"network": network, "data": {"name": "captioned"}, "images": 192, **more}


@pytest.fixture
def teacher(tmp_path, text):  # noqa: F811
    train_tiny(tmp_path / "teacher", method={"label_dropout": 0.3}, **options(text))
    return str(tmp_path / "teacher")


def reads(folder) -> None:
    """The run's samples follow from their captions, and those take turns where nobody chose."""
    run = load(folder)
    setting = run.spec.setting.model_copy(update={"steps": 1})
    x = torch.arange(4)
    noise, told = Noise(0, x), [run.spec.text.tokens([caption_of(k)] * 4) for k in (3, 8)]
    one, other = (sample(run.model, setting, noise, Condition(text=tokens)) for tokens in told)
    assert float((one - other).abs().max()) > 1e-6
    one, other = (sample_images(run.model, setting, x, caption=caption_of(k)) for k in (3, 8))
    turns = sample_images(run.model, setting, x)
    assert torch.equal(turns[::2], one[::2]) and torch.equal(turns[1::2], other[1::2])


@pytest.mark.parametrize("name", STUDENTS)
def test_students_of_a_teacher_that_reads(tmp_path, teacher, name, text):  # noqa: F811
    method = {"teacher": teacher, **STUDENTS[name]}
    train_tiny(tmp_path / name, name, method=method, data={"name": "captioned"}, images=192)
    reads(tmp_path / name)
    before, after = (weights(tmp_path / run, "raw") for run in ("teacher", name))
    words = [k for k in after if k.endswith("text.encoder.words.weight")]
    assert words and not torch.equal(after[words[0]], before["text.encoder.words.weight"])


@pytest.mark.parametrize("name", FLOWS)
def test_flows_and_maps_that_read(tmp_path, text, name):  # noqa: F811
    method, network, prediction = FLOWS[name]
    path = "vp-cosine" if name == "consistency-training" else "rectified"
    more = {"method": method, "prediction": prediction, "path": path}
    train_tiny(tmp_path / name, name, **options(text, network, **more))
    reads(tmp_path / name)


def test_resuming_is_equal_to_the_bit(tmp_path, text):  # noqa: F811
    run = {"method": {"label_dropout": 0.2}, **options(text), "images": 960}
    train_tiny(tmp_path / "whole", **run)
    original = core.training.trainer.Trainer.save

    def crash(self):
        original(self)
        raise RuntimeError("crash")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.training.trainer.Trainer, "save", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train_tiny(tmp_path / "crashed", **run)
    train_tiny(tmp_path / "crashed", **run)
    assert_same_bits(tmp_path / "whole", tmp_path / "crashed")
    raw, ema = (weights(tmp_path / "whole", which) for which in ("raw", "ema"))
    assert not torch.equal(raw["text.encoder.first"], ema["text.encoder.first"])  # averaged too


def test_captions_are_dropped_with_their_labels_at_the_given_share():
    rng = Noise(0, torch.arange(4000))
    text = torch.arange(8000).view(4000, 2) + 1  # noqa: F811
    batch = Batch(torch.zeros(4000, 1), Condition(label=torch.zeros(4000).long(), text=text), rng)
    kept = drop_labels(batch, 0.25, 10)
    dropped = kept.text.sum(1) == 0
    assert torch.equal(dropped, kept.label == 10)
    assert abs(float(dropped.float().mean()) - 0.25) < 0.02
    assert torch.equal(kept.text[~dropped], text[~dropped])
    alone = drop_labels(batch._replace(condition=Condition(text=text)), 0.25, 10)
    assert torch.equal(alone.text, kept.text) and alone.label is None


def test_pairs_keep_the_caption_that_made_them(tmp_path, teacher, text):  # noqa: F811
    run = load(teacher)
    torch.manual_seed(0)
    for parameter in run.model.network.parameters():  # so that captions matter much
        parameter.add_(0.1 * torch.randn_like(parameter))
    generate_pairs(run, tmp_path / "pairs", 12, "ddim", 2, seed=5, shard=8, batch_size=3)
    source = PairSource(tmp_path / "pairs", seed=1)
    batch = source.draw(torch.arange(12), torch.device("cpu"))
    spec, setting = run.spec, Setting(sampler="ddim", steps=2)
    known = {
        tuple(row) for row in TextConfig(**text).tokens([caption_of(k) for k in range(10)]).tolist()
    }
    assert {tuple(row) for row in batch.condition.text.tolist()} <= known
    order = source.order(torch.arange(12))
    noise = Noise(5, source.index[order])
    again = sample(run.model, setting, noise, Condition(text=batch.condition.text))
    torch.testing.assert_close(again, batch.x0, rtol=2e-3, atol=2e-3)  # stored in half precision
    swapped = sample(run.model, setting, noise, Condition(text=batch.condition.text.roll(1, 0)))
    assert not torch.allclose(swapped, batch.x0, rtol=2e-3, atol=2e-3)
    source.check_fits(spec)
    plain = {"name": "unet", "widths": (8,), "attention": ()}
    other = spec.model_copy(update={"network": type(spec.network)(**plain)})
    with pytest.raises(UserError, match="captions of 4 tokens do not fit"):
        source.check_fits(other)


def test_a_pretrained_encoder_stays_as_it_is(tmp_path, text):  # noqa: F811
    frozen = {**text, "length": 6, "encoder": tiny_bert(tmp_path / "bert")}
    run = options(frozen, optimizer={"weight_decay": 0.1})
    trainer = train_tiny(tmp_path / "run", method={"label_dropout": 0.2}, **run)
    learns = {n: p.requires_grad for n, p in trainer.method.student.network.named_parameters()}
    assert learns["text.pooled.weight"]
    assert not any(learns[n] for n in learns if n.startswith("text.encoder."))
    bert = TextConfig(**frozen).build().state_dict()
    for which in ("raw", "ema"):
        kept = weights(tmp_path / "run", which)
        for name, tensor in bert.items():
            torch.testing.assert_close(kept[f"text.encoder.{name}"], tensor, rtol=0, atol=1e-7)
        assert float(kept["text.pooled.weight"].abs().max()) > 0
    reads(tmp_path / "run")


def test_what_cannot_be_told_apart_by_captions_is_refused(tmp_path, text, teacher):  # noqa: F811
    with pytest.raises(UserError, match="no two images share a caption"):
        network = {**MAP}
        train_tiny(
            tmp_path / "a", "moment-matching", prediction="mean-velocity", path="rectified",
            **options(text, network),
        )  # fmt: skip
    with pytest.raises(UserError, match="transport"):
        more = {"method": {"transport": 8}, "prediction": "u", "path": "rectified"}
        train_tiny(tmp_path / "b", "rectified-flow", **options(text, **more))
    with pytest.raises(UserError, match="reads captions otherwise"):
        given = options({**text, "length": 7}, MAP)
        network = {"widths": [8], "blocks": 1, "patch": 2, **given.pop("network")}
        own = {"network": network, "path": "rectified", "prediction": "mean-velocity"}
        train_tiny(tmp_path / "c", "meanflow", method={"teacher": teacher}, model=own, **given)
    with pytest.raises(UserError, match="'digits' has no captions"):
        train_tiny(tmp_path / "d", **(options(text) | {"data": {"name": "digits"}}))
    run = load(teacher)
    with pytest.raises(UserError, match="told no classes"):
        sample_images(run.model, run.spec.setting, torch.arange(2), label=1)
    with pytest.raises(UserError, match="no training caption has 'green'"):
        sample_images(run.model, run.spec.setting, torch.arange(2), caption="an odd green seven")
