"""Statistics of images from their features in a network of the user's choice."""

from full_models.statistics.features import (
    FeatureSet,
    extract_features,
    load_callable,
    load_features,
    save_features,
)
from full_models.statistics.images import ImageSource, open_images
from full_models.statistics.measure import measure

__all__ = [
    "FeatureSet",
    "ImageSource",
    "extract_features",
    "load_callable",
    "load_features",
    "measure",
    "open_images",
    "save_features",
]
