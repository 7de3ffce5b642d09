"""Social-Chemistry-101: find the file, check its schema, clean it as the paper does.

One row is one annotator's judgment of one action (Forbes et al., EMNLP 2020). Nulls are empty strings; integers may be
written ``3.0``. The official file is a TSV of 25 columns; a derived file may lack the columns that only cleaning uses:
then that rule is skipped, and the table of dropped rows says so.
"""

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pooch
import requests

from lib.paper import FOUNDATIONS
from lib.run.files import PROJECT, CompanionError, replacing, resolve, sha256_of_file, short

URL = "https://storage.googleapis.com/ai2-mosaic-public/projects/social-chemistry/data/social-chem-101.zip"
ZIP_BYTES = 27_610_699
"""Size of the official zip. Its publisher gives no checksum."""

TSV_NAME = "social-chem-101.v1.0.tsv"
TSV_SHA256 = "6a289ec5f814ec975deacc244ed7b5758911611847c0834bf6b2f32817722aea"
DOWNLOAD = "download"
"""As the parameter ``annotations``: fetch the official file."""

REQUIRED = ("action", "rot-moral-foundations", "action-moral-judgment")
OPTIONAL = ("rot-bad", "m", "split", "rot-id")
OWN_SPLITS = ("train", "dev", "test")
"""Values of ``split`` that name the data set's main parts; the others hold repeated annotations."""

SEVERAL = (5, 50)
"""Values of ``m``, the number of annotators of a rule of thumb, where there are several."""

ALLOWED: dict[str, Sequence[object]] = {
    "action-moral-judgment": (-2, -1, 0, 1, 2),
    "action-agree": (0, 1, 2, 3, 4),
    "rot-agree": (0, 1, 2, 3, 4),
    "rot-bad": (0, 1),
    "m": range(1, 51),
    "split": (*OWN_SPLITS, "dev-extra", "test-extra", "analysis"),
}
"""Column -> its values (README of the data set)."""


class AnnotationError(CompanionError):
    """A file of annotations is not what it should be, or did not arrive; the message names file, line and column."""


def locate(source: str, accept_unverified: bool = False) -> Path:
    """Return the path of the annotations, downloading the official file if asked to.

    Args:
        source: a path, absolute or from the project root, or ``download``. The official file in a zip is unpacked to
            ``data/raw``, so that a run knows it; another zip is read as it is.
        accept_unverified: take a file of the official name with another checksum on the user's word, and say so.

    Raises:
        AnnotationError: no such file; a broken download, of which nothing is kept; the zip has another size or the
            official file another checksum, and both values are named.
    """
    path = _downloaded() if source == DOWNLOAD else resolve(source)
    if not path.is_file():
        raise AnnotationError(
            f"annotations not found: {source}. Paths start at the project root. On a machine without internet, take "
            f"{TSV_NAME} from the zip at {URL} and give its path as `annotations:`."
        )
    name, content = _table_in(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == TSV_SHA256 and _is_zip(path):
        return _unpacked(content)
    if name == TSV_NAME and sha256 != TSV_SHA256:
        if not accept_unverified:
            raise AnnotationError(
                f"{short(path)} should have sha256 {TSV_SHA256}, but has {sha256}. "
                "Download it again, or set `accept_unverified: true` to vouch for this file yourself."
            )
        print(f"accepted on your word: {short(path)} has sha256 {sha256}, not the official {TSV_SHA256}")
    return path


def is_official(path: Path) -> bool:
    """Say whether a file is the official TSV, by its checksum."""
    return sha256_of_file(path) == TSV_SHA256


def read(path: Path, agreement: str = "action-agree") -> pd.DataFrame:
    """Read a CSV, TSV or zip of annotations and check every value that later stages rely on.

    Args:
        path: the file; ``.tsv`` is tab-separated, ``.csv`` comma-separated, a zip holds one of them.
        agreement: column that says how many people would agree: ``action-agree``, or ``rot-agree`` to stand in.

    Returns:
        One row per annotation in file order, columns ``line`` (of the file; the header is line 1), the required ones,
        ``agreement`` and those of ``OPTIONAL`` that the file has. Nulls are NA.

    Raises:
        AnnotationError: the file is empty, not UTF-8, cut off or separated otherwise, lacks a column, or holds a value
            that the schema does not know.
    """
    name = short(path)
    table, text = _text(path)
    separator = "," if table.lower().endswith(".csv") else "\t"
    if not text.strip():
        raise AnnotationError(f"{name} is empty; expected a header and rows of Social-Chemistry-101")
    records = _records(text, separator, name)
    line, columns = next(records)
    if len(columns) == 1:
        raise AnnotationError(f"{name}, line {line}: expected columns separated by {separator!r}, found one column")
    needed = (*REQUIRED, agreement)
    if missing := [column for column in needed if column not in columns]:
        found = ", ".join(columns)
        raise AnnotationError(f"{name}, line {line}: column {missing[0]!r} is missing; found {found}")
    wanted = [*needed, *(column for column in OPTIONAL if column in columns)]
    take = itemgetter(*(columns.index(column) for column in wanted))
    lines, kept = [], []
    for line, fields in records:
        if len(fields) != len(columns):
            raise AnnotationError(
                f"{name}, line {line}: expected {len(columns)} columns as in the header, found {len(fields)}"
            )
        lines.append(line)
        kept.append(take(fields))
    if not text.endswith("\n"):
        raise AnnotationError(f"{name}, line {line}: the file ends within a line; it looks cut off")
    rows = pd.DataFrame(kept, columns=wanted, dtype="str").replace("", np.nan)
    rows.insert(0, "line", np.array(lines, dtype=int))
    return _checked(rows, name).rename(columns={agreement: "agreement"})


def clean(
    rows: pd.DataFrame, *, annotators: tuple[int, ...] = (1,), keep: Literal["m", "split"] = "m"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep ``rot-bad == 0`` and ``m == 1`` and non-null action, foundations, judgment and agreement (released recipe).

    Args:
        rows: as :func:`read` returns them.
        annotators: values of ``m`` to keep; ``SEVERAL`` for the rows behind the human ceiling.
        keep: ``m`` as published, or ``split`` to keep instead the rows of the data set's own train, dev and test parts.

    Returns:
        The kept rows, and a table ``rule, rows_dropped, rows_left`` of what each rule removed in turn; a rule whose
        column the file lacks is listed as skipped.
    """
    if keep == "split" and "split" not in rows:
        raise AnnotationError("`keep: split` needs the column 'split', which the file does not have; use `keep: m`")
    kept_values = annotators if keep == "m" else OWN_SPLITS
    rules = [
        ("rot-bad is 0", "rot-bad", (0,)),
        (f"{keep} is {', '.join(map(str, kept_values))}", keep, kept_values),
        ("action is given", "action", None),
        ("foundations are given", "rot-moral-foundations", None),
        ("judgment is given", "action-moral-judgment", None),
        ("agreement is given", "agreement", None),
    ]
    kept = rows
    record = [("rows of the file", 0, len(rows))]
    for label, column, values in rules:
        if column in kept:
            given = kept[column].notna() & kept[column].astype("str").str.strip().ne("")
            follows = given if values is None else kept[column].isin(values)
            record.append((label, (~follows).sum(), follows.sum()))
            kept = kept[follows]
        else:
            record.append((f"{label}: skipped, the file has no column {column}", None, len(kept)))
    dropped = pd.DataFrame(record, columns=["rule", "rows_dropped", "rows_left"])
    return kept.reset_index(drop=True), dropped.astype({"rows_dropped": "Int64"})


def by_several(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return the cleaned rows of items with several annotators, and each row's item; none if the file has no ``m``.

    An item is a rule of thumb (``rot-id``): every annotator broke down the same one, though the words that each gave its
    action may differ. A file without ``rot-id`` falls back on the action's text.
    """
    if "m" not in rows:
        return rows.iloc[:0], pd.Series(dtype=object)
    several, _ = clean(rows, annotators=SEVERAL)
    return several, several["rot-id" if "rot-id" in several else "action"]


def _downloaded() -> Path:
    try:
        members = pooch.retrieve(
            URL, known_hash=None, fname="social-chem-101.zip", path=PROJECT / "data" / "raw",
            downloader=_download, processor=pooch.Unzip(extract_dir="social-chem-101"),
        )  # fmt: skip
    except requests.RequestException as error:
        raise AnnotationError(
            f"the download of {URL} broke off ({type(error).__name__}); nothing of it was kept. Run again."
        ) from error
    return next(Path(member) for member in members if member.endswith(TSV_NAME))


def _download(url: str, output_file: str, caller: object) -> None:
    """Fetch a file and check its size before pooch, which deletes what an error leaves, moves it to its place."""
    pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16)(url, output_file, caller)
    if (size := Path(output_file).stat().st_size) != ZIP_BYTES:
        raise AnnotationError(f"{url} should have {ZIP_BYTES:,} bytes, but has {size:,}; it was not kept")


def _unpacked(content: bytes) -> Path:
    place = PROJECT / "data" / "raw" / "social-chem-101" / TSV_NAME
    with replacing(place) as temporary:
        temporary.write_bytes(content)
    return place


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _table_in(path: Path) -> tuple[str, bytes]:
    """Return the name and the content of a table, or of the one that a zip holds."""
    if not _is_zip(path):
        return path.name, path.read_bytes()
    name = short(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.namelist() if "__MACOSX" not in member]
            tables = [member for member in members if member.lower().endswith((".tsv", ".csv"))]
            if len(tables) != 1:
                raise AnnotationError(f"{name} should hold one .tsv or .csv file, found {len(tables)}")
            return Path(tables[0]).name, archive.read(tables[0])
    except zipfile.BadZipFile as error:
        raise AnnotationError(f"{name} is not a whole zip file ({error}); download it again") from error


def _text(path: Path) -> tuple[str, str]:
    """Return the name of a table and its text."""
    table, content = _table_in(path)
    try:
        return table, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{short(path)}, line {line}: not UTF-8 text (byte {error.start})") from error


def _records(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each record begins, the header's first, and its fields.

    In the official TSV every line is a record and quotes are text; a CSV quotes what holds separators or line breaks.
    """
    if separator == "\t":
        for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
            yield number, line.rstrip("\r").split("\t")
        return
    reader, begins = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for fields in reader:
            if fields:  # a blank line has none
                yield begins, fields
            begins = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(f"{name}, line {begins}: cannot be read as CSV ({error})") from error


def _checked(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    numeric = [column for column in rows if column in ALLOWED and column != "split"]
    numbers = rows[numeric].apply(pd.to_numeric, errors="coerce").astype(float)
    for (index, column), text in rows[numeric][numbers.isna()].stack().dropna().items():
        line = rows.loc[index, "line"]
        raise AnnotationError(f"{name}, line {line}, column {column!r}: expected a number, got {text!r}")
    rows[numeric] = numbers
    schema = {
        column: pa.Column(None, pa.Check.isin(values, error=_described(values)), nullable=True, required=False)
        for column, values in ALLOWED.items()
    }
    one = f"({'|'.join(FOUNDATIONS)})"
    known = pa.Check.str_matches(rf"^{one}(\|{one})*$", error=f"a |-separated list of {', '.join(FOUNDATIONS)}")
    schema["rot-moral-foundations"] = pa.Column(str, known, nullable=True)
    try:
        return pa.DataFrameSchema(schema).validate(rows, lazy=True)
    except pa.errors.SchemaErrors as error:
        case = error.failure_cases.dropna(subset=["index"]).sort_values("index").iloc[0]
        line = rows["line"].iloc[int(case["index"])]
        more = len(error.failure_cases) - 1
        raise AnnotationError(
            f"{name}, line {line}, column {case['column']!r}: expected {case['check']}, got {case['failure_case']}"
            + (f" (and {more} more)" if more else "")
        ) from None


def _described(values: Sequence[object]) -> str:
    if isinstance(values, range):
        return f"a whole number from {values[0]} to {values[-1]}"
    return f"one of {', '.join(map(str, values))}"
