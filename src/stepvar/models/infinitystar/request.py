"""Requests of videos, and checks of what only videos have: frames, clips, a beginning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from stepvar.generation.plan import GenerationPlan
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.output import Decoding
from stepvar.models.infinitystar.planning import USUAL_RATIO, VideoPlan
from stepvar.models.infinitystar.schedules import VideoSchedule
from stepvar.models.infinitystar.session import KnownClips, TextPrefix
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.models.request import Request, require_number
from stepvar.pruning.presets import Pruning


@dataclass(frozen=True, kw_only=True)
class VideoRequest(Request):
    """A checked call, and in its course each video of it.

    Attributes:
        plan: What every video is like.
        decoding: How codes become frames.
        text: The video's prompt, once it is encoded.
        known: Clips that are given, once they are encoded.
        before: What an interactive continuation goes on from.
        videos: How many are drawn, one after the other, where only costs are asked for.
    """

    plan: VideoPlan
    decoding: Decoding
    text: TextPrefix | None = None
    known: KnownClips | None = None
    before: Continuation | None = None
    videos: int = 1


def seconds_of_frames(frames: int | None, seconds: float | None, frames_per_second: int) -> float | None:
    """The length that a call asks for, in seconds: a video has one frame more than its seconds have.

    Raises:
        ValueError: When frames and seconds are both given, or there is no frame.
    """
    if frames is None:
        return seconds
    if seconds is not None:
        raise ValueError("num_frames and seconds were both given: give one of them.")
    if require_number(frames, "num_frames") < 1:
        raise ValueError(f"num_frames is {frames}; it must be 1 (a picture) or more.")
    return (frames - 1) / frames_per_second


def blank_conditioning(sizes: VideoSizes, seconds: float) -> dict[str, Any]:
    """The argument of a call for a beginning of so many seconds that is not at hand: 0 is a picture.

    Raises:
        ValueError: When no video can begin with that.
    """
    clip = sizes.clip_seconds
    if seconds not in (0, clip):
        raise ValueError(
            f"A video cannot begin with {seconds:g} known seconds: 0 is a picture, {clip:g} a clip."
        )
    blank = Image.new("RGB", (round(100 / USUAL_RATIO), 100))
    if not seconds:
        return {"image": blank}
    return {"video": [blank] * math.ceil(clip * sizes.frames_per_second)}


def check_clips(schedule: VideoSchedule, plan: GenerationPlan) -> None:
    """Raises ValueError when a plan skips all steps of a clip."""
    for clip in {scale.clip for scale in schedule}:
        if all(entry.skipped for entry in plan.scales if schedule[entry.scale.index].clip == clip):
            raise ValueError(f"Every step of clip {clip} is skipped: leave at least its first one to run.")


def check_length(pruning: Pruning, schedule: VideoSchedule, clip_seconds: float) -> None:
    """Refuses a plan named after a length, such as "10s-1.4x", where fewer clips are drawn than it means.

    Its steps are counted from the end, so it would prune others, those of the first frame perhaps.

    Raises:
        ValueError: Saying what it is for.
    """
    named = re.match(r"(\d+)s-", pruning) if isinstance(pruning, str) else None
    if named is None:
        return
    drawn = len({scale.clip for scale in schedule if scale.clip and not scale.given})
    meant = math.ceil(int(named[1]) / clip_seconds)
    if drawn < meant:
        raise ValueError(
            f"The plan {pruning!r} prunes the {meant} clips of {named[1]} seconds, but {drawn} would run: "
            f"ask for {named[1]} seconds and no video to begin with, or for another plan such as 'paper'."
        )
