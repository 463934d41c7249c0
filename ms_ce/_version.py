"""The version of ms_ce, read by setup.py and the package alike."""

__version__ = "0.2.0rc1"
