"""The report: one self-contained page made of everything in a results folder."""

from toy_experiments.report.page import write_report

__all__ = ["write_report"]
