"""The head of a bundle's README.md as the Hub reads it: tags, licence, base model, data sets and numbers, in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft import hub
from xwam_ft.files import read_json
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.model.tiny import TINY, UNTRAINED
from xwam_ft.policy.text_encoder import stated_licence
from xwam_ft.prepare.fingerprint import RECORD

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.recipe import Recipe

LICENCES = {PUBLISHED: "apache-2.0", TINY: "mit", UNTRAINED: "apache-2.0"}


def header(contract: Contract, recipe: Recipe, metrics: Mapping[str, Any] | None, title: str) -> str:
    """The YAML head, between its two lines of dashes.

    Args:
        metrics: of `evaluate.open_loop`; None where nothing was measured.
        title: what the model is called, for the table of results.
    """
    from huggingface_hub import EvalResult, ModelCardData

    spec = recipe.backbone
    results = [
        EvalResult(
            task_type="robotics",
            dataset_type="recordings",
            dataset_name=f"held-out recordings of {contract.embodiment}",
            metric_type="open_loop_error",
            metric_name=f"{slot} {name}, {row['unit']}",
            metric_value=float(f"{row['policy']:.4g}"),
        )
        for slot, quantities in (metrics or {}).get("slots", {}).items()
        for name, row in quantities.items()
    ]
    on_hub = hub.repo_of(spec.path, "model")
    data = ModelCardData(
        license=LICENCES.get(spec.path) or stated_licence(spec.path, spec.revision),
        library_name="xwam-ft",
        pipeline_tag="robotics",
        tags=["robotics", "xwam", "world-action-model", recipe.model.train, contract.embodiment],
        base_model=None if on_hub is None else on_hub.id,
        base_model_relation=None if on_hub is None else "finetune",  # pyright: ignore[reportCallIssue]
        datasets=datasets_of(recipe) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def datasets_of(recipe: Recipe) -> list[str]:
    """Datasets of the Hub that the recipe's shards were prepared from."""
    found: list[str] = []
    for source in recipe.data.sources:
        record = Path(source.path) / RECORD
        for recordings in read_json(record).get("recordings", []) if record.is_file() else []:
            if "hub" in recordings:
                found.append(str(recordings["hub"]).partition("@")[0])
    return sorted(set(found))
