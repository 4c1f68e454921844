"""The contract as a text for people: every message, field, number, type and comment.

``v1.txt`` is this text. A change of the contract shows there as what it is, whatever else moved in its files.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

LISTING: Final = Path(__file__).parent / "v1.txt"
_WIDTH: Final = 110
_Path = tuple[int, ...]
_SYNTAX: Final = (FileDescriptorProto.SYNTAX_FIELD_NUMBER,)  # a file's own comment stands above it


def listing(files: list[FileDescriptorProto]) -> str:
    """Return the text of descriptors that have their comments."""
    return "\n".join(line for file in files for line in _File(file).lines()) + "\n"


class _File:
    """One file, and its comments by the place of what they are on."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments: dict[_Path, str] = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }

    def lines(self) -> Iterator[str]:
        file = self._file
        yield f"{file.name}: package {file.package}, {file.syntax}"
        yield from self._comment(_SYNTAX, 1)
        yield ""
        for place, service in enumerate(file.service):
            yield from self._service(service, (file.SERVICE_FIELD_NUMBER, place))
        for place, enum in enumerate(file.enum_type):
            yield from self._enum(enum, (file.ENUM_TYPE_FIELD_NUMBER, place))
        for place, message in enumerate(file.message_type):
            yield from self._message(message, (file.MESSAGE_TYPE_FIELD_NUMBER, place))

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"service {service.name}"
        yield from self._comment(path, 1)
        for place, method in enumerate(service.method):
            asked = "stream " * method.client_streaming + _short(method.input_type)
            answered = "stream " * method.server_streaming + _short(method.output_type)
            yield f"  {method.name}({asked}) returns ({answered})"
            yield from self._comment((*path, service.METHOD_FIELD_NUMBER, place), 2)
        yield ""

    def _enum(self, enum: EnumDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"enum {enum.name}"
        yield from self._comment(path, 1)
        for place, value in enumerate(enum.value):
            yield f"  {value.number} {value.name}"
            yield from self._comment((*path, enum.VALUE_FIELD_NUMBER, place), 2)
        yield ""

    def _message(self, message: DescriptorProto, path: _Path) -> Iterator[str]:
        # v1 has neither; a contract that grows some is to be listed whole.
        assert not message.nested_type, f"{message.name} has messages in it: list them too"
        assert not message.enum_type, f"{message.name} has enums in it: list them too"
        yield f"message {message.name}"
        yield from self._comment(path, 1)
        for place, field in enumerate(message.field):
            choice = ""
            if field.HasField("oneof_index"):
                choice = f", one of {message.oneof_decl[field.oneof_index].name}"
            yield f"  {field.number} {field.name}: {_type(field)}{choice}"
            yield from self._comment((*path, message.FIELD_FIELD_NUMBER, place), 2)
        yield ""

    def _comment(self, path: _Path, depth: int) -> Iterator[str]:
        indent = "  " * depth + "# "
        for paragraph in re.split(r"\n\s*\n", self._comments.get(path, "")):
            text = " ".join(paragraph.split())
            yield from textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _type(field: FieldDescriptorProto) -> str:
    name = _short(field.type_name) or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return "repeated " * (field.label == field.LABEL_REPEATED) + name


def _short(name: str) -> str:
    return name.removeprefix(".exitlab.v1.")
