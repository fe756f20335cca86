"""The metrics of neural collapse, on a tensor of features or on the layers of any network.

:class:`CollapseMetrics` defines each metric and says what other papers call it. :func:`collapse_metrics`
measures features in memory, :func:`measure` the layers of a network over a data set, and :func:`from_passes`
finishes two passes that were streamed by hand (:mod:`ncbook.statistics`).
"""

from ncbook.metrics.collapse import CollapseMetrics, collapse_metrics, from_passes
from ncbook.metrics.networks import measure

__all__ = ["CollapseMetrics", "collapse_metrics", "from_passes", "measure"]
