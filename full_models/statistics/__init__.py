"""Statistics of images from their features in a network of the user's choice."""

from full_models.statistics.extract import extract_features, load_callable
from full_models.statistics.feature_files import (
    FeatureSet,
    load_features,
    save_features,
)
from full_models.statistics.image_source import ImageSource, open_images
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
