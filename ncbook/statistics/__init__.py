r"""Class statistics of features, gathered in two passes that stream, merge and add up over processes.

The first pass, :class:`ClassStatistics`, takes counts, means and scatters of the classes; the second,
:class:`BetweenScatter`, looks at every feature once more from the few directions in which the class means
differ. Two passes are all that the metrics of collapse need, and no d × d matrix appears.

What keeps the numbers right: sums are float64 for every input type, and what is summed is never a feature but
its difference from a centre of its own class, so that a large common offset or a deep collapse loses nothing
that the input still holds. The work runs over blocks of rows that fit into the cache.
"""

from ncbook.statistics.first_pass import ClassStatistics
from ncbook.statistics.second_pass import BetweenScatter

__all__ = ["BetweenScatter", "ClassStatistics"]
