"""The critical batch size from runs that differ in their batch: `study_batches(source)` (docs/batch.md)."""

from jaxscale.batch.noise import measure_noise
from jaxscale.batch.result import BatchStudy
from jaxscale.batch.study import study_batches

__all__ = ["BatchStudy", "measure_noise", "study_batches"]
