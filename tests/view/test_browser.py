"""The page in a real browser: the very frame that was asked for, cameras, findings, space, sizes, no strangers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from browser import CHROMIUM, Browser
from shared import QUIET
from xwam_ft.depth_code import colour
from xwam_ft.shards import ShardSet
from xwam_ft.view.view import Viewing, open_site, start

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]
READY = """(() => {
  const films = [...document.querySelectorAll("[data-camera]")];
  return films.length > 0 && document.getElementById("slider") && films.every(one => one.dataset.shown !== undefined);
})()"""
FINDINGS = [("jump", "warning", "the arm jumps", "wrist", 7), ("still", "note", "the gripper is still", None, None)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def viewing(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewing]:
    folder = shutil.copytree(shard_set.folder, tmp_path_factory.mktemp("viewed") / "set")
    rows = [
        {"episode": 0, "check": check, "severity": severity, "text": text, "camera": camera, "frame": frame, "fix": ""}
        for check, severity, text, camera, frame in FINDINGS
    ]
    (folder / "findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with start(open_site(folder, None, [], QUIET), None, 0) as viewing:
        yield viewing


@pytest.fixture(autouse=True)
def quiet(browser: Browser, viewing: Viewing, request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing on the console, and nobody but our server is asked."""
    browser.console.clear()
    browser.asked.clear()
    browser.size(1300, 900)
    browser.scheme("light")
    yield
    if "broken" not in request.node.name:
        assert browser.console == []
        assert browser.foreign("http://127.0.0.1:") == []


def truth(shard_set: ShardSet, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Decoded pictures and depth codes of a whole episode, [v, f, h, w, 3] and [v, f, h, w]."""
    rgb: dict[int, np.ndarray] = {}
    depth: dict[int, np.ndarray] = {}
    for entry in shard_set.segments():
        if entry.episode == episode:
            segment = shard_set.read(entry)
            assert segment.depth is not None
            for row in range(segment.num_frames):
                rgb.setdefault(segment.first_frame + row, segment.rgb[:, row])
                depth.setdefault(segment.first_frame + row, segment.depth[:, row])
    order = sorted(rgb)
    return np.stack([rgb[frame] for frame in order], axis=1), np.stack([depth[frame] for frame in order], axis=1)


def scrub(browser: Browser, frame: int) -> None:
    browser.run(
        f"(s => {{ s.value = {frame}; s.dispatchEvent(new Event('input')); }})(document.getElementById('slider'))"
    )
    browser.wait(
        f"[...document.querySelectorAll('[data-camera], [data-depth]')].every(one => one.dataset.shown === '{frame}')"
    )


def test_the_frame_shown_is_the_frame_asked_for(browser: Browser, viewing: Viewing, shard_set: ShardSet) -> None:
    rgb, depth = truth(shard_set, 0)
    browser.open(f"{viewing.address}#episode=0&frame=3")
    browser.wait(READY)
    order = [3, 28, 0, 1, 2, 17, 16, 15, 14, 27, 13, *np.random.default_rng(0).permutation(29).tolist()]
    for frame in order:
        scrub(browser, frame)
        for view, camera in enumerate(shard_set.contract.camera_names):
            shown = browser.pixels(f"[data-camera={camera}] video")
            apart = np.abs(rgb[view].astype(int) - shown).mean(axis=(1, 2, 3))
            assert apart.argmin() == frame
            assert apart[frame] < 4  # levels of 255: another conversion of colours than the decoder's
            assert browser.run(
                f"document.querySelector('[data-camera={camera}] img').hidden"
            )  # the video itself is right
            coloured = browser.pixels(f"[data-depth={camera}] canvas")
            np.testing.assert_allclose(coloured, colour(depth[view, frame]), atol=8)  # 256 colours, rounded alike
            assert np.abs(coloured - colour(depth[view, frame]).astype(int)).mean() < 0.5
    assert browser.run("document.getElementById('time').textContent").startswith(f"{order[-1] / 10:.2f} of 2.80 s")
    assert any(".mp4" in url for url in browser.asked)


def test_keys_step_play_and_change_the_episode(browser: Browser, viewing: Viewing) -> None:
    browser.open(f"{viewing.address}#episode=0&frame=5")
    browser.wait(READY)
    for key, frame in (("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 0), ("End", 28), ("Home", 0)):
        browser.key(key)
        browser.wait(f"document.getElementById('slider').value === '{frame}'")
    browser.key(" ")
    browser.wait("Number(document.getElementById('slider').value) > 4")
    browser.wait("document.getElementById('play').textContent.includes('Play')")  # at the end it stops
    browser.wait("[...document.querySelectorAll('[data-shown]')].every(one => one.dataset.shown === '28')")
    browser.key("ArrowDown")
    browser.wait("document.querySelector('h1').textContent.startsWith('1: put the cube in the bowl')")
    assert "episode=1" in browser.wait("location.hash.includes('episode=1') && location.hash")


def test_cameras_and_findings(browser: Browser, viewing: Viewing) -> None:
    browser.open(f"{viewing.address}#episode=0")
    browser.wait(READY)
    assert browser.run("document.querySelectorAll('.tile').length") == 2
    browser.run("document.querySelector('[data-choose=front]').click()")
    browser.wait(f"{READY} && document.querySelectorAll('.tile').length === 1")
    said = browser.run("document.querySelector('.findings').textContent")
    assert "warning jump: the arm jumps" in said
    assert "look at the frame" in said
    browser.run("document.querySelector('.marks button.warning').click()")  # goes to the camera and frame it is about
    browser.wait("document.querySelector('[data-camera=wrist][data-shown=\"7\"]') !== null")
    assert browser.run("document.querySelectorAll('[data-camera]').length") == 1
    rows = "[...document.querySelectorAll('[data-episode]')].map(one => one.dataset.episode).join()"
    assert browser.run(rows) == "0,1,2"
    choose = """((id, to, kind) => {{
      const at = document.getElementById(id);
      at.value = to;
      at.dispatchEvent(new Event(kind));
    }})({})"""
    for id, value, kind, left in (
        ("finding", "=jump", "change", "0"),
        ("finding", "-", "change", "1,2"),
        ("split", "held_out", "change", "2"),
        ("words", "bowl", "input", ""),
        ("split", "", "change", "1"),
    ):
        browser.run(choose.format(json.dumps([id, value, kind])[1:-1]))
        assert browser.run(rows) == left


def test_space_turns_and_plots_show_values_in_units(browser: Browser, viewing: Viewing, shard_set: ShardSet) -> None:
    browser.open(f"{viewing.address}#episode=0&frame=9")
    browser.wait(f"{READY} && document.querySelector('.space').dataset.points > 500")
    browser.run("document.getElementById('points').click()")
    box = browser.run(
        "(b => [b.left, b.top, b.width, b.height])(document.getElementById('space').getBoundingClientRect())"
    )
    before = browser.pixels("#space")
    centre = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    browser.drag(centre, (centre[0] + 90, centre[1] + 30))
    browser.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    assert (np.abs(before - browser.pixels("#space")).sum(axis=2) > 30).mean() > 0.002
    [row] = [shard_set.read_motion(e) for e in shard_set.segments() if e.episode == 0 and e.first_frame == 0]
    plot = browser.wait("document.querySelector('[data-number=\"tool x\"]').innerText")
    assert "x [m]" in plot
    shown = [float(word) for word in plot.split() if word.lstrip("-")[:1].isdigit()]
    np.testing.assert_allclose(shown, [row.proprio[9, 0], row.action[9, 0]], rtol=1e-3)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (-0.7835, -0.7651),
        (2047.11, 2047.93),
        (178.2, 178.6),
        (0, 30000),
        (1.21e-5, 1.9e-5),
        (3e6, 3.4e6),
        (0.29, 0.34),
        (1.0000012, 1.0000017),
    ],
)
def test_labels_of_an_axis_are_the_values_they_stand_at(
    browser: Browser, viewing: Viewing, low: float, high: float
) -> None:
    browser.open(viewing.address)
    found = browser.run(f"import('/page/plots.js').then(made => made.ticks({low}, {high}, 2.6))")
    assert len(found) >= 2
    step = found[1][0] - found[0][0]
    for value, text in found:
        assert low - step * 1e-3 <= value <= high + step * 1e-3
        assert float(text) == pytest.approx(value, abs=step * 1e-3)


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_it_fits_narrow_and_wide_screens_light_and_dark(browser: Browser, viewing: Viewing, width: int) -> None:
    colours: list[str] = []
    for scheme in ("light", "dark"):
        browser.size(width, 900)
        browser.scheme(scheme)
        browser.open(f"{viewing.address}#episode=0&frame=2")
        browser.wait(READY)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        parts = "[...document.querySelectorAll('button, .tile, .plot, canvas')]"
        cut = f"{parts}.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
        assert browser.run(cut) == 0
        colours.append(browser.run("getComputedStyle(document.body.parentElement).backgroundColor"))
    assert colours[0] != colours[1]


def test_pictures_stand_in_for_a_broken_video(browser: Browser, viewing: Viewing, shard_set: ShardSet) -> None:
    rgb, _ = truth(shard_set, 1)
    browser.send("Network.setBlockedURLs", urls=["*.mp4"])
    try:
        browser.open(f"{viewing.address}#episode=1&frame=0")
        browser.wait(
            "document.querySelector('[data-camera=wrist] .why')?.textContent.includes('single pictures instead')"
        )
        scrub(browser, 20)
        np.testing.assert_array_equal(browser.pixels("[data-camera=wrist] img"), rgb[1, 20])
    finally:
        browser.send("Network.setBlockedURLs", urls=[])
