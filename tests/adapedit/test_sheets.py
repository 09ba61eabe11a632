"""Contact sheets: text stays in its room."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adapedit.sheets import Cell, Heading, _Pen, overlay, sheet

BLACK = Image.new("RGB", (20, 20))


def wide(text: str, room: float, most: int | None = None) -> list[list[str]]:
    pen = _Pen(plain=True)
    runs = tuple((word, False) for word in text.split())
    wrapped = pen.wrap(runs, 14, room, (0, 0, 0), most)
    for line in wrapped.lines:
        for x, piece, _ in line:
            assert x + pen.width(piece, 14) <= room + 1
    return [[piece for _, piece, _ in line] for line in wrapped.lines]


def test_text_is_wrapped_to_its_room_and_loses_nothing():
    text = "a photo of a very small red dog standing on the green grass of a mountain"
    lines = wide(text, 120)
    assert len(lines) > 2 and [word for line in lines for word in line] == text.split()


def test_words_without_a_break_are_broken_and_long_notes_are_cut():
    assert "".join(piece for line in wide("x" * 90, 100) for piece in line) == "x" * 90
    lines = wide("word " * 60, 100, most=3)
    assert len(lines) == 3 and lines[-1][-1].endswith("...")


@pytest.mark.parametrize("size", [(20, 20), (30, 15), (15, 30)])
def test_pictures_keep_their_proportions(size):
    picture = np.asarray(sheet([("", [Cell(Image.new("RGB", size), "")])], cell=100))
    black = (picture.sum(2) == 0).nonzero()
    height, width = (int(np.ptp(axis)) + 1 for axis in black)
    assert max(width, height) == 100 and width / height == pytest.approx(size[0] / size[1], rel=0.05)


def test_rows_longer_than_the_sheet_are_wrapped():
    cells = [
        Cell(BLACK, f"cell {number}", "a note that is long enough for two lines of it") for number in range(5)
    ]
    headings = [Heading("source", (("a", False), ("dog", True)))]
    three, five = (sheet([("title", cells)], headings=headings, columns=columns) for columns in (3, 5))
    assert three.width < five.width and three.height > five.height


def test_letters_beyond_ascii_and_empty_rows():
    assert sheet([("", [Cell(BLACK, "τ 0.35", "ein Hündchen")]), ("nothing", [])]).width > 100


def test_overlays_scale_to_the_peak():
    values = np.zeros((4, 4), np.float32)
    values[0, 0] = 0.01
    bright = np.asarray(overlay(BLACK.resize((16, 16)), values)).sum(2)
    assert bright[0, 0] > 2 * bright[-1, -1]
    assert np.array_equal(np.asarray(overlay(BLACK, values, peak=1.0)).shape, (20, 20, 3))
    for value, colour in ((0.0, (12, 10, 46)), (1.0, (252, 250, 170))):
        seen = overlay(BLACK, np.full((4, 4), value, np.float32), peak=1.0).getpixel((3, 3))
        assert seen == tuple(round(part * 0.65) for part in colour)
