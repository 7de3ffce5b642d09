"""Social-Chemistry-101: find the file, check its schema, clean it as the paper does.

One row is one worker's judgment of one action (Forbes et al., EMNLP 2020). Nulls are empty strings; integers may be
written ``3.0``. The official file is a TSV of 25 columns; a derived file may lack the columns that only cleaning uses:
then that rule is skipped, and the table of dropped rows says so.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pandera.pandas as pa
import pooch

from lib import runs
from lib.download import ResumingDownloader
from lib.foundations import FOUNDATIONS

URL = "https://storage.googleapis.com/ai2-mosaic-public/projects/social-chemistry/data/social-chem-101.zip"
ZIP_BYTES = 27_610_699
TSV_NAME = "social-chem-101.v1.0.tsv"
TSV_SHA256 = "6a289ec5f814ec975deacc244ed7b5758911611847c0834bf6b2f32817722aea"
DOWNLOAD = "download"
"""As ``annotations``: fetch the official file."""

REQUIRED = ("action", "rot-moral-foundations", "action-moral-judgment")
OPTIONAL = ("rot-bad", "m", "split", "rot-id")
OWN_SPLITS = ("train", "dev", "test")
"""Values of ``split`` that name the data set's main parts; the others hold repeated annotations."""

SEVERAL = (5, 50)
"""Values of ``m``, the number of workers who were given a rule of thumb, of rows with several annotators."""

FLAGS = {"rot-bad": (0, 1), "m": range(1, 51), "split": (*OWN_SPLITS, "dev-extra", "test-extra", "analysis")}
"""Values of the columns that only cleaning reads (README of the data set)."""

LEVELS = {"action-moral-judgment": (-2, -1, 0, 1, 2), "action-agree": (0, 1, 2, 3, 4), "rot-agree": (0, 1, 2, 3, 4)}

WHERE_TO_PUT_IT = (
    f"On a machine without internet, take {TSV_NAME} from the zip at {URL} and give its path as `annotations:`."
)


class AnnotationError(ValueError):
    """A file of annotations is not what it should be; the message names file, line and column."""


def locate(annotations: str, accept_unverified: bool = False) -> Path:
    """Return the file of annotations, downloading the official one if asked to.

    Args:
        annotations: a path, absolute or from the project root, or ``download``.
        accept_unverified: take a file of the official name with another checksum on the user's word, and say so.

    Raises:
        AnnotationError: no such file, or the official file has another checksum; both values are named.
        lib.download.DownloadError: the download broke off, which a second run resumes, or has another size.
    """
    if annotations == DOWNLOAD:
        folder = runs.PROJECT / "data" / "raw"
        members = pooch.retrieve(
            URL,
            # The publisher gives no checksum of the zip; the downloader holds its size, the check below the TSV's sha256.
            known_hash=None,
            path=folder,
            fname="social-chem-101.zip",
            downloader=ResumingDownloader(folder / "social-chem-101.zip.part", ZIP_BYTES),
            processor=pooch.Unzip(extract_dir="social-chem-101"),
        )
        path = next(Path(member) for member in members if member.endswith(TSV_NAME))
    else:
        path = runs.resolve(annotations)
    if not path.is_file():
        raise AnnotationError(
            f"annotations not found: {annotations}. Paths start at the project root. {WHERE_TO_PUT_IT}"
        )
    if path.name == TSV_NAME and (found := runs.sha256_of_file(path)) != TSV_SHA256:
        if not accept_unverified:
            raise AnnotationError(
                f"{runs.short(path)} should have sha256 {TSV_SHA256}, but has {found}. "
                "Download it again, or set `accept_unverified: true` to vouch for this file yourself."
            )
        print(f"accepted on your word: {runs.short(path)} has sha256 {found}, not the official {TSV_SHA256}")
    return path


def is_official(path: Path) -> bool:
    """Say whether a file is the official TSV, by its checksum."""
    return runs.sha256_of_file(path) == TSV_SHA256


def read(path: Path, agreement: str = "action-agree") -> pd.DataFrame:
    """Read a CSV, TSV or zip of annotations and check every value that later stages rely on.

    Args:
        path: the file; ``.tsv`` is tab-separated, ``.csv`` comma-separated, a zip holds one of them.
        agreement: column that says how many people would agree: ``action-agree``, or ``rot-agree`` to stand in.

    Returns:
        One row an annotation in file order, columns ``line`` (of the file, the header is line 1), the required ones,
        ``agreement`` and those of ``OPTIONAL`` that the file has. Texts are ``str``, numbers are floats, nulls are NA.

    Raises:
        AnnotationError: the file is empty, not UTF-8, cut off or separated otherwise, lacks a column, or holds a value
            that the schema does not know.
    """
    name = runs.short(path)
    text = _text(path)
    separator = "," if path.suffix == ".csv" else "\t"
    header = text.split("\n", 1)[0]
    if not text.strip():
        raise AnnotationError(f"{name} is empty; expected a header and rows of Social-Chemistry-101")
    columns = header.rstrip("\r").split(separator)
    wanted = (*REQUIRED, agreement)
    if len(columns) == 1:
        raise AnnotationError(f"{name}, line 1: expected columns separated by {separator!r}, found one column")
    for column in wanted:
        if column not in columns:
            raise AnnotationError(f"{name}, line 1: column {column!r} is missing; found {', '.join(columns)}")
    used = [*wanted, *(column for column in OPTIONAL if column in columns)]
    if separator == "\t":
        _require_columns(text, len(columns), name)
    try:
        # Quotes are text in the official TSV; a CSV quotes fields that hold the separator.
        rows = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, quoting=3 if separator == "\t" else 0
        )[used]
    except pd.errors.ParserError as error:
        raise AnnotationError(f"{name}: a row has another number of columns than the header ({error})") from error
    if not text.endswith("\n"):
        raise AnnotationError(f"{name}, line {len(rows) + 1}: the file ends within a line; it looks cut off")
    rows = rows.mask(rows == "")
    rows.insert(0, "line", range(2, len(rows) + 2))
    return _checked(rows, agreement, name).rename(columns={agreement: "agreement"})


def clean(
    rows: pd.DataFrame, annotators: tuple[int, ...] = (1,), keep: Literal["m", "split"] = "m"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply the published cleaning.

    Keep ``rot-bad == 0`` and ``m == 1`` and non-null action, foundations, judgment and agreement (released recipe).

    Args:
        rows: as :func:`read` returns them.
        annotators: values of ``m`` to keep; ``SEVERAL`` for the rows behind the human ceiling.
        keep: ``m`` as published, or ``split`` to keep instead the rows of the data set's own train, dev and test parts.

    Returns:
        The kept rows, and a table ``rule, rows_dropped, rows_left`` of what each rule removed in turn; a rule whose
        column the file lacks is listed as skipped.
    """
    kept = rows
    record: list[tuple[str, int | None, int]] = [("rows of the file", 0, len(rows))]
    if keep == "split" and "split" not in rows:
        raise AnnotationError("`keep: split` needs the column 'split', which the file does not have; use `keep: m`")
    chosen = {
        "m": (f"m is {' or '.join(map(str, annotators))}", "m", lambda frame: frame["m"].isin(annotators)),
        "split": (f"split is {', '.join(OWN_SPLITS)}", "split", lambda frame: frame["split"].isin(OWN_SPLITS)),
    }
    rules = [
        ("rot-bad is 0", "rot-bad", lambda frame: frame["rot-bad"] == 0),
        chosen[keep],
        ("action is given", "action", lambda frame: frame["action"].notna()),
        ("foundations are given", "rot-moral-foundations", lambda frame: frame["rot-moral-foundations"].notna()),
        ("judgment is given", "action-moral-judgment", lambda frame: frame["action-moral-judgment"].notna()),
        ("agreement is given", "agreement", lambda frame: frame["agreement"].notna()),
    ]
    for label, column, keeps in rules:
        if column not in kept:
            record.append((f"{label}: skipped, the file has no column {column}", None, len(kept)))
            continue
        before = len(kept)
        kept = kept[keeps(kept)]
        record.append((label, before - len(kept), len(kept)))
    dropped = pd.DataFrame(record, columns=["rule", "rows_dropped", "rows_left"])
    return kept.reset_index(drop=True), dropped.astype({"rows_dropped": "Int64"})


def by_several(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return the cleaned rows of items with several annotators, and each row's item; none if the file has no ``m``.

    An item is a rule of thumb (``rot-id``): every worker broke down the same one, though the words that each gave its
    action may differ. A file without ``rot-id`` falls back on the action's text.
    """
    if "m" not in rows:
        return rows.iloc[:0], pd.Series(dtype=object)
    several, _ = clean(rows, SEVERAL)
    return several, several["rot-id" if "rot-id" in several else "action"]


def _text(path: Path) -> str:
    name = runs.short(path)
    content = path.read_bytes()
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                inner = [
                    member
                    for member in archive.namelist()
                    if member.endswith((".tsv", ".csv")) and "__MACOSX" not in member
                ]
                if len(inner) != 1:
                    raise AnnotationError(f"{name} should hold one .tsv or .csv file, found {len(inner)}")
                content = archive.read(inner[0])
        except zipfile.BadZipFile as error:
            raise AnnotationError(f"{name} is not a whole zip file ({error}); download it again") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: not UTF-8 text (byte {error.start})") from error


def _require_columns(text: str, expected: int, name: str) -> None:
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        if (found := line.count("\t") + 1) != expected:
            raise AnnotationError(f"{name}, line {number}: expected {expected} columns as in the header, found {found}")


def _checked(rows: pd.DataFrame, agreement: str, name: str) -> pd.DataFrame:
    numeric = ["action-moral-judgment", agreement, *(column for column in ("rot-bad", "m") if column in rows)]
    for column in numeric:
        numbers = pd.to_numeric(rows[column], errors="coerce")
        bad = numbers.isna() & rows[column].notna()
        if bad.any():
            first = rows[bad].iloc[0]
            raise AnnotationError(
                f"{name}, line {first['line']}, column {column!r}: expected a number, got {first[column]!r}"
            )
        rows[column] = numbers
    schema = pa.DataFrameSchema(
        {
            **{
                column: pa.Column(
                    float,
                    pa.Check.isin(LEVELS[column], error=_described(LEVELS[column])),
                    nullable=True,
                    coerce=True,
                )
                for column in ("action-moral-judgment", agreement)
            },
            **{
                column: pa.Column(None, pa.Check.isin(values, error=_described(values)), nullable=True)
                for column, values in FLAGS.items()
                if column in rows
            },
            "rot-moral-foundations": pa.Column(
                str, pa.Check(_known_foundations, name=f"a |-separated list of {', '.join(FOUNDATIONS)}"), nullable=True
            ),
        }
    )
    try:
        return schema.validate(rows, lazy=True)
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


def _known_foundations(values: pd.Series) -> pd.Series:
    known = {text: set(text.split("|")) <= set(FOUNDATIONS) for text in values.dropna().unique()}
    return values.map(known).astype(bool)
