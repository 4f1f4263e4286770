"""Fixtures of the model tests: a small joint network and a batch for it."""

from __future__ import annotations

import pytest
import toy


@pytest.fixture
def network() -> toy.JointNetwork:
    return toy.make_network()


@pytest.fixture
def batch() -> toy.Batch:
    return toy.make_batch()
