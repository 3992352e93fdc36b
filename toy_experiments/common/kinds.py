"""Kinds of network: what they predict, and their blocks."""

from __future__ import annotations

from typing import Literal

Prediction = Literal["edm", "epsilon", "velocity", "x0"]
Block = Literal["prenorm", "plain"]
PREDICTIONS: tuple[Prediction, ...] = ("edm", "epsilon", "velocity", "x0")
BLOCKS: tuple[Block, ...] = ("prenorm", "plain")
KIND_TITLES = {
    "edm": "EDM",
    "epsilon": "noise",
    "velocity": "velocity",
    "x0": "x0",
    "prenorm": "pre-norm blocks",
    "plain": "plain blocks",
}
PREDICTION_COLORS = {
    "edm": "#0072b2",
    "epsilon": "#d55e00",
    "velocity": "#009e73",
    "x0": "#cc79a7",
}
BLOCK_MARKERS = {"prenorm": "o", "plain": "s"}
