"""Find and load a backbone: a Wan transformer, its VAE and its text encoder, in diffusers' folder layout.

    <folder or hub id>/transformer  vae  text_encoder  tokenizer  [joint: X-WAM's own parts, see joint.py]

Wan2.2-TI2V-5B-Diffusers is the published one; `tiny` ships with the package (see tiny.py).
Pictures are [.., T, H, W, 3] uint8 or [N, 3, T, H, W] floats in [-1, 1]; latents are normalised by the VAE's own
`latents_mean` and `latents_std`, and the mode of the posterior, so encoding is deterministic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft import hub
from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.model.deferred import defer_transformer
from xwam_ft.model.fingerprint import fingerprinted, part_fingerprint
from xwam_ft.model.folder_check import (
    FIX,
    KINDS,
    MAX_TEXT_LEN,
    PARTS,
    Part,
    check_part,
    refuse_unimported,
    require_kin,
    text_positions,
)
from xwam_ft.model.joint import JointWeights, read_joint
from xwam_ft.model.load_part import cast_weights, load_text, load_tokenizer, load_transformer, load_vae, load_views
from xwam_ft.model.quantize import Quantize, quantize_blocks, require_bitsandbytes
from xwam_ft.model.stored_part import VIEWS_FILE
from xwam_ft.model.tiny import TINY, UNTRAINED, tiny_folder, untrained_transformer
from xwam_ft.prompts import clean_prompt

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.deferred import StoredRows

logger = logging.getLogger(__name__)

CLIPS_FILE = "clips.json"
"""{"frames": [...]}: the clip lengths a backbone's VAE was trained on, where it knows no others."""


@dataclass
class Backbone:
    """Frozen parts of a model; a part that was not asked for is None.

    Args:
        name: folder, hub id or "tiny".
        text_len: positions every prompt is padded or cut to.
        trained: False for weights nobody trained: pictures made with them want a caption saying so.
        view_embedding: of the transformer's own training on several views [V, D], where there was one.
        joint: everything X-WAM adds to its transformer, where the folder was imported from its weights.
        clip_lengths: frames of the clips its VAE was trained on; None: any that its stride divides.
        deferred: the transformer lies on the meta device, and its weights by name in their files.
    """

    name: str
    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    text_len: int
    trained: bool
    _fingerprint: Callable[[Part], str]
    view_embedding: Float[Tensor, "v d"] | None = None
    joint: JointWeights | None = None
    clip_lengths: tuple[int, ...] | None = None
    deferred: Mapping[str, StoredRows] | None = None
    _fingerprints: dict[Part, str] = field(default_factory=lambda: dict[Part, str]())

    @property
    def fingerprint(self) -> str:
        """Content hash (sha256) of the transformer's configuration and weights, and of X-WAM's own parts."""
        return self.part_fingerprint("transformer")

    def part_fingerprint(self, part: Part) -> str:
        """Content hash of one part: `transformer`, `vae`, or `text` (encoder and tokenizer)."""
        if part not in self._fingerprints:
            self._fingerprints[part] = self._fingerprint(part)
        return self._fingerprints[part]

    @property
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for, after the first."""
        return int(self.vae.config.scale_factor_temporal)

    @property
    def spatial_factor(self) -> int:
        """Pixels a side of a latent cell covers."""
        return int(self.vae.config.scale_factor_spatial)

    def latent_shape(self, views: int, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """[C, Tl, V, h, w] of a clip.

        Raises:
            UserError: pictures that VAE and (where loaded) transformer cannot divide, or such a clip length; a length
                that the VAE was not trained on.
        """
        factor, stride = self.spatial_factor, self.temporal_factor
        _, rows, columns = (1, 1, 1) if self.transformer is None else self.transformer.config.patch_size
        if height % (factor * rows) or width % (factor * columns):
            raise UserError(
                f"pictures of {height}x{width}",
                f"backbone {self.name}",
                f"make their height a multiple of {factor * rows} and their width one of {factor * columns}",
            )
        if (frames - 1) % stride:
            raise UserError(
                f"clips of {frames} frames", f"backbone {self.name}", f"choose 1 + a multiple of {stride} frames"
            )
        if self.clip_lengths is not None and frames not in self.clip_lengths:
            known = [length for length in self.clip_lengths if length > 1]
            raise UserError(
                f"clips of {frames} frames, and its VAE was trained on clips of {listed(known)} alone: of others it "
                "makes latents a hundred times too large",
                f"backbone {self.name}",
                f"set timing.clip_frames to {known[-1]} in the embodiment file and prepare the recordings again, or "
                "train on another backbone",
            )
        return int(self.vae.config.z_dim), 1 + (frames - 1) // stride, views, height // factor, width // factor

    def to(self, device: torch.device | str) -> Backbone:
        """Move every loaded part to `device`, in place."""
        for module in (self.transformer, self.vae, self.text_encoder):
            if module is not None:
                module.to(device)
        return self

    @torch.no_grad()
    def encode_pictures(self, pictures: Float[Tensor, "n 3 t height width"]) -> Float[Tensor, "n c tl h w"]:
        """Pictures in [-1, 1] (RGB, or inverse depth on three channels) -> normalised latents, float32."""
        _, _, frames, height, width = pictures.shape
        self.latent_shape(1, frames, height, width)
        weight = next(self.vae.parameters())
        mode = self.vae.encode(pictures.to(weight)).latent_dist.mode().float()
        self._require_finite(mode, pictures, "latents")
        mean, std = self._latent_statistics(mode)
        return (mode - mean) / std

    @torch.no_grad()
    def decode_pictures(self, latents: Float[Tensor, "n c tl h w"]) -> Float[Tensor, "n 3 t height width"]:
        """Normalised latents -> pictures in [-1, 1], float32."""
        weight = next(self.vae.parameters())
        latents = latents.to(weight.device, torch.float32)
        mean, std = self._latent_statistics(latents)
        pictures = self.vae.decode((latents * std + mean).to(weight.dtype)).sample.float()
        self._require_finite(pictures, latents, "pictures")
        return pictures

    def encode_video(
        self, pixels: UInt8[Tensor, "b v t height width 3"], *, batch: int = 8
    ) -> Float[Tensor, "b c tl v h w"]:
        """RGB of every view -> normalised latents; at most `batch` videos a VAE call."""
        videos = pixels.flatten(0, 1).movedim(-1, 1)  # (b v) 3 t height width
        device = next(self.vae.parameters()).device
        latents = [self.encode_pictures(part.to(device).float() / 127.5 - 1) for part in videos.split(batch)]
        return torch.cat(latents).unflatten(0, tuple(pixels.shape[:2])).movedim(1, 3)

    def decode_video(
        self, latents: Float[Tensor, "b c tl v h w"], *, batch: int = 8
    ) -> UInt8[Tensor, "b v t height width 3"]:
        """Normalised latents of every view -> RGB."""
        videos = latents.movedim(3, 1)
        shape = tuple(videos.shape[:2])
        pictures = torch.cat([self.decode_pictures(part) for part in videos.flatten(0, 1).split(batch)])
        pixels = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.movedim(1, -1).unflatten(0, shape)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n s dt"]:
        """Text encoder outputs at all `text_len` positions, the padded ones included, as X-WAM feeds them.

        A prompt longer than that is cut, with a warning in the log.
        """
        clean = [clean_prompt(prompt) for prompt in prompts]
        for prompt in clean:
            length = len(self.tokenizer(prompt).input_ids)
            if length > self.text_len:
                logger.warning("prompt of %d tokens cut to %d: %r", length, self.text_len, prompt)
        tokens = self.token_ids(clean)
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state

    def token_ids(self, prompts: Sequence[str]) -> Any:
        """`input_ids` and `attention_mask` [n, s] of cleaned prompts, padded or cut to `text_len`."""
        clean = [clean_prompt(prompt) for prompt in prompts]
        return self.tokenizer(
            clean, padding="max_length", max_length=self.text_len, truncation=True, return_tensors="pt"
        )

    def _require_finite(self, made: Tensor, of: Tensor, what: str) -> None:
        if made.device.type != "meta" and not torch.isfinite(made).all() and torch.isfinite(of).all():
            raise UserError(
                f"its VAE makes {what} that are not finite", f"backbone {self.name}", "restore its folder vae"
            )

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


def load_backbone(
    path: str,
    *,
    dtype: str | torch.dtype = "bfloat16",
    parts: Sequence[Part] = PARTS,
    revision: str | None = None,
    quantize: Quantize | None = None,
    defer: bool = False,
) -> Backbone:
    """Load the asked-for parts on the CPU, frozen and in evaluation mode.

    Args:
        path: a folder or hub id in diffusers layout, "tiny" or "tiny-untrained".
        dtype: of transformer and text encoder ("bfloat16", "float32"); the VAE stays float32, and so do those
            of the transformer's parts whose arithmetic is float32 (time embedding, norms, modulation).
        revision: of a hub id.
        quantize: pack the linears of the transformer's blocks in 8 or 4 bits (quantize.py).
        defer: leave the transformer's weights in their files (deferred.py); a "tiny-untrained" has none.

    Raises:
        UserError: no such folder or hub id, a part that is missing or incomplete, or no library that quantises.
    """
    if quantize is not None:
        require_bitsandbytes("backbone.quantize")
    kept: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    folder = _located(path, parts, revision)
    for part in parts:
        check_part(folder, part)
    loaded: dict[str, Any] = {}
    for part in parts:
        if path == UNTRAINED and part == "transformer":
            loaded["transformer"] = cast_weights(untrained_transformer(), kept)
            continue
        try:
            if defer and part == "transformer":
                loaded["transformer"], loaded["deferred"] = defer_transformer(folder / part, kept)
                continue
            loaded |= _load_part(folder, part, kept)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"the part {part!r} cannot be loaded ({reason})", folder, FIX) from error
    if path != UNTRAINED and "transformer" in parts and (views := folder / "transformer" / VIEWS_FILE).is_file():
        loaded["views"] = load_views(views, loaded["transformer"].proj_out.in_features)
    if path != UNTRAINED and "transformer" in parts:
        loaded["joint"] = read_joint(folder)
    loaded["lengths"] = read_clip_lengths(folder)
    if quantize is not None and "transformer" in loaded:
        quantize_blocks(loaded["transformer"], quantize)
    return _assembled(
        path, loaded, trained=path != UNTRAINED, fingerprint=lambda part: part_fingerprint(path, folder, part)
    )


def locate_backbone(path: str, parts: Sequence[Part], revision: str | None = None) -> Path:
    """The folder of a backbone, these parts of it complete (a hub id is fetched).

    Raises:
        UserError: no such folder or hub id, or a part that is missing or incomplete.
    """
    folder = _located(path, parts, revision)
    for part in parts:
        check_part(folder, part)
    return folder


def part_fingerprints(
    path: str, parts: Sequence[Part], *, revision: str | None = None, console: Console | None = None
) -> dict[Part, str]:
    """Content hashes of parts without loading them (a hub id is fetched); what `Backbone.part_fingerprint` gives.

    Of 34 GB it takes a minute or more, once: a `console` is shown how far it is.

    Raises:
        UserError: no such folder or hub id, or a part that is missing or incomplete.
    """
    folder = locate_backbone(path, parts, revision)
    return {part: part_fingerprint(path, folder, part, console) for part in parts}


def _assembled(name: str, loaded: dict[str, Any], *, trained: bool, fingerprint: Callable[[Part], str]) -> Backbone:
    tokenizer = loaded.get("tokenizer")
    for module in loaded.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    return Backbone(
        name=name,
        transformer=loaded.get("transformer"),
        vae=loaded.get("vae"),
        text_encoder=loaded.get("text_encoder"),
        tokenizer=tokenizer,
        text_len=MAX_TEXT_LEN if tokenizer is None else text_positions(tokenizer.model_max_length),
        trained=trained,
        _fingerprint=fingerprint,
        view_embedding=loaded.get("views"),
        joint=loaded.get("joint"),
        clip_lengths=loaded["lengths"],
        deferred=loaded.get("deferred"),
    )


def read_clip_lengths(folder: Path) -> tuple[int, ...] | None:
    """The clip lengths that a backbone folder says its VAE knows; None where it says nothing."""
    place = folder / CLIPS_FILE
    return tuple(map(int, read_json(place)["frames"])) if place.is_file() else None


def _located(path: str, parts: Sequence[Part], revision: str | None) -> Path:
    if path in (TINY, UNTRAINED):
        return tiny_folder()
    refuse_unimported(Path(path))
    patterns = [CLIPS_FILE, *KINDS, *(f"{name}/*" for part in parts for name in fingerprinted(part)), "README.md"]
    folder = hub.folder_of(path, revision, patterns, FIX)
    require_kin(folder, FIX)
    return folder


def _load_part(folder: Path, part: Part, dtype: torch.dtype) -> dict[str, Any]:
    if part == "text":
        encoder = load_text(folder, dtype)
        return {"text_encoder": encoder, "tokenizer": load_tokenizer(folder, int(encoder.config.vocab_size))}
    return {part: load_vae(folder) if part == "vae" else load_transformer(folder, dtype)}
