"""Knowledge distillation of a teacher's sampler into one step (Luhman and Luhman 2021, arXiv
2101.02388), eq. 5."""

from __future__ import annotations

from pydantic import Field

from core.data import Batch
from core.data.pairs import PairSource
from core.diffusion.losses import Distance, distance
from core.model import Model
from core.training.method import (
    Context,
    Loss,
    Method,
    MethodConfig,
    Progress,
    noise_of,
    regress,
)
from core.training.roles import Role
from students.teacher import check_not_told, load_teacher, trainable_copy


class KnowledgeDistillationConfig(MethodConfig):
    """The keys of knowledge distillation."""

    teacher: str
    """run, folder or hub id of the teacher, whose weights the student starts from"""
    pairs: str
    """folder of pairs of noise and the image that the teacher's sampler makes of it"""
    distance: Distance = "squared"
    """between images: squared, or pseudo-huber with c = huber sqrt(dimension)"""
    huber: float = Field(default=0.00054, ge=1e-9, le=1e6)
    """of pseudo-huber"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of the student"""


class KnowledgeDistillation(Method):
    """||x0_student(eps, t = 1) - x0||^2 for stored (eps, x0) of a deterministic sampler: the
    student learns its teacher's many steps as one (eq. 5, whose variance is a constant factor).

    Deviation: where the teacher predicts v, u or x0, the student's image is read from that
    prediction at pure noise, as the teacher's own guess is; one that predicts eps becomes the image
    itself, as in the paper.
    """

    Config = KnowledgeDistillationConfig

    def __init__(
        self, config: KnowledgeDistillationConfig, teacher: Model, source: PairSource | None
    ):
        self.config, self.source = config, source
        kind = teacher.spec.prediction
        student = trainable_copy(
            teacher,
            config.dropout,
            prediction="x0" if kind == "eps" else kind,
            discrete_steps=1,  # it knows pure noise only
            sampling=None,
        )
        self.roles = {"student": Role(student)}

    @classmethod
    def from_config(
        cls, config: KnowledgeDistillationConfig, context: Context
    ) -> KnowledgeDistillation:
        run = load_teacher(config.teacher, context)
        check_not_told(run.spec)
        pairs = PairSource(config.pairs, context.seed)
        pairs.check_fits(run.spec)
        method = cls(config, run.model, pairs)
        method.teacher_name = pairs.manifest.run_name
        method.started_from = {run.name: run.weights_sha256}
        return method

    def loss(self, role: str, batch: Batch, progress: Progress) -> Loss:
        model, t = self.roles["student"].wrapped, batch.x0.new_ones(len(batch.x0)).double()
        # The noise as it is, where a sampler begins
        error = regress(model, noise_of(batch), t, batch.x0, "x0", batch.condition)
        return Loss(distance(self.config.distance, error, self.config.huber), t)
