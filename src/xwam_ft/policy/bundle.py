"""The bundle: the folder a policy is shipped in. Written whole or not at all, verified before it is used.

model.safetensors      network.* (adapters merged, or beside their base) and vae.*
config.json            how to build both; backbone, dtype, sampling defaults
contract.json          byte for byte the run's
prompts.safetensors    text embeddings of every instruction and of the empty one
selfcheck.safetensors  a recorded request and the action it gave
novelty.safetensors    statistics of the training pictures (novelty.py)
text_encoder/, tokenizer/   perhaps: for any other text (text_encoder.py)
manifest.json          size and SHA-256 of every other file, library versions
imagined.png           a held-out clip, imagined beside recorded
README.md              what it is, what it was trained on, how well it does, how to serve and call it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.contract import load_contract
from xwam_ft.errors import UserError, listed
from xwam_ft.files import (
    atomic_path,
    json_bytes,
    read_json,
    sha256,
    write_json_atomic,
)
from xwam_ft.hub import hint
from xwam_ft.machine import cpu_has_bfloat16, free_memory, installed_versions
from xwam_ft.model.adapters import prepare_for_training
from xwam_ft.model.assemble import empty_network, load_network_state, network_config_dict
from xwam_ft.model.backbone import Backbone
from xwam_ft.model.load_part import make_vae
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tensor_files.stream import write_stream
from xwam_ft.policy import novelty, text_encoder
from xwam_ft.policy import selfcheck as checks
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.settings import Settings
from xwam_ft.recipe_model import DepthSpec, LoraSpec

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.attention import Attention
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.model.tensor_files.stream import Piece
    from xwam_ft.policy.settings import Future
    from xwam_ft.progress import Advance

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FILES = (
    "README.md",
    "config.json",
    "contract.json",
    "model.safetensors",
    "prompts.safetensors",
)
SELFCHECK, PICTURE, NOVELTY = "selfcheck.safetensors", "imagined.png", "novelty.safetensors"
OPTIONAL = (SELFCHECK, PICTURE, NOVELTY)
TEXT_FOLDERS = tuple(f"{name}/" for name in text_encoder.FOLDERS)
TEXTS = ("*.md", "*.txt", "license*", "licence*", "notice*", "citation*")  # for people: no answer depends on them
"""Files that a machine too small to run the model cannot make."""
_PACKAGES = ("xwam-ft", "torch", "diffusers", "transformers", "peft", "numpy", "scipy", "safetensors")
_AGAIN = "copy the bundle again, or export it again"


def write_parts(
    folder: Path,
    pieces: Sequence[Piece],
    config: Mapping[str, Any],
    contract: Contract,
    prompts: Mapping[str, Tensor],
    advance: Advance,
) -> dict[str, str]:
    """Write what a policy is read from: model, configuration, prompts, contract.

    Args:
        pieces: tensors of network (`network.*`) and VAE (`vae.*`), written one at a time.
        config: see `bundle_config`.
        prompts: instruction -> text embedding [S, Dt].
        advance: called with the bytes of each tensor of the model.

    Returns:
        SHA-256 of every tensor of the model.
    """
    digests = write_stream(folder / "model.safetensors", pieces, {"format": "pt"}, advance)
    names = sorted(prompts)
    embeddings = {f"{index:05d}": prompts[name] for index, name in enumerate(names)}
    _save(folder / "prompts.safetensors", embeddings, {"prompts": json.dumps(names, ensure_ascii=False)})
    write_json_atomic(folder / "config.json", config)
    (folder / "contract.json").write_bytes(contract.to_bytes())
    return digests


def bundle_config(
    network: JointNetwork,
    vae: Mapping[str, Any],
    text_len: int,
    settings: Settings,
    *,
    backbone: Mapping[str, Any],
    trained: bool,
    action_prefix: int,
    future: Future,
    dtype: str,
    run: str,
    step: int,
    adapters: Mapping[str, Any] | None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """What config.json holds.

    Args:
        network: without weights.
        vae: constructor values of diffusers' `AutoencoderKLWan`.
        backbone: where the base came from: path, fingerprint, revision.
        trained: whether anybody trained that base.
        action_prefix: the longest clean action prefix that the network was trained to go on from.
        future: whether it was trained to act without the frames after the first as well, "optional".
        dtype: of the network's merged weights, "float32" or "bfloat16".
        run, step: the run and the checkpoint it was exported from, for people.
        adapters: the recipe's `model` section where adapters stay beside the base; None where they are merged.
        encoder: how the text encoder is stored, "bfloat16" or "int8"; None where the bundle holds none.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **network_config_dict(network),
        **({} if adapters is None else {"adapters": dict(adapters)}),
        "vae": _plain(vae),
        "text_len": text_len,
        **({} if encoder is None else {"text_encoder": encoder}),
        "backbone": dict(backbone),
        "backbone_trained": trained,
        "action_prefix": action_prefix,
        **({} if future == "joint" else {"future": future}),
        "dtype": dtype,
        "sampling": {key: value for key, value in asdict(settings).items() if key != "with_future"},
        "run": run,
        "step": step,
    }


def seal(folder: Path, contract: Contract, backbone: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that holds everything else."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert _are_files_of_a_bundle(names), f"not the files of a bundle: {names}"
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "contract": contract.sha256,
        "backbone": dict(backbone),
        "versions": installed_versions(_PACKAGES),
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names},
    }
    write_json_atomic(folder / MANIFEST, {**manifest, "sha256": _own_hash(manifest)})


def verify_bundle(bundle: Path) -> dict[str, Any]:
    """Check every file against the manifest; returns config.json.

    Raises:
        UserError: not a bundle, made by another version, or a file missing, added or changed; names it. The card and
            other texts (`TEXTS`) may be edited, added or removed: a hub wants a licence there.
    """
    if not (bundle / MANIFEST).is_file():
        what = f"is not a bundle (no {MANIFEST})" if bundle.exists() else "is not there"
        raise UserError(what, bundle, f"give a folder that `xwam-ft export` made{hint(bundle, 'model')}")
    manifest = read_json(bundle / MANIFEST)
    files: Any = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError("is damaged, or of another version of xwam-ft", bundle / MANIFEST, _AGAIN)
    if not _are_files_of_a_bundle(files):
        raise UserError("is damaged, or of another version of xwam-ft", bundle / MANIFEST, _AGAIN)
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    written = json_bytes({**content, "sha256": _own_hash(content)})
    if (bundle / MANIFEST).read_bytes() != written:
        raise UserError("is not the file that was exported (its own hash differs)", bundle / MANIFEST, _AGAIN)
    for name, entry in files.items():
        path = bundle / name
        if is_text(name):
            continue
        if not path.is_file():
            raise UserError("the file is missing", path, _AGAIN)
        if path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
            raise UserError(f"is not the file that was exported (its SHA-256 is not {MANIFEST}'s)", path, _AGAIN)
    # Hidden entries are those of tools that keep or fetch folders (.git, .cache, .DS_Store); nothing reads them here.
    entries = {path.name for path in bundle.iterdir() if not path.name.startswith(".")}
    for name in entries & {name.partition("/")[0] for name in files if "/" in name}:
        entries = entries - {name} | {path.relative_to(bundle).as_posix() for path in (bundle / name).rglob("*")}
    strangers = sorted(name for name in entries - {*files, MANIFEST} if not is_text(name))
    if strangers:
        raise UserError(f"holds files that were not exported: {listed(strangers)}", bundle, "remove them")
    return read_json(bundle / "config.json")


def _are_files_of_a_bundle(names: Collection[str]) -> bool:
    plain = {name for name in names if not (name.count("/") == 1 and name.startswith(TEXT_FOLDERS))}
    return set(FILES) <= plain <= {*FILES, *OPTIONAL}


def is_text(name: str) -> bool:
    """Whether a file is one of `TEXTS`."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in TEXTS)


def load_policy(
    bundle: Path,
    device: str = "auto",
    *,
    selfcheck: bool = True,
    compile: bool | str = False,
    attention: Attention | None = None,
) -> Policy:
    """See `Policy.load`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(
            f"is {device!r}, and there is no such device here ({why})", "device", "give cpu, or auto"
        ) from None
    config = verify_bundle(bundle)
    if selfcheck and not (bundle / SELFCHECK).is_file():
        raise UserError(
            "holds no recorded request, since the machine that exported it was too small to run it",
            bundle,
            "export it again on this machine, or load it with selfcheck=False at your own risk",
        )
    policy = read_parts(bundle, config, device, compile=compile, attention=attention)
    policy.seen = frozenset(config.get("seen", ()))  # a bundle without it says nothing of its episodes
    if selfcheck:
        check = checks.load(bundle / SELFCHECK, policy)
        check.require(policy, config["dtype"], bundle / SELFCHECK)
        policy.recorded = check.inputs
    return policy


def read_parts(bundle: Path, config: Mapping[str, Any], device: str, **options: Any) -> Policy:
    """The policy of a bundle's model, prompts and contract, nothing checked but names, shapes and finite numbers."""
    from safetensors import safe_open

    model = bundle / "model.safetensors"
    widen = _computes_wide(model, device)
    with safe_open(model, "pt") as stored:
        state = {name: _owned(stored.get_tensor(name), device, widen) for name in stored.keys()}  # noqa: SIM118
    contract = load_contract(bundle / "contract.json")
    if config.get("text_encoder"):
        options["encoder"] = text_encoder.load(bundle, config["text_len"], device)
    if (bundle / NOVELTY).is_file():
        options["novelty"] = novelty.load(bundle / NOVELTY)
    return make_policy(config, state, read_prompts(bundle), contract, device, bundle, model, **options)


def make_policy(
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    prompts: Mapping[str, Tensor],
    contract: Contract,
    device: str,
    where: Path,
    model: Path | None = None,
    **options: Any,
) -> Policy:
    """A policy of a bundle's parts.

    Args:
        config: see `bundle_config`.
        state: tensors of network (`network.*`) and VAE (`vae.*`).
        where: the bundle or run; model: the file the tensors are from, where it is one.

    Raises:
        UserError: missing, unexpected, misshapen or non-finite tensors.
    """

    network = empty_network(config["transformer"], NetworkConfig.from_dict(config["network"]))
    if adapters := config.get("adapters"):
        lora, depth = LoraSpec.model_validate(adapters["lora"]), DepthSpec.model_validate(adapters["depth"])
        prepare_for_training(network, lora, depth, train=adapters["train"])
    load_network_state(network, _part(state, "network."), model or where)
    vae: Any = make_vae(config["vae"])
    vae.load_state_dict(_part(state, "vae."))
    vae.eval().requires_grad_(False)
    codec = Backbone(
        name=str(where),
        transformer=None,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_len=config["text_len"],
        trained=config["backbone_trained"],
        _fingerprint=lambda part: str(config["backbone"]["fingerprint"]),
    )
    return Policy(
        network.to(device),
        codec.to(device),
        prompts,
        contract,
        Settings(**config["sampling"]),
        trained=config["backbone_trained"],
        action_prefix=config.get("action_prefix", 0),  # a bundle without it was trained without prefixes
        future=config.get("future", "joint"),  # and one without this, jointly
        **options,
    )


def read_prompts(bundle: Path) -> dict[str, Tensor]:
    """Instruction -> text embedding [S, Dt] of a bundle."""
    from safetensors import safe_open

    with safe_open(bundle / "prompts.safetensors", "pt") as stored:
        texts: list[str] = json.loads(stored.metadata()["prompts"])
        return {text: _owned(stored.get_tensor(f"{index:05d}"), "cpu") for index, text in enumerate(texts)}


def _owned(tensor: Tensor, device: str, widen: bool = False) -> Tensor:
    """A tensor that stays what was read: safetensors maps the file, so a bundle that is copied over in place would
    change under a policy on the CPU that is at work. One that goes to another device is copied there anyway."""
    if widen and tensor.dtype == torch.bfloat16:
        return tensor.float()
    return tensor.clone() if torch.device(device).type == "cpu" else tensor


def _computes_wide(model: Path, device: str) -> bool:
    """Whether weights in bfloat16 are held in float32: on a CPU that has no instructions for bfloat16, and would take
    four times as long for the same numbers, if there is room for them."""
    if torch.device(device).type != "cpu" or cpu_has_bfloat16():
        return False
    return 3 * model.stat().st_size < free_memory(gpu=False)


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers configuration as JSON values, without its bookkeeping."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dict(config).items()
        if not key.startswith("_")
    }
