"""The named experiments of the book: run by name and profile, recorded with all that repeats them.

``python -m ncbook`` is their command line. A recorded run lies in ``book/runs/<name>.<profile>.json``; the
chapters draw it beside the quick one.
"""

from ncbook.experiments import ablation as ablation
from ncbook.experiments import deep_heads as deep_heads
from ncbook.experiments import deep_phases as deep_phases
from ncbook.experiments import deep_search as deep_search
from ncbook.experiments import heads as heads
from ncbook.experiments import noisy_labels as noisy_labels
from ncbook.experiments import threshold as threshold
from ncbook.experiments._record import BrokenFile, Record, read_record
from ncbook.experiments._recorded import how_to_record, recorded
from ncbook.experiments._registry import Experiment, experiment, find, names
from ncbook.experiments._run import partial_path, run, run_to_file

__all__ = [
    "BrokenFile",
    "Experiment",
    "Record",
    "experiment",
    "find",
    "how_to_record",
    "names",
    "partial_path",
    "read_record",
    "recorded",
    "run",
    "run_to_file",
]
