"""What is wrong with a data set, and what is missing: every picture is read, nothing is written."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray.data

from dsn_ray.data.catalog import DOMAINS, Domain, Record, Source, Split
from dsn_ray.data.official import PUBLISHED
from dsn_ray.data.parts import checked
from dsn_ray.data.preparing import Progress
from dsn_ray.data.roots import DataError, RootError
from dsn_ray.data.semantics import known_to_imagenet
from dsn_ray.data.shards import where_it_lies

_ROWS = 256


@dataclass(frozen=True)
class Count:
    """Pictures of one split and domain.

    Attributes:
        lines: as the lists, or else the folders, name them.
        missing: of these, not there.
        unique: different file names within a class, of those that are there.
        expected: lines of the complete official set; None where nobody knows.
        expected_unique: different pictures of it; None where nobody knows.
        undecodable: there, but no picture that can be used.
    """

    split: Split
    domain: Domain
    lines: int
    missing: int
    unique: int
    expected: int | None
    expected_unique: int | None
    undecodable: int


@dataclass(frozen=True)
class Duplicates:
    """Files with the same bytes, or one file in several splits.

    Attributes:
        paths: below the root.
        splits: in which they lie.
    """

    paths: tuple[str, ...]
    splits: tuple[Split, ...]


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        name: the data set.
        complete: whether it is the complete official set; None where no such set is known.
        counts: of each split and domain.
        classes: pictures by split, class and domain.
        note: what people should know of how the data set was put together.
        missing: how many lines of lists name pictures that are not there, by split, class and
            domain.
        missing_paths: which pictures these are.
        absent: classes of the official split without any picture here.
        undecodable: path and reason of each.
        duplicates: pictures with the same bytes; what does not decode is none.
        known_to_teacher: unseen classes that ImageNet has taught; None where nobody knows.
        errors: whole sentences on what makes numbers wrong.
    """

    name: str
    complete: bool | None
    counts: list[Count]
    classes: dict[str, dict[str, dict[str, int]]]
    note: str
    missing: dict[str, dict[str, dict[str, int]]]
    missing_paths: list[str]
    absent: list[str]
    undecodable: list[tuple[str, str]]
    duplicates: list[Duplicates]
    known_to_teacher: list[str] | None
    errors: list[str] = field(default_factory=list)


def read_all(source: Source, progress: Progress | None = None) -> list[tuple[str, str]]:
    """Reads and decodes every picture with a Ray Data job.

    Returns:
        For each record the SHA-256 of its file and why it cannot be used; the first is empty where
        the file cannot be read, the second where nothing is wrong.

    Raises:
        DataError: If the place of the pictures does not answer.
    """
    total = len(source.records)
    if not total:
        return []
    sizes = [size for size, _ in source.states()]
    rows = [
        {
            "start": start,
            "sizes": sizes[start : start + _ROWS],
            "records": [
                [r.path, r.class_name, r.domain, r.split]
                for r in source.records[start : start + _ROWS]
            ],
        }
        for start in range(0, total, _ROWS)
    ]
    job = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Check(replace(source, records=())), **where_it_lies(source.root)
    )
    found: list[tuple[str, str]] = [("", "")] * total
    done = 0
    for row in job.iter_rows():
        if row["failed"]:
            raise DataError(row["failed"])
        start, many = int(row["start"]), len(row["sha256"])
        found[start : start + many] = zip(row["sha256"], row["reason"], strict=True)
        done += many
        if progress:
            progress(done, total)
    return found


class _Check:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        hashes, reasons, failed = [], [], ""
        records = [Record(*fields) for fields in row["records"]]
        reading = self._source.reading(records, row["sizes"])
        for record, read in zip(records, reading, strict=True):
            digest = reason = ""
            try:
                raw = read()
                digest = hashlib.sha256(raw).hexdigest()
                checked(raw, record.domain, keep=True)
            except (ValueError, OSError) as error:
                reason = str(error) or type(error).__name__
            except RootError as error:
                failed = str(error)
                break
            hashes.append(digest)
            reasons.append(reason)
        return {"start": row["start"], "sha256": hashes, "reason": reasons, "failed": failed}


def report(
    source: Source, found: Sequence[tuple[str, str]], missing: Sequence[Record] = ()
) -> Report:
    """Draws the conclusions.

    Args:
        source: the data set.
        found: what `read_all` gave.
        missing: pictures that lists name and that are not there.
    """
    published = PUBLISHED.get(source.name)
    expected = {
        (listing.split, listing.domain): (listing.lines, listing.unique or listing.lines)
        for listing in (published.listings if published else ())
        if listing.lines
    }
    keys = sorted(
        {(r.split, r.domain) for r in [*source.records, *missing]} | expected.keys(),
        key=lambda key: (("seen", "heldout", "unseen").index(key[0]), key[1]),
    )
    counts = []
    for split, domain in keys:
        lost = sum((r.split, r.domain) == (split, domain) for r in missing)
        official, official_unique = expected.get((split, domain), (None, None))
        rows = [i for i, r in enumerate(source.records) if (r.split, r.domain) == (split, domain)]
        names = {
            (source.records[i].class_name, source.records[i].path.rpartition("/")[2]) for i in rows
        }
        counts.append(
            Count(
                split=split,
                domain=domain,
                lines=len(rows) + lost,
                missing=lost,
                unique=len(names),
                expected=official,
                expected_unique=official_unique,
                undecodable=sum(bool(found[i][1]) for i in rows),
            )
        )
    duplicates = _duplicates(source, found)
    known = known_to_imagenet(source.semantics)
    return Report(
        name=source.name,
        complete=(
            source.official and not missing and not any(reason for _, reason in found)
            if expected
            else None
        ),
        counts=counts,
        classes=_by_class(source.records),
        note=source.note,
        missing=_by_class(missing),
        missing_paths=list(dict.fromkeys(record.path for record in missing)),
        absent=_absent(source),
        undecodable=[
            (record.path, reason)
            for record, (_, reason) in zip(source.records, found, strict=True)
            if reason
        ],
        duplicates=duplicates,
        known_to_teacher=(
            None if known is None else [name for name in source.unseen_classes if name in known]
        ),
        errors=_errors(source, found, duplicates),
    )


def _by_class(records: Sequence[Record]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for record in records:
        counts[record.split][record.class_name][record.domain] += 1
    return {
        split: {name: dict(domains) for name, domains in sorted(classes.items())}
        for split, classes in counts.items()
    }


def _duplicates(source: Source, found: Sequence[tuple[str, str]]) -> list[Duplicates]:
    groups: dict[str, set[tuple[str, Split]]] = defaultdict(set)
    for record, (digest, reason) in zip(source.records, found, strict=True):
        if not reason:
            groups[digest].add((record.path, record.split))
    return [
        Duplicates(
            tuple(sorted({path for path, _ in places})),
            tuple(sorted({split for _, split in places})),
        )
        for places in groups.values()
        if len(places) > 1
    ]


def _absent(source: Source) -> list[str]:
    """Classes of the official split that are not here."""
    published = PUBLISHED.get(source.name)
    if published is None:
        return []
    here = {*source.seen_classes, *source.unseen_classes}
    return [name for name in published.class_names if name not in here]


def _errors(
    source: Source, found: Sequence[tuple[str, str]], duplicates: Sequence[Duplicates]
) -> list[str]:
    errors = []
    leaks = [d for d in duplicates if "unseen" in d.splits and len(d.splits) > 1]
    if leaks:
        errors.append(
            f"{len(leaks)} pictures lie in both seen and unseen classes, as "
            f"{' and '.join(leaks[0].paths[:2])} {'does' if len(leaks[0].paths) == 1 else 'do'}."
        )
    usable = {
        (r.class_name, r.domain)
        for r, (_, reason) in zip(source.records, found, strict=True)
        if not reason and r.split != "heldout"
    }
    for domain in DOMAINS:
        empty = [
            name
            for name in (*source.seen_classes, *source.unseen_classes)
            if (name, domain) not in usable
        ]
        if empty:
            errors.append(f"{len(empty)} classes have no {domain}: {', '.join(empty[:10])}.")
    return errors
