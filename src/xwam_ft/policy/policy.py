"""Policy: a network with the contract it was trained under. An observation in, a chunk of robot commands out.

Legend: V views, T clip frames, Ta action steps of Da numbers, Tp = T states of P numbers, S text positions.
The same object runs on the robot, scores held-out clips, and proves an export.

Random numbers come from a CPU generator a request, seeded by that request alone, so an answer depends neither on the
device nor on what else is in the batch.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xwam_ft import conventions, observation
from xwam_ft.aliases import resolved
from xwam_ft.arguments import checked
from xwam_ft.depth_code import picture_to_code
from xwam_ft.errors import UserError, listed
from xwam_ft.model.attention import choose_attention
from xwam_ft.model.compiled import INDUCTOR, CompiledForward
from xwam_ft.model.network import TextContext
from xwam_ft.model.sampler import Conditions, Sample, sample
from xwam_ft.model.streams import Streams
from xwam_ft.observation import EncodedObservation
from xwam_ft.pictures import centre_crop
from xwam_ft.policy.request import PolicyOutput, example_observation, implausible, prefix_actions, read_options
from xwam_ft.policy.settings import Future, Settings
from xwam_ft.policy.text import TextCache
from xwam_ft.policy.watch import watch_of
from xwam_ft.prompts import find, in_style, nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8, UInt16
    from numpy import ndarray
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.attention import Attention
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.policy.novelty import Novelty
    from xwam_ft.policy.request import Options
    from xwam_ft.policy.watch import ObservationWatch
    from xwam_ft.shards import Clip

    Progress = Callable[[int, int], None]

NO_TEXT = ""
"""The prompt whose embedding stands for "no text" in guidance."""
ENCODED = 64
"""Texts of `encoder` that are kept."""


@dataclass(frozen=True)
class Imagined:
    """The future of one observation, as the model sees it: pictures are centre-cropped."""

    rgb: UInt8[ndarray, "v t height width 3"]
    depth: UInt16[ndarray, "v t height width"] | None  # inverse-depth codes
    states: Float[ndarray, "tp p"]  # absolute, SI
    action: Float[ndarray, "ta da"]  # normalised
    latents: Float[Tensor, "c tl v h w"] | None = None  # of `rgb`, normalised


class Policy:
    """A network, the VAE it sees through, the instructions it knows, and its contract.

    Args:
        network: in evaluation mode, on `device`.
        codec: a backbone of which only the VAE is used.
        prompts: instruction -> text embedding [S, Dt]; "" is the empty one.
        trained: False where the backbone was never trained; pictures made with it want a caption saying so.
        action_prefix: the longest clean action prefix that the network was trained to go on from; 0 = none.
        future: "optional" where it was trained to act without the frames after the first, which action calls then
            leave out; "joint": it never does.
        compile: compile the network's step at the first request of each batch size (True, or a backend's name
            for `torch.compile`): a minute or two at 5B, then faster; answers change by rounding alone.
        attention: the attention kernel, set on the network; None leaves it as it is.
        encoder: any other text -> its embedding [S, Dt]; None: only `prompts` are known.
        novelty: statistics of the training pictures, where answers should say how unlike them an observation is.

    Raises:
        UserError: an attention kernel that does not run here.
    """

    def __init__(
        self,
        network: JointNetwork,
        codec: Backbone,
        prompts: Mapping[str, Tensor],
        contract: Contract,
        settings: Settings | None = None,
        *,
        trained: bool = True,
        action_prefix: int = 0,
        future: Future = "joint",
        compile: bool | str = False,
        attention: Attention | None = None,
        encoder: Callable[[str], Tensor] | None = None,
        novelty: Novelty | None = None,
    ) -> None:
        if attention is not None:
            choose_attention(network, attention)
        self.network, self.codec, self.contract = network, codec, contract
        self.prompts, self.encoder, self.novelty = dict(prompts), encoder, novelty
        self.further: OrderedDict[str, Tensor] = OrderedDict()
        self.texts = TextCache(network)
        self.forward = CompiledForward(network, INDUCTOR if compile is True else compile) if compile else network
        self.settings = settings or Settings()
        self.trained, self.action_prefix, self.future = trained, action_prefix, future
        self.seen: frozenset[str] = frozenset()  # digests of the episodes it was trained on (seen.py), where known
        self.recorded: EncodedObservation | None = None  # an observation of its recordings, for people to compare with
        self.calls = 0
        self.watch: ObservationWatch | None = watch_of(self)
        """What warns of one robot's observations over time; None where each of several has its own, as in a server."""

    @classmethod
    @checked()
    def load(
        cls,
        bundle: Path | str,
        device: str = "auto",
        *,
        selfcheck: bool = True,
        compile: bool | str = False,
        attention: Attention | None = None,
    ) -> Policy:
        """Read a bundle: every file's hash is checked, then its recorded request is repeated (and so compiled).

        Args:
            bundle: its folder, or `ORG/NAME[@REVISION]` of the Hub.

        Raises:
            UserError: not a bundle, a file changed, or an action other than the one recorded; a step that cannot be
                compiled here, or an attention kernel that does not run here.
        """
        from xwam_ft.policy.bundle import load_policy
        from xwam_ft.policy.from_hub import bundle_at

        return load_policy(bundle_at(bundle), device, selfcheck=selfcheck, compile=compile, attention=attention)

    @property
    def device(self) -> torch.device:
        return self.network.device

    def infer(self, request: Mapping[str, Any], *, seed: int | None = None) -> PolicyOutput:
        """One observation -> a chunk of commands.

        Args:
            request: {"images": {camera: uint8 [H, W, 3]}, "state": {slot: numbers}, "prompt": text}, SI units; perhaps
                with "options" (request.py): seed, action_steps, guidance, chunk, prefix, future.
            seed: of this request's noise, before the option; default `settings.seed` plus the number of calls before.

        Raises:
            UserError: an observation that does not fit the contract, a prompt that is not embedded, an option out of
                range, or a prefix this bundle was not trained with.
        """
        started = time.perf_counter()
        request = resolved(self.contract, request)
        options = read_options(request, self.contract)
        inputs = observation.encode(self.contract, request)
        for slot in self.contract.slots:
            if slot.convention == "delta_to_state" and slot.present:
                raise UserError(
                    f"slot {slot.name!r} commands changes of the measured state, so no chunk follows from one",
                    "contract.json",
                    "use infer_batch, and decode each action with the state measured at its time (observation.decode)",
                )
        prefix = prefix_actions(self.contract, options.prefix, inputs, self.action_prefix)
        if prefix is not None and options.chunk is not None and options.chunk < prefix.shape[1]:
            raise UserError(
                f"is {options.chunk}, and the prefix has {prefix.shape[1]} commands already",
                "observation.options.chunk",
                "ask for more commands than are given, or leave it out",
            )
        warnings = implausible(self.contract, inputs, request["images"], request["state"])
        encoded = time.perf_counter()
        chosen = next((n for n in (seed, options.seed) if n is not None), (self.settings.seed + self.calls) % 2**63)
        result = self._sample([inputs], [chosen], self._settings(options), prefix, actions_only=True)
        action = result.action[0].double().cpu().numpy()[: options.chunk]
        novelty = {} if self.novelty is None else self.novelty.by_camera(result.video[:, :, 0])  # as it was observed
        self.calls += 1
        sampled = time.perf_counter()
        underway = 0 if prefix is None else prefix.shape[1]
        commands = observation.decode(self.contract, action, inputs.state, request, underway=underway)
        done = time.perf_counter()
        seconds = {"observe": encoded - started, "sample": sampled - encoded, "decode": done - sampled}
        output = PolicyOutput(commands, action, seconds | {"total": done - started}, warnings, novelty, inputs)
        if self.watch is None:
            return output
        return replace(output, warnings=(*warnings, *self.watch.sentences(output)))

    def warm_up(self) -> float:
        """Answer a made-up observation, so that no robot waits for what a first call sets up; returns its seconds."""
        calls, watch, self.watch = self.calls, self.watch, None
        prompt = next(text for text in sorted(self.prompts) if text.strip())
        seconds = self.infer(example_observation(self.contract, prompt), seed=0).seconds["total"]
        self.calls, self.watch = calls, watch
        return seconds

    def show_future(self, where: str = "--with-future") -> None:
        """From now on actions are denoised together with the imagined frames.

        Raises:
            UserError: they always are, since the policy was trained so; `where` names what asked for it.
        """
        if self.future == "joint":
            raise UserError("changes nothing: this policy always imagines while it acts", where, "leave it out")
        self.settings = replace(self.settings, with_future=True)

    @property
    def acts_with_future(self) -> bool:
        """Whether actions are denoised together with the imagined frames, where a request does not say."""
        return not self._hides(self.settings)

    def _hides(self, settings: Settings) -> bool:
        return self.future == "optional" and not settings.with_future

    def _settings(self, options: Options) -> Settings:
        if options.future is False and self.future == "joint":
            raise UserError(
                "is false, and this policy was trained to act with the future alone",
                "observation.options.future",
                "leave it out, or train with model.future: optional",
            )
        given = {"action_steps": options.action_steps, "guidance": options.guidance, "with_future": options.future}
        return replace(self.settings, **{name: value for name, value in given.items() if value is not None})

    def infer_batch(
        self,
        inputs: Sequence[EncodedObservation],
        seeds: Sequence[int],
        settings: Settings | None = None,
        prefix: Float[ndarray, "n k da"] | None = None,
    ) -> Float[ndarray, "n ta da"]:
        """Normalised action chunks of several observations; each equals what it would be alone, to rounding.

        `prefix`: their first k actions, which are given back as they are.
        """
        result = self._sample(inputs, seeds, settings or self.settings, prefix, actions_only=True)
        return result.action.double().cpu().numpy()

    def imagine(self, inputs: EncodedObservation, seed: int, progress: Progress | None = None) -> Imagined:
        """Denoise the whole clip: pictures, depth where the network has a branch, states and actions."""
        return self.imagine_batch([inputs], [seed], progress=progress)[0]

    def imagine_batch(
        self,
        inputs: Sequence[EncodedObservation],
        seeds: Sequence[int],
        given: Sequence[Float[ndarray, "ta da"] | None] | None = None,
        depths: int | None = None,
        progress: Progress | None = None,
    ) -> list[Imagined]:
        """Futures of several observations; each equals what it would be alone, to rounding.

        Args:
            given: normalised actions: the future is the one they make, and they are given back as they are. None: the
                policy's own.
            depths: of how many, the first ones, depth is decoded; default all.
            progress: called after each denoising step with how many are done, and of how many.
        """
        result = self._sample(
            inputs, seeds, self.settings, actions_only=False, given=given, with_depth=depths != 0, progress=progress
        )
        depths = len(inputs) if depths is None else depths
        return [self._imagined(result, row, depth=row < depths) for row in range(len(inputs))]

    def _imagined(self, result: Sample, row: int, *, depth: bool) -> Imagined:
        rgb = self.codec.decode_video(result.video[row : row + 1])[0].cpu().numpy()
        codes = None
        if result.depth is not None and depth:
            latents = result.depth[row].permute(2, 0, 1, 3, 4)  # v c tl h w
            pictures = torch.cat([self.codec.decode_pictures(view[None]) for view in latents])
            codes = picture_to_code(pictures.mean(dim=1).cpu().numpy())
        proprio = result.proprio[row].double().cpu().numpy()
        states = conventions.denormalise_proprio(self.contract, proprio)
        return Imagined(rgb, codes, states, result.action[row].double().cpu().numpy(), result.video[row].cpu())

    def _given(
        self, chunks: Sequence[Float[ndarray, "ta da"] | None]
    ) -> tuple[Float[Tensor, "b ta da"], Bool[Tensor, " b"]]:
        shape = (self.contract.timing.action_steps, self.contract.action_dim)
        actions = np.stack([np.zeros(shape) if chunk is None else chunk for chunk in chunks])
        rows = torch.tensor([chunk is not None for chunk in chunks], device=self.device)
        return torch.from_numpy(actions).float().to(self.device), rows

    def _sample(
        self,
        inputs: Sequence[EncodedObservation],
        seeds: Sequence[int],
        settings: Settings,
        prefix: Float[ndarray, "n k da"] | None = None,
        *,
        actions_only: bool,
        given: Sequence[Float[ndarray, "ta da"] | None] | None = None,
        with_depth: bool = True,
        progress: Progress | None = None,
    ) -> Sample:
        latents = self.condition(np.stack([item.pictures for item in inputs]))
        proprio = np.stack([item.proprio for item in inputs])
        null = self._context([NO_TEXT] * len(inputs)) if settings.guidance else None
        actions, rows = (None, None) if given is None else self._given(given)
        return sample(
            self.network,
            Conditions(
                latents,
                torch.from_numpy(proprio).float().to(self.device),
                None if prefix is None else torch.from_numpy(prefix).float().to(self.device),
                actions,
                rows,
            ),
            self._context([item.prompt for item in inputs]),
            noise=self._noise(seeds),
            video_steps=max(settings.video_steps, settings.action_steps),
            action_steps=settings.action_steps,
            null_text=null,
            guidance=settings.guidance,
            shift=settings.shift,
            actions_only=actions_only,
            hide_future=self._hides(settings),
            with_depth=with_depth,
            forward=self.forward,
            progress=progress,
        )

    def _context(self, prompts: Sequence[str]) -> TextContext:
        names = [self._known(prompt) for prompt in prompts]
        return TextContext.batch([self.texts.context(name, self._embedding(name)) for name in names])

    def condition(self, pictures: UInt8[ndarray, "b v height width 3"]) -> Float[Tensor, "b c v h w"]:
        """Pictures at the contract's size -> the latents of clip frame 0.

        One frame a view is encoded: the VAE is causal, so latent frame 0 depends on picture 0 alone.
        """
        shape = pictures.shape
        cropped = centre_crop(pictures.reshape(-1, *shape[2:]), self.contract.image.crop).reshape(shape)
        return self.codec.encode_video(torch.from_numpy(cropped)[:, :, None])[:, :, 0].to(self.device)

    def embedding(self, prompt: str) -> Float[Tensor, "s dt"]:
        """The embedding of an instruction.

        Raises:
            UserError: it is not among those the bundle was exported with.
        """
        return self._embedding(self._known(prompt)).to(self.device)

    def _embedding(self, name: str) -> Float[Tensor, "s dt"]:
        return self.prompts[name] if name in self.prompts else self.further[name]

    def _known(self, prompt: str) -> str:
        """The prompt under which what was typed is embedded; case, a trailing period and spaces do not matter."""
        found = NO_TEXT if not prompt.strip() else find(prompt, self.prompts)
        if found is not None:
            return found
        if self.encoder is not None:
            return self._encoded(in_style(prompt, self.prompts))
        known, near = [text for text in self.prompts if text], nearest(prompt, self.prompts)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise UserError(
            f"the prompt {prompt!r} is not embedded in this policy{hint}",
            "observation.prompt",
            f"use one of: {listed(map(repr, known))}; or export again with --prompt {quote(prompt)}, or with "
            "--with-text-encoder for any text",
        )

    def _encoded(self, prompt: str) -> str:
        """A prompt that nobody embedded before, embedded; those of the last `ENCODED` are kept."""
        assert self.encoder is not None
        if prompt not in self.further:
            self.further[prompt] = self.encoder(prompt)
            while len(self.further) > ENCODED:
                self.further.popitem(last=False)
        return prompt

    def _noise(self, seeds: Sequence[int]) -> Streams:
        timing, image = self.contract.timing, self.contract.image
        video = self.codec.latent_shape(len(self.contract.cameras), timing.clip_frames, image.height, image.width)
        action, proprio = (timing.action_steps, self.contract.action_dim), (timing.clip_frames, self.contract.state_dim)
        shapes = [(1, *shape) for shape in (video, action, proprio)]
        drawn = [Streams.normal(shapes, torch.Generator().manual_seed(seed)) for seed in seeds]
        return Streams.cat(drawn).to(self.device)


def clip_observation(contract: Contract, clip: Clip) -> EncodedObservation:
    """What a robot would have observed at the start of a recorded clip."""
    state = clip.proprio[0]
    return EncodedObservation(clip.rgb[:, 0], state, conventions.normalise_proprio(contract, state), clip.instruction)
