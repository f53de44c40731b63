"""Texts are written field by field, and what is missing is skipped and counted."""

import numpy as np
import pytest

from jaxrec.representation.text import TextFields, text_report

TABLE = {
    "title": ["Nail  polish", "", None, "Balm"],
    "categories": [[["Beauty", "Nails"]], ["Skin"], [], np.array(["Lips", "Balm"])],
    "price": [3.5, float("nan"), None, 4],
}


def test_fields_are_lines_of_name_and_value():
    texts = TextFields(("title", "categories", "price")).write(TABLE)
    assert texts == [
        "title: Nail polish\ncategories: Beauty, Nails\nprice: 3.5",
        "categories: Skin",
        "",
        "title: Balm\ncategories: Lips, Balm\nprice: 4",
    ]


def test_order_template_separator_and_joiner_are_part_of_the_recipe():
    fields = TextFields(("categories", "title"), template="{value}", separator=" | ", joiner="/")
    assert fields.write(TABLE)[0] == "Beauty/Nails | Nail polish"


def test_a_line_break_inside_a_value_does_not_look_like_a_field():
    assert TextFields(("t",)).write({"t": ["a\nprice: 3"]}) == ["t: a price: 3"]


def test_empty_and_repeated_texts_are_counted():
    assert text_report(["a", "", "b", "a", "a", ""]) == {"n_empty": 2, "n_duplicate_texts": 3}


def test_an_absent_column_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'brand'.*'categories', 'price', 'title'"):
        TextFields(("title", "brand")).write(TABLE)


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        TextFields(("a", "b")).write({"a": ["x"], "b": []})


@pytest.mark.parametrize("template", ["{name}", "{value} {other}", "{", "{}: {value}"])
def test_a_template_without_value_or_with_strangers_is_refused(template):
    with pytest.raises(ValueError, match=r"must hold \{value\}"):
        TextFields(template=template)


@pytest.mark.parametrize("fields", [(), ("a", "a")])
def test_fields_must_be_some_and_different(fields):
    with pytest.raises(ValueError, match="different columns"):
        TextFields(fields)
