"""The one place that holds the version of kongps."""

__version__ = "0.1.0"
