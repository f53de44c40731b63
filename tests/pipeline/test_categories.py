"""The column that tells what items are, and the labels in it."""

import polars as pl
import pytest

from jaxrec.pipeline.categories import find_categories, parse_labels

ITEMS = ["c", "a", "b"]


def folder_of(tmp_path, **columns):
    pl.DataFrame({"item": ["a", "b", "c"], **columns}).write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_labels_of_a_column():
    assert parse_labels("Shop > Nails, Tips > Polish; Shop > Gifts") == [
        "Shop",
        "Nails, Tips",
        "Polish",
    ]
    assert parse_labels("Action, War") == ["Action", "War"]
    assert parse_labels("Drama") == ["Drama"]
    assert parse_labels("") == []


def test_the_first_usual_column_that_tells_items_apart(tmp_path):
    same, genres = ["Shop"] * 3, [["War", "Drama"], ["Drama"], None]
    folder = folder_of(tmp_path, genres=genres, title=["A", "B", "C"], category=same)
    # In catalogue order; `category` comes before, and says the same of all.
    assert find_categories(folder, ITEMS) == ("genres", ["", "War", "Drama"])
    assert find_categories(folder, ITEMS, take="deepest") == ("", None)  # all are dramas
    assert find_categories(folder, ITEMS, column="title") == ("title", ["C", "A", "B"])


def test_data_without_categories_have_none(tmp_path):
    folder = folder_of(tmp_path, title=["A", "B", "C"], genre=["", "", "War"])
    assert find_categories(folder, ITEMS) == ("", None)
    with pytest.raises(ValueError, match="'genre' has fewer than two different labels"):
        find_categories(folder, ITEMS, column="genre")
    with pytest.raises(ValueError, match="no column 'colour'; they have 'item', 'title', 'genre'"):
        find_categories(folder, ITEMS, column="colour")
