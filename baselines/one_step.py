"""What all baselines share: a model that turns noise into an image in one evaluation, as the
harness samples it."""

from __future__ import annotations

from core.data import ImageData
from core.errors import UserError
from core.model import ModelSpec
from core.training.method import Context, images_and_spec


def one_step_spec(context: Context, network: str) -> tuple[ImageData, ModelSpec]:
    """The training images and the spec of a generator: x0 is predicted, at t = 1 alone, where every
    path is pure noise.

    Raises:
        UserError: the config asks for another network or says something of the path that a
            generator has none of.
    """
    if context.model is None or context.model.network.name != network:
        raise UserError(
            f"this method trains the network '{network}': give model.network.name={network}"
        )
    data, spec = images_and_spec(context)
    return data, spec.model_copy(
        update={"path": "rectified", "prediction": "x0", "discrete_steps": 1}
    )
