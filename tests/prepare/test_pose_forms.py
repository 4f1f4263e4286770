"""Every form a pose is recorded in, against scipy's own conversions, and what is no rotation refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xwam_ft.prepare.embodiment.pose_forms import ANGLES, EULER, FORMS, WIDTHS, column_scales, read_pose
from xwam_ft.prepare.episode import EpisodeError

NUMBERS = st.floats(-1, 1, allow_subnormal=False)


def written(position: np.ndarray, turn: Rotation, form: str) -> np.ndarray:
    """Poses in `form`, by scipy alone."""
    matrix = turn.as_matrix()
    homogeneous = np.tile(np.eye(4), (len(position), 1, 1))
    homogeneous[:, :3, :3], homogeneous[:, :3, 3] = matrix, position
    if form == "matrix4_row_major":
        return homogeneous.reshape(-1, 16)
    if form == "matrix4_column_major":
        return homogeneous.reshape(-1, 16, order="C").reshape(-1, 4, 4).swapaxes(1, 2).reshape(-1, 16)
    numbers = {
        "wxyz": lambda: turn.as_quat(scalar_first=True),
        "xyzw": lambda: turn.as_quat(),
        "rotvec": lambda: turn.as_rotvec(),
        "rpy": lambda: turn.as_euler("xyz"),
        "6d_columns": lambda: np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1),
        "6d_rows": lambda: np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1),
        "matrix3_row_major": lambda: matrix.reshape(-1, 9),
        "matrix3_column_major": lambda: matrix.swapaxes(1, 2).reshape(-1, 9),
    }
    about, _, order = form.partition("_")
    euler = order if about == "extrinsic" else order.upper()
    return np.concatenate([position, numbers[form]() if form in numbers else turn.as_euler(euler)], axis=1)


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12)
@given(st.lists(NUMBERS, min_size=3, max_size=3), st.lists(NUMBERS, min_size=4, max_size=4))
def test_every_form_of_any_pose_is_the_same_pose(form: str, position: list[float], quaternion: list[float]) -> None:
    size = float(np.linalg.norm(quaternion))
    turn = Rotation.from_quat([np.array(quaternion) / size if size > 1e-2 else np.array([0.0, 0, 0, 1])])
    place = np.array([position])
    numbers = written(place, turn, form)
    assert numbers.shape == (1, WIDTHS[form])
    pose = read_pose(numbers, form, "c")
    np.testing.assert_array_equal(pose[:, :3], place)
    np.testing.assert_allclose(np.linalg.norm(pose[:, 3:], axis=1), 1, atol=1e-12)
    assert pose[0, 3] >= 0
    apart = Rotation.from_quat(pose[:, 3:], scalar_first=True).inv() * turn
    assert apart.magnitude()[0] < 1e-6


def test_euler_angles_in_closed_form() -> None:
    """About fixed axes x, y, z is R = Rz Ry Rx; about turning axes z, y, x it is the same matrix."""
    angles = np.array([0.3, -0.4, 0.5])
    x, y, z = (Rotation.from_euler(axis, angle) for axis, angle in zip("xyz", angles, strict=True))
    expected = (z * y * x).as_quat(canonical=True, scalar_first=True)
    zeros = np.zeros(3)
    for form, numbers in (("rpy", angles), ("extrinsic_xyz", angles), ("intrinsic_zyx", angles[::-1])):
        np.testing.assert_allclose(read_pose(np.concatenate([zeros, numbers])[None], form, "c")[0, 3:], expected)
    assert len(EULER) == 1 + 2 * 12


def test_units_scale_positions_and_angles_alone() -> None:
    assert column_scales("wxyz", 1e-3, 0.5) == (1e-3,) * 3 + (1.0,) * 4
    assert column_scales("intrinsic_zyz", 1e-3, 0.5) == (1e-3,) * 3 + (0.5,) * 3
    mm = np.array([100.0, 200.0, 300.0])
    for form in ("matrix4_row_major", "matrix4_column_major"):
        numbers = written(mm[None], Rotation.from_euler("xyz", [[1.0, 2.0, 3.0]]), form)
        np.testing.assert_allclose(read_pose(numbers * column_scales(form, 1e-3, 1.0), form, "c")[0, :3], mm / 1000)
    assert all(len(column_scales(form, 1.0, 1.0)) == width for form, width in WIDTHS.items())
    assert set(ANGLES) < set(FORMS)


@pytest.mark.parametrize(
    ("form", "numbers", "sentence"),
    [
        ("wxyz", np.zeros(7), "quaternion that is not of length 1, at frame 1"),
        ("matrix3_row_major", np.arange(12.0), "is no rotation matrix as matrix3_row_major, at frame 1"),
        ("matrix3_row_major", np.array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, -1.0]), "is no rotation matrix"),  # a mirror
        ("6d_columns", np.array([0, 0, 0, 1, 0, 0, 2, 0, 0.0]), "vectors that span no plane"),
        (
            "matrix4_row_major",
            written(np.ones((1, 3)), Rotation.identity(1), "matrix4_column_major")[0],
            r"no last row 0 0 0 1 as matrix4_row_major \(is it matrix4_column_major\?\), at frame 1",
        ),
    ],
)
def test_what_is_no_rotation_is_refused_with_its_frame(form: str, numbers: np.ndarray, sentence: str) -> None:
    good = written(np.ones((1, 3)), Rotation.identity(1), form)
    with pytest.raises(EpisodeError, match=sentence):
        read_pose(np.concatenate([good, numbers[None]]), form, "columns a to g")
