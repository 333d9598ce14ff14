"""A batch's pictures, made on the device that trains: windows by a table, and the loader's changes by its own draws.

A picture is sampled once, where the loader's transforms sample it once each: the two differ by rounding, by the blur
of each sampling, and in the noise.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ich.data.augment import GRID_STEPS, Augmentation, drawn
from ich.data.datasets import SliceBatch, TwoViewBatch
from ich.data.views import HU_MAX, HU_MIN, View, render


class OnDevice:
    """What a network is shown of a batch that is on its device. Pictures that the loader has finished stay as they are.

    Nothing is drawn here: what a picture becomes depends on its draws, not on the batch nor on the kind of device.
    """

    def __init__(self, view: View, settings: Augmentation) -> None:
        self.settings, self.depth = settings, view.depth
        values = np.arange(HU_MIN, HU_MAX + 1, dtype=np.int16)
        alone = View("windows", view.windows) if view.windows else View("grey")
        self._table = torch.from_numpy(render(values[None, None], alone)[0].T.astype(np.float32))  # [windows, 4096]

    def pictures(self, batch: Any) -> Tensor:
        """uint8 [B, C, S, S] in channels_last memory of a SliceBatch or a StudyPicturesBatch."""
        if batch.draws is None:
            return batch.images
        changed = self._changed(batch.images, batch.draws)
        shown = changed[:, 0]
        if changed.shape[1] > 1:
            box = drawn(batch.draws)["box"][:, 0]
            rows, columns = (_inside(ends, shown.shape[-1]) for ends in box.split(2, dim=1))
            shown = torch.where((rows[:, :, None] & columns[:, None])[:, None], changed[:, 1], shown)
        return _as_loaded(shown)

    def views(self, batch: TwoViewBatch | SliceBatch) -> tuple[Tensor, Tensor]:
        """The two views of each slice, uint8 [B, C, S, S] in channels_last memory."""
        if isinstance(batch, TwoViewBatch):
            return batch.first, batch.second
        if batch.draws is None:
            raise ValueError("two views of a slice want two draws")
        changed = self._changed(batch.images, batch.draws)
        return _as_loaded(changed[:, 0]), _as_loaded(changed[:, 1])

    @torch.no_grad()
    def _changed(self, images: Tensor, draws: Tensor) -> Tensor:
        """Grey values float32 [B, m, C, S, S], whole numbers, of images [B, m or 1, ...] and draws [B, m, ...]."""
        shown = self._grey(images).expand(-1, draws.shape[1], -1, -1, -1)
        change = drawn(draws.flatten(0, 1))
        return _shaded(self._moved(shown.flatten(0, 1), change), change, self.settings).unflatten(0, draws.shape[:2])

    def _grey(self, images: Tensor) -> Tensor:
        """Grey values float32 [B, m, C, S, S]; the same as `ich.data.views.render` has."""
        if images.dtype == torch.uint8:
            return images.float()
        self._table = self._table.to(images.device)
        place = (images.clamp(HU_MIN, HU_MAX) - HU_MIN).long()
        return torch.stack([window[place] for window in self._table], dim=3).flatten(2, 3)

    def _moved(self, shown: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Pictures [n, C, S, S] with each pixel taken from where the draws say; black is what comes from outside."""
        chosen, size = self.settings, shown.shape[-1]
        line = torch.arange(size, device=shown.device, dtype=torch.float32)
        x, y, light = line[None, None, :], line[None, :, None], None
        if chosen.grid:
            x, y = _lines(draws["columns"], line)[:, None, :], _lines(draws["rows"], line)[:, :, None]
            x, y, light = _within(x, y, size, light)
        if chosen.optical:
            x, y, light = _within(*_lens(x, y, draws["lens"][:, :, None], size), size, light)
        warped = bool(chosen.shift or chosen.scale or chosen.rotate)
        if warped and chosen.crop:  # beyond the crop it is black, even where the slice goes on
            x, y, light = _within(*_affine(x, y, draws["warp"]), size, light)
        if not (warped or light is not None or chosen.crop or chosen.flip or chosen.vertical_flip or chosen.transpose):
            return shown
        x, y = _affine(x, y, draws["place"])
        places = torch.stack(torch.broadcast_tensors(x, y), dim=-1) * (2 / (size - 1)) - 1
        beyond = "zeros" if warped and not chosen.crop else "border"
        moved = grid_sample(shown, places.expand(len(shown), size, size, 2), padding_mode=beyond, align_corners=True)
        return (moved if light is None else moved * light[:, None]).round_()


def _within(x: Tensor, y: Tensor, size: int, light: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Places moved to the nearest pixel of the picture, and how much of each a black surround leaves."""
    share = (torch.minimum(x + 1, size - x).clamp(0, 1)) * (torch.minimum(y + 1, size - y).clamp(0, 1))
    return x.clamp(0, size - 1), y.clamp(0, size - 1), share if light is None else light * share


def _affine(x: Tensor, y: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Places [n, S, S] under the matrices [n, 6] of two rows. No product of matrices: autocast would round it."""
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    return a * x + (b * y + c), d * x + (e * y + f)


def _lens(x: Tensor, y: Tensor, k: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """OpenCV's radial distortion, whose second coefficient equals its first, as albumentations uses it."""
    x, y = ((place - (size - 1) / 2) / size for place in (x, y))
    squared = x * x + y * y
    factor = (1 + k * squared * (1 + squared)) * size
    return x * factor + size / 2, y * factor + size / 2


def _lines(ends: Tensor, line: Tensor) -> Tensor:
    """[n, S]: where the pixels of a line come from, when its sixth parts, of which the last is short, end at `ends`."""
    size = len(line)
    step = size // GRID_STEPS
    part = (line // step).long().clamp(max=GRID_STEPS)
    length = torch.full_like(line, step).where(part < GRID_STEPS, torch.tensor(size - GRID_STEPS * step))
    along = (line - part * step) / (length - 1).clamp(min=1)
    start = ends[:, part]
    return start + (ends[:, (part + 1).clamp(max=GRID_STEPS + 1)] - start) * along


def _shaded(shown: Tensor, draws: dict[str, Tensor], chosen: Augmentation) -> Tensor:
    """Whole grey values [n, C, S, S], brighter or of more contrast, with noise and holes; rounded as the loader's."""
    if chosen.jitter and (chosen.brightness or chosen.contrast):
        factor, more = draws["grey"][:, :, None, None, None].unbind(1)
        shown = (shown * factor).add_(more).clamp_(0, 255).floor_()
    if chosen.noise:
        strength, key = draws["noise"][:, :, None, None].unbind(1)
        noise = torch.stack([_normal(key, channel, shown.shape[-1]) for channel in range(shown.shape[1])], dim=1)
        shown = (shown + (strength[:, None] * noise).trunc_()).clamp_(0, 255)  # towards 0, as the loader does
    if chosen.dropout:
        left, top, right, bottom = draws["holes"].unflatten(1, (4, 4)).unbind(2)  # [n, 4] each
        columns, rows = (_inside(torch.stack(ends, dim=-1), shown.shape[-1]) for ends in ((left, right), (top, bottom)))
        hole = (rows[..., :, None] & columns[..., None, :]).any(dim=1)
        shown = shown.masked_fill(hole[:, None], 0)
    return shown


def _normal(key: Tensor, channel: int, size: int) -> Tensor:
    """Normal numbers [n, S, S] that depend on the keys [n, 1, 1], the channel and the place alone, on any device."""
    place = torch.arange(size * size, device=key.device).view(size, size) + channel * size * size
    bits = _mixed(place ^ _mixed(key.long())) >> 9
    return torch.erfinv((bits.float() + 0.5) * 2**-22 - 1) * math.sqrt(2)


def _mixed(bits: Tensor) -> Tensor:
    """A hash of 32 bits held in int64. (lowbias32, Wellons, github.com/skeeto/hash-prospector)"""
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def _inside(ends: Tensor, size: int) -> Tensor:
    """Whether each of the pixels of a line lies in the ranges [..., 2], bool [..., S]."""
    line = torch.arange(size, device=ends.device)
    return (line >= ends[..., :1]) & (line < ends[..., 1:])


def _as_loaded(shown: Tensor) -> Tensor:
    return shown.to(torch.uint8, memory_format=torch.channels_last)
