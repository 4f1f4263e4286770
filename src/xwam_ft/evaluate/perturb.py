"""What may be made harder for a policy in closed loop: light, colours, cameras that were knocked, things, bad pictures.

`--perturb camera=0.02` moves every camera by 2 cm. What is drawn at random is drawn anew for every episode, from the
episode's seed alone, so that two bundles meet the same difficulties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from xwam_ft.errors import UserError, did_you_mean, listed

AXES = {
    "light": ("brightness of all lamps; 1 is as recorded", 0.0, 4.0),
    "colour": ("share of a random colour in every surface; 0 is as recorded", 0.0, 1.0),
    "camera": ("metres by which every camera is moved, each in a direction of its own", 0.0, 1.0),
    "turn": ("degrees by which every camera is turned, each about an axis of its own", 0.0, 45.0),
    "things": ("number of coloured things that lie on the table and can be seen, not touched", 0.0, 20.0),
    "jpeg": ("quality of the JPEG that every picture comes as; 100 leaves it as it is", 1.0, 100.0),
    "noise": ("spread of noise of every pixel, as a share of white", 0.0, 1.0),
    "delay": ("commands by which pictures are late; the robot's state is not", 0.0, 500.0),
}
"""Axis -> what its strength means, and its least and most."""
AS_RECORDED = dict.fromkeys(AXES, 0.0) | {"light": 1.0, "jpeg": 100.0}
WHOLE = ("things", "jpeg", "delay")  # their strengths are whole numbers


def read_perturbations(texts: Sequence[str]) -> dict[str, float]:
    """Strength of each axis that `--perturb AXIS=STRENGTH` names.

    Raises:
        UserError: an unknown axis, one given twice, or a strength that is no number or out of its range.
    """
    found: dict[str, float] = {}
    for text in texts:
        axis, sign, words = text.partition("=")
        where = f"--perturb {text}"
        if axis not in AXES or not sign:
            hint = did_you_mean(axis, AXES)
            raise UserError(f"is no AXIS=STRENGTH{hint}", where, f"axes: {listed(AXES)}; as in --perturb light=0.5")
        if axis in found:
            raise UserError(f"gives {axis} twice", where, "give one strength")
        what, least, most = AXES[axis]
        try:
            strength = float(words)
        except ValueError:
            strength = math.nan
        if not least <= strength <= most or (axis in WHOLE and strength != int(strength)):
            kind = "a whole number" if axis in WHOLE else "a number"
            raise UserError(f"{words!r} is not {kind} from {least:g} to {most:g}", where, f"{axis} is the {what}")
        found[axis] = strength
    return found


def as_words(perturbations: Mapping[str, float]) -> list[str]:
    """["light=0.5"], as they are typed."""
    return [f"{axis}={strength:g}" for axis, strength in perturbations.items()]
