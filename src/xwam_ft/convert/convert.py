"""A checkpoint of X-WAM, or of Wan2.2-TI2V under its own names, becomes a backbone folder that `load_backbone` reads.

    OUT/transformer  vae  text_encoder  tokenizer  [joint]  [contract.json]  import_report.json

Everything is checked before a byte is written: names and shapes against the network that they describe. Tensors are
then streamed. What computes in float32 stays float32 (time embedding, norms, modulation, encoders, decoders, views).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from xwam_ft.contract import Contract
from xwam_ft.convert.frozen import text_config, text_name, vae_config, vae_name
from xwam_ft.convert.released import Released, find_config, read_released, released_contract, released_layout
from xwam_ft.convert.report import ImportReport, PartRow
from xwam_ft.convert.sizes import SUPPORTED, is_joint, network_config, refuse_other_wan, transformer_config
from xwam_ft.errors import UserError, listed
from xwam_ft.files import disk_errors, json_bytes, link_tree, read_json, require_room
from xwam_ft.locks import sole_folder
from xwam_ft.model.assemble import empty_network
from xwam_ft.model.folder_check import check_part
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.reference import from_reference, to_reference
from xwam_ft.model.stored_part import JOINT, PUBLISHED
from xwam_ft.model.tensor_files.shards import Move, write_shards
from xwam_ft.model.tensor_files.source import Stored, StoredTensors, open_checkpoint, refuse_bundle
from xwam_ft.progress import Advance

SHARD_BYTES = 1 << 30
NETWORK, VAE, TEXT = "model.", "vae.", "text_encoder."
_FRAMES = 4
"""Actions a frame of the released models, where no config says otherwise."""


@dataclass(frozen=True)
class ConvertOptions:
    """How to import.

    Args:
        vae_text: a diffusers folder with vae, text_encoder and tokenizer, for what the checkpoint does not bring.
        config: X-WAM's config.yaml; None looks beside the checkpoint, "none" does without.
        dtype: of what need not be float32.
        heads, actions_per_frame, cameras, fps: what names and shapes do not tell, where it is not the published value.
    """

    vae_text: Path | None = None
    config: Path | None = None
    dtype: torch.dtype = torch.bfloat16
    heads: int | None = None
    actions_per_frame: int | None = None
    cameras: tuple[str, ...] = ()
    fps: float | None = None
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class _Part:
    """A folder to write: its configuration, the tensors that go into it, and those that went into the configuration."""

    name: str
    stem: str
    write_config: Callable[[Path], object]
    moves: list[Move]
    in_config: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def used(self) -> dict[str, str]:
        """Names in the checkpoint -> names in the folder."""
        return {**self.in_config, **{move.source: move.target for move in self.moves}}

    def write(self, folder: Path, limit: int, where: Path, advance: Advance) -> None:
        (folder / self.name).mkdir()
        self.write_config(folder / self.name)
        write_shards(folder / self.name, self.stem, self.moves, limit, where, advance)


def import_checkpoint(
    source: Path,
    out: Path,
    options: ConvertOptions | None = None,
    *,
    progress: Callable[[int], AbstractContextManager[Advance]] | None = None,
) -> ImportReport:
    """Read `source`, write the backbone folder `out` (nothing of it stays where anything fails).

    Args:
        progress: given the bytes that will be written, opens what is called with each tensor's bytes.

    Raises:
        UserError: one sentence for everything a file can be: absent, truncated, no tensors, another model, tensors
            missing, unknown, misshapen or not finite; `out` not empty; a part that nobody gives; a full disk.
    """
    options = options or ConvertOptions()
    refuse_bundle(source)
    checkpoint = open_checkpoint(source)
    released = _released(source, options.config)
    notes: list[str] = []
    contract, cameras = _contract(released, options, notes)
    network, vae, text = _split(checkpoint)
    parts = _network_parts(checkpoint, network, released, contract, cameras, options, notes)
    if vae:
        parts.append(_vae_part(vae, checkpoint.where))
    if text:
        parts.append(_text_part(text, checkpoint.where))
    linked = _linked(options.vae_text, [part.name for part in parts], source)
    _require_match(parts, linked, checkpoint.where)
    size = sum(move.bytes for part in parts for move in part.moves)
    report = ImportReport(
        str(source),
        [_row(part, checkpoint.where.name) for part in parts],
        {part.name: part.used for part in parts},
        dict(checkpoint.ignored),
        list(checkpoint.stand_ins),
        notes,
    )
    with disk_errors(out), sole_folder(out, "importing to it") as folder:
        require_room(folder, size)
        with progress(size) if progress else nullcontext(_silent) as advance:
            for part in parts:
                part.write(folder, options.shard_bytes, checkpoint.where, advance)
        for name, place in linked.items():
            count = link_tree(place, folder / name)
            report.rows.append(PartRow(name, str(place), 0, 0, count))
        if contract is not None:
            (folder / "contract.json").write_bytes(contract.to_bytes())
        (folder / "import_report.json").write_bytes(json_bytes(report.to_dict()))
        for part in ("transformer", "vae", "text"):
            check_part(folder, part)
    return report


def _silent(amount: int) -> None:
    """No progress is shown."""


def _released(source: Path, config: Path | None) -> Released | None:
    if config is not None and str(config) == "none":
        return None
    place = find_config(source) if config is None else config
    return None if place is None else read_released(place)


def _contract(
    released: Released | None, options: ConvertOptions, notes: list[str]
) -> tuple[Contract | None, Sequence[str]]:
    known = released.benchmark if released else None
    cameras = sorted(options.cameras) or (known.cameras if known else ())
    if released is None:
        notes.append("no contract: no config.yaml beside the checkpoint")
        return None, cameras
    contract, sentence = released_contract(released, cameras=options.cameras, fps=options.fps)
    notes.append(sentence)
    return contract, cameras


def _split(checkpoint: StoredTensors) -> tuple[dict[str, Stored], dict[str, Stored], dict[str, Stored]]:
    """Tensors of network, VAE and text encoder, without their prefixes."""
    tensors = checkpoint.tensors
    vae, text = (_below(tensors, prefix) for prefix in (VAE, TEXT))
    rest = {name: stored for name, stored in tensors.items() if not name.startswith((VAE, TEXT))}
    network = _below(rest, NETWORK)
    if network and len(network) < len(rest):
        unknown = [name for name in rest if not name.startswith(NETWORK)]
        raise UserError(f"unknown weight names {listed(unknown, 4)}", checkpoint.where, f"give another: {SUPPORTED}")
    return network or rest, vae, text


def _below(tensors: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def _network_parts(
    checkpoint: StoredTensors,
    tensors: dict[str, Stored],
    released: Released | None,
    contract: Contract | None,
    cameras: Sequence[str],
    options: ConvertOptions,
    notes: list[str],
) -> list[_Part]:
    where = checkpoint.where
    shapes = {name: stored.shape for name, stored in tensors.items()}
    refuse_other_wan(shapes, where)
    values, assumed = transformer_config(shapes, checkpoint.config, options.heads, where)
    joint = None
    if is_joint(shapes):
        stated = options.actions_per_frame or (released.actions_per_frame if released else None)
        stated = stated or checkpoint.config.get("action_num")
        if not stated:
            notes.append(f"{_FRAMES} actions a frame assumed, as in the released models")
        joint = network_config(shapes, int(stated or _FRAMES), where)
    if assumed is not None:
        notes.append(assumed)
    empty = empty_network(values, joint or NetworkConfig(1, 1, 1, 1, 0))
    state = empty.state_dict()
    if joint is None:
        state = {name: tensor for name, tensor in state.items() if name.startswith("transformer.")}
    wanted = to_reference(state)
    _require_shapes(shapes, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, where)
    ours = {name: next(iter(from_reference({name: tensor}))) for name, tensor in wanted.items()}
    precise = set(getattr(empty.transformer, "_keep_in_fp32_modules", None) or ())

    def dtype(name: str) -> torch.dtype:
        heads = not name.startswith(("transformer.", "depth_branch."))
        return torch.float32 if heads or precise & set(name.split(".")) else options.dtype

    prefix = "" if next(iter(tensors)) in checkpoint.tensors else NETWORK

    def moves(mine: bool) -> list[Move]:
        return [
            Move(tensors[theirs], prefix + theirs, name.removeprefix("transformer."), dtype(name))
            for theirs, name in ours.items()
            if name.startswith("transformer.") == mine
        ]

    parts = [_Part("transformer", "diffusion_pytorch_model", empty.transformer.save_config, moves(True))]
    if joint is not None:
        layout = released_layout(joint, contract, cameras)
        described = json_bytes({"network": joint.to_dict(), "layout": layout.to_dict()})
        parts.append(_Part(JOINT, JOINT, lambda place: (place / "config.json").write_bytes(described), moves(False)))
    return parts


def _vae_part(tensors: dict[str, Stored], where: Path) -> _Part:
    """The VAE, in float32 as it is always used."""
    from diffusers import AutoencoderKLWan

    statistics: dict[str, list[float]] = {}
    for name in ("mean", "std"):
        if name not in tensors:
            raise UserError(f"its VAE has no {VAE}{name}", where, "give a whole checkpoint, as it was published")
        # Six digits: the published constants have four, and a float32 would print as 0.22889999.
        statistics[name] = [float(f"{value:.6g}") for value in tensors.pop(name).read().double().tolist()]
    inside = _below(tensors, "model.")
    shapes = {name: stored.shape for name, stored in inside.items()}
    config = vae_config(shapes, statistics["mean"], statistics["std"], where)
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
    moves = _moves(inside, f"{VAE}model.", vae_name, lambda _: torch.float32, where)
    _require_shapes(
        {move.target: move.stored.shape for move in moves},
        {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()},
        where,
    )
    in_config = {f"{VAE}{name}": f"config.json latents_{name}" for name in statistics}
    return _Part("vae", "diffusion_pytorch_model", vae.save_config, moves, in_config)


def _text_part(tensors: dict[str, Stored], where: Path) -> _Part:
    """The text encoder, in the dtype it is stored in."""
    from transformers import UMT5Config, UMT5EncoderModel

    inside = _below(tensors, "model.")
    config = UMT5Config(**text_config({name: stored.shape for name, stored in inside.items()}, where))
    config.architectures = ["UMT5EncoderModel"]
    with torch.device("meta"):
        state = UMT5EncoderModel(config).state_dict()
    moves = _moves(inside, f"{TEXT}model.", text_name, lambda stored: stored.dtype, where)
    _require_shapes(
        {move.target: move.stored.shape for move in moves},
        {name: tuple(tensor.shape) for name, tensor in state.items() if name != "encoder.embed_tokens.weight"},
        where,
    )
    return _Part("text_encoder", "model", config.save_pretrained, moves)


def _moves(
    tensors: Mapping[str, Stored],
    prefix: str,
    rename: Callable[[str], str | None],
    dtype: Callable[[Stored], torch.dtype],
    where: Path,
) -> list[Move]:
    names = {name: rename(name) for name in tensors}
    if unknown := [prefix + name for name, new in names.items() if new is None]:
        raise UserError(f"unknown weight names {listed(unknown, 4)}", where, f"give another: {SUPPORTED}")
    return [Move(tensors[name], prefix + name, str(new), dtype(tensors[name])) for name, new in names.items()]


def _require_shapes(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Raise one `UserError` for absent, unknown and misshapen tensors."""

    def complaint(what: str, names: Iterable[str]) -> str:
        names = list(names)
        return f"{len(names)} tensors {what}: {listed(names, 4)}" if names else ""

    complaints = [
        complaint("missing", (name for name in wanted if name not in given)),
        complaint("unknown", (name for name in given if name not in wanted)),
        complaint(
            "of another shape",
            (
                f"{name} {list(given[name])} (wanted {list(wanted[name])})"
                for name in wanted
                if name in given and given[name] != wanted[name]
            ),
        ),
    ]
    if any(complaints):
        raise UserError(
            "; ".join(filter(None, complaints)), where, f"give a whole checkpoint, as it was published; {SUPPORTED}"
        )


def _linked(vae_text: Path | None, have: list[str], source: Path) -> dict[str, Path]:
    """Folders to take from `--vae-text`: those that the checkpoint does not bring."""
    missing = [name for name in ("vae", "text_encoder", "tokenizer") if name not in have]
    if vae_text is None:
        raise UserError(
            f"brings no {listed(missing)}",
            source,
            f"give a folder that has them, such as huggingface.co/{PUBLISHED}: --vae-text FOLDER",
        )
    for name in missing:
        check_part(vae_text, "vae" if name == "vae" else "text")
    return {name: vae_text / name for name in missing}


def _require_match(parts: list[_Part], linked: Mapping[str, Path], where: Path) -> None:
    """Latents and text of a linked VAE and text encoder have the widths that the transformer reads."""
    shapes = {move.target: move.stored.shape for part in parts if part.name == "transformer" for move in part.moves}
    for name, key, wanted in (
        ("vae", "z_dim", shapes["patch_embedding.weight"][1]),
        ("text_encoder", "d_model", shapes["condition_embedder.text_embedder.linear_1.weight"][1]),
    ):
        given = read_json(linked[name] / "config.json").get(key) if name in linked else wanted
        if given != wanted:
            raise UserError(
                f"its {name} has {key} {given}, and the transformer of {where} reads {wanted}",
                linked[name],
                f"give --vae-text the folder of its own model, such as huggingface.co/{PUBLISHED}",
            )


def _row(part: _Part, origin: str) -> PartRow:
    numbers, size = (sum(getattr(move, name) for move in part.moves) for name in ("numel", "bytes"))
    return PartRow(part.name, origin, len(part.moves), numbers, size)
