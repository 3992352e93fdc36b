"""Noise processes, schedules and parameterizations."""
