"""The shape annotations are not decoration: while tests run, a wrong shape is an error."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from xwam_ft.model.noise import beta_quantile
from xwam_ft.model.streams import Streams


def test_a_wrong_shape_is_refused() -> None:
    assert beta_quantile(torch.full((2,), 0.5), 1.5, 1.0).shape == (2,)
    with pytest.raises(jaxtyping.TypeCheckError):
        beta_quantile(torch.full((2, 2), 0.5), 1.5, 1.0)
    with pytest.raises(jaxtyping.TypeCheckError):
        Streams(video=torch.zeros(1, 2), action=torch.zeros(1, 2, 3), proprio=torch.zeros(1, 2, 3))
