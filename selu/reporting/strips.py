"""A film strip as one picture, for pages that show pictures and text but lay nothing out, such as Prefect's UI."""

from __future__ import annotations

import base64
import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

from selu.reporting.views import Film, Picture

__all__ = ["strip_picture"]

_SIDE, _GAP, _BORDER = 96, 6, 3
_CAPTION_LINES, _LINE, _SIGNS = 2, 13, 16
_ACROSS = 7
"""Pictures in a row: more of them, and a page that shrinks the strip to its own width makes the words illegible."""
_PAPER, _INK, _PALE = (255, 255, 255), (32, 33, 36), (110, 113, 120)
_LOOKED_AT, _ACHIEVED = (37, 99, 235), (22, 163, 74)


def strip_picture(film: Film) -> bytes:
    """An episode's pictures in rows, each with the action that the actor wrote on seeing it below, as WebP.

    A blue frame is one that the critic looked at, a green one where a relabel was achieved, as in the report.
    """
    font = ImageFont.load_default(11)
    cell = (_SIDE + 2 * _BORDER + _GAP, _SIDE + 2 * _BORDER + _CAPTION_LINES * _LINE + _GAP)
    across = min(len(film.pictures), _ACROSS)
    down = -(-len(film.pictures) // _ACROSS)
    strip = Image.new("RGB", (max(across, 1) * cell[0] + _GAP, max(down, 1) * cell[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    for place, picture in enumerate(film.pictures):
        x, y = _GAP + place % _ACROSS * cell[0], _GAP + place // _ACROSS * cell[1]
        middle = x + _BORDER + _SIDE // 2
        if picture.skipped:
            draw.text((middle, y + _BORDER + _SIDE // 2), f"{picture.skipped} more", _PALE, font, anchor="mm")
            continue
        edge = _ACHIEVED if picture.achieved else _LOOKED_AT if picture.looked_at else None
        if edge is not None:
            draw.rectangle((x, y, x + _SIDE + 2 * _BORDER - 1, y + _SIDE + 2 * _BORDER - 1), fill=edge)
        frame = _frame(picture)
        strip.paste(frame, (middle - frame.width // 2, y + _BORDER + (_SIDE - frame.height) // 2))
        caption = "(end)" if picture.action is None else picture.action
        if len(caption) > _SIGNS:
            caption = caption.replace("(", " (", 1)
        for number, line in enumerate(textwrap.wrap(caption, _SIGNS, max_lines=_CAPTION_LINES, placeholder="...")):
            draw.text(
                (middle, y + _SIDE + 2 * _BORDER + 1 + number * _LINE),
                line,
                _INK if picture.well_formed else _PALE,
                font,
                anchor="ma",
            )
    buffer = io.BytesIO()
    strip.save(buffer, format="WEBP", quality=85)
    return buffer.getvalue()


def _frame(picture: Picture) -> Image.Image:
    """The frame itself, at most `_SIDE` pixels wide and high; grey where there is none."""
    _, _, data = picture.image.partition(";base64,")
    if not data:
        return Image.new("RGB", (_SIDE, _SIDE), _PALE)
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        frame = opened.convert("RGB")
    frame.thumbnail((_SIDE, _SIDE))
    return frame
