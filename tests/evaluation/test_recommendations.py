"""The lists on disk."""

import numpy as np
import polars as pl
import pytest

from jaxrec.evaluation.recommendations import write_recommendations

ITEMS = np.array([[2, 0], [1, -1], [-1, -1]], np.int32)
SCORES = np.array([[1.5, 0.5], [2.0, -np.inf], [-np.inf, -np.inf]], np.float32)


def test_one_line_a_place(tmp_path):
    names = np.array(["a", "b", "c <d>"])
    path = write_recommendations(tmp_path, ["u", "v", "w"], names, ITEMS, SCORES, ITEMS >= 0)
    table = pl.read_parquet(path)
    assert path.name == "recommendations.parquet"
    assert table.schema == {
        "user": pl.String,
        "rank": pl.Int32,
        "item": pl.String,
        "score": pl.Float32,
    }
    assert table.rows() == [("u", 1, "c <d>", 1.5), ("u", 2, "a", 0.5), ("v", 1, "b", 2.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["recommendations.parquet"]


def test_nothing_to_recommend_is_an_empty_table(tmp_path):
    none = np.zeros((3, 2), bool)
    path = write_recommendations(tmp_path, ["u", "v", "w"], ["a", "b", "c"], ITEMS, SCORES, none)
    assert pl.read_parquet(path).height == 0


def test_wrong_sizes_are_refused(tmp_path):
    valid = ITEMS >= 0
    with pytest.raises(ValueError, match="2 users for 3 lists"):
        write_recommendations(tmp_path, ["u", "v"], ["a", "b", "c"], ITEMS, SCORES, valid)
    with pytest.raises(ValueError, match="rows 0 to 1"):
        write_recommendations(tmp_path, ["u", "v", "w"], ["a", "b"], ITEMS, SCORES, valid)
    assert not list(tmp_path.iterdir())
