"""A policy's table, or the difference of two, in the form that is asked for."""

from exitlab.v1 import policy_pb2
from hypervisor_svc.show.diff import diff_object, diff_text
from hypervisor_svc.show.dot import dot_text
from hypervisor_svc.show.json_text import as_json, to_json
from hypervisor_svc.show.text import policy_text


def shown(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable | None, output: str) -> str:
    """Return ``first``, or what is different in ``second``, as ``text``, ``json`` or ``dot``."""
    if output == "dot":
        return dot_text(first, second)
    if second is None:
        return policy_text(first) if output == "text" else as_json(first) + "\n"
    return diff_text(first, second) if output == "text" else to_json(diff_object(first, second)) + "\n"
