"""ncbook: the library under the executable textbook *Neural Collapse, Executed*."""

__version__ = "0.1.0"
