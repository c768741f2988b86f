"""What did VLMEvalKit keep? Its prediction tables, with or without the column `hit` of its own verdicts.

    MODEL_DATASET.xlsx                          predictions (`PRED_FORMAT` tsv and json are read as well)
    MODEL_DATASET_exact_matching_result.xlsx    the same rows, with the verdict (`hit`)

Excel files are read with openpyxl (the extra `vlmevalkit`). All cells are read as text: pandas would turn an option
`None` or `NA` into a missing value. A cell of Excel holds at most 32,767 characters, and pandas cuts longer replies
when VLMEvalKit writes them: their end, and with it the answer, is lost, so they stay unscored. Read as ms-vlmeval
0.0.20, a packaging of VLMEvalKit, writes them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.harnesses.replies import (
    Fields,
    Measure,
    Reply,
    Source,
    as_score,
    as_text,
    first_line,
    is_number,
    need,
    pictures_in,
    read_json,
)

if TYPE_CHECKING:
    import pandas as pd

VLMEVALKIT = "vlmevalkit"
TABLES = (".xlsx", ".tsv", ".csv", ".json")
VERDICTS = ("hit", "match", "verifier_match", "score")
FAILED = ("Failed to obtain answer", "Failed to obtain answer via API.")
CELL_CHARS = 32_767
"""Of a cell in Excel (Microsoft, Excel specifications and limits)."""
CUT = f"cut at the {CELL_CHARS:,} characters that a cell of Excel holds"
_RESULT = re.compile(r"_(?:exact_matching|openai|chatgpt[\w.-]*?|gpt[\w.-]*?)_result$")


def read_vlmevalkit(path: Path) -> Source:
    """Reads a table of predictions.

    Raises:
        ValueError: if it is damaged, lacks a column, or openpyxl is needed and not installed.
    """
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path}: the table has no rows; expected predictions of VLMEvalKit")
    model, task = _named(path)
    return Source(
        harness=VLMEVALKIT,
        model=model,
        replies=[_reply(task, row, f"{path}: row {number}", path.suffix) for number, row in enumerate(rows, start=1)],
    )


def _rows(path: Path) -> Iterator[Fields]:
    if path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: expected a list of rows, as VLMEvalKit writes with PRED_FORMAT=json")
        yield from ({name: as_text(value) for name, value in row.items()} for row in rows)
        return
    table = _table(path)
    for values in table.itertuples(index=False, name=None):
        yield {str(name): as_text(value) for name, value in zip(table.columns, values, strict=True)}


def _table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    options: dict[str, Any] = {"dtype": str, "keep_default_na": False}
    if path.suffix == ".xlsx":
        try:
            import openpyxl  # noqa: F401 (pandas calls it)
        except ModuleNotFoundError:
            raise ValueError(
                f"{path}: reading Excel files needs the package openpyxl, which is not installed; install it (the "
                "extra `vlmevalkit`), or let VLMEvalKit write with PRED_FORMAT=tsv"
            ) from None
        try:
            table: pd.DataFrame = pd.read_excel(path, engine="openpyxl", **options)
        except Exception as error:  # zip, XML and cell errors of openpyxl have no common class
            raise ValueError(f"{path}: not readable as an Excel file ({_said(error)}); copy it again") from error
        return table
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", **options)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as a table ({_said(error)}); copy it again") from error
    return table


def _said(error: Exception) -> str:
    return first_line(str(error), type(error).__name__)


def _named(path: Path) -> tuple[str | None, str]:
    """Returns the model and the data set of `MODEL_DATASET.xlsx`; the model is the name of a folder above the file."""
    stem = _RESULT.sub("", path.stem)
    for folder in path.resolve().parents[:2]:
        if folder.name and stem.startswith(f"{folder.name}_"):
            return folder.name, stem.removeprefix(f"{folder.name}_")
    return None, stem


def _reply(task: str, row: Fields, where: str, suffix: str) -> Reply:
    need(row, where, "index", "question", "answer", "prediction")
    response = row["prediction"]
    if row.get("thinking"):
        response = f"<think>{row['thinking']}</think>{response}"
    failed = response.startswith(FAILED)
    cut = suffix == ".xlsx" and len(row["prediction"]) >= CELL_CHARS
    return Reply(
        task=task,
        id=row["index"],
        question=row["question"],
        golds=(row["answer"],),
        response="" if failed else response,
        pictures=pictures_in(row),
        fields=row,
        measures={
            name: Measure(score=score)
            for name in VERDICTS
            if is_number(row.get(name)) and (score := as_score(float(row[name]))) is not None
        },
        no_reply=row["prediction"] if failed else CUT if cut else "",
    )
