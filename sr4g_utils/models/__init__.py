"""Models: where they are, whether they are whole, and loading them."""

from .batches import AdaptiveBatches
from .load import DETECTORS, DTYPES, default_device, load_detector, load_pipeline
from .source import PRECISIONS, ModelError, Source, recommended_sampling
from .words import check_words, tokenizers

Batches = AdaptiveBatches  # its old name

__all__ = [
    "DETECTORS", "DTYPES", "PRECISIONS", "AdaptiveBatches", "Batches", "ModelError", "Source", "check_words",
    "default_device", "load_detector", "load_pipeline", "recommended_sampling", "tokenizers",
]  # fmt: skip
