"""What a student takes over from its teacher, and what not."""

from __future__ import annotations

import pytest
import torch

from core.networks.unet import UNetConfig
from students.consistency import Consistency, ConsistencyConfig
from students.progressive import Progressive, ProgressiveConfig
from tests.helpers.models import model_of

SIZE = UNetConfig(widths=(8,), blocks=1, attention=(), dropout=0.4)


def student_of(cls, config, **options):
    teacher = model_of(SIZE.build(1, 8, 3), "vp-cosine", num_classes=3, network=SIZE)
    return teacher, cls(config(name="x", teacher="x", **options), teacher, None).student


@pytest.mark.parametrize(
    ("cls", "config"), [(Progressive, ProgressiveConfig), (Consistency, ConsistencyConfig)]
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_is_the_students_own(cls, config, rate):
    """Seen in the outputs: two forwards in training differ exactly if there is dropout."""
    teacher, student = student_of(cls, config, **({"dropout": rate} if rate else {}))
    for parameter in [*student.parameters(), *teacher.parameters()]:
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.6], dtype=torch.float64)
    a, b = (student.train().output(x, t) for _ in range(2))
    assert torch.equal(a, b) == (rate == 0)
    a, b = (teacher.train().output(x, t) for _ in range(2))
    assert not torch.equal(a, b)
    assert student.spec.network.dropout == rate and teacher.spec.network.dropout == 0.4


def test_the_null_label_of_a_student_is_not_trained():
    for cls, config in ((Progressive, ProgressiveConfig), (Consistency, ConsistencyConfig)):
        teacher, student = student_of(cls, config)
        assert teacher.spec.null_trained is None and student.spec.null_trained is False
