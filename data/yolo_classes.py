"""The class names of a YOLO data set: ``data.yaml`` (https://docs.ultralytics.com/datasets/)."""

from pathlib import PurePosixPath

import yaml

from data.errors import LabelError

_NAMES = frozenset({"data.yaml", "data.yml", "dataset.yaml", "dataset.yml"})

# 254 classes of 64 characters are 16 kB; the parser takes seconds for a megabyte.
_MOST_BYTES = 100_000


def is_yolo_class_file(path: str) -> bool:
    """Tell whether a file is called as YOLO data sets call the list of their classes."""
    return PurePosixPath(path).name.lower() in _NAMES


def read_yolo_classes(raw: bytes, *, name: str) -> tuple[str, ...]:
    """Return the class names in the order of their numbers.

    ``names`` is a list, or an object from number to name. A name is taken as it is written: YAML
    itself would read a class called ``no`` as false.

    Args:
        raw: The whole file, UTF-8.
        name: The file as the user knows it, for errors.

    Raises:
        LabelError: With the line of the first value that can't be meant.
    """
    if len(raw) > _MOST_BYTES:
        raise _bad("label_not_yaml", name, 1, f"The file has more than {_MOST_BYTES} bytes.")
    root = _parse(raw, name)
    fields = _fields(root, name)
    if "names" not in fields:
        raise _bad(
            "label_field_missing", name, _line(root), "The file has no 'names': a list of classes."
        )
    names = fields["names"]
    classes = [_class_name(node, name) for node in _numbered(names, name)]
    repeated = sorted({found for found in classes if classes.count(found) > 1})
    if repeated or not classes:
        detail = f"The class {repeated[0]!r} is named twice." if repeated else "No class is named."
        raise _bad("label_field_type", name, _line(names), detail)
    _check_count(fields.get("nc"), len(classes), name)
    return tuple(classes)


def _parse(raw: bytes, name: str) -> yaml.Node | None:
    try:
        # A tree of nodes that know their lines; the safe loader makes no objects of any other kind.
        return yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line, detail = raw.count(b"\n", 0, error.start) + 1, "The file is not UTF-8 text."
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        detail = f"The file is no YAML: {error.problem}."
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line, detail = 1, f"The file is no reasonable YAML: {str(error)[:100]}."
    raise _bad("label_not_yaml", name, line, detail)


def _fields(root: yaml.Node | None, name: str) -> dict[str, yaml.Node]:
    if not isinstance(root, yaml.MappingNode):
        raise _bad("label_field_type", name, _line(root), "The file is no list of fields.")
    fields: dict[str, yaml.Node] = {}
    for key, value in root.value:
        if key.value in ("names", "nc") and key.value in fields:
            raise _bad("label_field_type", name, _line(key), f"{key.value!r} is given twice.")
        if isinstance(key, yaml.ScalarNode):
            fields[key.value] = value
    return fields


def _numbered(names: yaml.Node, file: str) -> list[yaml.Node]:
    """Return the nodes of the names, ordered by their numbers."""
    if isinstance(names, yaml.SequenceNode):
        return list(names.value)
    if not isinstance(names, yaml.MappingNode):
        raise _bad(
            "label_field_type", file, _line(names), "'names' is no list of classes, nor 0: name."
        )
    found: dict[str, yaml.Node] = {}
    for key, value in names.value:
        number = str(key.value)
        if number in found or number not in {str(index) for index in range(len(names.value))}:
            raise _bad(
                "label_field_type",
                file,
                _line(key),
                f"{number[:40]!r} is no class number, or a second or left-out one: they run from "
                f"0 to {len(names.value) - 1}.",
            )
        found[number] = value
    return [found[str(index)] for index in range(len(found))]


def _class_name(node: yaml.Node, file: str) -> str:
    text = str(node.value).strip() if isinstance(node, yaml.ScalarNode) else ""
    if not text or node.tag == "tag:yaml.org,2002:null":
        raise _bad("label_field_type", file, _line(node), "A class has no name.")
    return text


def _check_count(node: yaml.Node | None, count: int, file: str) -> None:
    if node is not None and node.value != str(count):
        raise _bad(
            "label_field_type",
            file,
            _line(node),
            f"'nc' is {str(node.value)[:40]!r}, and {count} classes are named.",
        )


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None else int(node.start_mark.line) + 1


def _bad(code: str, file: str, line: int, detail: str) -> LabelError:
    return LabelError(
        code,
        detail,
        file=file,
        where=f"line {line}",
        hint="Export the data set again, or correct the file: names: [first, second].",
    )
