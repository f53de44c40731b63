"""KuaiRand: short videos, every exposure with its feedback, some of the videos shown at random.

C. Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed
Videos", CIKM 2022 (https://github.com/chongminggao/KuaiRand). A folder has, here or below `data/`,

    log_standard_*.csv, log_random_*.csv    one row an exposure: user_id, video_id, time_ms,
                                            is_click, ..., play_time_ms, duration_ms, tab
    video_features_basic_*.csv              optional: video_id, author_id, tag, ...

or, made from them, exposures.parquet with the same columns, and perhaps user_sequences.parquet with
what each user had watched, watched long and liked before (`watch_seq`, ..., oldest first).
video_features_statistic_*.csv counts over the whole time of the log: it knows the future and is not
read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import Frame, write_dataset
from jaxrec.data.errors import DataError, reading
from jaxrec.data.page_rules import count_cut, paged, parse_page_rule
from jaxrec.data.tables import (
    batched,
    fingerprint_files,
    match_items,
    need_columns,
    need_file,
    scan_table,
    spilled,
    to_seconds,
)

FEEDBACK = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "comment": "is_comment",
    "follow": "is_follow",
    "forward": "is_forward",
    "hate": "is_hate",
    "profile": "is_profile_enter",
}
"""Our names of the feedback columns, each 0 or 1, and theirs."""
EXPOSURES = "exposures.parquet"
SEQUENCES = "user_sequences.parquet"
_NEEDED = ("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "tab")
_FEATURES = ("author_id", "video_type", "upload_dt", "upload_type", "video_duration", "tag")
_WITHOUT_TIMES = (
    f"; the earlier events of {SEQUENCES} have an order but no times: they are one second apart, "
    "the last at last_time_ms"
)


@dataclasses.dataclass(frozen=True)
class KuaiRand:
    """The logs of KuaiRand-Pure, 1K or 27K: one row an exposure, graded by the ladder.

    `value` is the share of the video that was played (1 and more: to the end), empty where its
    length is unknown. Columns beside it: each kind of feedback as a truth value, `hate` and
    `random` (shown at random) among them, and `tab`, the place in the app.
    """

    path: str
    """The folder, for example KuaiRand-Pure."""
    page: str = "gap:600"
    """What a page is, as the logs have no request: gap:SECONDS, second, day:+8; with ,max:N behind
    it no page is longer than N."""
    ladder: tuple[str, ...] = ("click", "long_view", "like", "comment", "follow", "forward")
    """Kinds of feedback that grade an exposure, weakest first; the strongest that was given counts,
    whatever the weaker say. The order of the last three is ours: the rarer, the stronger."""
    random: bool = True
    """Keep videos that were shown at random, log_random_*.csv; no recommender chose them."""
    watched: str = "exposed"
    """Grade of earlier videos of watch_seq that are in no other sequence. What counted as watched
    is not said; the share of long views among them is that of exposures, not of clicks."""
    name: str = "kuairand"
    """Name of the data set."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: a file or column is missing or malformed, or a flag is not understood.
        """
        import polars as pl

        rule, grades = parse_page_rule(self.page), self._grades()
        files = self._logs()
        source = "KuaiRand: " + ", ".join(file.name for file in files)
        exposures = pl.concat([self._exposures(file) for file in files])
        order = ("time_ms", "item")
        with paged(exposures, rule, self.path, order=order) as log, self._history() as earlier:
            log = log.drop("time_ms")
            if earlier is not None:
                source += f", {SEQUENCES}{_WITHOUT_TIMES}"
                log = pl.concat([earlier, log], how="diagonal")
            write_dataset(
                folder,
                log,
                self._items(log),
                name=self.name,
                source=source,
                licence="CC BY-SA 4.0",
                history_events=grades[1:],
                grades=grades,
                page_rule=rule.describe(count_cut(log, rule)),
            )

    def fingerprint(self) -> dict[str, Any]:
        """Sizes and SHA-256 of the files that are read."""
        return fingerprint_files(*self._logs(), *self._optional())

    def _grades(self) -> tuple[str, ...]:
        grades = ("exposed", *self.ladder)
        known = [name for name in FEEDBACK if name != "hate"]
        if (
            not self.ladder
            or len(set(self.ladder)) < len(self.ladder)
            or set(self.ladder) - {*known}
        ):
            raise DataError(
                f"ladder {self.ladder} must name kinds of feedback once each, weakest first, out "
                f"of {', '.join(known)}."
            )
        if self.watched not in grades:
            raise DataError(
                f"watched {self.watched!r} is no grade; use one of {', '.join(grades)}."
            )
        return grades

    def _folder(self) -> Path:
        path = Path(self.path)
        return path / "data" if (path / "data").is_dir() else path

    def _logs(self) -> list[Path]:
        folder = self._folder()
        if (folder / EXPOSURES).is_file():
            return [need_file(folder / EXPOSURES)]
        patterns = ("log_standard_*.csv", *(("log_random_*.csv",) if self.random else ()))
        files = [file for each in patterns for file in sorted(folder.glob(each))]
        if not files:
            raise DataError(
                f"{folder} has neither {' nor '.join(patterns)} nor {EXPOSURES}. Name the folder "
                "of KuaiRand-Pure, KuaiRand-1K or KuaiRand-27K."
            )
        return [need_file(file) for file in files]

    def _optional(self) -> list[Path]:
        folder = self._folder()
        found = sorted(folder.glob("video_features_basic_*.csv"))
        if (folder / SEQUENCES).is_file() and (folder / EXPOSURES).is_file():
            found.append(folder / SEQUENCES)
        return found

    def _exposures(self, file: Path) -> Frame:
        """One log, lazily, in canonical columns and `time_ms`."""
        import polars as pl

        with reading(file):
            frame = scan_table(file)
            columns = frame.collect_schema().names()
        need_columns(columns, (*_NEEDED, *FEEDBACK.values()), file)
        flags = {name: _number(theirs) > 0 for name, theirs in FEEDBACK.items()}
        event = pl.lit("exposed")
        for name in self.ladder:
            event = pl.when(flags[name]).then(pl.lit(name)).otherwise(event)
        duration = _number("duration_ms")
        chance = _number("is_rand") > 0 if "is_rand" in columns else pl.lit(False)
        if not self.random:
            frame = frame.filter(~chance)
        return frame.select(
            pl.col("user_id").cast(pl.String).alias("user"),
            pl.col("video_id").cast(pl.String).alias("item"),
            to_seconds("time_ms", "ms").alias("timestamp"),
            event.alias("event"),
            pl.when(duration > 0).then(_number("play_time_ms") / duration).alias("value"),
            *(flag.alias(name) for name, flag in flags.items()),
            chance.alias("random"),
            pl.col("tab").cast(pl.String),
            _number("time_ms").alias("time_ms"),
        )

    @contextlib.contextmanager
    def _history(self) -> Generator[Frame | None]:
        """What came before exposures.parquet, as events without page; None without the file."""
        import polars as pl

        path = self._folder() / SEQUENCES
        if path not in self._optional():
            yield None
            return
        with reading(path):
            frame = scan_table(path)
            columns = ("user_id", "last_time_ms", "watch_seq", "long_watch_seq", "like_seq")
            need_columns(frame.collect_schema().names(), columns, path)
            frame = frame.select(
                pl.col("user_id").cast(pl.String),
                to_seconds("last_time_ms", "ms"),
                pl.col(columns[2:]).cast(pl.List(pl.String)).fill_null([]),
            ).collect()
        if frame["last_time_ms"].null_count():
            raise DataError(f"{path}: a row has no 'last_time_ms'. Fill or drop such rows.")
        schema = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64, "event": pl.String}
        with spilled(batched(self._earlier(frame), list(schema)), schema) as earlier:
            yield earlier

    def _earlier(self, frame: Frame) -> Iterator[tuple[str, str, int, str]]:
        grades = self._grades()
        for user, last, watched, long, liked in frame.iter_rows():
            events = join_sequences(watched, long, liked, self.watched)
            for back, (item, event) in zip(range(len(events) - 1, -1, -1), events):
                yield user, item, last - back, event if event in grades else self.watched

    def _items(self, log: Frame) -> Frame:
        import polars as pl

        files = [file for file in self._optional() if file.name != SEQUENCES]
        if not files:
            return match_items(pl.DataFrame(schema={"item": pl.String}), log)
        ids = log.select("item").unique()
        tables = []
        for file in files:
            table = scan_table(file)
            need_columns(table.collect_schema().names(), ("video_id", *_FEATURES), file)
            table = table.select(
                pl.col("video_id").alias("item"),
                *_FEATURES[:-2],
                _number("video_duration").alias("seconds") / 1000,
                pl.col("tag").str.replace_all(",", ", ", literal=True),
            )
            with reading(file):
                tables.append(table.join(ids, on="item", how="semi").collect(engine="streaming"))
        return match_items(pl.concat(tables), log)


def join_sequences(
    watched: list[str], long: list[str], liked: list[str], plain: str
) -> list[tuple[str, str]]:
    """One history out of the last videos that were watched, watched long, and liked.

    Each list is a part, in order, of the same past, cut to its last entries; so matching them from
    the end says which watched videos the other two mean. What is left of them is older than all
    that is known to be watched; how older likes and older long views interleave is not known, and
    likes are put first.

    Args:
        watched, long, liked: video ids, oldest first.
        plain: event of a video that is only in `watched`.

    Returns:
        (video, event) pairs, oldest first.

    >>> join_sequences(["a", "b", "a"], ["z", "a"], ["y", "b", "a"], "exposed")
    [('y', 'like'), ('z', 'long_view'), ('a', 'exposed'), ('b', 'like'), ('a', 'like')]
    """
    events = [(item, plain) for item in watched]
    for sequence, event in ((long, "long_view"), (liked, "like")):
        place, left = len(events), len(sequence)
        while left:
            found = next(
                (at for at in range(place - 1, -1, -1) if events[at][0] == sequence[left - 1]), None
            )
            if found is None:
                break
            events[found] = (sequence[left - 1], event)
            place, left = found, left - 1
        events = [(item, event) for item in sequence[:left]] + events
    return events


def _number(column: str) -> Any:
    import polars as pl

    return pl.col(column).cast(pl.Float64)
