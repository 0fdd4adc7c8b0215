"""A data set as tar shards in webdataset's layout, with an index made at ingest; written whole or not at all."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ra_blip.containers import Row
from ra_blip.data.readers import open_dataset
from ra_blip.data.readers.captions import CaptionDataset
from ra_blip.data.readers.dataset import Problems
from ra_blip.data.readers.plain import kind_of, records
from ra_blip.data.shards import MANIFEST, save_index
from ra_blip.errors import DataError, OutputError
from ra_blip.folders import replacing
from ra_blip.images import JPEG, PNG, WEBP, Quarantine, decode, format_of, read_picture
from ra_blip.records import Item, Question, to_dict, write_text

EXTENSIONS = {JPEG: "jpg", PNG: "png", WEBP: "webp"}
QUALITY = 95  # of a picture that is made smaller
LEFT_OUT = "left_out.txt"
SHARD_BYTES = 256 << 20

Record = Item | Question
Part = tuple[str, bytes]  # extension and content


@dataclasses.dataclass
class Packed:
    """What :func:`pack` wrote.

    Attributes:
        records: how many.
        samples: how many they are in the shards.
        pictures: how many of the samples have a picture.
        shards: bytes of each tar, by its name.
        lost: how many records could not be packed.
        left_out: a line for each of them, of the malformed ones the first thousand.
    """

    records: int = 0
    samples: int = 0
    pictures: int = 0
    shards: dict[str, int] = dataclasses.field(default_factory=dict)
    lost: int = 0
    left_out: list[str] = dataclasses.field(default_factory=list)


def pack(
    source: str | Path,
    out: str | Path,
    split: str | None = None,
    size: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    skip: float | None = None,
) -> Packed:
    """Write a data set as shards: ``KEY.jpg`` (png, webp), ``KEY.json`` (the record), ``KEY.txt`` (its words).

    Records that follow each other with the same picture (the captions of one, the questions about one) are one sample:
    the first gives the words, the others stand in the JSON's ``others``. Every picture is decoded once, so that none in
    the shards is damaged. A picture that stays as large as it is keeps its bytes.

    Args:
        source: a folder that a reader knows, an items file, or a questions file.
        out: a folder that is not there yet, or empty.
        split: the captions of this split of a caption set, the questions of any other; the items where None.
        size: shorter side of larger pictures, which are made smaller by the bicubic filter and written as JPEG.
        shard_bytes: a tar is closed when it has this many bytes.
        skip: leave out records that are malformed and pictures that are damaged, up to this share of the pictures, and
            list them in ``left_out.txt``; the first one is an error where None.

    Raises:
        DataError: nothing there that is known, or something wrong with a record or a picture.
        OutputError: ``out`` holds something, or cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is there already; name a folder that is not, or delete it")
    problems, kind, found = open_records(Path(source), split, strict=skip is None)
    quarantine = None if skip is None else Quarantine(share=skip)
    try:
        with replacing(out) as fresh:
            packed = _write(found, fresh, size, shard_bytes, quarantine)
            for one in (problems, quarantine):
                packed.left_out += one.messages if one else []
                packed.lost += one.total if one else 0
            if packed.lost:
                lines = "".join(f"{line}\n" for line in packed.left_out)  # the name of a file may be no UTF-8
                write_text(fresh / LEFT_OUT, lines.encode("utf-8", "backslashreplace").decode())
            told = {"format": 1, "source": Path(source).name, "kind": kind, "split": split, "size": size}
            told |= {"records": packed.records, "samples": packed.samples, "left_out": packed.lost}
            write_text(fresh / MANIFEST, json.dumps({**told, "shards": packed.shards}, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return packed


def open_records(source: Path, split: str | None, strict: bool) -> tuple[Problems, str, Iterable[Record]]:
    """What is wrong with the records to pack, whether they are ``items`` or ``questions``, and the records.

    Raises:
        DataError: nothing there that is known, or no such split.
    """
    if source.is_file():
        if split is not None:
            raise DataError(f"{source}: a file has no splits; leave --split out")
        problems, kind = Problems(strict), kind_of(source)
        lines = records(source, Question, problems) if kind == "questions" else records(source, Item, problems)
        return problems, kind, (record for _, record in lines)
    dataset = open_dataset(source, strict=strict)
    if split is None:
        return dataset.problems, "items", dataset.items()
    dataset.require_split(split)
    if isinstance(dataset, CaptionDataset):
        return dataset.problems, "items", dataset.captions(split)
    return dataset.problems, "questions", dataset.questions(split)


def _write(
    records: Iterable[Record], folder: Path, size: int | None, shard_bytes: int, quarantine: Quarantine | None
) -> Packed:
    packed = Packed()
    samples = _samples(records, size, quarantine, packed)
    for first in samples:  # a turn is a shard, which takes what follows
        tar = folder / f"{len(packed.shards):05d}.tar"
        rows = _fill(tar, itertools.chain([first], samples), packed, shard_bytes)
        packed.shards[tar.name] = tar.stat().st_size
        save_index(tar, rows, packed.shards[tar.name])
    if not packed.samples:
        raise DataError("there is nothing to pack: the data set gives no record")
    return packed


def _fill(tar: Path, samples: Iterable[list[Part]], packed: Packed, shard_bytes: int) -> list[Row]:
    """Write one tar until it has ``shard_bytes``, and give its rows. Equal samples give equal bytes."""
    rows: list[Row] = []
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for place, parts in enumerate(samples):
            for extension, data in parts:
                member = tarfile.TarInfo(f"{packed.samples:09d}.{extension}")
                member.size = len(data)
                offset = archive.offset + tarfile.BLOCKSIZE
                archive.addfile(member, io.BytesIO(data))
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                rows.append((offset, len(data), zlib.crc32(data), place, member.name.encode()))
            packed.samples += 1
            packed.pictures += parts[0][0] in EXTENSIONS.values()
            if archive.offset >= shard_bytes:
                break
    return rows


def _samples(
    records: Iterable[Record], size: int | None, quarantine: Quarantine | None, packed: Packed
) -> Iterator[list[Part]]:
    """The members of each sample; what is damaged goes to the quarantine, or is raised where there is none."""
    quiet = not sys.stderr.isatty()
    shown = tqdm(records, desc="pack", unit="record", disable=quiet, leave=False)
    for _, group in itertools.groupby(shown, key=lambda record: (record.image, None if record.image else record.id)):
        same = list(group)
        try:
            parts = _parts(same, size)
        except DataError as error:
            if quarantine is None:
                raise
            for record in same:
                quarantine.bad(f"{record.id}: {error}")
            continue
        if quarantine is not None:
            quarantine.good(len(same))
        packed.records += len(same)
        yield parts


def _parts(records: list[Record], size: int | None) -> list[Part]:
    """Picture, records and words of one sample. Raises :class:`DataError` for what cannot be packed."""
    first = records[0]
    parts = [_picture(first.image, size)] if first.image else []
    value, *others = (to_dict(dataclasses.replace(record, image=None)) for record in records)
    words = (first.full_text if isinstance(first, Item) else first.text).strip()
    if not (words or parts):
        raise DataError("neither a picture nor words")
    try:
        record = json.dumps({**value, "others": others} if others else value, ensure_ascii=False).encode()
        return [*parts, ("json", record), *([("txt", words.encode())] if words else ())]
    except UnicodeEncodeError:
        raise DataError("its words hold half a character (a lone surrogate)") from None


def _picture(name: str, size: int | None) -> Part:
    data = read_picture(name)
    image = decode(data, name)
    shorter = min(image.size)
    if size is None or shorter <= size:
        return EXTENSIONS[format_of(data) or JPEG], data
    width, height = (max(round(side * size / shorter), 1) for side in image.size)
    smaller = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(smaller, "JPEG", quality=QUALITY)
    return EXTENSIONS[JPEG], smaller.getvalue()
