"""A clip imagined on demand equals what the policy imagines; a run's looks, and folders of results, are shown."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import xwam_ft
from browser import CHROMIUM, Browser
from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.media import read_rgb
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.runs.history import History
from xwam_ft.shards import ShardSet
from xwam_ft.view.view import Viewing, open_site, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def imagined(bundle: Path, shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `imagine` wrote."""
    return xwam_ft.imagine(bundle, shard_set.folder, 2, tmp_path_factory.mktemp("results") / "imagined").path


@pytest.fixture(scope="module")
def viewing(bundle: Path, shard_set: ShardSet, imagined: Path) -> Iterator[Viewing]:
    with start(open_site(bundle, shard_set.folder, [imagined], QUIET), None, 0) as viewing:
        yield viewing


def ask(address: str, question: Any = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    data = None if question is None else json.dumps(question).encode()
    try:
        with urlopen(Request(address, data, headers), timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_a_clip_is_imagined_as_the_policy_does(viewing: Viewing, bundle: Path, shard_set: ShardSet) -> None:
    [token] = viewing.site.sets
    question = {"set": token, "episode": 1, "start": 4}
    status, said = ask(f"{viewing.address}api/imagine", question)
    dream = json.loads(said)
    assert status == 202
    assert ask(f"{viewing.address}api/imagine", question)[0] == 409  # one at a time
    phases: list[str] = []
    steps: list[int] = []
    end = time.monotonic() + 120
    while dream["phase"] not in ("done", "failed"):
        assert time.monotonic() < end
        dream = json.loads(ask(f"{viewing.address}api/imagine/{dream['number']}")[1])
        phases.append(dream["phase"])
        steps.append(dream["done"])
        time.sleep(0.01)
    assert dream["error"] is None
    assert steps == sorted(steps)
    assert (dream["done"], dream["frames"]) == (dream["total"], [4, 6, 8, 10, 12])
    policy = Policy.load(str(bundle))
    shards = shard_set.under(policy.contract, bundle)
    [ref] = [ref for ref in shards.clips(None, 1) if (ref.entry.episode, ref.start) == (1, 4)]
    clip = shards.read_clip(ref)
    truth = policy.imagine(clip_observation(policy.contract, clip), policy.settings.seed)
    for view, camera in enumerate(policy.contract.camera_names):
        for frame in range(5):
            place = f"{viewing.address}imagined/{dream['number']}/imagined/{camera}/{frame}"
            shown = np.asarray(Image.open(io.BytesIO(ask(f"{place}.png")[1])))
            np.testing.assert_array_equal(shown, truth.rgb[view, frame])
            assert truth.depth is not None
            codes = np.frombuffer(ask(f"{place}.bin")[1], "<u2").reshape(truth.depth.shape[2:])
            np.testing.assert_array_equal(codes, truth.depth[view, frame])
    shown_states = np.array(dream["imagined_states"], dtype=float).T
    np.testing.assert_allclose(shown_states, truth.states, rtol=1e-12)
    np.testing.assert_allclose(np.array(dream["states"], dtype=float).T, clip.proprio, rtol=1e-12)
    assert dream["scores"]["psnr"]["imagined"] > 0
    assert ask(f"{viewing.address}imagined/{dream['number']}/imagined/front/5.png")[0] == 404
    assert ask(f"{viewing.address}imagined/{dream['number']}/given/front/0.png")[0] == 404


def test_questions_that_cannot_be_answered_are_a_sentence(viewing: Viewing) -> None:
    [token] = viewing.site.sets
    good = {"set": token, "episode": 1, "start": 4}
    for change, code, said in (
        ({"start": 900}, 422, "no clip of episode 1 starts at frame 900"),
        ({"episode": 9}, 422, "there is no episode 9"),
        ({"set": "other"}, 422, "is no shard set of this page"),
        ({"start": "4"}, 400, "give set, episode and start"),
        ({"start": True}, 400, "give set, episode and start"),
    ):
        status, answer = ask(f"{viewing.address}api/imagine", good | change)
        assert (status, said in json.loads(answer)["error"]) == (code, True)


def test_shards_of_another_embodiment_are_refused(
    bundle: Path, contract_with: Any, make_shard_set: Any, tmp_path: Path
) -> None:
    other = make_shard_set(tmp_path / "other", contract_with(embodiment="another-arm"))
    with pytest.raises(UserError):
        open_site(bundle, other.folder, [], QUIET)


def test_a_run_shows_its_curves_looks_and_shards(trained_run: Path, imagined: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    site = open_site(run, None, [], QUIET)
    before = site.view()
    assert before["run"]["looks"] == []
    assert (before["run"]["step"], before["run"]["state"]) == (2, "finished")
    curves = {curve["title"]: curve for curve in before["run"]["curves"]}
    told = History(run).series("train/loss_action")
    lines = {line["name"]: line for line in curves["action loss"]["lines"]}
    assert (lines["training"]["x"], lines["training"]["y"]) == told
    assert curves["tool position, held-out error"]["unit"] == "mm"
    assert [one["embodiment"] for one in before["sets"]] == ["test-arm"]
    metrics = json.loads((imagined / "metrics.json").read_text())
    with History(run).imagining(2) as folder:
        for name in ("imagined.mp4", "contact_sheet.png"):
            shutil.copy(imagined / name, folder / name)
        (folder / "metrics.json").write_text(json.dumps(metrics))
    with start(site, None, 0) as viewing:  # a run that learns is watched while it does
        [look] = json.loads(ask(f"{viewing.address}api/view")[1])["run"]["looks"]
        assert (look["step"], look["episode"]) == (2, 2)
        assert look["film"]["frames"] == len(read_rgb(imagined / "imagined.mp4")) > 5
        assert ask(viewing.address + look["film"]["address"])[1] == (imagined / "imagined.mp4").read_bytes()
        assert ask(viewing.address + before["run"]["report"])[0] == 200
        for inside in ("recipe.yaml", "checkpoints/../recipe.yaml", "../shards/contract.json"):
            assert ask(f"{viewing.address}files/run/{inside}")[0] == 404


def test_a_run_without_its_shards_says_so(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    gone = str(tmp_path / "gone")
    import yaml

    tree = yaml.safe_load(recipe)
    tree["data"]["shards"] = gone
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    view = open_site(run, None, [], QUIET).view()
    assert view["sets"] == []
    assert gone in view["notes"][0]
    assert "--shards SHARDS" in view["why_no_imagining"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_the_film_and_imagines(viewing: Viewing, tmp_path: Path) -> None:
    [token] = viewing.site.sets
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(1300, 900)
        browser.open(f"{viewing.address}#tab=results-0")
        film = read_rgb(viewing.site.results[0] / "imagined.mp4")
        browser.wait("document.querySelector('[data-camera]')?.dataset.shown === '0'")
        for frame in (3, 1):
            moved = f"s.value = {frame}; s.dispatchEvent(new Event('input'))"
            browser.run(f"(s => {{ {moved} }})(document.getElementById('slider'))")
            browser.wait(f"document.querySelector('[data-camera]').dataset.shown === '{frame}'")
            apart = np.abs(film.astype(int) - browser.pixels("[data-camera] video")).mean(axis=(1, 2, 3))
            assert apart.argmin() == frame
        assert "report" not in browser.run("document.querySelector('main').textContent")
        browser.open(f"{viewing.address}#tab={token}&episode=0&frame=6")
        browser.wait("document.getElementById('imagine') !== null")
        browser.run("document.getElementById('imagine').click()")
        seen = "[...document.querySelectorAll('[data-which=imagined]')]"
        browser.wait(f"{seen}.length === 2 && {seen}.every(one => one.naturalWidth === 64)", 120)
        assert "frames 6 to 14" in browser.run("document.getElementById('imagining').textContent")
        assert (browser.console, browser.foreign(viewing.address)) == ([], [])
    finally:
        browser.close()
