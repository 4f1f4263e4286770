"""Fixtures of the model tests: a small joint network and a batch for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Tests are imported by path, not as a package: this lets them import their shared helpers, toy.py.
sys.path.append(str(Path(__file__).parent))

import toy


@pytest.fixture
def network() -> toy.JointNetwork:
    return toy.make_network()


@pytest.fixture
def batch() -> toy.Batch:
    return toy.make_batch()
