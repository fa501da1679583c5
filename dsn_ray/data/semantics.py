"""The semantic mask: how close each class of a data set is to each of the 1000 ImageNet classes.

Distillation adds a class's row to the teacher's logits (Liu et al., ICCV 2019). The rule, by the
WordNet synsets of the class: 1 where one of them equals the synset of the ImageNet class, or one is
a hyponym of the other; else their WordNet path similarity where it is above 0.2; else 0. With
several synsets the largest value counts.

The masks of Sketchy and TU-Berlin are the published ones, in which a later synset of a class
overwrites what an earlier one gave. `build_mask` does that by its rule `overwrite`, and so rebuilds
99 of Sketchy's 100 rows. The row of wading_bird differs in one column, ImageNet's crane, a bird:
the published masks take it for the machine, as TU-Berlin's row of `crane (machine)` shows, which
has a 1 in the columns of both. Sketchy's 25 other classes, 21 of which train in the split
`zeroshot2`, have rows by the same rule. The mask of the embedded emoji is built from
`openmoji_synsets.tsv` by `python -m dsn_ray.mask`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import BadZipFile

from dsn_ray.data.roots import DataError
from dsn_ray.errors import DataWarning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = Path(__file__).with_name("files")
IMAGENET_CLASSES = 1000
LEAST_SIMILARITY = 0.2


def mask_rows(
    source_semantics: str, classes: Sequence[str], file: Path | None = None
) -> NDArray[np.float32]:
    """Return the mask of some classes, by name.

    Args:
        source_semantics: the mask to read, `Source.semantics`; one that is not shipped, such as
            `none`, has only zeros, which leaves the teacher's labels as they are.
        classes: C class names in any order.
        file: a mask to read instead, as `python -m dsn_ray.mask` writes it.

    Returns:
        Float32 [C, 1000] with values 0, 1/4, 1/3 and 1. A class that the mask does not know has a
        row of zeros; one warning names all such classes.

    Raises:
        DataError: the file is not a mask.
    """
    import numpy as np

    rows = np.zeros((len(classes), IMAGENET_CLASSES), np.float32)
    shipped = FILES / f"semantic_mask_{source_semantics}.npz"
    if file is None and not shipped.is_file():
        warnings.warn(
            "There is no semantic mask for this data, so the teacher's labels stay as they are.",
            DataWarning,
            stacklevel=2,
        )
        return rows
    known = read_mask(file or shipped)
    if unknown := [name for name in classes if name not in known]:
        warnings.warn(
            f"The semantic mask {file or source_semantics} has no row for {', '.join(unknown)}, "
            "so the teacher's labels of these classes stay as they are.",
            DataWarning,
            stacklevel=2,
        )
    for row, name in zip(rows, classes, strict=True):
        row[:] = known.get(name, 0)
    return rows


def read_mask(file: Path) -> dict[str, NDArray[np.float32]]:
    """Return a mask's row `[1000]` of each class that it knows.

    Raises:
        DataError: the file is not a mask.
    """
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as stored:
            known = dict(zip(stored["classes"].tolist(), stored["mask"], strict=True))
        for row in known.values():
            if row.shape != (IMAGENET_CLASSES,) or not ((row >= 0) & (row <= 1)).all():
                raise ValueError
    except FileNotFoundError:
        raise DataError(f"data.semantics={file}: there is no such file.") from None
    except (OSError, KeyError, ValueError, AttributeError, TypeError, EOFError, BadZipFile):
        raise DataError(
            f"{file} is not a semantic mask; `python -m dsn_ray.mask` writes one."
        ) from None
    return known


def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids of the ImageNet classes, in the order of classifier outputs."""
    return tuple((FILES / "imagenet1k_wnids.txt").read_text("ascii").split())


def openmoji_synsets() -> dict[str, tuple[str, ...]]:
    """Return the WordNet ids of every emoji class; a class that no noun fits has none."""
    rows = (FILES / "openmoji_synsets.tsv").read_text("utf-8").splitlines()[1:]
    return {
        name: tuple(wnids.split(",")) if wnids else ()
        for name, wnids, _ in (row.split("\t") for row in rows)
    }


def known_to_imagenet(source_semantics: str) -> frozenset[str] | None:
    """Return the classes that are ImageNet classes themselves, or kinds or superclasses of one.

    A backbone that ImageNet has taught knows these, so that as unseen classes they are not quite
    unseen. The list was made with WordNet 3.0 from the synsets behind the published masks.

    Args:
        source_semantics: `Source.semantics`.

    Returns:
        Their names, or None where nobody has looked them up.
    """
    lines = (FILES / "known_to_imagenet.tsv").read_text("utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    known = frozenset(name for semantics, name in rows if semantics == source_semantics)
    return known or None


def look_up(names: Sequence[str], wordnet_folder: Path) -> dict[str, tuple[str, ...]]:
    """Find the WordNet id of each class's most frequent sense as a noun.

    A class is looked up in small letters with underscores for spaces, without what stands in
    brackets; then with underscores for its hyphens, then without either.

    Args:
        names: class names.
        wordnet_folder: the folder of WordNet 3.0's `index.noun`.

    Returns:
        One id by name, or none for a class that WordNet does not know; one warning names these.

    Raises:
        DataError: there is no `index.noun`.
    """
    senses = {}
    for fields in _wordnet_lines(wordnet_folder / "index.noun"):
        senses[fields[0]] = f"n{fields[-int(fields[2])]}"
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        plain = re.sub(r"[ _]+", "_", re.sub(r"\(.*\)", "", name).strip(" _").lower())
        written = (plain, plain.replace("-", "_"), plain.replace("-", "").replace("_", ""))
        found[name] = next(((senses[word],) for word in written if word in senses), ())
    if unknown := [name for name, ids in found.items() if not ids]:
        warnings.warn(
            f"WordNet does not know {', '.join(unknown)}, whose rows of the mask are empty.",
            DataWarning,
            stacklevel=2,
        )
    return found


def build_mask(
    class_synsets: Mapping[str, Sequence[str]],
    wordnet_folder: Path,
    wnids: Sequence[str],
    rule: Literal["max", "overwrite"] = "max",
) -> NDArray[np.float32]:
    """Build a semantic mask from WordNet.

    Args:
        class_synsets: the WordNet ids, such as `n02121620`, of each of C classes.
        wordnet_folder: the folder of WordNet 3.0's `data.noun`.
        wnids: the WordNet ids of the 1000 ImageNet classes, in the order of the columns.
        rule: of several synsets the largest value counts; or the last one above zero, as in the
            published masks.

    Returns:
        Float32 [C, 1000], a row for each class in the order given.

    Raises:
        DataError: there is no `data.noun`, or it lacks a synset.
    """
    import numpy as np

    hypernyms = _read_hypernyms(wordnet_folder)
    columns = [_ancestors(wnid, hypernyms) for wnid in wnids]
    rows = np.zeros((len(class_synsets), len(wnids)), np.float32)
    for row, synsets in zip(rows, class_synsets.values(), strict=True):
        for synset in synsets:
            own = _ancestors(synset, hypernyms)
            new = np.array([_closeness(own, column) for column in columns], np.float32)
            row[:] = np.maximum(row, new) if rule == "max" else np.where(new > 0, new, row)
    return rows


def _closeness(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Return the rule's value for two synsets, each given by its ancestors' distances."""
    shared = one.keys() & other.keys()
    if not shared:
        return 0.0
    if any(0 in (one[wnid], other[wnid]) for wnid in shared):
        return 1.0
    similarity = 1 / (1 + min(one[wnid] + other[wnid] for wnid in shared))
    return similarity if similarity > LEAST_SIMILARITY else 0.0


def _ancestors(wnid: str, hypernyms: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the least number of steps up to every synset that a synset is a kind of.

    The path between two synsets that WordNet's path similarity, 1 / (1 + length), counts leads up
    to a shared ancestor and down again, so these distances are all that it takes.
    """
    if wnid not in hypernyms:
        raise DataError(f"WordNet's data.noun has no synset {wnid!r}.")
    distances = {wnid: 0}
    queue = [wnid]
    for current in queue:
        for parent in hypernyms[current]:
            if parent not in distances:
                distances[parent] = distances[current] + 1
                queue.append(parent)
    return distances


def _read_hypernyms(wordnet_folder: Path) -> dict[str, tuple[str, ...]]:
    """Read the hypernyms, instance hypernyms included, of every noun synset.

    A line of `data.noun` is `offset file n word-count (word id)... pointer-count (symbol offset
    part-of-speech source)... | gloss`, with the word count in hexadecimal (WordNet's wndb(5WN)).
    """
    hypernyms = {}
    for fields in _wordnet_lines(wordnet_folder / "data.noun"):
        pointers = fields[5 + 2 * int(fields[3], 16) :]
        hypernyms[f"n{fields[0]}"] = tuple(
            f"n{offset}"
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True)
            if symbol in ("@", "@i")
        )
    return hypernyms


def _wordnet_lines(file: Path) -> Iterator[list[str]]:
    """Read the fields of every line of a WordNet file, without glosses."""
    if not file.is_file():
        raise DataError(
            f"{file.parent} has no {file.name}; Debian's wordnet-base installs WordNet's files in "
            "/usr/share/wordnet."
        )
    with file.open(encoding="ascii") as lines:
        for line in lines:
            if not line.startswith(" "):  # as the licence at the head of the file does
                yield line.partition("|")[0].split()
