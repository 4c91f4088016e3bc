"""The version of this package, for modules below ``adp_async`` itself."""

__version__ = "0.1.0"
