"""Each form is read back by the library it is for, and holds what the run learned."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import yaml
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.export import formats, reference_file
from xwam_ft.export.export import export_run
from xwam_ft.export.weights import RunWeights, merged_weight, open_weights
from xwam_ft.model.adapters import lora_config
from xwam_ft.model.backbone import load_backbone, locate_backbone, part_fingerprints
from xwam_ft.model.reference import build_from_reference, reference_name
from xwam_ft.model.tensor_files.source import Stored, open_checkpoint
from xwam_ft.recipe_model import LoraSpec
from xwam_ft.runs.folder import open_run

GOLDEN = Path(__file__).parents[1] / "golden" / "xwam_tiny.safetensors"


@pytest.fixture(scope="module")
def weights(trained_run: Path) -> RunWeights:
    folder = open_run(trained_run)
    assert folder.checkpoint is not None
    return open_weights(folder.recipe, folder.checkpoint, ema=True, depth=True)


@pytest.fixture(scope="module")
def merged(bundle: Path) -> dict[str, torch.Tensor]:
    """The transformer as the bundle holds it: merged by the bundle's own path."""
    prefix = "network.transformer."
    stored = load_file(bundle / "model.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_peft_loads_the_adapter_onto_the_base(
    trained_run: Path, merged: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from peft import PeftModel

    out = export_run(trained_run, tmp_path / "adapter", format="peft", console=QUIET)
    base = load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer
    model: Any = PeftModel.from_pretrained(base, out)
    assert_same(dict(model.merge_and_unload().state_dict()), merged)
    depth: Any = PeftModel.from_pretrained(
        load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer, out / "depth"
    )
    assert sum("lora_A" in name for name, _ in depth.named_parameters()) == 10  # of the one block it is on


def pipeline() -> Any:
    base = load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer
    nothing: Any = None
    return WanPipeline(nothing, nothing, nothing, UniPCMultistepScheduler(), transformer=base)


def test_diffusers_loads_the_video_lora(trained_run: Path, merged: dict[str, torch.Tensor], tmp_path: Path) -> None:
    out = export_run(trained_run, tmp_path / "lora", format="diffusers", console=QUIET)
    pipe = pipeline()
    pipe.load_lora_weights(out)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    assert_same(dict(pipe.transformer.state_dict()), merged)


def with_lora(weights: RunWeights, **values: object) -> RunWeights:
    """The run as if its recipe's lora section were another."""
    lora = weights.recipe.model.lora.model_copy(update=values)
    recipe = weights.recipe.model_copy(update={"model": weights.recipe.model.model_copy(update={"lora": lora})})
    return replace(weights, recipe=recipe, rounding={})


@pytest.mark.parametrize("values", [{"alpha": 7.0}, {"alpha": 3.0, "rslora": True}])
def test_alpha_and_rslora_are_in_the_numbers(weights: RunWeights, tmp_path: Path, values: dict[str, object]) -> None:
    changed = with_lora(weights, **values)
    formats.write("diffusers", changed, tmp_path)
    pipe = pipeline()
    pipe.load_lora_weights(tmp_path)
    layer = pipe.transformer.blocks[0].attn1.to_q
    wanted = {piece.name: piece for piece in changed.pieces(torch.float32, merged=True)}
    weight = wanted["transformer.blocks.0.attn1.to_q.weight"].make()
    name = layer.active_adapters[0]
    torch.testing.assert_close(layer.weight + layer.get_delta_weight(name), weight, rtol=1e-5, atol=1e-6)


def test_what_a_form_cannot_say_is_refused(weights: RunWeights, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is DoRA, and diffusers' loader drops"):
        formats.write("diffusers", with_lora(weights, dora=True), tmp_path)
    for options, part in (
        ({"format": "xwam"}, "give the folder of Wan's own Wan2.2_VAE.pth"),
        ({"format": "peft", "dtype": "float32"}, "--dtype: changes nothing with --format peft"),
        ({"format": "diffusers", "merged": False}, "--unmerged: changes nothing"),
        ({"wan": tmp_path}, "--wan: changes nothing with --format bundle"),
    ):
        with pytest.raises(UserError, match=part):
            export_run(trained_run, tmp_path / "out", console=QUIET, **options)  # pyright: ignore[reportArgumentType]
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spec", [LoraSpec(rank=3, alpha=5), LoraSpec(rank=3, rslora=True), LoraSpec(rank=3, dora=True)]
)
def test_a_layer_merged_by_itself_is_peft_s_own_merge(spec: LoraSpec) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    model: Any = torch.nn.Sequential()
    model.add_module("layer", torch.nn.Linear(6, 4))
    base = model.layer.weight.detach().clone()
    adapted: Any = get_peft_model(model, lora_config(["layer"], spec))
    lora: dict[str, torch.Tensor] = {}
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
            lora[name.split(".layer.")[1].replace(".default.", ".")] = parameter.detach().clone()
    merged = merged_weight(base, lora, spec)
    other = {name: tensor * 2 for name, tensor in lora.items()}
    assert not torch.allclose(merged_weight(base, other, spec), merged)
    assert torch.equal(merged_weight(base, lora, spec), merged), "of another adapter nothing stays"
    torch.testing.assert_close(merged, adapted.merge_and_unload().layer.weight.detach())
    assert not torch.allclose(merged, base)


@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_merged_row_by_row_is_the_layer_merged_whole(
    weights: RunWeights, monkeypatch: pytest.MonkeyPatch, dora: bool
) -> None:
    name = "transformer.blocks.0.ffn.net.2.weight"
    trained = dict(weights.trained)
    if dora:
        lengths = torch.rand(trained[name.replace("weight", "lora_B.weight")].shape[0]) + 0.5
        magnitude = Stored(tuple(lengths.shape), lengths.dtype, lengths.clone)
        trained[name.replace("weight", "lora_magnitude_vector.weight")] = magnitude
    changed = replace(with_lora(weights, dora=dora), trained=trained)
    pieces = {piece.name: piece for piece in changed.pieces(torch.float32, merged=True)}
    whole, seen = pieces[name].make(), list(changed.rounding.values())
    changed.rounding.clear()
    monkeypatch.setattr("xwam_ft.export.weights.ROWS_NUMBERS", 5 * whole.shape[1])
    assert whole.shape[0] % 5, "the last rows are fewer"
    torch.testing.assert_close(pieces[name].make(), whole, rtol=1e-6, atol=1e-7)
    assert next(iter(changed.rounding.values())) == pytest.approx(seen[0], rel=1e-3, abs=1e-9)


@pytest.fixture(scope="module")
def on_wan(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run on a backbone with Wan2.2's form of the VAE, and that VAE and the text encoder as Wan publishes them.

    `tiny` has a VAE of another form; a transformer's fingerprint does not depend on it.
    """
    place = tmp_path_factory.mktemp("wan")
    base, wan, run = place / "base", place / "wan", place / "run"
    shutil.copytree(locate_backbone("tiny", ("vae", "text")), base)
    shutil.rmtree(base / "vae")
    foreign.make_vae(channels=48).save_pretrained(base / "vae")
    shutil.copytree(trained_run, run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["backbone"]["path"] = str(base)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for state in run.glob("checkpoints/*/state.json"):  # as if it had been trained with that VAE
        prints = part_fingerprints(str(base), ("vae", "text"))
        encoders = "/".join(prints[part] for part in ("vae", "text"))
        state.write_text(json.dumps({**json.loads(state.read_text()), "encoders": encoders}))
    wan.mkdir()
    vae, text = open_checkpoint(base / "vae").tensors, open_checkpoint(base / "text_encoder").tensors
    torch.save({foreign.wan_vae_name(n): stored.read() for n, stored in vae.items()}, wan / "Wan2.2_VAE.pth")
    torch.save(
        {foreign.wan_text_name(n): stored.read() for n, stored in text.items() if n != "encoder.embed_tokens.weight"},
        wan / "models_t5_umt5-xxl-enc-bf16.pth",
    )
    return run, wan


@pytest.mark.slow
def test_the_reference_s_form_builds_the_merged_network(
    on_wan: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    run, wan = on_wan
    out = export_run(run, tmp_path / "xwam", format="xwam", wan=wan, console=QUIET)
    stored = torch.load(out / reference_file.FILE, weights_only=True)
    assert list(stored) == ["module"]
    module = stored["module"]
    assert all(name.startswith(("model.", "vae.", "text_encoder.")) for name in module)
    config = yaml.safe_load((out / "config.yaml").read_text())
    network = build_from_reference(
        config["model"],
        {name.removeprefix("model."): tensor for name, tensor in module.items() if name.startswith("model.")},
    )
    ours = {
        name.removeprefix("network."): tensor
        for name, tensor in load_file(bundle / "model.safetensors").items()
        if name.startswith("network.")
    }
    assert_same(dict(network.state_dict()), ours)
    vae = torch.load(wan / "Wan2.2_VAE.pth", weights_only=True)
    for name, tensor in vae.items():
        assert torch.equal(module[f"vae.model.{name}"], tensor)


def test_another_vae_is_refused(on_wan: tuple[Path, Path], tmp_path: Path) -> None:
    run, wan = on_wan
    other = Path(shutil.copytree(wan, tmp_path / "wan"))
    tensors = torch.load(other / "Wan2.2_VAE.pth", weights_only=True)
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.5
    torch.save(tensors, other / "Wan2.2_VAE.pth")
    with pytest.raises(UserError, match=r"conv1\.weight is not the VAE of"):
        export_run(run, tmp_path / "out", format="xwam", wan=other, console=QUIET)
    assert not (tmp_path / "out").exists()
    (other / "Wan2.2_VAE.pth").unlink()
    with pytest.raises(UserError, match="holds no file of the VAE"):
        export_run(run, tmp_path / "out", format="xwam", wan=other, console=QUIET)


def test_names_shapes_and_constructor_values_are_the_reference_s() -> None:
    """The golden network, taken under our names and given back, is the golden state dict."""
    import json

    from xwam_ft.model.assemble import network_config_dict

    with safe_open(GOLDEN, "pt") as stored:
        names = [name for name in stored.keys() if name.startswith("weight.")]  # noqa: SIM118
        golden = {name.removeprefix("weight."): stored.get_tensor(name) for name in names}
        config = json.loads(stored.metadata()["config"])
    network = build_from_reference(config, golden)
    values = network_config_dict(network)
    written = reference_file.constructor_values(values["transformer"], values["network"], config["text_len"])
    assert written == config
    shapes = {reference_name(name): tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in golden.items()}
