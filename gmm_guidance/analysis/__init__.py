"""Error budgets and calibration of guidance."""
