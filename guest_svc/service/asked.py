"""What a run may be asked for: the checks that need neither its workload nor a hypervisor."""

import re
from typing import Final

from exitlab.serving.refusals import InvalidRequest, PermissionDenied
from exitlab.v1 import guest_pb2
from guest_svc.connection import checked_address
from guest_svc.errors import BadInput

MAX_TEXT_CHARACTERS: Final = 256  # of a request id, and of a host or a path
MAX_PRICE_LISTS: Final = 64  # as many as a hypervisor prices at once
MAX_LANES: Final = 64
MAX_PARAMETERS: Final = 256
# Never a file or a module: what runs here is what is installed here.
_NAME: Final = re.compile(r"(capture:)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Of a host that can be looked up, not of gRPC's other schemes; or a path.
_ADDRESS: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):[0-9]+|unix:/[^\0]+")


def check_request(request: guest_pb2.StartRunRequest) -> None:
    """Refuse what cannot be run, naming the field.

    Raises: InvalidRequest.
    """
    if not 1 <= len(request.request_id) <= MAX_TEXT_CHARACTERS:
        message = f"{len(request.request_id)} characters, expected 1 to {MAX_TEXT_CHARACTERS}"
        raise InvalidRequest("BAD_REQUEST_ID", message, field="request_id")
    config = request.config
    if not _NAME.fullmatch(config.workload):
        said = f"{config.workload[:100]!r} is no name" if config.workload else "not given"
        message = f"{said}; a service runs the workloads that it lists, by their names"
        raise InvalidRequest("NOT_A_NAME", message, field="config.workload")
    for name, count, least, most in (
        ("lanes", len(config.lanes), 1, MAX_LANES),
        ("prices", len(config.prices), 0, MAX_PRICE_LISTS),
        ("parameters", len(config.parameters), 0, MAX_PARAMETERS),
    ):
        if not least <= count <= most:
            message = f"{count} {name}, but a run has {least} to {most}"
            raise InvalidRequest(f"{name[:-1].upper()}_COUNT", message, field=f"config.{name}")
    names = [given.name for given in config.parameters]
    for number, name in enumerate(names):
        if name in names[:number]:
            path = f"config.parameters[{number}].name"
            raise InvalidRequest("PARAMETER_TWICE", f"{name[:100]!r} is there twice", field=path)


def check_hypervisor(asked: str, own: str, *, may_be_any: bool) -> None:
    """Refuse an address of a hypervisor that cannot be one, or that a caller may not choose.

    Raises: InvalidRequest, PermissionDenied.
    """
    path = "config.hypervisor_address"
    if asked in {"", own}:
        return
    if not may_be_any:
        message = "this service runs on its own hypervisor; with --any-hypervisor it lets callers choose"
        raise PermissionDenied("HYPERVISOR_NOT_ALLOWED", message, field=path)
    try:
        checked_address(asked, "")
    except BadInput as error:
        raise InvalidRequest("BAD_ADDRESS", str(error), field=path) from error
    if not _ADDRESS.fullmatch(asked) or len(asked) > MAX_TEXT_CHARACTERS + len(":65535"):
        raise InvalidRequest("BAD_ADDRESS", "expected host:port or unix:/PATH", field=path)
