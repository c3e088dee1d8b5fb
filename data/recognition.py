"""Which layout a folder or an archive has, and what each of its files is in it.

Names tell most of it.  A ``.json`` file holds the labels of one frame or of many; only its content
says which, so a few are looked into.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from data.class_masks import ClassMasks
from data.coco import looks_like_coco
from data.cvat import looks_like_cvat
from data.deeppcb import DEEPPCB_CLASSES, deeppcb_sample, is_deeppcb_template
from data.errors import LabelError, LayoutError
from data.layout import SampleKey, is_yolo_list, sample_key
from data.mvtec import mvtec_sample
from data.yolo_classes import is_yolo_class_file, read_yolo_classes

LayoutName = Literal[
    "coco", "cvat", "voc", "yolo", "labelme", "masks", "class_masks", "mvtec", "deeppcb"
]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)

# A file of many frames' labels is one of a few; where there are more, each belongs to one frame.
_MOST_LOOKED_INTO = 16
_NAMES_SHOWN = 5

_OF_KIND: dict[str, LayoutName] = {
    "labelme": "labelme",
    "voc": "voc",
    "yolo": "yolo",
    "mask": "masks",
    "deeppcb": "deeppcb",
}
_DESCRIPTIONS: dict[LayoutName, str] = {
    "coco": 'with "images" and "annotations"',
    "cvat": "with <annotations>",
    "voc": ".xml of one frame each",
    "yolo": ".txt in a label folder",
    "labelme": ".json of one frame each",
    "masks": "mask pictures",
    "class_masks": "mask pictures of one class each",
    "mvtec": "masks under ground_truth, beside good frames under train/good",
    "deeppcb": ".txt in _not folders, each with its _test picture",
}
# These have names of their own.
_OWN_SAMPLES: dict[LayoutName, Callable[[str], SampleKey | None]] = {
    "mvtec": mvtec_sample,
    "deeppcb": deeppcb_sample,
}
# These have one file for each frame, and names pair them: formats may lie side by side.
_PAIRED = frozenset({"voc", "yolo", "labelme", "masks"})


@dataclass(frozen=True)
class Layout:
    """A folder's or archive's layout.

    Attributes:
        name: None where there are labels of several formats, each for frames of its own, or none.
        evidence: What speaks for it, for a person.
        is_named: Whether the caller named it; the labels of other formats are then left out.
        classes: What the numbers of YOLO files stand for, where a ``data.yaml`` says so; MVTec's
            defect folders.
        class_file: That ``data.yaml``.
        many_frames: Files that hold the labels of many frames.
        class_masks: Which files are masks of one class, in the layout of that name.
        notes: What was left out.
    """

    name: LayoutName | None
    evidence: str
    is_named: bool = False
    classes: tuple[str, ...] | None = None
    class_file: str | None = None
    many_frames: tuple[str, ...] = ()
    class_masks: ClassMasks | None = None
    notes: tuple[str, ...] = ()

    @property
    def fixed_classes(self) -> tuple[str, ...] | None:
        """The classes that the layout itself has, None where the label files name them."""
        return DEEPPCB_CLASSES if self.name == "deeppcb" else self.classes

    @property
    def numbered(self) -> tuple[str, ...] | None:
        """What the numbers of YOLO files stand for."""
        return None if self.name == "mvtec" else self.classes

    def sample(self, name: str) -> SampleKey | None:
        """Return what a file is and its key, None if the layout leaves it out.

        Args:
            name: As `clean_name` returns it.

        Raises:
            LayoutError: ``unsupported_file``: it is neither a picture nor a label.
        """
        if self.name is not None and self.name in _OWN_SAMPLES:
            return _OWN_SAMPLES[self.name](name)
        if self.class_masks is not None:
            return self.class_masks.sample(name)
        if is_yolo_list(name) or (self.classes is not None and is_yolo_class_file(name)):
            return None
        found = sample_key(name)
        if not self.is_named or found.kind == "image":
            return found
        return found if _format(name, found, self.many_frames) == self.name else None

    def leaves_out(self, name: str) -> bool:
        """Tell whether a file has no part in the layout; a refused one is not left out."""
        try:
            return self.sample(name) is None
        except LayoutError:
            return False

    def is_frame(self, name: str) -> bool:
        """Tell whether a file is a frame; False also for names that are refused."""
        try:
            found = self.sample(name)
        except LayoutError:
            return False
        return found is not None and found.kind == "image"


# Files are paired by their names, whatever their format.
PAIRED_BY_NAME = Layout(None, "files are paired by their names")


def files_to_look_into(names: Sequence[str]) -> tuple[str, ...]:
    """Return the files whose content `recognize_layout` needs, a few at most."""
    samples = _samples(names)
    frames = {sample.key for sample in samples.values() if sample.kind == "image"}
    annotations = [name for name, sample in samples.items() if sample.kind in ("labelme", "voc")]
    # What no frame is called by is looked into first.
    annotations.sort(key=lambda name: (samples[name].key in frames, name))
    class_files = sorted(name for name in names if is_yolo_class_file(name))
    return tuple(class_files[:_MOST_LOOKED_INTO] + annotations[:_MOST_LOOKED_INTO])


def recognize_layout(
    names: Sequence[str],
    contents: Mapping[str, bytes],
    *,
    named: LayoutName | None = None,
    declared: Sequence[str] | None = None,
    file: str | None = None,
) -> Layout:
    """Tell a layout by its files, or take the one that the caller names.

    Args:
        names: Every file, as `clean_name` returns them.
        contents: Of `files_to_look_into`, as far as they could be read.
        named: The caller's word; None recognizes.
        declared: The data set's classes, by which masks of one class are told.
        file: The folder or archive, for errors.

    Raises:
        LayoutError: ``layout_ambiguous``: two formats may label the same frames.
            ``layout_mismatch``: the named layout's files are not there.
            ``classes_needed``: there is a mask a class, and none is declared.
        LabelError: A ``data.yaml`` is wrong, or two contradict each other; a mask is of a class
            that is not declared.
    """
    many = tuple(sorted(name for name, raw in contents.items() if _is_of_many_frames(name, raw)))
    frames = frozenset(found.key for found in _samples(names).values() if found.kind == "image")
    class_masks = ClassMasks(frames, tuple(declared or ()), is_named=named == "class_masks")
    own = _labels_of_their_own(names, class_masks, named)
    # A mask of ground_truth/<defect> would pair with test/<defect> in no other layout.
    claimed = set().union(*own.values())
    labels, labelled = _count([name for name in names if name not in claimed], many)
    labels.update((form, found) for form, found in own.items() if found)
    class_files = sorted(name for name in contents if is_yolo_class_file(name))
    evidence = {
        form: _evidence(form, found, class_files if form == "yolo" else ())
        for form, found in labels.items()
    }
    name = _choose(named, evidence, labelled, file)
    is_yolo = name == "yolo" or (name is None and "yolo" in evidence)
    defects = _defect_folders(names) if name == "mvtec" else None
    if name == "class_masks":
        class_masks.check(names, file)
    layout = Layout(
        name,
        evidence[name] if name else " and ".join(evidence.values()) or "pictures only",
        is_named=named is not None,
        classes=yolo_classes(class_files, contents) if is_yolo else defects,
        class_file=class_files[0] if class_files and is_yolo else None,
        many_frames=many,
        class_masks=class_masks if name == "class_masks" else None,
    )
    return replace(layout, notes=_notes(layout, names))


def _labels_of_their_own(
    names: Sequence[str], class_masks: ClassMasks, named: LayoutName | None
) -> dict[LayoutName, list[str]]:
    """Return the label files of the layouts whose names pair in a way of their own."""
    own = {form: _labels_of(sample, names) for form, sample in _OWN_SAMPLES.items()}
    if not any(_is_trained_on(name) for name in names):
        own["mvtec"] = []
    may_be = class_masks.is_named or (named is None and not own["mvtec"])
    own["class_masks"] = class_masks.files(names) if may_be else []
    return own


def check_classes(layout: Layout, declared: Sequence[str] | None) -> None:
    """Refuse classes of a ``data.yaml``, or of MVTec's folders, that the data set lacks.

    Another order is no matter: labels keep their classes by name.

    Raises:
        LabelError: ``classes_differ``.
    """
    strange = [name for name in layout.classes or () if name not in (declared or ())]
    if declared is None or not strange:
        return
    raise LabelError(
        "classes_differ",
        f"The classes {', '.join(strange)} are named, and the data set declares "
        f"{', '.join(declared)}.",
        file=layout.class_file or "ground_truth",
        where="names",
        hint="Correct the names, or create the data set with these classes.",
    )


def _samples(names: Sequence[str]) -> dict[str, SampleKey]:
    samples = {}
    for name in names:
        try:
            samples[name] = sample_key(name)
        except LayoutError:
            continue
    return samples


def _is_of_many_frames(name: str, raw: bytes) -> bool:
    suffix = name.lower().rpartition(".")[2]
    return (suffix == "json" and looks_like_coco(raw)) or (suffix == "xml" and looks_like_cvat(raw))


def _format(name: str, sample: SampleKey, many_frames: Sequence[str]) -> LayoutName:
    """Return the format of a label file."""
    if name in many_frames:
        return "cvat" if sample.kind == "voc" else "coco"
    return _OF_KIND[sample.kind]


def _count(
    names: Sequence[str], many: Sequence[str]
) -> tuple[dict[LayoutName, list[str]], dict[str, set[LayoutName]]]:
    """Return the label files by format, and the formats by what they label."""
    labels: dict[LayoutName, list[str]] = defaultdict(list)
    labelled: dict[str, set[LayoutName]] = defaultdict(set)
    for name, sample in _samples(names).items():
        if sample.kind != "image":
            form = _format(name, sample, many)
            labels[form].append(name)
            labelled[sample.key].add(form)
    return dict(sorted(labels.items())), labelled


def _labels_of(sample: Callable[[str], SampleKey | None], names: Sequence[str]) -> list[str]:
    """Return the label files of a layout of its own that have their frames."""
    samples = {name: sample(name) for name in names}
    frames = {found.key for found in samples.values() if found and found.kind == "image"}
    return [
        name
        for name, found in samples.items()
        if found is not None and found.kind != "image" and found.key in frames
    ]


def _is_trained_on(name: str) -> bool:
    """Tell whether a file is a good frame of MVTec's training part."""
    found = mvtec_sample(name)
    return found is not None and found.is_good and name.split("/")[-3] == "train"


def _defect_folders(names: Sequence[str]) -> tuple[str, ...]:
    samples = map(mvtec_sample, names)
    return tuple(sorted({found.class_name for found in samples if found and found.class_name}))


def _evidence(form: LayoutName, found: Sequence[str], class_files: Sequence[str]) -> str:
    shown = _listed(found) if form in ("coco", "cvat") else str(len(found))
    beside = f"{_listed(class_files)} and " if class_files else ""
    return f"{form}: {beside}{shown} {_DESCRIPTIONS[form]}"


def _choose(
    named: LayoutName | None,
    evidence: Mapping[LayoutName, str],
    labelled: Mapping[str, set[LayoutName]],
    file: str | None,
) -> LayoutName | None:
    if named is not None:
        if named not in evidence:
            raise LayoutError(
                "layout_mismatch",
                f"There is nothing of the layout {named}; found: "
                f"{'; '.join(evidence.values()) or 'pictures only'}.",
                file=file,
                hint="Leave the layout out to have it recognized, or name the one that is there.",
            )
        return named
    if len(evidence) == 1:
        return next(iter(evidence))
    twice = sorted(key for key, forms in labelled.items() if len(forms) > 1)
    if twice or (len(evidence) > 1 and not _PAIRED.issuperset(evidence)):
        example = f" Both label {twice[0]}." if twice else ""
        raise LayoutError(
            "layout_ambiguous",
            f"The layout may be {' or '.join(evidence.values())}.{example}",
            file=file,
            hint=f"Name the layout: {' or '.join(evidence)}. The labels of the others are then "
            "left out.",
        )
    return None


def yolo_classes(
    class_files: Sequence[str], contents: Mapping[str, bytes]
) -> tuple[str, ...] | None:
    """Return what the numbers of YOLO files stand for, None without a class file.

    Raises:
        LabelError: A class file is wrong, or two contradict each other (``classes_differ``).
    """
    found: dict[tuple[str, ...], str] = {}
    for name in class_files:
        found.setdefault(read_yolo_classes(contents[name], name=name), name)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise LabelError(
            "classes_differ",
            f"The classes are not those of {first}.",
            file=second,
            where="whole file",
            hint="Import the two data sets one after the other.",
        )
    return next(iter(found), None)


def _notes(layout: Layout, names: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if layout.class_file is not None and layout.classes is not None:
        notes.append(f"classes as {layout.class_file} numbers them: {', '.join(layout.classes)}")
    if layout.name == "mvtec":
        notes.append("each mask is kept as an index mask, its folder's class marked")
        notes.append("frames in folders called good are declared good")
    if layout.name == "class_masks":
        notes.append(
            "the masks of a frame, one a class, are merged into an index mask; a class without a "
            "file is not marked"
        )
    left_out = [name for name in names if layout.leaves_out(name) and name != layout.class_file]
    templates = [name for name in left_out if is_deeppcb_template(name)]
    if layout.name == "deeppcb" and templates:
        left_out = [name for name in left_out if not is_deeppcb_template(name)]
        notes.append(
            f"{len(templates)} pictures _temp are what frames are compared with, and no frames: "
            f"{_listed(templates)}"
        )
    if left_out:
        notes.append(
            f"{len(left_out)} files are no part of the {layout.name or 'paired'} layout and were "
            f"left out: {_listed(left_out)}"
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
