"""Every checkpoint that cannot be imported is one sentence, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import foreign
import pytest
import torch
from safetensors.torch import save_file

from xwam_ft.convert import convert
from xwam_ft.convert.convert import ConvertOptions, import_checkpoint
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone


@pytest.fixture(scope="module")
def vae_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.save_vae_text(tmp_path_factory.mktemp("vae_text"))


def refused(source: Path, folder: Path, vae_text: Path | None, sentence: str, **options: object) -> None:
    """The import fails with this sentence; beside what was there nothing is left."""
    target = folder / "result"
    target.mkdir(exist_ok=True)
    given = {"vae_text": vae_text, "heads": foreign.HEADS} | options
    with pytest.raises(UserError, match=sentence) as caught:
        import_checkpoint(source, target / "out", ConvertOptions(**given))
    assert "\n" not in str(caught.value)
    assert list(target.iterdir()) == []


def saved(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save({"module": weights}, folder / "xwam.pt")
    return folder / "xwam.pt"


def lacking(weights: dict[str, torch.Tensor]) -> None:
    weights.pop("model.blocks.2.ffn.0.weight")
    weights.pop("model.extra_heads.0.modulation")


def lacking_a_head(weights: dict[str, torch.Tensor]) -> None:
    weights.pop("model.action_encoder.0.weight")


def lacking_a_size(weights: dict[str, torch.Tensor]) -> None:
    weights.pop("model.patch_embedding.weight")


def unknown(weights: dict[str, torch.Tensor]) -> None:
    weights["model.memory.weight"] = torch.zeros(2)


def unknown_prefix(weights: dict[str, torch.Tensor]) -> None:
    weights["optimizer.step"] = torch.zeros(2)


def misshapen(weights: dict[str, torch.Tensor]) -> None:
    weights["model.blocks.1.self_attn.q.weight"] = torch.zeros(3, 48)


def not_finite(weights: dict[str, torch.Tensor]) -> None:
    weights["model.proprio_decoder.2.weight"][3, 5] = torch.nan


def no_tensor(weights: dict) -> None:
    weights["model.blocks.0.note"] = "text"


def unknown_vae(weights: dict[str, torch.Tensor]) -> None:
    weights |= foreign.frozen_copies() | {"vae.model.encoder.extra": torch.zeros(1)}


def half_a_vae(weights: dict[str, torch.Tensor]) -> None:
    copies = foreign.frozen_copies()
    copies.pop("vae.model.decoder.middle.1.proj.weight")
    weights |= copies


def text_without_sizes(weights: dict[str, torch.Tensor]) -> None:
    weights["text_encoder.model.norm.weight"] = torch.ones(16)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lacking, r"2 tensors missing: \S+, \S+\. Fix: give a whole checkpoint"),
        (lacking_a_head, "is an X-WAM checkpoint without action_encoder.0.weight"),
        (lacking_a_size, r"holds no Wan transformer .*\(patch_embedding.weight is missing\)"),
        (unknown, "1 tensors unknown: memory.weight"),
        (unknown_prefix, "unknown weight names optimizer.step"),
        (misshapen, r"1 tensors of another shape: blocks.1.self_attn.q.weight \[3, 48\] \(wanted \[48, 48\]\)"),
        (not_finite, "proprio_decoder.2.weight holds numbers that are not finite"),
        (no_tensor, "'model.blocks.0.note' in its weights are not tensors"),
        (unknown_vae, "unknown weight names vae.model.encoder.extra"),
        (half_a_vae, "1 tensors missing: decoder.mid_block.attentions.0.proj.weight"),
        (text_without_sizes, "its text encoder lacks what gives its sizes"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, vae_text: Path, spoil, sentence: str) -> None:
    weights = foreign.module()
    spoil(weights)
    refused(saved(weights, tmp_path), tmp_path, vae_text, sentence)


def test_files_that_are_none(tmp_path: Path, vae_text: Path) -> None:
    refused(tmp_path / "none", tmp_path, vae_text, "no such file or folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    refused(tmp_path / "empty", tmp_path, vae_text, r"holds no checkpoint that can be read \(it has notes.txt\)")
    source = saved(foreign.module(), tmp_path)
    source.write_bytes(source.read_bytes()[:-1000])
    refused(source, tmp_path, vae_text, "is truncated: its directory, at the end, is missing")
    save_file(foreign.module(), tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1000])
    refused(tmp_path / "x.safetensors", tmp_path, vae_text, r"x\.safetensors: is truncated, or not safetensors")
    refused(vae_text, tmp_path, vae_text, "holds no checkpoint that can be read")


def test_a_pickle_that_is_no_checkpoint(tmp_path: Path, vae_text: Path) -> None:
    class Whole(torch.nn.Linear):
        pass

    Whole.__qualname__ = "Whole"
    globals()["Whole"] = Whole
    torch.save(Whole(2, 2), tmp_path / "model.pt")
    sentence = r"holds no dict of tensors; it asks for .*Whole.*, which was not run\. Fix: give a DeepSpeed folder"
    refused(tmp_path / "model.pt", tmp_path, vae_text, sentence)
    torch.save({"step": 3}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", tmp_path, vae_text, r"holds no dict of tensors\. Fix")


def test_half_a_download(tmp_path: Path, vae_text: Path) -> None:
    folder = foreign.save_shards(tmp_path / "shards", foreign.module())
    gone = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    gone.unlink()
    refused(folder, tmp_path, vae_text, r"is half downloaded: diffusion_pytorch_model-00002-of-00003\.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    refused(folder, tmp_path, vae_text, r"is half downloaded: diffusion_pytorch_model-00002-of-00003\.safetensors")


def test_several_model_parallel_ranks(tmp_path: Path, vae_text: Path) -> None:
    last = foreign.save_deepspeed(tmp_path, foreign.module())
    (last / "checkpoint" / "mp_rank_01_model_states.pt").touch()
    refused(last, tmp_path, vae_text, "is split over 2 model-parallel ranks")


@pytest.mark.parametrize(
    ("patch", "model"),
    [
        ((1536, 16), r"is Wan2\.1-T2V-1\.3B"),
        ((5120, 16), r"is a Wan T2V-14B \(2\.1, or one half of 2\.2's A14B\)"),
        ((5120, 36), r"is a Wan I2V-14B"),
        ((48, 16), r"is a Wan model on Wan2\.1's VAE"),
    ],
)
def test_other_models_of_the_family_are_named(tmp_path: Path, vae_text: Path, patch, model: str) -> None:
    weights = {"patch_embedding.weight": torch.zeros(*patch, 1, 2, 2), "blocks.0.norm3.weight": torch.zeros(2)}
    folder = foreign.save_shards(tmp_path / "wan", weights, count=1)
    refused(folder, tmp_path, vae_text, model + r".*\. Fix: give another: Wan2\.2-TI2V-5B and X-WAM checkpoints made")


def test_other_kinds_of_the_family_are_named(tmp_path: Path, vae_text: Path) -> None:
    folder = foreign.save_shards(tmp_path / "wan", {"img_emb.proj.0.weight": torch.zeros(2)}, count=1)
    refused(folder, tmp_path, vae_text, r"is a Wan2\.1 image-to-video model")
    (tmp_path / "a14b" / "high_noise_model").mkdir(parents=True)
    refused(tmp_path / "a14b", tmp_path, vae_text, r"is a Wan2\.2-A14B model of two transformers")
    with pytest.raises(UserError, match=r"import them once: python data_tools/import_xwam\.py"):
        load_backbone(str(tmp_path / "a14b"))


def test_heads_that_do_not_divide(tmp_path: Path, vae_text: Path) -> None:
    source = saved(foreign.module(), tmp_path)
    refused(source, tmp_path, vae_text, "width of 48 does not divide into 5 attention heads.*--heads", heads=5)
    refused(source, tmp_path, vae_text, "width of 48 does not divide into 0 attention heads.*--heads", heads=None)


def test_parts_that_nobody_gives(tmp_path: Path, vae_text: Path) -> None:
    source = saved(foreign.module(), tmp_path)
    refused(source, tmp_path, None, r"brings no vae, text_encoder, tokenizer\. Fix: .*--vae-text FOLDER")
    (tmp_path / "part").mkdir()
    refused(source, tmp_path, tmp_path / "part", r"the part 'vae' is missing")
    whole = saved(foreign.module(frozen=True), tmp_path)
    refused(whole, tmp_path, None, r"brings no tokenizer\. Fix")


def test_a_vae_of_another_model(tmp_path: Path) -> None:
    from xwam_ft.model.tiny import tiny_folder

    source = saved(foreign.module(), tmp_path)
    refused(source, tmp_path, tiny_folder(), r"its vae has z_dim 48, and the transformer of \S+xwam\.pt reads 8")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, vae_text: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    source = saved(foreign.module(), tmp_path)
    with pytest.raises(UserError, match="out: exists already and is not an empty folder"):
        import_checkpoint(source, out, ConvertOptions(vae_text=vae_text, heads=4))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_an_interrupted_import_leaves_nothing_and_can_be_run_again(
    tmp_path: Path, vae_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(foreign.module(), tmp_path)
    target, calls, link_tree = tmp_path / "target", [], convert.link_tree
    target.mkdir()

    def interrupt(*arguments: Path) -> int:
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "link_tree", interrupt)  # after the transformer is written
    options = ConvertOptions(vae_text=vae_text, heads=4)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(source, target / "out", options)
    assert calls
    assert list(target.iterdir()) == []
    monkeypatch.setattr(convert, "link_tree", link_tree)
    import_checkpoint(source, target / "out", options)
    assert load_backbone(str(target / "out")).joint is not None


def test_a_full_disk_is_one_sentence(tmp_path: Path, vae_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(foreign.module(), tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(convert, "write_shards", full)
        refused(source, tmp_path, vae_text, r"out: cannot be written \(no space left on device\)")
    usage = convert.require_room.__globals__["shutil"].disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("xwam_ft.files.shutil.disk_usage", lambda _: usage)
    refused(source, tmp_path, vae_text, r"MB are to be written and its disk has 0\.0 MB free")
