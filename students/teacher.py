"""What all students share: a trained teacher to start from."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from core.data import ImageSource
from core.errors import UserError
from core.model import Model
from core.runs import Run
from core.training.method import Context, Method


def load_teacher(folder: str, context: Context, steps: int | None = None) -> Run:
    """The teacher's averaged weights; steps: those that it keeps for sampling in so many steps.

    Raises:
        UserError: the config describes a model of its own, though a student copies its teacher's.
    """
    if context.model is not None:
        raise UserError(
            "a student copies its teacher's network and path: remove the section 'model' from its "
            "config"
        )
    return context.load(folder, "ema", context.device, steps)


def student_source(teacher: Run, context: Context) -> ImageSource:
    """The student's images; raises UserError where they are not of the teacher's kind."""
    data, spec = context.data.load(), teacher.spec
    if (data.channels, data.side) != (spec.channels, spec.side):
        raise UserError(
            f"data '{context.data.name}' is {data.channels}x{data.side}x{data.side}, but the "
            f"teacher {teacher.folder} was trained on {spec.channels}x{spec.side}x{spec.side}"
        )
    if spec.num_classes and spec.num_classes != data.num_classes:
        raise UserError(
            f"data '{context.data.name}' has {data.num_classes} classes, but the teacher "
            f"{teacher.folder} knows {spec.num_classes}"
        )
    return ImageSource(data.seen_by(spec.num_classes), context.seed)


def supervised_by(method: Method, run: Run) -> None:
    """Notes in the method who taught it, and what the critics saw that had taught the teacher."""
    method.teacher_name = run.name
    features = (*run.critic_features, *method.critic_features)
    method.critic_features = tuple(dict.fromkeys(features))


def trainable_copy(teacher: Model, dropout: float, **changes: Any) -> Model:
    """A copy of the teacher's network to be trained at this rate of dropout, with these values of
    its spec changed. It is given labels alone, so its null label stays untrained."""
    network = copy.deepcopy(teacher.network).train().requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    shape = teacher.spec.network.with_dropout(dropout)
    given = {"null_trained": False, "network": shape, **changes}
    return Model(network, teacher.spec.model_copy(update=given))
