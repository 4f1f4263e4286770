"""The joint video, action and proprioception network with its depth branch (arXiv 2604.26694, section 3).

Legend: B batch, C latent channels, V views, Tl latent frames, h x w latent grid, Ta action steps of Da numbers,
Tp proprio states of Dp numbers, S text positions of Dt numbers, D width, N blocks, M of them in the branch.

Conventions: sigma = 1 is noise, 0 is data; the network predicts velocities `noise - x`; timestep = 1000 * sigma.
Latent frame 0 and proprio state 0 are conditions: they come clean and have timestep 0. The depth branch predicts
the *clean* depth latent; it reads the main stream and is never read by it.

The transformer is diffusers' `WanTransformer3DModel`: we call its submodules, so anything that swaps them
(peft's LoRA, quantisation) keeps working.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xwam_ft.model.blocks import KeysValues, Module, Rotary, SharedText, linear_float32, modulate
from xwam_ft.model.branch import DepthBranch, Twin, branch_blocks, run_block, text_of_block
from xwam_ft.model.streams import Streams
from xwam_ft.model.tokens import SequenceLayout, rotary_tables, sinusoid, to_tokens, unpatchify

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from jaxtyping import Bool, Float
    from torch import Tensor

INIT_STD = 0.02
"""Standard deviation of new weights (encoders, decoders, view embedding, depth head), as published."""


@dataclass(frozen=True)
class NetworkConfig:
    """What a joint network adds to its transformer.

    Args:
        num_views: cameras, each with a learned embedding.
        action_dim, proprio_dim: numbers in one action step and one state.
        actions_per_frame: action steps a clip frame (sets the actions' rotary positions).
        depth_blocks: M, the last blocks that the depth branch runs once more; 0 = no branch.
        depth_head: with `depth_blocks` 0, a branch that is a head alone on the last video tokens.
        depth_shared: the branch runs the transformer's own blocks under a second adapter, not copies (branch.py).
    """

    num_views: int
    action_dim: int
    proprio_dim: int
    actions_per_frame: int
    depth_blocks: int
    depth_head: bool = False
    depth_shared: bool = False

    @property
    def has_depth(self) -> bool:
        return self.depth_blocks > 0 or self.depth_head

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        return cls(**values)


@dataclass(frozen=True)
class Prediction(Streams):
    """One forward: velocities `noise - x` of the three noised streams, and clean depth latents; float32."""

    depth: Float[Tensor, "b c tl v h w"] | None


@dataclass(frozen=True)
class TextContext:
    """An instruction, projected; with its cross-attention keys and values of every block where it is reused."""

    projected: Float[Tensor, "b s d"] | SharedText
    blocks: tuple[KeysValues, ...] | None = None
    depth_blocks: tuple[KeysValues, ...] | None = None

    def of_block(self, index: int) -> Float[Tensor, "b s d"] | SharedText | KeysValues:
        return self.projected if self.blocks is None else self.blocks[index]

    def of_depth_block(self, index: int) -> Float[Tensor, "b s d"] | SharedText | KeysValues:
        return self.projected if self.depth_blocks is None else self.depth_blocks[index]

    @staticmethod
    def batch(contexts: Sequence[TextContext]) -> TextContext:
        """Encoded instructions of several samples as those of one batch."""
        if len(contexts) == 1:
            return contexts[0]

        def joined(parts: Sequence[tuple[KeysValues, ...] | None]) -> tuple[KeysValues, ...] | None:
            kept = [part for part in parts if part is not None]
            return tuple(KeysValues(*map(torch.cat, zip(*of, strict=True))) for of in zip(*kept, strict=True)) or None

        return TextContext(
            torch.cat([c.projected for c in contexts if not isinstance(c.projected, SharedText)]),  # encoded: none is
            joined([context.blocks for context in contexts]),
            joined([context.depth_blocks for context in contexts]),
        )


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """The published encoder and decoder of actions and proprio: Linear, GELU (tanh), Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, outputs))


class JointNetwork(nn.Module):
    """Video, actions and proprio of a clip in one bidirectional sequence.

    Args:
        transformer: a diffusers Wan transformer; used in place, not copied.
        config: what is added to it.
        generator: CPU generator of the new parts' initial values (default: seed 0).
        deferred: the transformer's weights come later (deferred.py): what is drawn stays on the CPU.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        config: NetworkConfig,
        generator: torch.Generator | None = None,
        *,
        deferred: bool = False,
    ) -> None:
        super().__init__()
        blocks = len(transformer.blocks)
        if not 0 <= config.depth_blocks <= blocks:
            raise ValueError(f"depth_blocks={config.depth_blocks}, but the transformer has {blocks} blocks")
        width = transformer.proj_out.in_features
        self.config = config
        self.transformer: Module = transformer
        with torch.random.fork_rng(devices=[]):  # torch draws initial values that ours replace
            self.view_embedding = nn.Embedding(config.num_views, width)
            self.action_encoder = mlp(config.action_dim, width, width)
            self.action_decoder = mlp(width, width, config.action_dim)
            self.proprio_encoder = mlp(config.proprio_dim, width, width)
            self.proprio_decoder = mlp(width, width, config.proprio_dim)
            self.depth_branch = (
                DepthBranch(transformer, config.depth_blocks, shared=config.depth_shared) if config.has_depth else None
            )
        self.gradient_checkpointing = False
        self._calls_blocks = False
        self.run_block: Callable[..., tuple[Tensor, KeysValues]] = run_block  # or that one compiled (compiled.py)
        self._rotary_cache: dict[tuple[SequenceLayout, torch.device], Rotary] = {}
        self._init_new_parts(generator or torch.Generator().manual_seed(0))
        if not deferred:
            for part in self._new_parts():
                part.to(transformer.proj_out.weight.device)

    def _new_parts(self) -> list[nn.Module]:
        parts: list[nn.Module] = [self.view_embedding]
        parts += [self.action_encoder, self.action_decoder, self.proprio_encoder, self.proprio_decoder]
        return parts if self.depth_branch is None else [*parts, self.depth_branch]

    @torch.no_grad()
    def _init_new_parts(self, generator: torch.Generator) -> None:
        def normal_(parameter: Tensor, std: float) -> None:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

        normal_(self.view_embedding.weight, INIT_STD)
        linears = [
            module
            for part in (self.action_encoder, self.action_decoder, self.proprio_encoder, self.proprio_decoder)
            for module in part
            if isinstance(module, nn.Linear)
        ]
        if self.depth_branch is not None:
            linears.append(self.depth_branch.proj_out)
            normal_(self.depth_branch.scale_shift_table, self.width**-0.5)
        for linear in linears:
            normal_(linear.weight, INIT_STD)
            linear.bias.zero_()

    @property
    def width(self) -> int:
        return self.view_embedding.embedding_dim

    @property
    def patch_size(self) -> tuple[int, int, int]:
        return tuple(self.transformer.config.patch_size)

    @property
    def device(self) -> torch.device:
        return self.view_embedding.weight.device

    def encode_text(self, text: Float[Tensor, "b s dt"]) -> TextContext:
        """Project an instruction once a request: the steps of a sampler all reuse it."""
        projected = self._project_text(text)
        return TextContext(
            projected,
            tuple(text_of_block(block, projected) for block in self.transformer.blocks),
            tuple(text_of_block(block, projected) for block in self._twins(self.depth_branch)),
        )

    def forward(
        self,
        latents: Float[Tensor, "b c tl v h w"],
        action: Float[Tensor, "b ta da"],
        proprio: Float[Tensor, "b tp dp"],
        text: Float[Tensor, "b s dt"] | TextContext,
        t_video: Float[Tensor, " b"],
        t_action: Float[Tensor, " b"],
        *,
        with_depth: bool = True,
        action_held: Bool[Tensor, "b ta"] | None = None,
        future_hidden: Bool[Tensor, " b"] | None = None,
    ) -> Prediction:
        """Velocities of every token, the conditions' included (whoever uses them leaves those out).

        Args:
            latents, action, proprio: noised, with the conditions (frame 0, state 0) already written in.
            text: text encoder outputs at all positions, or what `encode_text` made of them.
            t_video, t_action: timesteps 0..1000 of the frames after the first; of actions and later states.
            with_depth: run the depth branch; without one (or without this) `Prediction.depth` is None.
            action_held: actions that are given clean, as conditions: they are at timestep 0, not at `t_action`.
            future_hidden: samples in which frame 0, actions and states do not attend to the frames after the first,
                which attend to all: velocities of actions and states are then those of a call with frame 0 alone.
        """
        layout = self._layout(latents, action, proprio)
        context = text if isinstance(text, TextContext) else TextContext(self._project_batch(text))
        embedding, time = self._embed_time(t_video, t_action)
        rotary = self._rotary(layout)
        x = self._embed_tokens(latents, action, proprio)

        blocks = self.transformer.blocks
        spans = layout.spans_with(action_held, future_hidden)
        branch = self.depth_branch if with_depth else None
        twins = self._twins(branch)
        video = slice(layout.first_video, layout.first_action)
        video_rotary = rotary.part(video.start, video.stop)
        depth: Any = None
        for index, block in enumerate(blocks):
            twin = index - (len(blocks) - len(twins))
            if twin == 0:
                depth = x[:, video]
            x, seen = self._call(block, x, context.of_block(index), time, rotary, spans)
            if twin >= 0:
                text_of_twin = context.of_depth_block(twin)
                depth, _ = self._call(twins[twin], depth, text_of_twin, time, video_rotary, layout.video_spans, seen)
        if branch is not None and depth is None:
            depth = x[:, video]

        late_states = x[:, layout.first_action + layout.actions :]
        states = torch.cat([x[:, : layout.first_video], late_states], dim=1)
        return Prediction(
            video=self._head(self.transformer, x[:, video], embedding, layout),
            action=_decode(self.action_decoder, x[:, layout.first_action : layout.first_action + layout.actions]),
            proprio=_decode(self.proprio_decoder, states),
            depth=None if depth is None else self._head(branch, depth, embedding, layout),
        )

    def _twins(self, branch: DepthBranch | None) -> list[Any]:
        return [] if branch is None else branch_blocks(branch, self.transformer.blocks)

    def _layout(self, latents: Tensor, action: Tensor, proprio: Tensor) -> SequenceLayout:
        p_t, p_h, p_w = self.patch_size
        _, _, frames, views, height, width = latents.shape
        assert views == self.config.num_views, f"{views} views, network built for {self.config.num_views}"
        assert frames % p_t == 0, f"{frames} latent frames, patch {self.patch_size}"
        assert height % p_h == 0, f"latents {height}x{width}, patch {self.patch_size}"
        assert width % p_w == 0, f"latents {height}x{width}, patch {self.patch_size}"
        return SequenceLayout(
            frames=frames // p_t,
            views=views,
            rows=height // p_h,
            columns=width // p_w,
            actions=action.shape[1],
            states=proprio.shape[1],
            actions_per_frame=self.config.actions_per_frame,
        )

    def _project_text(self, text: Float[Tensor, "b s dt"]) -> Float[Tensor, "b s d"]:
        embedder = self.transformer.condition_embedder.text_embedder
        return embedder(text.to(embedder.linear_1.weight.dtype))

    def _project_batch(self, text: Float[Tensor, "b s dt"]) -> Float[Tensor, "b s d"] | SharedText:
        """Project the text of a batch; on a CPU, where the rest is as slow, instructions that come twice only once."""
        plain = text.requires_grad or torch.compiler.is_compiling()  # `unique` has no gradient
        if text.device.type != "cpu" or len(text) == 1 or plain:
            return self._project_text(text)
        rows, place = text.unique(dim=0, return_inverse=True)
        return self._project_text(text) if len(rows) == len(text) else SharedText(self._project_text(rows), place)

    def _embed_time(
        self, t_video: Float[Tensor, " b"], t_action: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b 3 d"], Float[Tensor, "b 3 6 d"]]:
        """Embedding and block modulation of the three timesteps (held, video, action), in float32."""
        embedder = self.transformer.condition_embedder
        timesteps = torch.stack([torch.zeros_like(t_video), t_video, t_action], dim=1)
        with _no_autocast(t_video):
            features = sinusoid(timesteps, embedder.timesteps_proj.num_channels)
            hidden = F.silu(linear_float32(embedder.time_embedder.linear_1, features))
            embedding = linear_float32(embedder.time_embedder.linear_2, hidden)
            projected = linear_float32(embedder.time_proj, F.silu(embedding))
        return embedding, projected.unflatten(-1, (6, -1))

    def _embed_tokens(self, latents: Tensor, action: Tensor, proprio: Tensor) -> Float[Tensor, "b l d"]:
        patch = self.transformer.patch_embedding
        views = latents.shape[3]
        per_view = latents.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)  # (b v) c tl h w
        video = to_tokens(patch(per_view.to(patch.weight.dtype)).float(), views)
        video = video + self.view_embedding.weight.float()[:, None, None]
        states = _encode(self.proprio_encoder, proprio)
        actions = _encode(self.action_encoder, action)
        return torch.cat([states[:, :1], video.flatten(1, 4), actions, states[:, 1:]], dim=1)

    def rotary_of(self, latents: Tensor, action: Tensor, proprio: Tensor) -> Rotary:
        """The rotary table of inputs of these shapes; made once and kept."""
        return self._rotary(self._layout(latents, action, proprio))

    def _rotary(self, layout: SequenceLayout) -> Rotary:
        key = (layout, self.device)
        if key not in self._rotary_cache:
            # A table made in inference mode (a validation before the first step) could not be trained through.
            with torch.inference_mode(False):
                cos, sin = rotary_tables(layout.positions(), self.transformer.config.attention_head_dim)
                turn = torch.complex(cos, sin) if self.device.type == "cpu" else None
                self._rotary_cache[key] = Rotary(cos.to(self.device), sin.to(self.device), turn)
        return self._rotary_cache[key]

    def call_blocks(self) -> None:
        """From now on run each block through its `__call__`, for hooks that hang on modules, FSDP's above all."""
        for block in [*self.transformer.blocks, *(self.depth_branch.blocks if self.depth_branch is not None else ())]:
            block.forward = self._run
        self._calls_blocks = True

    def _call(self, block: Module | Twin, x: Tensor, *rest: Any) -> tuple[Tensor, KeysValues]:
        if not self._calls_blocks:
            return self._run(block, x, *rest)
        return (block.block if isinstance(block, Twin) else block)(block, x, *rest)

    def _run(self, block: Module | Twin, x: Tensor, *rest: Any) -> tuple[Tensor, KeysValues]:
        if not torch.is_grad_enabled():
            return run_block(block, x, *rest)  # samplers' shapes would use up the compiler's few recompilations
        if self.gradient_checkpointing:
            run: Callable[..., Any] = checkpoint
            return run(self.run_block, block, x, *rest, use_reentrant=False)
        return self.run_block(block, x, *rest)

    def _head(
        self, head: Module, x: Float[Tensor, "b n d"], embedding: Float[Tensor, "b 3 d"], layout: SequenceLayout
    ) -> Float[Tensor, "b c tl v h w"]:
        """Modulated output head (the transformer's own or the depth branch's): tokens -> latents.

        In float32 under any precision, as the reference: what comes out is a velocity or a latent, not a feature.
        """
        shift, scale = (head.scale_shift_table.float() + embedding.unsqueeze(2)).unbind(dim=2)
        normed = modulate(self.transformer.norm_out(x), shift, scale, layout.video_spans)
        with _no_autocast(normed):
            out = linear_float32(head.proj_out, normed.float())
        return unpatchify(out, layout, self.patch_size)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    autocasts = torch.amp.is_autocast_available(kind)  # not on meta, where FLOPs are counted
    return torch.autocast(kind, enabled=False) if autocasts else nullcontext()


def _encode(encoder: nn.Sequential, x: Tensor) -> Tensor:
    first: Any = encoder[0]
    return encoder(x.to(first.weight.dtype)).float()


def _decode(decoder: nn.Sequential, tokens: Tensor) -> Tensor:
    """Decoders read the last block's tokens as they are: no final norm, no modulation."""
    return _encode(decoder, tokens)
