"""The bundle: the folder a policy is shipped in. Written whole or not at all, verified before it is used.

model.safetensors      network.* (adapters merged) and vae.*
config.json            how to build both; backbone, dtype, sampling defaults
contract.json          byte for byte the run's
prompts.safetensors    text embeddings of every instruction and of the empty one
selfcheck.safetensors  a recorded request and the action it gave
manifest.json          size and SHA-256 of every other file, library versions
README.md              what it is and how to load it
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.contract import load_contract
from xwam_ft.errors import UserError, listed
from xwam_ft.files import (
    atomic_folder,
    atomic_path,
    json_bytes,
    read_json,
    sha256,
    write_json_atomic,
    write_text_atomic,
)
from xwam_ft.model.assemble import empty_network, load_network_state, network_config_dict
from xwam_ft.model.backbone import Backbone
from xwam_ft.model.network import NetworkConfig
from xwam_ft.policy import selfcheck as checks
from xwam_ft.policy.policy import Policy, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.attention import Attention
    from xwam_ft.observation import EncodedObservation

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FILES = (
    "README.md",
    "config.json",
    "contract.json",
    "model.safetensors",
    "prompts.safetensors",
    "selfcheck.safetensors",
)
_PACKAGES = ("xwam-ft", "torch", "diffusers", "transformers", "peft", "numpy", "scipy", "safetensors")
_AGAIN = "copy the bundle again, or export it again"


def write_bundle(
    policy: Policy,
    inputs: EncodedObservation,
    out: Path,
    *,
    backbone: Mapping[str, Any],
    dtype: str,
    run: str,
    step: int,
) -> Policy:
    """Write a policy as a new folder, and return it as it reads back.

    Args:
        inputs: the recorded observation of the self-check. It is answered by the policy as read back, whose tensors lie
            in memory as they do in the file, so that the same bundle is written every time.
        backbone: where the base came from: path, fingerprint, revision.
        dtype: of the network's linear weights, "float32" or "bfloat16".
        run, step: the run and the checkpoint it was exported from, for people.
    """
    network = policy.network
    config = {
        "schema_version": SCHEMA_VERSION,
        **network_config_dict(network),
        "vae": _plain(policy.codec.vae.config),
        "text_len": policy.codec.text_len,
        "backbone": dict(backbone),
        "backbone_trained": policy.trained,
        "action_prefix": policy.action_prefix,
        "dtype": dtype,
        "sampling": asdict(policy.settings),
        "run": run,
        "step": step,
    }
    with atomic_folder(out) as folder:
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"vae.{name}": tensor for name, tensor in policy.codec.vae.state_dict().items()}
        _save(folder / "model.safetensors", tensors, {"format": "pt"})
        names = sorted(policy.prompts)
        embeddings = {f"{index:05d}": policy.prompts[name] for index, name in enumerate(names)}
        _save(folder / "prompts.safetensors", embeddings, {"prompts": json.dumps(names, ensure_ascii=False)})
        write_json_atomic(folder / "config.json", config)
        (folder / "contract.json").write_bytes(policy.contract.to_bytes())
        reloaded = _read(folder, config, policy.device.type)
        checks.save(checks.record(reloaded, inputs, seed=0), folder / "selfcheck.safetensors")
        write_text_atomic(folder / "README.md", _readme(policy, config))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "contract": policy.contract.sha256,
            "backbone": dict(backbone),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in FILES
            },
        }
        write_json_atomic(folder / MANIFEST, {**manifest, "sha256": _own_hash(manifest)})
    return reloaded


def verify_bundle(bundle: Path) -> dict[str, Any]:
    """Check every file against the manifest; returns config.json.

    Raises:
        UserError: not a bundle, made by another version, or a file missing, added or changed; names it.
    """
    if not (bundle / MANIFEST).is_file():
        raise UserError(f"is not a bundle (no {MANIFEST})", bundle, "give a folder that `xwam-ft export` made")
    manifest = read_json(bundle / MANIFEST)
    files: Any = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("schema_version") != SCHEMA_VERSION or set(files) != set(FILES):
        raise UserError("is damaged, or of another version of xwam-ft", bundle / MANIFEST, _AGAIN)
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    written = json_bytes({**content, "sha256": _own_hash(content)})
    if (bundle / MANIFEST).read_bytes() != written:
        raise UserError("is not the file that was exported (its own hash differs)", bundle / MANIFEST, _AGAIN)
    for name, entry in files.items():
        path = bundle / name
        if not path.is_file():
            raise UserError("the file is missing", path, _AGAIN)
        if path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
            raise UserError(f"is not the file that was exported (its SHA-256 is not {MANIFEST}'s)", path, _AGAIN)
    # Hidden entries are those of tools that keep or fetch folders (.git, .cache, .DS_Store); nothing reads them here.
    entries = {path.name for path in bundle.iterdir() if not path.name.startswith(".")}
    strangers = sorted(entries - {*FILES, MANIFEST})
    if strangers:
        raise UserError(f"holds files that were not exported: {listed(strangers)}", bundle, "remove them")
    return read_json(bundle / "config.json")


def load_policy(
    bundle: Path,
    device: str = "auto",
    *,
    selfcheck: bool = True,
    compile: bool | str = False,
    attention: Attention | None = None,
) -> Policy:
    """See `Policy.load`."""
    config = verify_bundle(bundle)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = _read(bundle, config, device, compile=compile, attention=attention)
    if selfcheck:
        check = checks.load(bundle / "selfcheck.safetensors", policy)
        check.require(policy, config["dtype"], bundle / "selfcheck.safetensors")
    return policy


def _read(bundle: Path, config: Mapping[str, Any], device: str, **options: Any) -> Policy:
    """The policy of a bundle's model, prompts and contract."""
    from diffusers import AutoencoderKLWan
    from safetensors import safe_open

    with safe_open(bundle / "model.safetensors", "pt") as stored:
        names: list[str] = list(stored.keys())
        state = _part(stored, names, "network.")
        vae_state = _part(stored, names, "vae.")
    network = empty_network(config["transformer"], NetworkConfig.from_dict(config["network"]))
    load_network_state(network, state, bundle / "model.safetensors")
    vae: Any = AutoencoderKLWan.from_config(config["vae"])
    vae.load_state_dict(vae_state)
    vae.eval().requires_grad_(False)
    codec = Backbone(
        name=str(bundle),
        transformer=None,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_len=config["text_len"],
        trained=config["backbone_trained"],
        _fingerprint=lambda part: str(config["backbone"]["fingerprint"]),
    )
    with safe_open(bundle / "prompts.safetensors", "pt") as stored:
        texts: list[str] = json.loads(stored.metadata()["prompts"])
        prompts = {text: stored.get_tensor(f"{index:05d}") for index, text in enumerate(texts)}
    return Policy(
        network.to(device),
        codec.to(device),
        prompts,
        load_contract(bundle / "contract.json"),
        Settings(**config["sampling"]),
        trained=config["backbone_trained"],
        action_prefix=config.get("action_prefix", 0),  # a bundle without it was trained without prefixes
        **options,
    )


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def _part(stored: Any, names: list[str], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): stored.get_tensor(name) for name in names if name.startswith(prefix)}


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


def _readme(policy: Policy, config: Mapping[str, Any]) -> str:
    contract = policy.contract
    timing = contract.timing
    slots = "\n".join(
        f"- `{slot.name}` ({slot.kind}): {len(slot.columns)} numbers: {', '.join(slot.columns)}"
        + (f"; commanded, {slot.convention}" if slot.commanded else "; observed only")
        for slot in contract.slots
        if slot.present
    )
    prompts = "\n".join(f"- {prompt}" for prompt in sorted(policy.prompts) if prompt)
    backbone = config["backbone"]["path"] + ("" if policy.trained else " (untrained)")
    return f"""# A policy for {contract.embodiment}

An xwam-ft bundle: X-WAM fine-tuned on backbone {backbone}, run {config["run"]}, step {config["step"]}.

```python
from xwam_ft import Policy

policy = Policy.load("PATH OF THIS FOLDER")
out = policy.infer({{"images": {{camera: rgb}}, "state": {{slot: numbers}}, "prompt": text}})
out.commands.slots  # {timing.action_steps} steps, {timing.action_period:.4g} s apart; metres and radians
```

Cameras (uint8 RGB, any size): {", ".join(contract.camera_names)}.

State slots (SI units, in this order):
{slots}

Prompts it knows:
{prompts}

Every file's hash is in `manifest.json`; loading checks them and repeats a recorded request.
"""
