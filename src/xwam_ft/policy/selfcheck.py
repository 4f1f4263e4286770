"""A recorded request and the action it gave; a policy that is loaded must give it again.

The request is stored as the model takes it (pictures at the contract's size, the absolute state), so the check covers
weights, VAE, prompts, sampler and normalisation on the machine that will act.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path
from xwam_ft.observation import EncodedObservation

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.policy.policy import Policy

# Largest difference of a normalised action, by (weights' dtype, device kind). On one machine the same bytes come out;
# the bounds leave room for another one's kernels, through every sampling step.
TOLERANCE = {
    ("float32", "cpu"): 1e-3,
    ("float32", "cuda"): 5e-3,
    ("bfloat16", "cpu"): 1e-1,
    ("bfloat16", "cuda"): 1e-1,
}


@dataclass(frozen=True)
class SelfCheck:
    inputs: EncodedObservation
    seed: int
    action: Float[ndarray, "ta da"]  # normalised
    device: str  # the kind of device that gave it

    def difference(self, policy: Policy) -> float:
        """Largest difference between the action recorded and the one `policy` gives."""
        action = policy.infer_batch([self.inputs], [self.seed])[0]
        if action.shape != self.action.shape or not np.all(np.isfinite(action)):
            return float("inf")
        return float(np.abs(action - self.action).max())

    def require(self, policy: Policy, dtype: str, where: Path) -> float:
        """Raise a `UserError` unless `policy` repeats the recorded action; returns the difference."""
        allowed = TOLERANCE.get((dtype, policy.device.type), 1e-1)
        difference = self.difference(policy)
        if not difference <= allowed:
            raise UserError(
                f"the recorded request gives another action here: they differ by {difference:.3g}, and {allowed:.3g} "
                f"is allowed for {dtype} on {policy.device.type} (recorded on {self.device})",
                where,
                "do not run it on a robot: copy the bundle again, or export it again with these library versions",
            )
        return difference


def record(policy: Policy, inputs: EncodedObservation, seed: int) -> SelfCheck:
    """Ask a policy once and keep request and answer."""
    return SelfCheck(inputs, seed, policy.infer_batch([inputs], [seed])[0], policy.device.type)


def save(check: SelfCheck, path: Path) -> None:
    from safetensors.numpy import save as to_bytes

    tensors = {"pictures": check.inputs.pictures, "state": check.inputs.state, "action": check.action}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        # One key: safetensors writes several in an order that differs from call to call.
        about = {"prompt": check.inputs.prompt, "seed": check.seed, "device": check.device}
        temporary.write_bytes(to_bytes(contiguous, {"request": json.dumps(about)}))


def load(path: Path, policy: Policy) -> SelfCheck:
    from safetensors import safe_open

    with safe_open(path, "np") as stored:
        about = json.loads(stored.metadata()["request"])
        pictures, state, action = (stored.get_tensor(name) for name in ("pictures", "state", "action"))
    proprio = conventions.normalise_proprio(policy.contract, state)
    inputs = EncodedObservation(pictures, state, proprio, about["prompt"])
    return SelfCheck(inputs, about["seed"], action, about["device"])
