"""Speed, measured in pairs: our U-Net against diffusers' of the same shape, and samplers against
bare network forwards.

Each pair runs in the same process, alternating, so that both see the same machine; the table gives
medians over repeats of the ratio within a pair. The two networks have the same widths, depth,
attention levels, heads, scale-shift time embedding and class embedding, and differ only in what
each library does with them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from core.condition import Condition
from core.diffusion.grids import make_grid
from core.diffusion.paths import VPCosine
from core.errors import UserError, command_line
from core.model import Model, ModelSpec
from core.networks.unet import UNet
from core.noise import Noise
from core.sampling.denoisers import Conditioned
from core.sampling.solvers import make_sampler

CLASSES = 10
Action = Callable[[], None]


class DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel of the same shape, behind our call contract."""

    def __init__(
        self,
        channels: int,
        side: int,
        widths: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        head: int,
    ):
        super().__init__()
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise UserError(
                "the benchmark compares with diffusers: pip install -r requirements-test.txt"
            ) from error
        levels = range(len(widths))
        self.unet = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=blocks,
            down_block_types=tuple(
                "AttnDownBlock2D" if i in attention else "DownBlock2D" for i in levels
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(levels)
            ),
            add_attention=levels[-1] in attention,
            attention_head_dim=head,
            norm_num_groups=min(32, widths[0] // 4),
            attn_norm_num_groups=min(
                32, widths[0] // 4
            ),  # else the attention in the middle has no norm at all
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=CLASSES + 1,
        )

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None, label: Tensor) -> Tensor:
        return self.unet(x, 1000.0 * t, class_labels=label).sample


def model_spec(x: Tensor, autocast: bool) -> ModelSpec:
    """A v-predicting model of images like x [B, C, S, S]; its network is given elsewhere."""
    return ModelSpec(channels=x.shape[1], side=x.shape[2], num_classes=CLASSES, autocast=autocast)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def paired(
    actions: dict[str, Action],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action, [repeats] each, after one round of warming up; the order alternates
    from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(repeats + 1):
        for name in list(actions)[:: 1 if round_ % 2 else -1]:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = clock()
            actions[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ > 0:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median of a / b within pairs."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def training(network: nn.Module, x: Tensor, t: Tensor, label: Tensor, autocast: bool) -> Action:
    """One optimiser step on a squared error."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    target = torch.randn_like(x)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            F = network(x, t, None, label)
        (F.float() - target).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def forwards(network: nn.Module, x: Tensor, times: Tensor, label: Tensor, autocast: bool) -> Action:
    """One forward for each of the times [N]."""

    @torch.no_grad()
    def run() -> None:
        for t in times.to(x.device, torch.float32):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                network(x, t.expand(len(x)), None, label)

    return run


def sampling(
    network: nn.Module, name: str, x: Tensor, grid: Tensor, label: Tensor, autocast: bool
) -> Action:
    """One whole sampling run along the grid."""
    model = Model(network, model_spec(x, autocast))
    denoiser = Conditioned(model, Condition(label))
    rng, sampler = Noise(0, torch.arange(len(x), device=x.device)), make_sampler(name)

    @torch.no_grad()
    def run() -> None:
        sampler.run(denoiser, x, grid, rng)

    return run


def compare_networks(
    ours: nn.Module,
    theirs: nn.Module,
    x: Tensor,
    autocast: bool,
    repeats: int,
    clock: Callable[[], float],
) -> Iterator[str]:
    """Lines of the first table: images per second in training and in forward passes."""
    label = torch.arange(len(x), device=x.device) % CLASSES
    t = torch.linspace(0.01, 0.99, len(x), device=x.device)
    few = torch.tensor([0.9, 0.6, 0.3, 0.1])
    actions: dict[str, tuple[int, Callable[[nn.Module], Action]]] = {
        "training": (1, lambda network: training(network.train(), x, t, label, autocast)),
        "forward": (len(few), lambda network: forwards(network.eval(), x, few, label, autocast)),
    }
    yield f"{'images/s':<16}{'ours':>10}{'diffusers':>12}{'ours / diffusers':>19}"
    for name, (passes, make) in actions.items():
        seconds = paired({"ours": make(ours), "theirs": make(theirs)}, repeats, x.device, clock)
        ours_speed, their_speed = (passes * len(x) / statistics.median(s) for s in seconds.values())
        yield f"{name:<16}{ours_speed:>10.1f}{their_speed:>12.1f}{median_ratio(seconds['theirs'], seconds['ours']):>19.2f}"


def compare_samplers(
    network: nn.Module,
    x: Tensor,
    steps: int,
    autocast: bool,
    repeats: int,
    clock: Callable[[], float],
) -> Iterator[str]:
    """Lines of the second table: whole sampling runs against as many bare forwards."""
    label = torch.arange(len(x), device=x.device) % CLASSES
    grid = make_grid("time", VPCosine(), steps)
    bare = forwards(network.eval(), x, grid[:-1], label, autocast)
    yield f"{'images/s':<16}{'sampler':>10}{'bare':>12}{'overhead':>19}"
    for name in ("ddim", "ddpm", "dpm++2m", "unipc"):
        actions = {"sampler": sampling(network, name, x, grid, label, autocast), "bare": bare}
        seconds = paired(actions, repeats, x.device, clock)
        speed, bare_speed = (len(x) / statistics.median(s) for s in seconds.values())
        yield f"{name:<16}{speed:>10.2f}{bare_speed:>12.2f}{100 * (median_ratio(*seconds.values()) - 1):>17.1f} %"


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--side", type=int, default=16, help="pixels of a side of the images")
    parser.add_argument("--channels", type=int, default=3, help="of the images")
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[64, 128],
        help="channels of each level, finest first",
    )
    parser.add_argument("--blocks", type=int, default=2, help="residual blocks a level")
    parser.add_argument(
        "--attention",
        type=int,
        nargs="*",
        default=[1],
        help="levels with self-attention, 0 = finest",
    )
    parser.add_argument("--head-width", type=int, default=32, help="channels of an attention head")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is by autocast",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, default=None, help="of the processor; None = PyTorch's choice"
    )
    parser.add_argument("--repeats", type=int, default=9, help="pairs measured for each line")
    parser.add_argument("--steps", type=int, default=20, help="of the samplers")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for a busy machine; with --threads 1 only",
    )
    args = parser.parse_args()
    for name in ("batch", "repeats", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    if args.clock == "cpu" and (args.threads != 1 or args.device != "cpu"):
        raise UserError(
            "--clock cpu counts waiting threads as work: it needs --threads 1 and --device cpu"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device '{args.device}' is not to be had here: {str(error).splitlines()[0]}"
        ) from error

    shape = (
        args.channels,
        args.side,
        tuple(args.widths),
        args.blocks,
        tuple(args.attention),
        args.head_width,
    )
    ours, theirs = UNet(*shape, num_classes=CLASSES).to(device), DiffusersUNet(*shape).to(device)
    x = torch.randn(args.batch, args.channels, args.side, args.side, device=device)
    autocast = args.dtype == "bfloat16"

    size, their_size = (sum(p.numel() for p in n.parameters()) for n in (ours, theirs))
    threads = torch.get_num_threads()
    print(
        f"{args.dtype}, {device}, {threads} threads, {args.clock} time, batch {args.batch}, {args.repeats} pairs a line"
    )
    print(f"parameters: ours {size:,}, diffusers {their_size:,}")
    print()
    for line in compare_networks(ours, theirs, x, autocast, args.repeats, CLOCKS[args.clock]):
        print(line, flush=True)
    print()
    for line in compare_samplers(ours, x, args.steps, autocast, args.repeats, CLOCKS[args.clock]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
