"""What an exported folder carries for networks that diffusers does not have: a model and a pipeline
of its custom-code kind.

teachers/diffusers_format/write.py writes the source of these two classes, and of the U-Net, into
the folder; nothing else of this repository is needed there. This module is imported only where an
export or a test asks for it, since it needs diffusers.
"""

from __future__ import annotations

import inspect

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from core.networks.unet import UNet


class FastSamplingUNet(ModelMixin, ConfigMixin):
    """The U-Net of the fast-sampling lab, called as diffusers' UNet2DModel is.

    Timestep k (0..steps - 1) is its time t = (k + 1) / steps. `num_classes` > 0: class_labels
    0..num_classes - 1, and num_classes (or None) is the null label. `converts`: its path or
    prediction is not one of diffusers', and three tables turn it into v-prediction on a
    variance-preserving path: v = c_x x + c_F F(c_in x), known at whole timesteps only.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        num_classes: int = 0,
        widths: tuple = (64, 128),
        blocks: int = 2,
        attention: tuple = (1,),
        head_width: int = 32,
        dropout: float = 0.0,
        patch: int = 1,
        steps: int = 1000,
        converts: bool = False,
    ):
        super().__init__()
        self.unet = UNet(
            in_channels,
            sample_size,
            tuple(widths),
            blocks,
            tuple(attention),
            head_width,
            dropout,
            num_classes,
            False,
            patch,
        )
        if converts:
            self.register_buffer("scales", torch.zeros(3, steps))  # c_in, c_x, c_F

    def forward(
        self, sample: Tensor, timestep, class_labels: Tensor | None = None, return_dict: bool = True
    ):
        """sample [B, C, H, W], timestep a number or [B], class_labels [B] or None -> the prediction
        [B, C, H, W]."""
        k = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        t = (
            (k.double() + 1) / self.config.steps
        ).float()  # whatever the network computes in: bfloat16 has no t = 0.999
        if self.config.converts:
            if bool((k != k.round()).any()):
                raise ValueError(
                    "this network is exported as a table: give whole timesteps (no Karras or other sigmas)"
                )
            c_in, c_x, c_F = self.scales[:, k.long()].float()[..., None, None, None]
            raw = self.unet((c_in * sample).to(sample.dtype), t, None, class_labels)
            output = (c_x * sample + c_F * raw).to(sample.dtype)
        else:
            output = self.unet(sample, t, None, class_labels)
        return UNet2DOutput(sample=output) if return_dict else (output,)


class FastSamplingPipeline(DiffusionPipeline):
    """Noise to images with any scheduler of whole timesteps, with class labels and classifier-free
    guidance.

    null_label: whether the last class of a UNet2DModel is the null label. vae: what decodes the
    latents that the network makes, for one that makes no images.
    """

    _optional_components = ["vae"]

    def __init__(self, unet, scheduler, null_label: bool = True, vae=None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(null_label=null_label)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | list[int] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **step_options,
    ):
        """Images; class_labels [B] (a tensor or a list) default to classes in turn, guidance_scale
        1 is off, noise [B, C, H, W] replaces the generator's (a list has one for each image);
        output_type pil, np, pt (in 0..1) or raw (the tensor itself); step_options, such as eta, go
        to the scheduler. The generator may be of the CPU wherever the model is.

        Raises:
            ValueError: labels or generators that are not one for each image, labels or guidance
                that the network does not know.
        """
        config = self.unet.config
        count = batch_size if noise is None else len(noise)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(
                f"{len(generator)} generators for {count} images: give one for each, or a single one for all"
            )
        if noise is None:
            shape = (count, config.in_channels, config.sample_size, config.sample_size)
            noise = randn_tensor(
                shape, generator=generator, device=self.device, dtype=torch.float32
            )
        x = noise.to(self.device, self.unet.dtype)
        rows = getattr(
            config, "num_class_embeds", None
        )  # of a UNet2DModel, the null label among them if it has one
        classes = rows - self.config.null_label if rows else getattr(config, "num_classes", 0)
        if guidance_scale != 1.0 and classes and not self.config.null_label:
            raise ValueError(
                "guidance needs a null label, which this network does not have: leave guidance_scale at 1.0"
            )
        if classes and class_labels is None:
            class_labels = torch.arange(len(x)) % classes
        if class_labels is not None and not classes:
            raise ValueError("this network knows no classes: leave class_labels out")
        label = (
            torch.as_tensor(class_labels, dtype=torch.long, device=self.device) if classes else None
        )
        if label is not None and label.shape != (len(x),):
            raise ValueError(
                f"class_labels are {list(label.shape)} for {len(x)} images: give one for each, or batch_size as many"
            )
        if (
            generator is not None
            and "generator" in inspect.signature(self.scheduler.step).parameters
        ):
            step_options["generator"] = generator
        self.scheduler.set_timesteps(num_inference_steps)
        x = x * self.scheduler.init_noise_sigma
        for k in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(x, k)
            output = self.unet(given, k, class_labels=label).sample
            if guidance_scale != 1.0 and classes:
                null = self.unet(given, k, class_labels=torch.full_like(label, classes)).sample
                output = null + guidance_scale * (output - null)
            x = self.scheduler.step(output, k, x, **step_options).prev_sample
        if self.vae is not None:
            latents = x / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
            x = self.vae.decode(latents.to(self.vae.dtype)).sample
        if output_type == "raw":
            images = x
        else:
            images = (x / 2 + 0.5).clamp(0, 1)
            if output_type != "pt":
                images = images.cpu().permute(0, 2, 3, 1).float().numpy()
                images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
