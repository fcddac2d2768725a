"""Reading captions: attention to them against PyTorch's own and closed forms, padding, the null
caption, a U-Net's derivatives, and encoders of Hugging Face against themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.condition import Condition
from core.errors import UserError
from core.networks.dit import DiTConfig
from core.networks.text import CrossAttention, TextConfig, TextEncoder
from core.networks.unet import UNet, UNetConfig
from core.sampling.denoisers import Conditioned, Guided, denoiser_for
from core.training.derivatives import jvp
from tests.core.training.test_derivatives import by_autograd
from tests.helpers.models import awake, model_of
from tests.helpers.text import caption_of, text, tiny_bert  # noqa: F401


@pytest.fixture(params=["unet", "dit"])
def reader(request, text):  # noqa: F811
    """(changes) -> the config of a small network of each kind that reads captions."""
    sizes = {
        "unet": (UNetConfig, dict(widths=(8, 16), blocks=1, attention=(1,), head_width=8)),
        "dit": (DiTConfig, dict(width=16, depth=2, heads=2)),
    }
    kind, size = sizes[request.param]
    return lambda **changes: kind(**size, conditional=False, text=TextConfig(**text), **changes)


def scene(config: TextConfig, count: int = 4):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.2, 0.9, count, dtype=torch.float64)
    return x, t, config.tokens([caption_of(k) for k in range(count)])


def attention(seed: int = 0) -> tuple[CrossAttention, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return (
        awake(CrossAttention(12, 6, 3)),
        torch.randn(2, 5, 12).double(),
        torch.randn(2, 4, 6).double(),
    )


def test_cross_attention_is_pytorchs_with_the_same_weights():
    ours, h, states = attention()
    counts = torch.tensor([[True, True, True, True], [True, False, True, False]])
    theirs = nn.MultiheadAttention(12, 3, kdim=6, vdim=6, batch_first=True).double()
    k, v = ours.kv.weight.chunk(2)
    state = {
        "q_proj_weight": ours.q.weight,
        "k_proj_weight": k,
        "v_proj_weight": v,
        "in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias]),
        "out_proj.weight": ours.out.weight,
        "out_proj.bias": ours.out.bias,
    }
    theirs.load_state_dict(state)
    known = theirs(h, states, states, key_padding_mask=~counts)[0]
    torch.testing.assert_close(ours(h, states, counts), known, rtol=1e-12, atol=1e-12)


def test_what_stands_in_padding_changes_no_bit():
    ours, h, states = attention()
    counts = torch.tensor([[True, True, False, False], [True, True, True, False]])
    other = torch.where(counts[..., None], states, 1e6 * torch.randn_like(states))
    assert torch.equal(ours(h, states, counts), ours(h, other, counts))
    assert not torch.equal(ours(h, states, counts), ours(h, other, torch.ones_like(counts)))


def test_a_single_state_is_its_value_whatever_asks():
    """softmax over one is 1, so the output is out(v(state)) at every position."""
    ours, h, states = attention()
    counts = torch.tensor([True, False, False, False]).expand(2, -1)
    known = ours.out(ours.kv(states[:, :1])[..., 12:])
    torch.testing.assert_close(ours(h, states, counts), known.expand(-1, 5, -1))


def test_a_caption_is_read_alike_beside_longer_ones_and_in_longer_rows():
    torch.manual_seed(0)
    encoder = TextEncoder(9, 6, 8, 2, 2).double().eval()
    tokens = torch.tensor([[3, 5, 0, 0, 0, 0], [2, 4, 6, 8, 7, 3]])
    together, counts = encoder(tokens)
    assert counts.sum(1).tolist() == [3, 7]
    alone, short = encoder(tokens[:1])[0], encoder(tokens[:1, :2])[0]
    torch.testing.assert_close(together[:1, :3], alone[:, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together[:1, :3], short, rtol=1e-12, atol=1e-12)


def test_a_fresh_network_that_reads_is_the_one_that_does_not(reader):
    """Whatever the caption says: what it adds starts at zero."""
    config = reader()
    torch.manual_seed(0)
    reads, plain = config.build(1, 8, 0), reader().model_copy(update={"text": None})
    plain = plain.build(1, 8, 0)
    state = {k: v for k, v in reads.state_dict().items() if k in plain.state_dict()}
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in state.items()}  # what else starts at zero
    for net in (reads, plain):
        net.load_state_dict(state, strict=False)
    x, t, tokens = scene(config.text)
    x, t = x.float(), t.float()
    assert torch.equal(reads(x, t, text=tokens), plain(x, t))
    assert float(plain(x, t).detach().abs().max()) > 0.1


def test_no_caption_is_the_empty_caption_and_captions_matter(reader):
    config = reader()
    net = awake(config.build(1, 8, 0))
    x, t, tokens = scene(config.text)
    empty = config.text.tokens([""] * 4)
    assert int(empty.abs().sum()) == 0
    assert torch.equal(net(x, t), net(x, t, text=empty))
    condition = Condition(text=tokens).without_label(0, torch.tensor([True, False, False, True]))
    mixed, told = net(x, t, text=condition.text), net(x, t, text=tokens)
    torch.testing.assert_close(mixed[[0, 3]], net(x, t)[[0, 3]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed[[1, 2]], told[[1, 2]], rtol=1e-12, atol=1e-12)
    assert float((told - net(x, t)).detach().abs().max()) > 1e-2
    assert condition.tells(0).tolist() == [False, True, True, False]


def test_only_what_is_shown_in_the_caption_reaches_a_sample(reader):
    """Another caption beside it in the batch changes nothing of a sample."""
    config = reader()
    net = awake(config.build(1, 8, 0))
    x, t, tokens = scene(config.text)
    swapped = tokens.clone()
    swapped[1] = config.text.tokens([caption_of(8)])[0]
    one, two = net(x, t, text=tokens), net(x, t, text=swapped)
    assert torch.equal(one[[0, 2, 3]], two[[0, 2, 3]]) and not torch.equal(one[1], two[1])


def test_derivatives_of_a_network_that_reads(reader):
    """Forward mode against the double backward and against finite differences."""
    config = reader(second_time=True, time_scale=4.0)
    net = awake(config.build(1, 8, 0))
    model = model_of(net, "rectified", "mean-velocity", network=config)
    x, t, tokens = scene(config.text)
    v, condition = torch.randn_like(x), Condition(text=tokens)
    _, slope = jvp(model, x, t, t / 2, v, condition)
    known = by_autograd(model, x, t, t / 2, v, condition)
    torch.testing.assert_close(slope, known, rtol=1e-9, atol=1e-9)
    _, near = jvp(model, x, t, t / 2, v, condition, "difference", 1e-4)
    torch.testing.assert_close(near, slope, rtol=1e-4, atol=1e-5)
    assert float((slope - jvp(model, x, t, t / 2, v)[1]).abs().max()) > 1e-2


def test_guidance_by_captions(reader):
    config = reader()
    net = awake(config.build(1, 8, 0))
    model = model_of(net, "vp-cosine", "v", network=config, null_trained=True)
    x, _, tokens = scene(config.text)
    t, told = torch.tensor(0.6, dtype=torch.float64), Condition(text=tokens)
    off = denoiser_for(model, told, 1.0)
    assert isinstance(off, Conditioned)
    assert torch.equal(off(x, t).x0, model.x0(x, t, told))
    with torch.no_grad():
        plain, null = model.output(x, t, told), model.output(x, t)
        F = Guided(model, told, 3.0)._output(x, t)
    torch.testing.assert_close(F, null + 3 * (plain - null), rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match="needs labels or captions"):
        denoiser_for(model, Condition(), 3.0)


def test_captions_that_do_not_fit_are_refused(text):  # noqa: F811
    config = TextConfig(**text)
    with pytest.raises(UserError, match="no training caption has 'tree'.*three"):
        config.tokens(["an odd tree"])
    with pytest.raises(UserError, match="5 words, more than"):
        config.tokens(["an odd odd odd three"])
    with pytest.raises(UserError, match=r"tokenizer.json does not exist"):
        TextConfig(captions="nowhere").tokens(["x"])
    assert torch.equal(config.tokens(["An ODD, three"]), config.tokens(["an odd three"]))
    with pytest.raises(UserError, match="network.attention"):
        UNet(1, 8, (8,), 1, (), text=config)
    with pytest.raises(ValueError, match="reads no captions"):
        UNet(1, 8, (8,), 1, ())(torch.zeros(1, 1, 8, 8), torch.ones(1), text=torch.zeros(1, 4))


def test_captions_in_turn(text):  # noqa: F811
    config = TextConfig(**text)
    given = config.in_turn(torch.tensor([7, 0, 2]))
    assert torch.equal(given, config.tokens([caption_of(k) for k in (8, 3, 3)]))


def test_a_pretrained_encoder_gives_the_librarys_states(tmp_path, text):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    config = TextConfig(**{**text, "length": 6}, encoder=tiny_bert(tmp_path / "bert"))
    encoder = config.build()
    tokens = config.tokens([caption_of(4), "", "an even"])
    states, counts = encoder(tokens)
    theirs = transformers.AutoModel.from_pretrained(config.encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.encoder)
    for i, caption in enumerate([caption_of(4), "", "an even"]):
        known = theirs(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        assert counts[i].tolist() == [True] + [True] * len(known) + [False] * (6 - len(known))
        torch.testing.assert_close(states[i, 1 : 1 + len(known)], known, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states[i, 0], known.mean(0), rtol=1e-5, atol=1e-5)


def test_the_text_half_of_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    bert = tiny_bert(tmp_path / "clip")  # for its tokenizer
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    words = transformers.CLIPTextConfig(
        vocab_size=32, max_position_embeddings=8, eos_token_id=3, **sizes
    )
    model = transformers.CLIPTextModel(words).eval()
    model.save_pretrained(bert)
    config = TextConfig(length=6, encoder=bert)
    states, _ = config.build()(config.tokens(["an even four"]))
    ids = torch.tensor([[2, 4, 5, 11, 3]])
    torch.testing.assert_close(states[:, 1:6], model(input_ids=ids).last_hidden_state)
