"""What fewer action steps cost in error and save in time: 1 to 10 denoising steps, on the same clips and noise."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xwam_ft.evaluate.open_loop import open_loop, spread
from xwam_ft.policy.policy import clip_observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.policy.policy import Policy, Settings
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import ShardSet

STEPS = tuple(range(1, 11))
MOST_CLIPS = 16
CALLS = 3  # timed, after one that is not


def latency_table(
    policy: Policy,
    shards: ShardSet,
    *,
    split: Split = "held_out",
    clips: int,
    mean: Float[ndarray, "ta da"] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """{"clips", "chunk_ms", "rows": [{"steps", "ms", "slots": {slot: {quantity: {"unit", "policy"}}}}]}.

    `ms` is the median time of one request at a time, pictures encoded and actions sampled; `chunk_ms` what a chunk
    lasts, which a request must stay below.

    Args:
        clips: at most `MOST_CLIPS` of them are used; mean, advance: as in `open_loop`.
    """
    contract = shards.contract
    clips = min(clips, MOST_CLIPS)
    first = spread(shards.clips(split, 1), clips)[:1]
    rows: list[dict[str, Any]] = []
    for steps in STEPS:
        settings = replace(policy.settings, action_steps=steps)
        result = open_loop(policy, shards, split=split, clips=clips, settings=settings, advance=advance, mean=mean)
        slots = {
            slot: {name: {"unit": row["unit"], "policy": row["policy"]} for name, row in table.items()}
            for slot, table in result.metrics()["slots"].items()
        }
        observed = [clip_observation(contract, shards.read_clip(ref)) for ref in first]
        rows.append({"steps": steps, "ms": _milliseconds(policy, observed, settings), "slots": slots})
    timing = contract.timing
    count = min(clips, len(shards.clips(split, 1)))
    return {"clips": count, "chunk_ms": 1000 * timing.action_steps * timing.action_period, "rows": rows}


def _milliseconds(policy: Policy, observed: list[Any], settings: Settings) -> float:
    spent: list[float] = []
    for _ in range(CALLS + 1):
        started = time.perf_counter()
        policy.infer_batch(observed, [settings.seed], settings)  # comes back as numbers, so the device has finished
        spent.append(time.perf_counter() - started)
    return 1000 * statistics.median(spent[1:])
