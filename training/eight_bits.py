"""Weights in 8 bits with a scale for each output channel: half the size of half precision."""

from __future__ import annotations









