"""adarank frame: writes the runs of a folder to a file as one table."""

from importlib.util import find_spec
from pathlib import Path

from adarank.errors import SettingError
from adarank.runs.files import replacing
from adarank.runs.frame import frame


def write_table(out: Path, kind: str, csv: Path | None, parquet: Path | None) -> str:
    """Write `frame(out, kind)` to one of the two files, completely or not at all, and return the sentence to print."""
    path = csv or parquet
    if path is None or (csv and parquet):
        raise SettingError(
            f"exactly one of --csv FILE and --parquet FILE must be given (got {'both' if path else 'neither'})"
        )
    if parquet and find_spec("pyarrow") is None:
        raise SettingError(
            f"--parquet={parquet} needs the package pyarrow, which is not installed; install adarank[parquet], or "
            "choose --csv"
        )
    table = frame(out, kind)
    try:
        with replacing(path) as file:
            if csv:
                table.to_csv(file, index=False)
            else:
                table.to_parquet(file, index=False)
    except OSError as error:
        raise SettingError(f"{path} cannot be written ({error.strerror})") from None
    return f"{path}: {len(table)} rows and {len(table.columns)} columns"
