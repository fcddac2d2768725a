"""What all students share: a trained teacher to start from."""

from __future__ import annotations

import copy

from core.data import ImageSource
from core.errors import UserError
from core.model import Model
from core.runs import Run
from core.training.method import Context


def load_teacher(folder: str, context: Context) -> Run:
    """The teacher's averaged weights, checked against the student's data.

    Raises:
        UserError: the config describes a model of its own (a student copies its teacher's), or the
            images differ.
    """
    if context.model is not None:
        raise UserError(
            "a student copies its teacher's network and path: remove the section 'model' from its config"
        )
    return context.load(folder, "ema", context.device)


def student_source(teacher: Run, context: Context) -> ImageSource:
    data = context.data.load()
    if (data.channels, data.side) != (teacher.channels, teacher.side):
        raise UserError(
            f"data '{context.data.name}' is {data.channels}x{data.side}x{data.side}, but the teacher {teacher.folder} was "
            f"trained on {teacher.channels}x{teacher.side}x{teacher.side}"
        )
    if teacher.num_classes and teacher.num_classes != data.num_classes:
        raise UserError(
            f"data '{context.data.name}' has {data.num_classes} classes, but the teacher {teacher.folder} knows {teacher.num_classes}"
        )
    return ImageSource(data.seen_by(teacher.num_classes), context.seed)


def trainable_copy(model: Model) -> Model:
    """A copy of the teacher to be trained."""
    return copy.deepcopy(model).train().requires_grad_(True)
