"""Pixtral 12B as a private endpoint on your own machines, with SkyPilot and vLLM."""

__version__ = "0.1.0"
