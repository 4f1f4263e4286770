"""Several shard sets as one, their weights, damaged shards, stale caches, and instructions in several wordings."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from tests.conftest import EPISODES, make_motion

import tiny_training
from shared import QUIET
from tiny_training import Change, recipe_tree
from xwam_ft import quantiles
from xwam_ft.contract import Contract, Timing
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.data_sets import DataSets, clip_weights, episode_weights, open_sets, shared_contract
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.encode.encode import encode
from xwam_ft.encode.inputs import Inputs, encode_shards
from xwam_ft.errors import UserError
from xwam_ft.quantiles import Motion
from xwam_ft.recipe import DataSpec, EpisodeWeight, ShardSource, load_recipe
from xwam_ft.shard_index import Index
from xwam_ft.shards import ShardSet

CPU = torch.device("cpu")
MakeSet = Callable[[Path, Contract], ShardSet]
With = Callable[..., Contract]


def spec(*folders: Path, **more: object) -> DataSpec:
    return DataSpec.model_validate({"shards": [{"path": str(folder)} for folder in folders], "clip_stride": 3} | more)


@pytest.fixture(scope="module")
def pair(
    contract: Contract, contract_with: With, make_shard_set: MakeSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two sets of one robot, prepared apart: other quantiles, other prompts."""
    folder = tmp_path_factory.mktemp("pair")
    wide = contract.quantiles.model_copy(update={"proprio_high": (0.9,) * contract.state_dim})
    make_shard_set(folder / "monday", contract)
    make_shard_set(folder / "friday", contract_with(quantiles=wide, prompts=("stack the cups",)))
    return folder / "monday", folder / "friday"


def test_they_share_the_quantiles_of_all_training_episodes(pair: tuple[Path, Path], contract: Contract) -> None:
    sets = [ShardSet.open(folder) for folder in pair]
    shared = shared_contract(sets)
    motions = []
    for episode, frames in enumerate(EPISODES[:-1]):  # the last one is held out
        state, command = make_motion(frames, seed=episode)
        motions.append(Motion(state, command, np.ones_like(command)))
    expected = quantiles.quantiles(contract, [*motions, *motions])
    for name, values in expected.model_dump().items():
        np.testing.assert_allclose(getattr(shared.quantiles, name), values, atol=1e-9)
    assert shared.prompts == tuple(sorted({*contract.prompts, "stack the cups"}))
    assert shared.model_copy(update={"quantiles": contract.quantiles, "prompts": contract.prompts}) == contract
    assert shared_contract(sets[:1]) == shared_contract([sets[0], sets[0]]) == contract


def test_another_robot_is_refused_by_field(
    pair: tuple[Path, Path], contract_with: With, make_shard_set: MakeSet, tmp_path: Path
) -> None:
    timing = Timing(fps=12.0, frame_skip=2, action_skip=1, clip_frames=5)
    make_shard_set(tmp_path / "other", contract_with(timing=timing))
    with pytest.raises(UserError, match="timing is") as raised:
        open_sets(spec(pair[0], tmp_path / "other"))
    assert str(pair[0]) in str(raised.value)
    assert str(tmp_path / "other") in str(raised.value)


def test_joined_they_read_as_each_alone(pair: tuple[Path, Path]) -> None:
    sets = open_sets(spec(*pair))
    joined = sets.joined
    assert len(joined.index.episodes) == len({episode.index for episode in joined.index.episodes}) == 2 * len(EPISODES)
    refs = joined.clips(None, 5)
    alone = [(one, ref) for one in sets.sets for ref in one.clips(None, 5)]
    assert len(refs) == len(alone)
    for ref, (one, own) in zip(refs, alone, strict=True):
        assert ref.key == f"{one.folder.name}/{own.key}"
        clip, expected = joined.read_clip(ref), one.read_clip(own)
        assert clip.key == ref.key
        np.testing.assert_array_equal(clip.rgb, expected.rgb)
        np.testing.assert_array_equal(clip.action, expected.action)
        source = joined.episode(ref.entry.episode)
        assert source.instruction == one.episode(own.entry.episode).instruction
    assert open_sets(spec(pair[0])).joined.folder == pair[0]


@pytest.mark.parametrize("spelling", ["slash", "link"])
def test_one_set_under_two_names_is_refused(pair: tuple[Path, Path], tmp_path: Path, spelling: str) -> None:
    again = f"{pair[0].parent}//{pair[0].name}/" if spelling == "slash" else tmp_path / "link"
    if isinstance(again, Path):
        again.symlink_to(pair[0])
    data = DataSpec.model_validate({"shards": [{"path": str(pair[0])}, {"path": str(again)}]})
    with pytest.raises(UserError, match="is listed twice"):
        open_sets(data)


@pytest.mark.slow
def test_one_of_several_is_encoded_as_all_of_them_train(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tree = recipe_tree(pair[0])
    tree["data"] |= {"shards": [{"path": str(folder)} for folder in pair], "cache": "require"}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    caches = [encode_shards(folder, load_recipe(tmp_path / "toy.yaml"), QUIET).folder for folder in pair]
    sets = open_sets(spec(*pair))
    recipe = load_recipe(tmp_path / "toy.yaml")
    assert len(Inputs(recipe, sets, QUIET).clips().clips) > 0  # which makes no cache
    for folder in caches:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_sets_weight_is_its_share_of_what_is_shown(pair: tuple[Path, Path], changed: Change) -> None:
    sources = [{"path": str(pair[0]), "weight": 3}, {"path": str(pair[1]), "weight": 1}]
    rules = [{"source": "recording-1", "weight": 0}]
    recipe = changed(data={"shards": sources, "episode_weights": rules})
    sets = open_sets(recipe.data)
    pool = Inputs(recipe, sets, QUIET).clips()
    assert [(name, share) for name, _, share in pool.shares()] == [("monday", 0.75), ("friday", 0.25)]
    dataset = ClipDataset(pool, pool.of_split("train"), seed=1)
    shown = [dataset.clip(position).key for position in range(20 * len(dataset))]
    share = sum(key.startswith("monday/") for key in shown) / len(shown)
    assert share == pytest.approx(0.75, abs=0.01)
    home = {entry.key: entry.episode for entry in sets.joined.index.segments}
    numbers = Counter(home[key.rpartition("-")[0]] for key in shown)
    assert set(numbers) == {0, len(EPISODES)}  # recording-1 of both sets weighs nothing
    batch = dataset.batch([0, 1, 2, 3], "cpu")
    assert batch.keys == tuple(shown[:4])
    assert pool.identity.contract == sets.contract.sha256


def episodes_of(sets: DataSets) -> list[list[int]]:
    return [[ref.entry.episode for ref in one.clips("train", 3)] for one in sets.sets]


def test_rules_multiply_and_must_fit_something(pair: tuple[Path, Path]) -> None:
    rules = [
        EpisodeWeight(instruction="*", source="recording-0", weight=2),
        EpisodeWeight(success=True, weight=0.5),
        EpisodeWeight(success=False, source="recording-1", weight=9),
    ]
    sets = open_sets(spec(*pair))
    data = spec(*pair, episode_weights=[rule.model_dump() for rule in rules[:2]])
    assert [table[0] for table in episode_weights(data, sets)] == [1.0, 1.0]
    assert [table[1] for table in episode_weights(data, sets)] == [0.5, 0.5]
    with pytest.raises(UserError, match="fits no training episode") as raised:
        episode_weights(spec(*pair, episode_weights=[rule.model_dump() for rule in rules]), sets)
    assert "data.episode_weights.2" in str(raised.value)
    nothing = [dict.fromkeys(table, 0.0) for table in episode_weights(data, sets)]
    with pytest.raises(UserError, match="all weigh 0"):
        clip_weights(sets, nothing, episodes_of(sets), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shards": [{"path": "a", "weight": 1}, {"path": "b"}]}, "give every shard set a weight, or none"),
        ({"shards": [{"path": "a"}, {"path": "a"}]}, "listed twice"),
        ({"shards": []}, "at least 1"),
        ({"shards": "a", "episode_weights": [{"weight": -1}]}, "greater than or equal to 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataSpec.model_validate(change)


@pytest.fixture
def damaged(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, str]:
    """A set of which one byte in the middle of the second of its shards is another; and that shard's name."""
    folder = shutil.copytree(pair[0], tmp_path / "damaged", ignore=shutil.ignore_patterns("latents-*"))
    name = ShardSet.open(folder).index.shards[1].name
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / name).write_bytes(content)
    return folder, name


def test_a_damaged_shard_stops_before_anything_is_encoded(damaged: tuple[Path, str], changed: Change) -> None:
    folder, name = damaged
    recipe = changed(data={"shards": str(folder)})
    with pytest.raises(UserError, match="SHA-256 differs") as raised:
        encode(recipe, open_sets(recipe.data).sets[0], CPU, QUIET)
    assert str(folder / name) in str(raised.value)
    assert "data.on_corrupt: skip" in str(raised.value)
    assert not list(folder.glob("latents-*"))


def test_nor_are_its_pixels_read(damaged: tuple[Path, str], changed: Change) -> None:
    folder, name = damaged
    recipe = changed(data={"shards": str(folder), "cache": "none"})
    with pytest.raises(UserError, match="SHA-256 differs") as raised:
        Inputs(recipe, open_sets(recipe.data), QUIET).clips()
    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_or_it_is_left_out_named_and_counted(damaged: tuple[Path, str], changed: Change, how: str) -> None:
    folder, name = damaged
    if how == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    elif how == "missing":
        (folder / name).unlink()
    recipe = changed(data={"shards": str(folder), "on_corrupt": "skip"})
    if how != "changed":
        with pytest.raises(UserError, match="on_corrupt: skip"):
            open_sets(changed(data={"shards": str(folder)}).data)
    said = io.StringIO()
    [kept] = open_sets(recipe.data, Console(file=said, width=500)).sets
    whole = ShardSet.open(folder, sizes=False)
    lost = {entry.key for entry in whole.index.segments if entry.shard == name}
    assert {entry.key for entry in kept.index.segments} == {entry.key for entry in whole.index.segments} - lost
    assert f"1 of {len(whole.index.shards)} shards" in said.getvalue()
    assert f"{len(lost)} of {len(whole.index.segments)} segments: {name}" in said.getvalue()
    cache = encode(recipe, kept, CPU, QUIET)
    assert {clip.key.rpartition("-")[0] for clip in cache.clips} <= {entry.key for entry in kept.index.segments}
    # Once it is mended, another cache is made, and says why.
    assert kept.fingerprint != whole.fingerprint


def test_a_stale_cache_is_refused_with_what_changed(shard_set: ShardSet, cache: LatentCache, changed: Change) -> None:
    said = io.StringIO()
    required = changed(data={"clip_stride": 11, "cache": "require"})
    with pytest.raises(UserError, match="holds no latent cache of this recipe") as raised:
        encode(required, shard_set, CPU, QUIET)
    assert f"{cache.folder.name} was made with data.clip_stride 3, now 11" in str(raised.value)
    made = encode(changed(data={"clip_stride": 11}), shard_set, CPU, Console(file=said, width=500))
    assert f"another latent cache is made: {cache.folder.name} was made with data.clip_stride 3" in said.getvalue()
    assert encode(required, shard_set, CPU, QUIET).folder == made.folder
    shutil.rmtree(made.folder)


def test_wordings_are_drawn_in_training_and_the_usual_one_is_held_out(
    pair: tuple[Path, Path], changed: Change, tmp_path: Path
) -> None:
    folder = shutil.copytree(pair[0], tmp_path / "said", ignore=shutil.ignore_patterns("latents-*"))
    tree = json.loads((folder / "index.json").read_text())
    for episode in tree["episodes"]:
        episode["instructions"] = [episode["instruction"], f"please {episode['instruction']}"]
    Index.model_validate(tree)
    (folder / "index.json").write_text(json.dumps(tree))
    recipe = changed(data={"shards": str(folder)})
    pool = Inputs(recipe, open_sets(recipe.data), QUIET).clips()
    dataset = ClipDataset(pool, pool.of_split("train"), seed=0)
    told = [dataset.told(position, dataset.clip(position)) for position in range(200)]
    assert 60 < sum(text.startswith("please") for text in told) < 140
    positions = list(range(8))
    text = dataset.batch(positions, "cpu").text
    for row, position in enumerate(positions):
        expected = pool.prompt_embeddings[pool.prompt_index[told[position]]].float()
        assert torch.equal(text[row], expected)
    held_out = ClipDataset(pool, pool.of_split("held_out"), seed=None)
    assert not any(held_out.told(p, held_out.clip(p)).startswith("please") for p in range(len(held_out)))


@pytest.mark.slow
def test_a_run_of_two_sets_resumes_exports_and_is_scored_on_each(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from xwam_ft.evaluate.evaluate import evaluate_bundle
    from xwam_ft.export.export import export_run

    tree = recipe_tree(pair[0])
    tree["data"]["shards"] = [{"path": str(pair[0]), "weight": 3}, {"path": str(pair[1]), "weight": 1}]
    tree["validation"]["every_steps"] = 3
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tree))
    said = io.StringIO()
    run = tiny_training.train(tmp_path / "two.yaml", tmp_path / "run", [], Console(file=said, width=300))
    assert "clips shown: monday 75 %" in said.getvalue()
    assert "VAE and text encoder are not loaded" in said.getvalue()
    contract = open_sets(spec(*pair)).contract
    assert (run / "contract.json").read_bytes() == contract.to_bytes()
    shutil.rmtree(run / "checkpoints" / "step-000006")
    tiny_training.resume(run, QUIET)
    bundle = tmp_path / "bundle"
    export_run(run, bundle, console=QUIET)
    for folder in pair:  # each was prepared under quantiles of its own
        assert evaluate_bundle(bundle, folder, None, 2, QUIET)[0].clips == 2
    sources = [ShardSource(path=str(pair[0])), ShardSource(path=str(pair[1]))]
    (run / "recipe.yaml").write_text(
        load_recipe(run / "recipe.yaml")
        .model_copy(update={"data": spec(*pair).model_copy(update={"shards": sources})})
        .to_yaml()
    )
    with pytest.raises(
        UserError, match=r"was trained with data\.shards\.weight \[3\.0, 1\.0\], and .*says \[None, None\]"
    ):
        tiny_training.resume(run, QUIET)


def test_shards_of_another_robot_than_the_runs_are_named_beside_the_run(pair: tuple[Path, Path]) -> None:
    runs = ShardSet.open(pair[0]).contract.model_copy(update={"embodiment": "other-arm"})
    with pytest.raises(UserError, match=r"^run/contract\.json: does not hold the contract of ") as error:
        open_sets(spec(pair[0]), under=(runs, Path("run/contract.json")))
    assert f"embodiment is 'other-arm' there and 'test-arm' in {pair[0]}" in str(error.value)
