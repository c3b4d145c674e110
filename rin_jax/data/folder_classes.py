"""The class of each file of a user's folder.

It is found in one of these, in this order:
  dataset.json  {"labels": [["some/file.png", 3], ...]}; {"labels": null} for no classes
  labels.csv    with the columns file and label; labels are class names, or the integers 0, 1, ...
  NAME.csv      tables of Kinetics: label, youtube_id, time_start, time_end and split, where the
                file, anywhere below the folder, is called ID_000012_000022 for seconds 12 to 22
  folders       one folder a class, whose name is the class's, files at any depth below
  none          files in the folder itself and no folders: no classes
"""

import csv
import json
import pathlib
from collections.abc import Sequence

from absl import logging

from rin_jax import ConfigError

Classes = tuple[list[int] | None, tuple[str, ...]]  # a label for each file, and the class names
KINETICS = {"label", "youtube_id", "time_start", "time_end", "split"}


def find(
    folder: pathlib.Path, files: Sequence[str], what: str, split: str
) -> tuple[Sequence[str], list[int] | None, tuple[str, ...]]:
    """The files of a split, a label for each (None: no classes), and the names of the classes.

    Args:
      files: relative paths of all files; only tables of Kinetics tell splits apart.
      what: what a file is called in errors, "image" or "clip".

    Raises:
      ConfigError: a class without files; labels that are missing, of no file or outside the
        classes; files that may or may not have classes; no file of the split.
    """
    readers = {"dataset.json": _read_json, "labels.csv": _read_csv}
    tables = [table for table in readers if (folder / table).exists()]
    kinetics = [table for table in sorted(folder.glob("*.csv")) if _columns(table) >= KINETICS]
    if len(found := [*tables, *(table.name for table in kinetics[:1])]) > 1:
        raise ConfigError(f"--source={folder} has {' and '.join(found)}; keep one of them")
    if kinetics:
        return _by_kinetics(kinetics, folder, files, split)
    if tables:
        rows = readers[tables[0]](folder / tables[0])
        return files, *_by_table(folder / tables[0], rows, files, what)
    return files, *_by_folders(folder, files, what)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is what macOS keeps beside the files of others."""
    return name.startswith(".") or name == "__MACOSX"


def _by_folders(folder: pathlib.Path, files: Sequence[str], what: str) -> Classes:
    folders = [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
    classes = sorted(path.name for path in folders)
    if not classes:
        return None, ()
    tops = [file.partition("/")[0] if "/" in file else None for file in files]
    if loose := [file for file, top in zip(files, tops, strict=True) if top not in classes]:
        raise ConfigError(
            f"--source={folder} has folders and also {what}s beside them ({_some(loose)}): move "
            "each into the folder of its class, or add labels.csv (columns file, label)"
        )
    if empty := sorted(set(classes) - set(tops)):
        raise ConfigError(
            f"--source={folder}: no {what} in {len(empty)} of {len(classes)} class folders "
            f"({_some(empty)}); delete these folders or put {what}s in"
        )
    return [classes.index(top) for top in tops], tuple(classes)


def _by_table(
    table: pathlib.Path, rows: dict[str, str] | None, files: Sequence[str], what: str
) -> Classes:
    if rows is None:
        return None, ()
    for wrong, names in (
        (f"names files that are no {what}s there", sorted(set(rows) - set(files))),
        (f"has no label for some {what}s", sorted(set(files) - set(rows))),
    ):
        if names:
            raise ConfigError(f"{table} {wrong}: {_some(names)} ({len(names)} in all)")
    classes = sorted(set(rows.values()))
    if all(value.lstrip("-").isdecimal() for value in classes):
        if negative := sorted(file for file, value in rows.items() if int(value) < 0):
            raise ConfigError(f"{table}: labels below 0 at {_some(negative)}")
        labels = [int(rows[file]) for file in files]
        return labels, tuple(str(number) for number in range(max(labels) + 1))
    return [classes.index(rows[file]) for file in files], tuple(classes)


def _by_kinetics(
    tables: Sequence[pathlib.Path], folder: pathlib.Path, files: Sequence[str], split: str
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The files of one split; the classes are those of all splits and of videos that are gone."""
    found = {pathlib.PurePath(file).stem: file for file in files}
    rows = [row for table in tables for row in _read_kinetics(table)]
    if unknown := sorted(set(found) - {stem for stem, _, _ in rows}):
        listed = f"{_some([found[stem] for stem in unknown])} ({len(unknown)} in all)"
        raise ConfigError(f"--source={folder}: no row of a table has the clips {listed}")
    wanted = {stem: label for stem, label, its in rows if its == split}
    names = sorted({label for _, label, _ in rows})
    number = {name: index for index, name in enumerate(names)}
    present = {found[stem]: number[label] for stem, label in wanted.items() if stem in found}
    if not present:
        splits = ", ".join(sorted({its for _, _, its in rows}))
        raise ConfigError(
            f"--source={folder} has no clip of the split {split!r}; the tables have {splits}: set "
            "data.split to one of them, or name the folder that has its files"
        )
    if gone := len(wanted) - len(present):
        logging.warning("%s: %s of %s clips of %r are not there", folder, gone, len(wanted), split)
    return list(present), list(present.values()), tuple(names)


def _read_json(table: pathlib.Path) -> dict[str, str] | None:
    try:
        labels = json.loads(table.read_text(encoding="utf-8"))["labels"]
        return None if labels is None else {file: str(int(label)) for file, label in labels}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f'{table} cannot be read ({error!r}); write {{"labels": [["FILE", INTEGER], ...]}}'
        ) from error


def _read_csv(table: pathlib.Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            found = reader.fieldnames
            raise ConfigError(
                f"{table} has the columns {found}; its first line must name file and label"
            )
        rows = {}
        for row in reader:
            if not row["label"]:
                raise ConfigError(f"{table}, line {reader.line_num}: no label")
            rows[row["file"]] = row["label"].strip()
    return rows


def _read_kinetics(table: pathlib.Path) -> list[tuple[str, str, str]]:
    """(name of the file without its extension, label, split) of each row."""
    rows = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        for row in (reader := csv.DictReader(file)):
            if not row["label"]:
                raise ConfigError(f"{table}, line {reader.line_num}: no label")
            try:
                start, end = int(row["time_start"]), int(row["time_end"])
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{table}, line {reader.line_num}: {error}") from error
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            rows.append((stem, row["label"], row["split"]))
    return rows


def _columns(table: pathlib.Path) -> set[str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        return set(next(csv.reader(file), ()))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
