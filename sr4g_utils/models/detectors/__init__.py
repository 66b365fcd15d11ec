"""Detectors, a class per family: what it is asked, how images are prepared for it, what it finds, and its features.

Images are resized and normalised in torch, on the detector's device, equal to the stock processor's within one grey
level for each direction that is resized (OWLv2's, which resizes in floating point: within 0.01 levels); the tests hold
both it and the boxes against transformers' own. No boxes are suppressed.

A further family is a subclass of :class:`Detector` that names its ``family``, and what transformers loads it with:
among those that are asked in words in :mod:`.words`, among those that know a list of names in :mod:`.labels`.
"""

from . import words, labels  # noqa: I001 (errors list the default's family first)
from .detector import FAMILIES, Detector, load

__all__ = ["FAMILIES", "Detector", "labels", "load", "words"]
