"""One file for each family of data sets on disk: its own layout in, records out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ra_blip.data.readers.captions import CaptionsFile, Coco, Coco2014, Karpathy, NoCaps
from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.encyclopedic import EncyclopedicVQA
from ra_blip.data.readers.img2dataset import Img2Dataset
from ra_blip.data.readers.infoseek import OVEN, InfoSeek
from ra_blip.data.readers.lavis_captions import LavisCoco, LavisNoCaps, LavisVisualGenome
from ra_blip.data.readers.multimodalqa import MultimodalQA, MultimodalQARagVL
from ra_blip.data.readers.packed import Packed
from ra_blip.data.readers.pictures import PictureFolder
from ra_blip.data.readers.plain import FILES, Plain
from ra_blip.data.readers.small import Flags, Grocery
from ra_blip.data.readers.visual_genome import VisualGenome
from ra_blip.data.readers.vqa import AOKVQA, OKVQA, AOKVQALavis, OKVQALavis, VQAv2, VQAv2Lavis
from ra_blip.data.readers.webqa import WebQA
from ra_blip.data.readers.webqa_derived import WebQARagVL, WebQAUniVLDR
from ra_blip.errors import DataError
from ra_blip.records import write_jsonl

# In the order of probing: a layout whose marks may lie in a folder of another one comes after it.
READERS: dict[str, type[Dataset]] = {
    "webqa": WebQA,
    "webqa-univldr": WebQAUniVLDR,
    "webqa-ragvl": WebQARagVL,
    "multimodalqa": MultimodalQA,
    "multimodalqa-ragvl": MultimodalQARagVL,
    "okvqa": OKVQA,
    "vqav2": VQAv2,
    "aokvqa": AOKVQA,
    "okvqa-lavis": OKVQALavis,
    "aokvqa-lavis": AOKVQALavis,
    "vqav2-lavis": VQAv2Lavis,
    "infoseek": InfoSeek,
    "oven": OVEN,
    "encyclopedic-vqa": EncyclopedicVQA,
    "grocery": Grocery,
    "flags": Flags,
    "coco-karpathy": Karpathy,
    "coco": Coco,
    "coco-2014": Coco2014,
    "nocaps": NoCaps,
    "visual-genome": VisualGenome,
    "coco-lavis": LavisCoco,
    "nocaps-lavis": LavisNoCaps,
    "visual-genome-lavis": LavisVisualGenome,
    "plain": Plain,
    "captions": CaptionsFile,
    "packed": Packed,
    "img2dataset": Img2Dataset,
    "pictures": PictureFolder,
}
_REFERENCES = {"val": "val_references.jsonl", "test": "references.jsonl"}


def recognised(root: str | Path) -> list[type[Dataset]]:
    """All layouts that a folder holds, the most specific first (a LAVIS cache holds several data sets)."""
    return [reader for reader in READERS.values() if reader.recognises(Path(root))]


def probe(root: str | Path) -> type[Dataset]:
    """The layout of a folder, told by file names; the most specific one where it holds several.

    Raises:
        DataError: there is no such folder, or none of :data:`READERS` knows it.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder")
    found = recognised(root)
    if not found:
        raise DataError(
            f"{root}: no data set that is known here; looked for {', '.join(READERS)} "
            "(projects/README.md says which files each needs)"
        )
    return found[0]


def open_dataset(root: str | Path, name: str | None = None, strict: bool = False) -> Dataset:
    """A data set where it lies: of a name, or of the layout that :func:`probe` finds.

    Raises:
        DataError: an unknown name, or a folder that does not hold such a layout.
    """
    if name is None:
        return probe(root)(root, strict)
    if name not in READERS:
        raise DataError(f"no reader named {name!r}; there are: {', '.join(sorted(READERS))}")
    if not READERS[name].recognises(Path(root)):
        raise DataError(f"{root}: not the layout {name!r}; projects/README.md says which files it needs")
    return READERS[name](root, strict)


def write(dataset: Dataset, out: str | Path) -> dict[str, int]:
    """Write a data set's JSON lines files: items, and the questions and references of each split.

    Args:
        dataset: what to write.
        out: folder for ``items.jsonl``, the files of :data:`~ra_blip.data.readers.plain.FILES`, and
            ``references.jsonl`` and ``val_references.jsonl``.

    Returns:
        The number of records by file name.

    Raises:
        DataError: the data set is missing or malformed.
        OutputError: ``out`` cannot be written.
    """
    parts: list[tuple[str, Iterable[Any]]] = [("items.jsonl", dataset.items())]
    for split in dataset.splits:
        parts.append((FILES[split], dataset.questions(split)))
        if split in _REFERENCES:
            parts.append((_REFERENCES[split], dataset.references(split)))
    counts = dict.fromkeys((name for name, _ in parts), 0)

    def counted(name: str, records: Iterable[Any]) -> Iterator[Any]:
        for record in records:
            counts[name] += 1
            yield record

    for name, records in parts:
        write_jsonl(Path(out) / name, counted(name, records))
    return counts
