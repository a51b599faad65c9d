"""Session of InfinityStar: one video, its text prefix, its clips, and what each step sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.generation.cache import Cache, IsolatedMemory, KVCache, Memory, Span, Window, WindowLayerCache
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import Branch
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens, row_count
from stepvar.models.infinitystar.quantizer import expand, resize_area
from stepvar.models.infinitystar.schedules import VideoScale, VideoSchedule
from stepvar.models.infinitystar.transformer import InfinityStarTransformer

PrefixProbe = Callable[[str, str, Tensor], None]
"""Called with (prefix, name, tensor) for "input", "rotary" and "layer 0", ... of every prefix."""


@dataclass(frozen=True)
class TextPrefix:
    """Text features of a prompt, before their projection.

    Attributes:
        positive: [L, E].
        negative: [L', E] with L' <= L: of a negative prompt, or the learned unconditional text; None when
            nothing is guided. A shorter one is filled with zeros after the projection, as officially.

    Raises:
        ValueError: When the negative text is the longer one.
    """

    positive: Tensor
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        if self.negative is not None and len(self.negative) > len(self.positive):
            raise ValueError(
                f"The negative prompt has {len(self.negative)} tokens and the prompt {len(self.positive)}: "
                "shorten the negative prompt, or describe more in the prompt."
            )


@dataclass(frozen=True)
class KnownClips:
    """Clips that are given: of a picture that begins the video, or of a video that goes on.

    Attributes:
        entering: Codes of each known clip before its last step, [B, C, t, H, W].
        clips: The finished codes of each known clip.
    """

    entering: tuple[Tensor, ...]
    clips: tuple[Tensor, ...]


@dataclass(frozen=True)
class Condition:
    """Features that every step sees besides the text, and that see only themselves.

    Attributes:
        name: What probes call it.
        features: [B, C, t, h, w].
        position: Step number of the rotary positions.
        frames: Latent frame of each of the t frames.
    """

    name: str
    features: Tensor
    position: int
    frames: tuple[int, ...]


class InfinityStarSession:
    """Everything that lives as long as one generation; see `stepvar.generation.loop.Session`.

    Args:
        transformer: The model.
        text: The prompt.
        schedule: The steps.
        known: What the schedule's `given` steps stand for.
        conditions: Seen by every step.
        device: Where it runs; by default where the transformer is.
        prefix_probe: Called with what text and conditions become in every layer.
    """

    images = 1

    def __init__(
        self,
        transformer: InfinityStarTransformer,
        text: TextPrefix,
        schedule: VideoSchedule,
        known: KnownClips | None = None,
        conditions: Sequence[Condition] = (),
        device: torch.device | None = None,
        prefix_probe: PrefixProbe | None = None,
    ) -> None:
        self.transformer = transformer
        self.schedule = schedule
        self.depth = len(transformer.blocks)
        self.copies = 1 if text.negative is None else 2
        self.text = text
        self.known = known
        self.conditions = tuple(conditions)
        self.prefix_probe = prefix_probe
        self.device = device or transformer.device
        self.dtype = transformer.compute_dtype
        self.rotary = transformer.rotary(schedule.position_grid, self.device)
        self.finished: list[Tensor] = []
        self.clip, self.bits = schedule[0].clip, schedule[0].bits
        self.latent = self._begin(schedule[0])

    def _begin(self, scale: VideoScale) -> Tensor:
        """The codes of a clip before the first step that runs: zero, or what is known of it."""
        if scale.given and self.known is not None:
            return self.known.entering[scale.clip].to(self.device)
        grid = (scale.frames, *self.schedule.position_grid)
        return torch.zeros(
            1, self.transformer.config.detail_bits, *grid, dtype=torch.float32, device=self.device
        )

    def windows(self, plan: GenerationPlan) -> list[Window]:
        """What each layer makes and sees, for the tokens of a plan."""
        prefix = [len(self.text.positive), *(entry.features[0, 0].numel() for entry in self.conditions)]
        return layer_windows(self.schedule, plan, prefix)

    def allocate_cache(self, plan: GenerationPlan) -> KVCache:
        config = self.transformer.config
        return KVCache(
            self.windows(plan),
            self.copies,
            config.key_heads,
            self.transformer.head_dim,
            self.dtype,
            self.device,
        )

    def prefill(self, cache: Cache) -> None:
        """Runs the text, and the conditions of an interactive continuation, into the cache."""
        self._run_prefix("text", self._text_tokens(), self.rotary.text(len(self.text.positive)), cache)
        for entry in self.conditions:
            rows, columns = entry.features.shape[-2:]
            table = self.rotary.grid(entry.position, list(entry.frames), (rows, columns))
            hidden = self.transformer.embed_tokens(entry.features.to(self.device))
            self._run_prefix(entry.name, hidden.repeat(self.copies, 1, 1), table, cache)

    def _text_tokens(self) -> Tensor:
        """Projected text of both copies, [copies, L, C]."""
        model = self.transformer
        rows = [model.embed_text(self.text.positive.to(self.device))]
        if self.text.negative is not None:
            rows.append(model.embed_text(self.text.negative.to(self.device)))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _run_prefix(self, name: str, hidden: Tensor, rotary: Tensor, cache: Cache) -> None:
        """Sends tokens through all layers that see nothing but themselves, to be seen by every step."""
        show = self.prefix_probe or (lambda *_: None)
        show(name, "input", hidden)
        show(name, "rotary", rotary)
        for layer, block in enumerate(self.transformer.blocks):
            memory = cache[layer]
            if not isinstance(memory, WindowLayerCache):
                raise TypeError(f"A prefix needs a cache of windows, not a {type(memory).__name__}.")
            hidden = hidden + block.attend(hidden, rotary, IsolatedMemory(memory), self.dtype)
            hidden = hidden + block.feed(hidden, self.dtype)
            show(name, f"layer {layer}", hidden)

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        step = self.schedule[scale.index]
        if step.clip != self.clip:
            self.finished.append(self.latent)
            self.latent, self.clip = self._begin(step), step.clip
        self.bits = step.bits
        hidden = self.transformer.embed_tokens(resize_area(self.latent, step.grid))
        return hidden.repeat(row_count(rows), 1, 1), Tokens(step, self.rotary.scale(step))

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        block, dtype = self.transformer.blocks[layer], self.dtype
        return (
            ("self_attention", lambda hidden, tokens: block.attend(hidden, tokens.positions, memory, dtype)),
            ("feed_forward", lambda hidden, tokens: block.feed(hidden, dtype)),
        )

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        return self.transformer.logits(hidden, self.bits)

    def commit(self, scale: Scale, choice: Tensor, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the codes of bits [1, N, D] to the clip."""
        step = self.schedule[scale.index]
        if step.given and self.known is not None:
            self.latent = self.known.clips[step.clip].to(self.device)
            return
        channels = self.transformer.config.detail_bits
        self.latent = self.latent + expand(choice, step, channels, self.schedule.position_grid)

    def video(self) -> Tensor:
        """Codes of all clips so far, known ones included, [1, C, T, H, W]."""
        return torch.cat([*self.finished, self.latent], dim=2)


def layer_windows(schedule: VideoSchedule, plan: GenerationPlan, prefix: Sequence[int]) -> list[Window]:
    """What each layer makes and sees.

    Args:
        schedule: The steps.
        plan: Which of them run, on how many tokens. Where a clip's last step is pruned, the next clip sees
            the kept tokens; where it is skipped, those of the last step that ran.
        prefix: Tokens of the text, and of each condition.
    """
    ran = [not entry.skipped for entry in plan.scales]
    last = [schedule.last_step(scale.index, ran) for scale in schedule]
    known = [Span(-1, tokens, len(schedule)) for tokens in prefix]
    return [
        Window(
            tuple(known)
            + tuple(
                Span(entry.scale.index, entry.tokens(layer), last[entry.scale.index])
                for entry in plan.scales
                if not entry.skipped
            )
        )
        for layer in range(plan.depth)
    ]
