"""The positive-features model with label smoothing, and the memorization-dilation model of label noise."""

from ncbook.memorization_dilation.measured import (
    MeasuredMemorization,
    class_distance,
    class_means,
    displacement,
    measure_memorization,
    memorised_fraction,
    progress,
    radius,
)

__all__ = [
    "MeasuredMemorization",
    "class_distance",
    "class_means",
    "displacement",
    "measure_memorization",
    "memorised_fraction",
    "progress",
    "radius",
]
