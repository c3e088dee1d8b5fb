"""XML from anyone, read safely, with the line of every element.

defusedxml refuses what attacks are made of: document types, entities and references to other files.
Its SAX side is used, because the trees of ElementTree forget on which line an element stood.
"""

from dataclasses import dataclass, field
from typing import Any
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler

from data.errors import LabelError

# Annotation tools nest a handful of elements and write some dozen an object; beyond these a file is
# an attack or no annotation of one frame.
_MOST_LEVELS = 64
_MOST_ELEMENTS = 200_000
_MOST_CHARACTERS = 10_000_000


@dataclass
class Element:
    """One element.

    Attributes:
        tag: Its name.
        line: Line of its opening tag, from 1.
        file: The file as the user knows it, for errors.
        attributes: By name.
        text: Its own text without that of its children, stripped.
        children: In their order.
    """

    tag: str
    line: int
    file: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """Return the children of a name."""
        return [child for child in self.children if child.tag == tag]

    def only(self, tag: str) -> "Element":
        """Return the one child of a name.

        Raises:
            LabelError: There is none, or several.
        """
        found = self.all(tag)
        if not found:
            raise self.error(
                "label_field_missing",
                f"<{self.tag}> holds no <{tag}>.",
                "Export the file again with the annotation tool; it writes this element.",
            )
        if len(found) > 1:
            raise found[1].error(
                "label_field_type",
                f"<{self.tag}> holds {len(found)} <{tag}> where one belongs.",
                "Remove all but one, or export the file again.",
            )
        return found[0]

    def error(self, code: str, detail: str, hint: str) -> LabelError:
        """Return an error at this element's line."""
        return LabelError(code, detail, file=self.file, where=f"line {self.line}", hint=hint)


class _Builder(ContentHandler):
    """Builds the tree."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.root: Element | None = None
        self._file = file
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._elements = 0
        self._characters = 0
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802 - the protocol's own name.
        self._locator = locator

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 - as above.
        element = Element(name, self._locator.getLineNumber(), self._file, dict(attrs.items()))
        self._elements += 1
        if len(self._open) >= _MOST_LEVELS:
            raise self._absurd(f"Elements are nested more than {_MOST_LEVELS} deep.")
        if self._elements > _MOST_ELEMENTS:
            raise self._absurd(f"The file has more than {_MOST_ELEMENTS} elements.")
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self._texts.append([])

    def characters(self, content: str) -> None:
        self._characters += len(content)
        if self._characters > _MOST_CHARACTERS:
            raise self._absurd(f"The file has more than {_MOST_CHARACTERS} characters of text.")
        self._texts[-1].append(content)

    def endElement(self, name: str) -> None:  # noqa: ARG002, N802 - as above.
        self._open.pop().text = "".join(self._texts.pop()).strip()

    def _absurd(self, detail: str) -> LabelError:
        return LabelError(
            "label_not_xml",
            detail,
            file=self._file,
            where=f"line {self._locator.getLineNumber()}",
            hint="Export the file again with the annotation tool, a file for each frame.",
        )


def read_xml(raw: bytes, *, name: str) -> Element:
    """Return the root element of an XML file.

    Args:
        raw: The whole file, in the encoding that it declares.
        name: The file as the user knows it, for errors.

    Raises:
        LabelError: ``label_not_xml`` with the line, for what is damaged, no XML, or could reach
            beyond the file (document types and entities).
    """
    from defusedxml import DefusedXmlException, sax

    builder = _Builder(name)
    try:
        sax.parseString(raw, builder, forbid_dtd=True)
    except SAXParseException as error:
        detail, line = f"The file is no XML: {error.getMessage()}.", error.getLineNumber() or 1
    except DefusedXmlException:
        detail, line = "The file declares a document type or an entity.", 1
    except (SAXException, LookupError, ValueError) as error:
        # An encoding that nobody knows.
        detail, line = f"The file is no XML that can be read: {error}.", 1
    else:
        assert builder.root is not None  # A document without a root element does not parse.
        return builder.root
    raise LabelError(
        "label_not_xml",
        detail,
        file=name,
        where=f"line {line}",
        hint="Upload the file as the annotation tool exported it.",
    )
