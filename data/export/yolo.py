"""Writing a version's boxes and outlines as YOLO files, with its ``data.yaml``."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from data.decimal_places import EXACT
from data.export.decimals import DECIMALS, DecimalOf, part, written
from data.items import Item, SplitName
from data.labels import Box, Polygon, shapes
from data.layout import SampleKey, sample_key
from data.manifest import Manifest

# What YOLO tools call our splits.
_LISTS: dict[SplitName, str] = {"train": "train", "calibration": "val", "test": "test"}


def yolo_name(item: Item) -> str:
    """Return what the frame's label file is called.

    Where YOLO tools look for it (the last ``images`` of the frame's folders becomes ``labels``) if
    that pairs the two here as well; else in one ``labels`` folder at the top.
    """
    parts = item.name.rpartition(".")[0].split("/")
    folders = parts[:-1]
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        name = "/".join([*parts[:last], "labels", *parts[last + 1 :]]) + ".txt"
        if _key_in_labels(name) == item.key:
            return name
    return f"labels/{item.key}.txt"


def _key_in_labels(name: str) -> str:
    # Asked of an annotation that is one by its suffix alone; `classes.txt` is none.
    found: SampleKey = sample_key(name.removesuffix(".txt") + ".json")
    return found.key


def write_yolo(item: Item, classes: Sequence[str]) -> Iterator[bytes]:
    """Yield the frame's label file with ever more digits."""
    for decimal_of in DECIMALS:
        lines = [
            " ".join([str(classes.index(shape.class_name)), *_numbers(shape, item, decimal_of)])
            for shape in shapes(item.labels)
        ]
        yield "".join(f"{line}\n" for line in lines).encode()


def _numbers(shape: Polygon | Box, item: Item, decimal_of: DecimalOf) -> list[str]:
    if isinstance(shape, Polygon):
        return [
            written(part(decimal_of(place), side))
            for point in shape.points
            for place, side in zip(point, (item.width, item.height), strict=True)
        ]
    left, width = (part(decimal_of(px), item.width) for px in (shape.x, shape.width))
    top, height = (part(decimal_of(px), item.height) for px in (shape.y, shape.height))
    centre_x, centre_y = _centre(left, width), _centre(top, height)
    return [written(value) for value in (centre_x, centre_y, width, height)]


def _centre(begin: Decimal, length: Decimal) -> Decimal:
    """Return the middle, exactly, so that its reader comes back to ``begin``."""
    return EXACT.add(begin, EXACT.divide(length, Decimal(2)))


def write_data_yaml(manifest: Manifest) -> bytes:
    """Return ``data.yaml``: the classes by number and the lists of `write_lists`.

    It names no ``path``; tools then take the folder that it lies in.
    """
    import yaml

    document = {list_name: f"{list_name}.txt" for list_name, _ in _filled_lists(manifest)}
    names = dict(enumerate(manifest.classes))
    text: str = yaml.safe_dump({**document, "names": names}, allow_unicode=True, sort_keys=False)
    return text.encode()


def write_lists(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each split's list of frames; calibration is ``val.txt``."""
    for list_name, items in _filled_lists(manifest):
        # Tools take what begins with ./ from where the list lies.
        yield f"{list_name}.txt", "".join(f"./{item.name}\n" for item in items).encode()


def _filled_lists(manifest: Manifest) -> list[tuple[str, tuple[Item, ...]]]:
    lists = [(name, manifest.subset(split).items) for split, name in _LISTS.items()]
    return [(name, items) for name, items in lists if items]
