"""SePT: a language model that improves itself without rewards, measured and checked."""

__version__ = "0.1.0"
