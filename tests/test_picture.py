"""The line that shows a file's data and holes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from durableq._picture import ASCII, BLOCKS, Extents, draw, human, legend, read_extents, symbols_for


def test_data_holes_and_the_end_of_the_file_have_cells_of_their_own() -> None:
    assert draw(Extents(80, 40, ((40, 80),)), 8, symbols=ASCII) == "....####"
    assert draw(Extents(40, 20, ((20, 40),)), 8, full_size=80, symbols=ASCII) == "..##    "


def test_a_cell_that_is_filled_in_part_shows_how_much() -> None:
    assert draw(Extents(400, 0, ((0, 100), (150, 200), (299, 300))), 4, symbols=ASCII) == "#+-."
    assert draw(Extents(400, 0, ((0, 100), (150, 200), (299, 300))), 4) == BLOCKS


def test_many_small_extents_in_one_cell_are_added_up() -> None:
    sieve = tuple((start, start + 10) for start in range(0, 1000, 20))
    assert draw(Extents(1000, 0, sieve), 2, symbols=ASCII) == "++"


def test_the_last_cell_counts_only_up_to_the_end_of_the_file() -> None:
    assert draw(Extents(75, 0, ((0, 75),)), 8, full_size=80, symbols=ASCII) == "########"


@pytest.mark.parametrize("width", [1, 7, 40])
@pytest.mark.parametrize("size", [0, 1, 6, 39, 40, 41, 1_000_003])
def test_any_size_fits_any_width(size: int, width: int) -> None:
    full = draw(Extents(size, size, ((0, size),) if size else ()), width, symbols=ASCII)
    empty = draw(Extents(size, 0, ()), width, symbols=ASCII)
    assert len(full) == len(empty) == width
    assert set(full) <= {"#", " "} and set(empty) <= {".", " "}
    assert full.replace("#", ".") == empty


def test_what_the_file_system_says_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    piece = 1 << 20
    with path.open("wb") as file:
        for start in (0, 2 * piece):
            os.pwrite(file.fileno(), b"x" * piece, start)
        file.truncate(4 * piece)
    seen = read_extents(path)
    assert seen.size == 4 * piece
    if seen.data == ((0, 4 * piece),):
        pytest.skip("this file system knows no holes")
    assert seen.data == ((0, piece), (2 * piece, 3 * piece))
    assert draw(seen, 4, symbols=ASCII) == "#.#."
    assert 2 * piece <= seen.on_disk < 3 * piece


def test_an_empty_file_has_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_extents(tmp_path / "empty").data == ()


def test_where_blocks_cannot_be_written_ascii_is() -> None:
    assert symbols_for(io.TextIOWrapper(io.BytesIO(), "utf-8")) == BLOCKS
    assert symbols_for(io.TextIOWrapper(io.BytesIO(), "cp437")) == BLOCKS
    assert symbols_for(io.TextIOWrapper(io.BytesIO(), "latin-1")) == ASCII
    assert symbols_for(io.StringIO()) == ASCII
    assert legend(ASCII).isascii()


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (4096, "4.0 KiB"),
        (33_030_144, "31.5 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 42, "4.0 TiB"),
    ],
)
def test_amounts_of_bytes_are_readable(amount: int, text: str) -> None:
    assert human(amount) == text
