"""The positive-features model with label smoothing, and the memorization-dilation model of label noise."""

from ncbook.memorization_dilation.asymptotics import SmallNoise, exit_rate, limit_ratio, small_noise
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
from ncbook.memorization_dilation.model import CleanConfiguration, clean_configuration, objective
from ncbook.memorization_dilation.noise import NOISES, Nodes, accuracy, error_rate, nodes
from ncbook.memorization_dilation.path import AxisExit, axis_exit, noisy_path
from ncbook.memorization_dilation.positive import (
    confidence,
    dead_class_loss,
    dead_class_minimiser,
    largest_smoothing,
    nonnegative_norm,
    positive_decay,
)
from ncbook.memorization_dilation.solve import MDSolution, solve_md

__all__ = [
    "NOISES",
    "AxisExit",
    "CleanConfiguration",
    "MDSolution",
    "MeasuredMemorization",
    "Nodes",
    "SmallNoise",
    "accuracy",
    "axis_exit",
    "class_distance",
    "class_means",
    "clean_configuration",
    "confidence",
    "dead_class_loss",
    "dead_class_minimiser",
    "displacement",
    "error_rate",
    "exit_rate",
    "largest_smoothing",
    "limit_ratio",
    "measure_memorization",
    "memorised_fraction",
    "nodes",
    "noisy_path",
    "nonnegative_norm",
    "objective",
    "positive_decay",
    "progress",
    "radius",
    "small_noise",
    "solve_md",
]
