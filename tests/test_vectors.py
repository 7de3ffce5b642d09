"""Annotations to vectors: known answers, an oracle that does it row by row, and every bad file."""

import random
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import runs, social_chemistry, vectors
from lib.foundations import CATEGORIES, FOUNDATIONS

LEVELS = (0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
DEMO = runs.PROJECT / "data/demo/annotations.tsv"


def cleaned(*rows):
    columns = ["action", "rot-moral-foundations", "action-moral-judgment", "agreement"]
    return pd.DataFrame(rows, columns=columns)


def test_the_examples_of_the_project_page():
    table = vectors.annotations(
        cleaned(
            ("doing something that causes other people to lose trust in you", "loyalty-betrayal", -1.0, 3.0),
            ("cheating on your significant other", "care-harm|loyalty-betrayal", -2.0, 4.0),
        ),
        "action-agree",
    )
    assert table.loc[0, list(CATEGORIES)].to_dict() == dict.fromkeys(CATEGORIES, 0.0) | {"betrayal": 0.375}
    assert table.loc[1, list(CATEGORIES)].to_dict() == dict.fromkeys(CATEGORIES, 0.0) | {"harm": 1.0, "betrayal": 1.0}


rows = st.tuples(
    st.just("an action"),
    st.lists(st.sampled_from(FOUNDATIONS), min_size=1, max_size=5, unique=True).map("|".join),
    st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]),
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0]),
)


@given(st.lists(rows, min_size=1, max_size=30))
def test_vectors_equal_an_oracle_that_does_it_row_by_row(sample):
    table = vectors.annotations(cleaned(*sample), "action-agree")
    for (_, named, judgment, agreement), row in zip(sample, table.to_dict("records"), strict=True):
        value, weight = judgment / 2, agreement / 4
        pair = (max(0.0, value) * weight, max(0.0, -value) * weight)
        expected = dict.fromkeys(CATEGORIES, 0.0)
        for foundation in named.split("|"):
            virtue, vice = foundation.split("-")
            expected |= {virtue: pair[0], vice: pair[1]}
        assert {name: row[name] for name in CATEGORIES} == expected
        assert (row["virtue"], row["vice"]) == pair
        assert row["virtue"] * row["vice"] == 0
        assert all(row[name] in LEVELS for name in CATEGORIES)
        assert (max(pair) == 0) == (judgment == 0 or agreement == 0)


@pytest.fixture(scope="module")
def demo():
    kept, dropped = social_chemistry.clean(social_chemistry.read(DEMO))
    return kept, dropped, vectors.annotations(kept, "action-agree")


def test_every_cleaning_rule_meets_its_case_and_the_counts_add_up(demo):
    kept, dropped, _ = demo
    removed = dropped["rows_dropped"].iloc[1:]
    assert (removed > 0).all()
    assert dropped["rows_left"].iloc[0] - removed.sum() == dropped["rows_left"].iloc[-1] == len(kept)


def test_exploding_keeps_one_row_for_each_named_foundation(demo):
    table = demo[2]
    rows = vectors.exploded(table, 0)
    assert len(rows) == table["foundations"].map(len).sum()
    assert set(rows["typicality"]) <= set(LEVELS)
    assert ((rows["polarity"] == "neutral") == (rows["typicality"] == 0)).all()
    assert vectors.counts(rows)[list(vectors.SPLITS)].to_numpy().sum() == len(rows)


def test_the_published_split_has_the_published_sizes():
    split = pd.Series(vectors.published_split(203_431)).value_counts()
    assert split.to_dict() == {"train": 162_744, "test": 20_344, "validation": 20_343}


def test_no_action_is_on_two_sides_of_the_careful_split(demo):
    table = demo[2]
    assert table["action"].duplicated().any(), "the demo repeats actions"
    shouting = pd.concat([table["action"], table["action"].str.upper() + "!"], ignore_index=True)
    sides = pd.Series(vectors.grouped_split(shouting, 0)).groupby(shouting.map(vectors.normalise)).nunique()
    assert (sides == 1).all()
    published = pd.Series(vectors.published_split(len(table))).groupby(table["action"].to_numpy()).nunique()
    assert (published > 1).any(), "the published split leaks, which is why there is another"


def test_the_subset_keeps_to_its_strata_and_is_the_same_twice(demo):
    rows = vectors.exploded(demo[2], 0)
    subset = vectors.subset(rows)
    pd.testing.assert_frame_equal(subset, vectors.subset(rows))
    sizes = subset.groupby(["foundation", "polarity", "typicality"]).size()
    full = rows.groupby(["foundation", "polarity", "typicality"]).size()
    for key, size in sizes.items():
        assert size == min(full[key], 150 if key[2] == 1.0 else 300)
    assert not subset.duplicated(["id", "foundation"]).any()


def test_large_strata_are_drawn_as_pythons_generator_draws():
    rows = pd.DataFrame({"id": range(1000), "foundation": "care-harm", "polarity": "virtue", "typicality": 0.125})
    assert vectors.subset(rows)["id"].tolist() == random.Random(42).sample(range(1000), 300)


def test_real_rows_give_the_known_count(real_data):
    path = real_data / "social-chem-101.part.csv"
    kept, dropped = social_chemistry.clean(social_chemistry.read(path, "rot-agree"))
    assert len(kept) == 10_391
    assert dropped["rule"].str.contains("skipped").sum() == 2


# ------------------------------------------------------------------------------------------- bad files

HEADER = "action\trot-moral-foundations\taction-moral-judgment\taction-agree\trot-bad\tm\n"
GOOD = "helping a friend\tcare-harm\t1\t3\t0\t1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is empty"),
        (HEADER.replace("action-agree", "agree") + GOOD, r"line 1: column 'action-agree' is missing; found action"),
        (
            HEADER + GOOD + GOOD.replace("\t1\t3", "\t3\t3"),
            r"line 3, column 'action-moral-judgment': expected one of -2, -1, 0, 1, 2, got 3\.0",
        ),
        (
            HEADER + GOOD.replace("\t1\t3", "\tx\t3"),
            r"line 2, column 'action-moral-judgment': expected a number, got 'x'",
        ),
        (HEADER + GOOD.replace("care-harm", "care-ham"), r"line 2, column 'rot-moral-foundations': .*got care-ham"),
        (HEADER.replace("\t", ",") + GOOD.replace("\t", ","), r"line 1: expected columns separated by '\\t'"),
        (HEADER + GOOD + "helping a fr", r"line 3: expected 6 columns as in the header, found 1"),
        (HEADER + GOOD + "a\tb\tc\td\te\tf\tg\th\n", r"line 3: expected 6 columns as in the header, found 8"),
    ],
)
def test_bad_files_are_named_with_line_and_column(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_text(content)
    with pytest.raises(social_chemistry.AnnotationError, match=message) as caught:
        social_chemistry.read(path)
    assert "bad.tsv" in str(caught.value)


def test_a_file_that_ends_within_its_last_line_looks_cut_off(tmp_path):
    path = tmp_path / "cut.tsv"
    path.write_text((HEADER + GOOD)[:-1])
    with pytest.raises(social_chemistry.AnnotationError, match="line 2: the file ends within a line; it looks cut off"):
        social_chemistry.read(path)


def test_mis_encoded_text_names_its_line(tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_bytes((HEADER + GOOD).encode() + "café".encode("latin-1") + b"\tcare-harm\t1\t3\t0\t1\n")
    with pytest.raises(social_chemistry.AnnotationError, match="line 3: not UTF-8"):
        social_chemistry.read(path)


def test_csv_tsv_and_zip_give_the_same_rows(tmp_path):
    quoted = 'a "quoted", word'
    frame = pd.read_csv(DEMO, sep="\t", dtype=str, keep_default_na=False, quoting=3).head(50)
    frame.loc[0, "action"] = quoted
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(r) for r in [frame.columns, *frame.to_numpy()]) + "\n")
    frame.to_csv(tmp_path / "a.csv", index=False)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tsv", "a.tsv")
    tables = [social_chemistry.read(tmp_path / name) for name in ("a.tsv", "a.csv", "a.zip")]
    assert tables[0]["action"].iloc[0] == quoted
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other)


def test_a_broken_zip_says_so(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK not a zip")
    with pytest.raises(social_chemistry.AnnotationError, match="not a whole zip"):
        social_chemistry.read(tmp_path / "a.zip")


def test_the_official_file_with_another_checksum_is_refused_with_both(tmp_path):
    path = tmp_path / social_chemistry.TSV_NAME
    path.write_text(HEADER + GOOD)
    with pytest.raises(
        social_chemistry.AnnotationError, match=f"{social_chemistry.TSV_SHA256}, but has [0-9a-f]{{64}}"
    ):
        social_chemistry.locate(str(path))


def test_a_missing_file_says_where_to_get_it():
    with pytest.raises(social_chemistry.AnnotationError, match="On a machine without internet"):
        social_chemistry.locate("data/raw/nothing.tsv")


def test_neutral_zero_is_not_negative(demo):
    values = demo[2][[*CATEGORIES]].to_numpy()
    assert not np.signbit(values).any()
