"""URLs in every verb: shard sets are read from them, and where only a path can serve, a sentence says so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import xwam_ft
from object_store import Store
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.shards import ShardSet

Make = Callable[[Path, Contract], ShardSet]
HERE = r"^s3://lab/x: is a URL, and .* lies on this machine\. Fix: give a path of this machine"


@pytest.mark.slow
def test_evaluate_and_imagine_read_a_set_at_a_url(
    trained_run: Path, contract: Contract, make_shard_set: Make, s3: Store, tmp_path: Path
) -> None:
    folder = make_shard_set(tmp_path / "set", contract).folder
    url = s3.upload(folder, "set")
    here = xwam_ft.evaluate(trained_run, folder, clips=3, latency=False, seams=False)
    there = xwam_ft.evaluate(trained_run, url, clips=3, latency=False, seams=False)
    assert here.metrics.pop("shards") == str(folder)
    assert there.metrics.pop("shards") == url
    assert there.metrics == here.metrics
    said = io.StringIO()
    made = xwam_ft.imagine(trained_run, Path(url), 2, tmp_path / "imagined", progress=Console(file=said, width=200))
    assert made.metrics["shards"] == url
    assert f"imagining episode 2 of {url} by" in said.getvalue()


def test_where_only_a_path_serves(trained_run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    set_ = {"data.shards": str(shard_set.folder)}
    for ask in (
        lambda: xwam_ft.train("tiny_cpu", "s3://lab/x", **set_),
        lambda: xwam_ft.train(resume="s3://lab/x"),
        lambda: xwam_ft.train("s3://lab/x"),
        lambda: xwam_ft.train("tiny_cpu", tmp_path / "run", init="s3://lab/x", **set_),
        lambda: xwam_ft.plan("tiny_cpu", **set_, **{"backbone.path": "s3://lab/x"}),
        lambda: xwam_ft.export(trained_run, "s3://lab/x"),
        lambda: xwam_ft.export("s3://lab/x", tmp_path / "bundle"),
        lambda: xwam_ft.evaluate("s3://lab/x", shard_set.folder),
        lambda: xwam_ft.evaluate(trained_run, shard_set.folder, out="s3://lab/x", latency=False),
        lambda: xwam_ft.imagine(trained_run, shard_set.folder, 2, "s3://lab/x"),
        lambda: xwam_ft.prepare(tmp_path, tmp_path / "out", embodiment="s3://lab/x"),
        lambda: xwam_ft.inspect(tmp_path, "s3://lab/x"),
    ):
        with pytest.raises(UserError, match=HERE):
            ask()
    assert not Path("s3:").exists()
