"""Ray on this machine: one node, or two that share no disk."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TOKEN = secrets.token_hex(32)
"""Ray keeps the first one that a process had."""
START = """
set -e
for place in {hidden}; do mount -t tmpfs none $place; done
exec {ray} start --address={address} --num-cpus=1 --resources='{{"apart": 1}}' --block --disable-usage-stats \
    --object-store-memory=100000000
"""


def quiet_ray(patch: pytest.MonkeyPatch) -> Any:
    """Ray, which tells nobody and writes nothing into the home folder; or a skip."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'xwam-ft[ray]'")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_TOKEN", TOKEN)  # else Ray writes one into the home folder
    patch.setenv("RAY_worker_niceness", "0")  # of 15, where all cores are busy nothing is done
    return ray


@contextmanager
def one_node(patch: pytest.MonkeyPatch, cpus: int = 1) -> Iterator[Any]:
    """Ray in this process, connected."""
    ray = quiet_ray(patch)
    ray.init("local", num_cpus=cpus, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def node_apart(patch: pytest.MonkeyPatch, *hidden: Path) -> Iterator[Any]:
    """Ray, connected to two nodes: this process's does no work, the other is in a mount namespace of its own, where
    `hidden` are empty folders."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here: it takes the rights of an administrator")
    ray = quiet_ray(patch)
    from ray.cluster_utils import Cluster

    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    node = None
    try:
        binary, places = Path(sys.executable).with_name("ray"), " ".join(map(str, hidden))
        script = START.format(hidden=places, ray=binary, address=head.address)
        node = subprocess.Popen(["unshare", "-m", "bash", "-c", script], stdout=subprocess.DEVNULL)
        ray.init(address=head.address, log_to_driver=False)
        until = time.monotonic() + 60
        while not ray.cluster_resources().get("apart") and time.monotonic() < until:
            time.sleep(0.2)
        assert ray.cluster_resources()["CPU"] == 1
        seen = ray.remote(lambda: [list(place.iterdir()) for place in hidden])
        assert ray.get(seen.remote()) == [[] for _ in hidden]
        yield ray
    finally:
        ray.shutdown()
        if node is not None:
            node.terminate()
            node.wait(30)
        head.shutdown()
