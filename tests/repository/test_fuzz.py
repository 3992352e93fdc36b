"""Mutated files of every format: refused, or read as they were written."""

import os
from pathlib import Path

import pytest
from support import fuzz

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_mutated_inputs_are_survived(name, monkeypatch):
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    result = fuzz.run_apart(name, seed=1, count=100)
    assert fuzz.survived(result), result
