"""Annotations to vectors: known answers, an oracle that does it row by row, and every bad file."""

import csv
import hashlib
import random
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.paper import CATEGORIES, FOUNDATIONS
from lib.run.files import PROJECT, write_parquet
from lib.vectors import moral_vectors, published_counts, social_chemistry

LEVELS = (0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
DEMO = PROJECT / "data/demo/annotations.tsv"


def cleaned(*rows):
    columns = ["action", "rot-moral-foundations", "action-moral-judgment", "agreement"]
    return pd.DataFrame(rows, columns=columns)


def test_the_examples_of_the_project_page():
    table = moral_vectors.vectorise(
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
    table = moral_vectors.vectorise(cleaned(*sample), "action-agree")
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
    return kept, dropped, moral_vectors.vectorise(kept, "action-agree")


def test_every_cleaning_rule_meets_its_case_and_the_counts_add_up(demo):
    kept, dropped, _ = demo
    removed = dropped["rows_dropped"].iloc[1:]
    assert (removed > 0).all()
    assert dropped["rows_left"].iloc[0] - removed.sum() == dropped["rows_left"].iloc[-1] == len(kept)


def test_exploding_keeps_one_row_for_each_named_foundation(demo):
    table = demo[2]
    rows = moral_vectors.explode(table, 0)
    assert len(rows) == table["foundations"].map(len).sum()
    assert set(rows["typicality"]) <= set(LEVELS)
    assert ((rows["polarity"] == "neutral") == (rows["typicality"] == 0)).all()


def test_the_published_split_has_the_published_sizes():
    split = pd.Series(moral_vectors.published_split(203_431)).value_counts()
    assert split.to_dict() == {"train": 162_744, "test": 20_344, "validation": 20_343}


def test_no_action_is_on_two_sides_of_the_careful_split(demo):
    table = demo[2]
    assert table["action"].duplicated().any(), "the demo repeats actions"
    shouting = pd.concat([table["action"], table["action"].str.upper() + "!"], ignore_index=True)
    sides = pd.Series(moral_vectors.grouped_split(shouting, 0)).groupby(shouting.map(moral_vectors.normalise)).nunique()
    assert (sides == 1).all()
    published = pd.Series(moral_vectors.published_split(len(table))).groupby(table["action"].to_numpy()).nunique()
    assert (published > 1).any(), "the published split leaks, which is why there is another"


def test_the_subset_keeps_to_its_strata_and_is_the_same_twice(demo):
    rows = moral_vectors.explode(demo[2], 0)
    subset = moral_vectors.draw_subset(rows)
    pd.testing.assert_frame_equal(subset, moral_vectors.draw_subset(rows))
    sizes = subset.groupby(["foundation", "polarity", "typicality"]).size()
    full = rows.groupby(["foundation", "polarity", "typicality"]).size()
    for key, size in sizes.items():
        assert size == min(full[key], 150 if key[2] == 1.0 else 300)
    assert not subset.duplicated(["id", "foundation"]).any()


def test_large_strata_are_drawn_as_pythons_generator_draws():
    rows = pd.DataFrame({"id": range(1000), "foundation": "care-harm", "polarity": "virtue", "typicality": 0.125})
    assert moral_vectors.draw_subset(rows)["id"].tolist() == random.Random(42).sample(range(1000), 300)


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
        (HEADER + GOOD[:-2] + "x\n", r"line 2, column 'm': expected a number, got 'x'"),
        (HEADER + GOOD + GOOD[:-2] + "0\n", r"line 3, column 'm': expected a whole number from 1 to 50, got 0"),
        (HEADER + GOOD[:-4] + "2\t1\n", r"line 2, column 'rot-bad': expected one of 0, 1, got 2"),
        (
            HEADER.replace("rot-bad", "split") + GOOD[:-4] + "training\t1\n",
            r"line 2, column 'split': expected one of train, dev, .*, got training",
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


COMMAS = HEADER.replace("\t", ",")
QUOTED = ",".join(f'"{field}"' for field in GOOD.strip().split("\t")) + "\n"


def test_the_lines_of_a_csv_are_those_where_its_records_begin(tmp_path):
    path = tmp_path / "a.CSV"
    path.write_text(COMMAS + QUOTED + "\n" + QUOTED.replace("a friend", "a\nfriend, twice") + QUOTED)
    rows = social_chemistry.read(path)
    assert rows["line"].tolist() == [2, 4, 6]
    assert rows["action"].tolist() == ["helping a friend", "helping a\nfriend, twice", "helping a friend"]
    assert set(rows["agreement"]) == {3}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (2 * QUOTED.replace("\n", ",\n"), r"line 2: expected 6 columns as in the header, found 7"),
        (QUOTED + QUOTED.replace(',"1"\n', "\n"), r"line 3: expected 6 columns as in the header, found 5"),
        (
            QUOTED.replace("a friend", "a\nfriend") + "\n" + QUOTED.replace('"1"\n', '"x"\n'),
            r"line 5, column 'm': expected a number, got 'x'",
        ),
        (QUOTED + '"helping\na fr\n', r"line 3: cannot be read as CSV \(unexpected end of data\)"),
        (QUOTED.rstrip("\n"), r"line 2: the file ends within a line; it looks cut off"),
    ],
    ids=["a comma too many", "a field too few", "a value", "cut off within quotes", "cut off behind them"],
)
def test_bad_csv_files_are_named_with_the_line_of_the_record(tmp_path, rows, message):
    path = tmp_path / "bad.csv"
    path.write_text(COMMAS + rows)
    with pytest.raises(social_chemistry.AnnotationError, match=message):
        social_chemistry.read(path)


def test_a_blank_action_is_not_given(tmp_path):
    path = tmp_path / "blank.tsv"
    path.write_text(HEADER + GOOD + GOOD.replace("helping a friend", " "))
    kept, dropped = social_chemistry.clean(social_chemistry.read(path))
    assert kept["action"].tolist() == ["helping a friend"]
    assert dropped.set_index("rule")["rows_dropped"]["action is given"] == 1


def test_csv_tsv_and_zip_give_the_same_rows(tmp_path):
    quoted = 'a "quoted", word'
    frame = pd.read_csv(DEMO, sep="\t", dtype=str, keep_default_na=False, quoting=3).head(50)
    frame.loc[0, "action"] = quoted
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(r) for r in [frame.columns, *frame.to_numpy()]) + "\n")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "all.csv", index=False, quoting=csv.QUOTE_ALL)
    for name in ("a.tsv", "a.csv"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.write(tmp_path / name, name)
    names = ("a.tsv", "a.csv", "all.csv", "a.tsv.zip", "a.csv.zip")
    tables = [social_chemistry.read(tmp_path / name) for name in names]
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


def test_a_file_that_the_user_vouches_for_is_taken_and_named(tmp_path, capsys):
    path = tmp_path / social_chemistry.TSV_NAME
    path.write_text(HEADER + GOOD)
    assert social_chemistry.locate(str(path), accept_unverified=True) == path
    printed = capsys.readouterr().out
    assert "accepted on your word" in printed
    assert social_chemistry.TSV_SHA256 in printed
    assert not social_chemistry.is_official(path)


def test_the_official_file_in_a_zip_is_unpacked_and_another_is_refused(tmp_path, monkeypatch, capsys):
    official, path = (HEADER + GOOD).encode(), tmp_path / "social-chem-101.zip"
    monkeypatch.setattr(social_chemistry, "PROJECT", tmp_path)
    monkeypatch.setattr(social_chemistry, "TSV_SHA256", hashlib.sha256(official).hexdigest())

    def zipped(content):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"social-chem-101/{social_chemistry.TSV_NAME}", content)
        return str(path)

    found = social_chemistry.locate(zipped(official))
    assert found == tmp_path / "data" / "raw" / "social-chem-101" / social_chemistry.TSV_NAME
    assert found.read_bytes() == official
    assert social_chemistry.is_official(found)
    with pytest.raises(social_chemistry.AnnotationError, match=r"social-chem-101\.zip should have sha256"):
        social_chemistry.locate(zipped(official + GOOD.encode()))
    assert social_chemistry.locate(str(path), accept_unverified=True) == path
    assert "accepted on your word" in capsys.readouterr().out
    assert len(social_chemistry.read(path)) == 2
    assert social_chemistry.is_official(found), "what was unpacked before is not replaced"


def test_a_missing_file_says_where_to_get_it():
    with pytest.raises(social_chemistry.AnnotationError, match="On a machine without internet"):
        social_chemistry.locate("data/raw/nothing.tsv")


def test_neutral_zero_is_not_negative(demo):
    values = demo[2][[*CATEGORIES]].to_numpy()
    assert not np.signbit(values).any()


def test_the_data_sets_own_parts_can_take_the_place_of_m(demo):
    rows = social_chemistry.read(DEMO)
    kept, dropped = social_chemistry.clean(rows, keep="split")
    assert set(kept["split"]) == {"train", "dev", "test"}
    assert "split is train, dev, test" in set(dropped["rule"])
    with pytest.raises(social_chemistry.AnnotationError, match=r"needs the column 'split'.*use `keep: m`"):
        social_chemistry.clean(rows.drop(columns="split"), keep="split")


def test_neutral_says_why(demo):
    table = demo[2]
    judged, agreed = table["judgment"] == 0, table["agreement"] == 0
    assert ((table["neutral_because"] == "") == ~(judged | agreed)).all()
    assert ((table["neutral_because"] == "both") == (judged & agreed)).all()
    assert set(table["neutral_because"]) == {"", "judgment is 0", "agreement is 0", "both"}


def test_one_vector_a_distinct_action_keeps_number_and_spread(demo):
    table = demo[2]
    found = moral_vectors.by_action(table)
    assert found["multiplicity"].sum() == len(table)
    assert not found["action"].map(moral_vectors.normalise).duplicated().any()
    several = found[found["multiplicity"] > 1].iloc[0]
    own = table[table["action"].map(moral_vectors.normalise) == moral_vectors.normalise(several["action"])]
    for category in CATEGORIES:
        assert several[category] == pytest.approx(np.mean(own[category]))
        assert several[f"spread_{category}"] == pytest.approx(np.std(own[category], ddof=1))
    assert found.loc[found["multiplicity"] == 1, "spread_care"].isna().all()


def test_the_subset_depends_on_the_order_within_strata_and_on_nothing_else(demo):
    rows = moral_vectors.explode(demo[2], 0)
    many = pd.concat([rows.assign(id=rows["id"] + f"x{copy}") for copy in range(8)], ignore_index=True)
    drawn = moral_vectors.draw_subset(many)
    # Strata moved among each other, each in its own order: the same subset.
    moved = many.sort_values(["typicality", "polarity", "foundation"], kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(drawn, moral_vectors.draw_subset(moved))
    # Another order within strata: another subset.
    assert set(moral_vectors.draw_subset(many[::-1].reset_index(drop=True))["id"]) != set(drawn["id"])


def test_twice_gives_the_same_bytes(demo, tmp_path):
    for name in "ab":
        table = moral_vectors.vectorise(demo[0], "action-agree")
        rows = moral_vectors.explode(table, 0)
        for kind, frame in {
            "table": table,
            "rows": rows,
            "subset": moral_vectors.draw_subset(rows),
            "distinct": moral_vectors.by_action(table),
        }.items():
            write_parquet(tmp_path / f"{kind}_{name}.parquet", frame)
    for kind in ("table", "rows", "subset", "distinct"):
        assert (tmp_path / f"{kind}_a.parquet").read_bytes() == (tmp_path / f"{kind}_b.parquet").read_bytes()


def test_overlap_lengths_and_typical_actions_say_what_the_rows_say(demo):
    table = demo[2]
    rows = moral_vectors.explode(table, 0)
    share = moral_vectors.overlap(table).set_index(["named", "also_named"])["share"]
    named = table["foundations"]
    first, second = FOUNDATIONS[:2]
    expected = (
        named.map(lambda names: {first, second} <= set(names)).sum() / named.map(lambda names: first in names).sum()
    )
    assert share[first, second] == pytest.approx(expected)
    assert (share[[(name, name) for name in FOUNDATIONS]] == 1).all()
    lengths = moral_vectors.lengths(rows, table, draws=50, seed=0).set_index(["polarity", "typicality"])
    words = rows.merge(table[["id", "action"]], on="id")
    words = words[(words["polarity"] == "vice") & (words["typicality"] == 1.0)]["action"].str.split().str.len()
    assert lengths.loc[("vice", 1.0), "value"] == pytest.approx(words.mean())
    assert lengths.loc[("vice", 1.0), "ci_low"] < words.mean() < lengths.loc[("vice", 1.0), "ci_high"]
    typical = moral_vectors.most_typical(rows, table, count=3)
    assert list(typical["category"].unique()) == [name for name in CATEGORIES if name in set(typical["category"])]
    assert typical.groupby("category").size().max() <= 3


# ------------------------------------------------------------------------------------------- published counts


def test_the_published_cells_add_up_to_the_published_sums():
    buckets = pd.read_csv(published_counts.BUCKETS)
    assert buckets["train"].sum() == published_counts.TOTALS["exploded rows, train"]
    assert buckets["validation"].sum() == published_counts.TOTALS["exploded rows, validation"]
    assert len(buckets) == len(FOUNDATIONS) * 13


def test_rows_as_published_agree_and_one_row_less_is_found():
    buckets = pd.read_csv(published_counts.BUCKETS)
    keys = ["foundation", "polarity", "typicality"]
    rows = buckets.melt(keys, var_name="split_published", value_name="rows")
    rows = rows.loc[rows.index.repeat(rows["rows"]), [*keys, "split_published"]].reset_index(drop=True)
    same = published_counts.cells(rows)
    assert published_counts.agree(same) == f"All {2 * len(buckets)} counts are as published."
    fewer = published_counts.cells(rows.iloc[1:])
    assert published_counts.agree(fewer) == f"1 of {2 * len(buckets)} counts differ from those published."
    assert fewer.loc[fewer["difference"] != 0, "difference"].tolist() == [-1]


def test_sums_stand_beside_those_published(demo):
    rows = moral_vectors.explode(demo[2], 0)
    table = published_counts.totals(rows, moral_vectors.draw_subset(rows)).set_index("quantity")
    assert table.loc["annotations", "obtained"] == len(demo[2])
    assert table.loc[[f"exploded rows, {split}" for split in moral_vectors.SPLITS], "obtained"].sum() == len(rows)
    assert (table["difference"] == table["obtained"] - table["published"]).all()
    notes = published_counts.TOTALS["subset rows (notes on a later study)"]
    assert abs(published_counts.expected_subset() - notes) < 20, "the cells speak for the notes, not for the page"
