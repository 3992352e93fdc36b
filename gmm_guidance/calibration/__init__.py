"""Guidance coefficients over the noise level, by least squares on data."""

from gmm_guidance.calibration.calibrate import calibrate
from gmm_guidance.calibration.calibration import Calibration, ParetoPoint
from gmm_guidance.calibration.regression import Fit

__all__ = ["Calibration", "Fit", "ParetoPoint", "calibrate"]
