"""Builds the images that Foveate ships (src/foveate/data) from four public packages.

    python tools/build_builtin.py \\
        --openclipart openclipart-png_0.18+dfsg-19_all.deb openclipart-svg_0.18+dfsg-19_all.deb \\
        --emoji-google emoji-datasource-google-16.0.0.tgz \\
        --emoji-twitter emoji-datasource-twitter-16.0.0.tgz \\
        --to src/foveate/data

Each argument is a package file as downloaded (`apt-get download openclipart-png openclipart-svg`,
`npm pack emoji-datasource-google@16.0.0`) or a folder it was unpacked to. Package files are checked against
the sha256 below. Written are two Parquet tables, images and texts together, one row an image:

    clipart.parquet   Open Clip Art: WebP with alpha, longest side 96; title, keywords, description and creator as
                      in the source, unchanged (their noise is the point); folders; provenance
    emoji.parquet     Noto Emoji and Twemoji at 64 px: WebP with alpha; name, short names, categories; provenance
    manifest.json     sha256 and row count of both, the versions that made them

The same packages and the same versions of Pillow and pyarrow give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from foveate.records.perceptual_hash import near_pairs, perceptual_hash
from foveate.records.text import split_words

PACKAGES = {  # sha256 of the package files
    "openclipart-png 1:0.18+dfsg-19": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "openclipart-svg 1:0.18+dfsg-19": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "emoji-datasource-google 16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter 16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
CLIPART_SIDE, CLIPART_QUALITY, EMOJI_QUALITY, ALPHA_QUALITY = 96, 77, 84, 60
BATCH_TITLE_COUNT = 5  # a title on more images than this names a batch, not an image
NEAR_DISTANCE = 4  # of the 64 bits of a perceptual hash
PUBLIC_DOMAIN = ("web.resource.org/cc/PublicDomain", "creativecommons.org/licenses/publicdomain")
UNSHIPPED_FOLDERS = (
    *("computer/icons/flat-theme", "computer/icons/lemon-theme", "computer/icons/etiquette-theme"),
    *("shapes/stars", "special/gradients"),  # themes and variations: thousands of near-copies
    *("tools/weapons", "logos", "signs_and_symbols/flags/miscellany"),  # taste, trademarks, party flags
)
UNSHIPPED_TITLE_WORDS = ("sexy",)
UNSHIPPED_EMOJI_CATEGORIES = ("Flags", "Symbols", "Component")
EMOJI_STYLES = {  # style: folder in the package, author, license
    "noto": ("google", "Google LLC and the Noto Emoji authors", "Apache-2.0"),
    "twemoji": ("twitter", "Twitter, Inc. and other contributors", "CC-BY-4.0"),
}


def open_package(path: Path, expected_sha256: str) -> dict[str, bytes | str]:
    """Reads a .deb, a .tgz or an unpacked folder: member name -> content, or the link target for a link."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_symlink() or p.is_file())
        return {p.relative_to(path).as_posix(): str(p.readlink()) if p.is_symlink() else p.read_bytes() for p in found}
    data = path.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected_sha256:
        sys.exit(f"{path}: sha256 is {actual}, expected {expected_sha256}")
    blob = deb_data(data) if path.suffix == ".deb" else data
    members: dict[str, bytes | str] = {}
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        for member in tar:
            if member.issym() or member.isfile():
                name = member.name.removeprefix("./")
                members[name] = member.linkname if member.issym() else tar.extractfile(member).read()  # type: ignore[union-attr]
    return members


def deb_data(data: bytes) -> bytes:
    """The data.tar member of a Debian package (an ar archive: 8 bytes of magic, then 60-byte headers)."""
    offset = 8
    while offset < len(data):
        head = data[offset : offset + 60]
        size = int(head[48:58])
        if head.startswith(b"data.tar"):
            return data[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    sys.exit("not a Debian package: it has no data.tar")


def below(members: dict[str, bytes | str], folder: str) -> dict[str, bytes | str]:
    """Members under `folder`, wherever in the tree it sits, named relative to it."""
    marker = f"/{folder}/"
    return {f"/{name}".split(marker, 1)[1]: content for name, content in members.items() if marker in f"/{name}"}


def svg_metadata(svg: bytes) -> dict[str, Any]:
    """The first cc:Work of an SVG: title, description, creator, date, language, license, keywords, as they stand."""
    fields: dict[str, Any] = {"keywords": []}
    try:
        for _, node in ElementTree.iterparse(io.BytesIO(svg), events=("end",)):
            if node.tag.rsplit("}", 1)[-1] != "Work":
                continue
            for child in node:
                name = child.tag.rsplit("}", 1)[-1]
                fields.setdefault(name, " ".join(" ".join(child.itertext()).split()))
                if name == "license":
                    fields["license"] = next(iter(child.attrib.values()), "")
            fields["keywords"] = [item.text or "" for item in node.iter() if item.tag.endswith("}li")]
            break
    except ElementTree.ParseError:
        return {"keywords": []}  # no readable metadata: no license, so it is not taken
    return fields


def clipart_candidates(
    png: dict[str, bytes | str], svg: dict[str, bytes | str]
) -> Iterator[tuple[str, bytes, dict[str, Any], list[str]]]:
    """(name, PNG bytes, metadata, alias names) of every distinct image in the public domain."""
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for name in sorted(png):
        content = png[name]
        while isinstance(content, str):  # a link, relative to its folder
            target = PurePosixPath(name).parent / content
            parts: list[str] = []
            for part in target.parts:
                parts = parts[:-1] if part == ".." else [*parts, part]
            content = png["/".join(parts)]
        by_content[content].append(name)
    for content, names in by_content.items():
        names.sort(key=lambda name: (isinstance(png[name], str), name))  # the path that is no link comes first
        drawing = svg.get(names[0].removesuffix(".png") + ".svg", b"")
        while isinstance(drawing, str):
            drawing = svg.get(str(PurePosixPath(names[0]).parent / drawing), b"")
        fields = svg_metadata(drawing)
        if any(uri in fields.get("license", "") for uri in PUBLIC_DOMAIN):
            yield names[0].removesuffix(".png"), content, fields, [n.removesuffix(".png") for n in names[1:]]


def is_shipped(name: str, title: str, title_count: int) -> bool:
    """Whether an image has a title of its own and sits in no folder that is left out."""
    if not title or title_count > BATCH_TITLE_COUNT:
        return False
    if any(word in title.lower() for word in UNSHIPPED_TITLE_WORDS):
        return False
    return not any(name == folder or name.startswith(f"{folder}/") for folder in UNSHIPPED_FOLDERS)


def shrink(data: bytes, *, longest_side: int, quality: int) -> dict[str, Any]:
    """The columns image, width, height and covered (the share of pixels that are more than half opaque).

    WebP with alpha, trimmed to what is visible; colors are premultiplied while resizing so that no fringe appears.
    """
    image: Image.Image = PngImageFile(io.BytesIO(data))  # not Image.open: a few posters exceed its pixel limit
    coarse = max(1, max(image.size) // 2048)
    image = image.convert("RGBA").convert("RGBa").reduce(coarse).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    image = image.crop(box) if box else image
    scale = min(1.0, longest_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    target = io.BytesIO()
    image.save(target, "WEBP", quality=quality, alpha_quality=ALPHA_QUALITY, method=6)
    covered = float((np.asarray(image.getchannel("A")) > 127).mean())
    sides = {"width": image.width, "height": image.height}
    return {"image": target.getvalue(), **sides, "covered": round(covered, 4)}


def near_groups(rows: list[dict[str, Any]]) -> list[str]:
    """For each row the key of the first row of its group: equal titles apart from case, marks and digits, or nearly
    equal images on white."""
    hashes = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"])).convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        hashes.append(perceptual_hash(Image.alpha_composite(ground, image).convert("RGB")))
    pairs = [tuple(pair) for pair in near_pairs(np.array(hashes, np.uint64), distance=NEAR_DISTANCE).tolist()]
    first_of_title: dict[str, int] = {}
    for place, row in enumerate(rows):
        title = " ".join(split_words(row["title"], style="letters")) or row["key"]
        pairs.append((first_of_title.setdefault(title, place), place))
    root = list(range(len(rows)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        root[high] = low
    return [rows[find(place)]["key"] for place in range(len(rows))]


def clipart_rows(png: dict[str, bytes | str], svg: dict[str, bytes | str]) -> list[dict[str, Any]]:
    """One row an image, ordered by name."""
    candidates = sorted(clipart_candidates(png, svg), key=lambda candidate: candidate[0])
    counts = Counter(fields.get("title", "") for _, _, fields, _ in candidates)
    rows = []
    for name, content, fields, aliases in candidates:
        title = fields.get("title", "")
        if not is_shipped(name, title, counts[title]):
            continue
        digest = hashlib.sha256(content).hexdigest()
        folders = name.split("/")[:-1]
        rows.append(
            {
                "key": f"clipart-{digest[:12]}",
                **shrink(content, longest_side=CLIPART_SIDE, quality=CLIPART_QUALITY),
                "title": title,
                "keywords": fields["keywords"],
                "description": fields.get("description", ""),
                "creator": fields.get("creator", ""),
                "date": fields.get("date", ""),
                "language": fields.get("language", ""),
                "category": folders[0] if folders else "unsorted",
                "subcategory": "/".join(folders) or "unsorted",
                "aliases": aliases,
                "package": "openclipart-png 1:0.18+dfsg-19",
                "path": f"usr/share/openclipart/png/{name}.png",
                "sha256": digest,
                "license": fields["license"],
                "author": fields.get("creator", "") or "unknown",
            }
        )
    groups = near_groups(rows)
    return [{**row, "group": group} for row, group in zip(rows, groups, strict=True)]


def emoji_rows(packages: dict[str, dict[str, bytes | str]]) -> list[dict[str, Any]]:
    """One row a concept and style, in the order of the Unicode table; the concepts that both styles have."""
    listing = below(packages["noto"], "package") or packages["noto"]
    concepts = json.loads(listing["emoji.json"])
    images = {style: below(packages[style], f"img/{EMOJI_STYLES[style][0]}/64") for style in EMOJI_STYLES}
    rows = []
    for concept in sorted(concepts, key=lambda entry: (entry["sort_order"], entry["unified"])):
        if concept["category"] in UNSHIPPED_EMOJI_CATEGORIES:
            continue
        for style, (folder, author, license) in EMOJI_STYLES.items():
            content = images[style][concept["image"]]
            assert isinstance(content, bytes)
            rows.append(
                {
                    "key": f"{style}-{concept['unified'].lower()}",
                    **shrink(content, longest_side=64, quality=EMOJI_QUALITY),
                    "style": style,
                    "name": concept["name"],
                    "short_names": concept["short_names"],
                    "unified": concept["unified"],
                    "category": concept["category"],
                    "subcategory": concept["subcategory"],
                    "package": f"emoji-datasource-{folder} 16.0.0",
                    "path": f"package/img/{folder}/64/{concept['image']}",
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "license": license,
                    "author": author,
                }
            )
    return rows


def write_table(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes Parquet (WebP bytes stored as they are, texts compressed); returns its entry for the manifest."""
    table = pa.Table.from_pylist(rows)
    texts = {name: "NONE" if name == "image" else "ZSTD" for name in table.column_names}
    pq.write_table(
        table, path, compression=texts, use_dictionary=[n for n in texts if n != "image"], row_group_size=512
    )
    return {"rows": len(rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openclipart", nargs="+", type=Path, required=True, help="one folder, or the two .deb files")
    parser.add_argument("--emoji-google", type=Path, required=True, help="folder or .tgz")
    parser.add_argument("--emoji-twitter", type=Path, required=True, help="folder or .tgz")
    parser.add_argument("--to", type=Path, required=True, help="where to write, src/foveate/data")
    arguments = parser.parse_args()

    hashes = list(PACKAGES.values())
    clipart: dict[str, bytes | str] = {}
    for path in arguments.openclipart:
        clipart |= open_package(path, hashes["-svg" in path.name])
    google = open_package(arguments.emoji_google, hashes[2])
    twitter = open_package(arguments.emoji_twitter, hashes[3])

    arguments.to.mkdir(parents=True, exist_ok=True)
    rows = clipart_rows(below(clipart, "openclipart/png"), below(clipart, "openclipart/svg"))
    files = {"clipart.parquet": write_table(arguments.to / "clipart.parquet", rows)}
    rows = emoji_rows({"noto": google, "twemoji": twitter})
    files["emoji.parquet"] = write_table(arguments.to / "emoji.parquet", rows)
    path = arguments.to / "manifest.json"
    # Weights are trained, not built here; their entries stay.
    weights = json.loads(path.read_text(encoding="utf-8"))["weights"] if path.is_file() else {}
    manifest = {
        "files": files,
        "weights": weights,
        "packages": PACKAGES,
        "made_with": {"pillow": PIL.__version__, "pyarrow": pa.__version__},
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for name, entry in files.items():
        print(f"{name}: {entry['rows']} rows, {entry['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
