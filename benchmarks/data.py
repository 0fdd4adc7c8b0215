"""What the data side costs beside its peers: shards, decoding, kept features, padding.

    python benchmarks/data.py [--pictures FOLDER] [--texts FILE] ... [SECTION ...]

One thread, CPU time of this process, variants in turn within a round, the median over the rounds of the ratio to the
peer: on a shared machine ratios are the result, and the microseconds are their context. ``--pictures`` is a folder of
photographs (JPEG; made up ones without it, which say nothing of likeness), ``--texts`` is a text file, a text a line,
for the padding, and can be given again (made up lengths without them).
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import webdataset
from PIL import Image

from ra_blip.data.shards import ShardSet
from ra_blip.data.stream import Plan
from ra_blip.models.features import FeatureStore
from ra_blip.models.pixels import Quality, pixels

SIZE = 224
SAMPLES = 1_000  # in a shard
ROUNDS = 7
LONGEST = 128  # tokens that the model reads of a text
FEATURES = (257, 1408)  # of ViT-g at 224 pixels: 724 kB in bf16
Variant = Callable[[], object]


def compare(variants: dict[str, Variant], calls: int) -> dict[str, float]:
    """Microseconds of a call of each variant (best round), printed with the median ratio of the first to each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()  # the first run pays for imports and caches
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            begun = time.process_time()
            variant()
            seconds[name].append((time.process_time() - begun) / calls)
    peer = next(iter(seconds.values()))
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(peer, found, strict=True))
        print(f"  {name:38} {min(found) * 1e6:9.1f} us {ratio:7.2f} x")
    return {name: min(found) * 1e6 for name, found in seconds.items()}


def shards(folder: Path, pictures: Sequence[Path], texts: Sequence[Path]) -> None:
    """Reading every sample of a tar, not decoded: webdataset's iterator, and our index with checksums."""
    rng = np.random.default_rng(0)
    for size in (20_000, 70_000):
        tar = folder / f"{size}.tar"
        with webdataset.TarWriter(str(tar)) as writer:
            for number in range(SAMPLES):
                parts = {"jpg": rng.bytes(size), "json": b'{"id": "1"}', "txt": b"a caption of seven words or so"}
                writer.write({"__key__": f"{number:09d}", **parts})
        ours = ShardSet(tar)
        order = rng.permutation(SAMPLES).tolist()

        def peer(tar: Path = tar) -> int:
            return sum(len(sample["jpg"]) for sample in webdataset.WebDataset(str(tar), shardshuffle=False))

        def read(order: Sequence[int], ours: ShardSet = ours) -> int:
            return sum(len(ours.read(number).parts["jpg"]) for number in order)

        print(f"shards, pictures of {size // 1000} kB")
        in_order, in_any = functools.partial(read, range(SAMPLES)), functools.partial(read, order)
        compare({"webdataset": peer, "ours, in order": in_order, "ours, in any order": in_any}, SAMPLES)


def decode(folder: Path, pictures: Sequence[Path], texts: Sequence[Path]) -> None:
    """Photographs re-encoded at quality 88 to the tower's pixels: Pillow, and the named qualities."""
    for width, height in ((640, 480), (1280, 960)):
        names = []
        for number in range(24):
            with Image.open(pictures[number % len(pictures)]) as image:
                upright = image.width >= image.height
                larger = image.convert("RGB").resize((width, height) if upright else (height, width), Image.LANCZOS)
            larger.save(folder / f"{width}-{number}.jpg", quality=88)
            names.append(str(folder / f"{width}-{number}.jpg"))
        size = statistics.mean(Path(name).stat().st_size for name in names)
        print(f"decode, {width} x {height} -> {SIZE} x {SIZE}, {size / 1000:.0f} kB")

        def pillow(names: Sequence[str] = names) -> None:
            for name in names:
                with Image.open(name) as image:
                    np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.BICUBIC))

        def ours(quality: Quality, names: Sequence[str] = names) -> list[np.ndarray]:
            return [pixels(name, SIZE, quality) for name in names]

        qualities: tuple[Quality, ...] = ("exact", "fast", "fastest")
        variants: dict[str, Variant] = {"Pillow": pillow}
        variants |= {quality: lambda quality=quality: ours(quality) for quality in qualities}
        compare(variants, len(names))
        exact = ours("exact")
        for quality in qualities[1:]:
            errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(ours(quality), exact, strict=True)]
            likeness = [10 * np.log10(255**2 / error) for error in errors]
            print(f"  {quality}: {np.mean(likeness):.1f} dB on average, {min(likeness):.1f} at least")


def features(folder: Path, pictures: Sequence[Path], texts: Sequence[Path]) -> None:
    """Kept features of one picture: mapped and copied, with its checksum, and as the model gets them."""
    names = []
    for number in range(32):
        (folder / f"{number}.picture").write_bytes(b"%d" % number)
        names.append(str(folder / f"{number}.picture"))
    given = torch.randn(len(names), *FEATURES, generator=torch.Generator().manual_seed(0))

    def compute(wanted: Sequence[str]) -> torch.Tensor:
        return given[[names.index(name) for name in wanted]]

    store = FeatureStore(compute, "benchmark", folder / "features")
    store(names)
    keys = [store.key_of(name) for name in names]

    def read(store: FeatureStore) -> None:
        for key in keys:
            store.read(key)

    kilobytes = given[0].numel() * 2 / 1000
    print(f"features, {kilobytes:.0f} kB a picture")
    variants: dict[str, Variant] = {
        "first read, with checksum": lambda: read(FeatureStore(compute, "benchmark", folder / "features")),
        "read again": lambda: read(store),
        "a call for one picture, as float32": lambda: [store([name]) for name in names],
    }
    compare(variants, len(names))


def padding(folder: Path, pictures: Sequence[Path], texts: Sequence[Path]) -> None:
    """Share of a batch of 32 that is padding: shuffled, and sorted by length within windows."""
    rng = np.random.default_rng(0)
    known = {path.name: _lengths(path) for path in texts} or {
        "made up": rng.lognormal(2.7, 0.4, 10_000).astype(int) + 1
    }
    window = Plan([1], batch=1).window
    print(f"padding, in batches of 32, windows of {window} batches")
    for name, found in known.items():
        lengths = np.minimum(rng.choice(found, 32 * window * 8), LONGEST)  # enough for eight windows
        shares = []
        for given in (None, [lengths]):
            plan = Plan([len(lengths)], batch=32, lengths=given)
            batches = [lengths[plan.at(0, position)[:, 1]] for position in range(plan.batches)]
            shares.append(
                1 - sum(batch.sum() for batch in batches) / sum(batch.max() * len(batch) for batch in batches)
            )
        mean = np.mean(found)
        print(f"  {name:28} {mean:6.1f} words and signs  shuffled {shares[0]:6.1%}  sorted {shares[1]:6.1%}")


def _lengths(path: Path) -> np.ndarray:
    import re

    lines = path.read_text(encoding="utf-8").splitlines()
    return np.array([len(re.findall(r"\w+|[^\w\s]", line)) for line in lines if line.strip()])


SECTIONS = {"shards": shards, "decode": decode, "features": features, "padding": padding}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without one")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="photographs")
    parser.add_argument("--texts", type=Path, action="append", default=[], metavar="FILE", help="texts, one a line")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures = sorted(given.pictures.rglob("*.jpg")) if given.pictures else [_made_up(folder)]
        if not pictures:
            parser.error(f"--pictures: no .jpg in {given.pictures}")
        for name in given.sections or SECTIONS:
            SECTIONS[name](folder, pictures, given.texts)


def _made_up(folder: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize((640, 480), Image.BICUBIC).save(out, "JPEG", quality=95)
    (folder / "made_up.jpg").write_bytes(out.getvalue())
    return folder / "made_up.jpg"


if __name__ == "__main__":
    main()
