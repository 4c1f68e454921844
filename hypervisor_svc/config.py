"""What a session may be: the check of its config before anything is made of it."""

from collections.abc import Callable
from typing import Any, Final

from exitlab.events import Column
from exitlab.serving.refusals import InvalidRequest
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.policies import NoSuchVendor, UnknownPolicy
from hypervisor_svc.policies.base import PolicyError

VM_PROFILES: Final = ("kvm-default",)
MAX_TEXT_CHARACTERS: Final = 256  # of a label, a request id or a policy's name
VENDORS: Final = (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM)
BREAKPOINT_MODES: Final = (
    hypervisor_pb2.BREAKPOINT_MODE_RECORDED,
    hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
)

ResolvePolicy = Callable[[str, policy_pb2.Vendor.ValueType, policy_pb2.CpuFeatures], policy_pb2.PolicyTable]
CheckTable = Callable[[policy_pb2.PolicyTable], object]


def check_config(
    config: hypervisor_pb2.SessionConfig,
    limits: ServerLimits,
    resolve_policy: ResolvePolicy,
    check_table: CheckTable,
) -> None:
    """Refuse a config that no session can run, naming the field.

    Raises: InvalidRequest.
    """
    _check_columns(config)
    _check_cpus(config, limits)
    _check_choice(config.breakpoints, BREAKPOINT_MODES, hypervisor_pb2.BreakpointMode, "config.breakpoints")
    check_vendor(config.leading_vendor, "config.leading_vendor")
    if config.outcome_level not in outcome_pb2.OutcomeLevel.values():
        raise _bad("UNKNOWN_OUTCOME_LEVEL", "config.outcome_level", f"{config.outcome_level} is no level")
    if config.vm_profile and config.vm_profile not in VM_PROFILES:
        message = f"no VM profile {config.vm_profile!r}; there is {', '.join(VM_PROFILES)}"
        raise _bad("UNKNOWN_VM_PROFILE", "config.vm_profile", message)
    if len(config.label) > MAX_TEXT_CHARACTERS:
        message = f"{len(config.label)} characters, but at most {MAX_TEXT_CHARACTERS} are kept"
        raise _bad("TEXT_TOO_LONG", "config.label", message)
    if not 1 <= len(config.lanes) <= limits.max_lanes:
        message = f"{len(config.lanes)} lanes, but a session has 1 to {limits.max_lanes}"
        raise _bad("LANE_COUNT", "config.lanes", message)
    for i, lane in enumerate(config.lanes):
        _check_lane(lane, f"config.lanes[{i}]", resolve_policy, check_table)


def resolved(
    config: hypervisor_pb2.SessionConfig, resolve_policy: ResolvePolicy
) -> hypervisor_pb2.SessionConfig:
    """Return a checked config with every policy's table in place of its name."""
    found = hypervisor_pb2.SessionConfig()
    found.CopyFrom(config)
    for lane in found.lanes:
        if lane.WhichOneof("policy") == "policy_name":
            lane.policy_table.CopyFrom(resolve_policy(lane.policy_name, lane.vendor, lane.features))
    return found


def check_vendor(vendor: int, path: str) -> None:
    """Refuse a vendor that is missing or unknown.

    Raises: InvalidRequest.
    """
    _check_choice(vendor, VENDORS, policy_pb2.Vendor, path)


def _bad(reason: str, path: str, message: str) -> InvalidRequest:
    return InvalidRequest(reason, message, field=path)


def _check_columns(config: hypervisor_pb2.SessionConfig) -> None:
    columns: list[int] = list(config.columns)
    for i, column in enumerate(columns):
        if column not in set(Column):
            raise _bad(
                "UNKNOWN_COLUMN", f"config.columns[{i}]", f"{column} is no column (1 to {len(Column)})"
            )
        if i and column <= columns[i - 1]:
            message = f"{Column(column).name} after {Column(columns[i - 1]).name}: columns ascend"
            raise _bad("COLUMN_ORDER", f"config.columns[{i}]", message)
    if Column.KINDS not in columns:
        raise _bad("KINDS_MISSING", "config.columns", "KINDS is always declared")


def _check_cpus(config: hypervisor_pb2.SessionConfig, limits: ServerLimits) -> None:
    vcpus, cpus = config.vcpus, config.physical_cpus or config.vcpus
    for name, count in (("vcpus", vcpus), ("physical_cpus", cpus)):
        if not 1 <= count <= limits.max_vcpus:
            message = f"{count}, but a session has 1 to {limits.max_vcpus}"
            raise _bad("CPU_COUNT", f"config.{name}", message)
    initial = config.initial_physical_cpus
    if not initial and vcpus > cpus:
        message = f"say where each of {vcpus} vCPUs starts, as there are {cpus} physical CPUs"
        raise _bad("INITIAL_CPUS_MISSING", "config.initial_physical_cpus", message)
    if initial and len(initial) != vcpus:
        message = f"{len(initial)} physical CPUs for {vcpus} vCPUs"
        raise _bad("INITIAL_CPUS_COUNT", "config.initial_physical_cpus", message)
    if config.vcpu_machines and len(config.vcpu_machines) != vcpus:
        message = f"{len(config.vcpu_machines)} virtual machines for {vcpus} vCPUs"
        raise _bad("MACHINES_COUNT", "config.vcpu_machines", message)
    for i, cpu in enumerate(initial):
        if cpu >= cpus:
            path = f"config.initial_physical_cpus[{i}]"
            raise _bad("CPU_OUT_OF_RANGE", path, f"physical CPU {cpu}, but there are {cpus}")


def _check_choice(value: int, known: tuple[int, ...], enum: Any, path: str) -> None:
    """Refuse a number that was not given, or that this version does not know."""
    if value not in known:
        names = " or ".join(enum.Name(number) for number in known)
        said = "not given" if not value else f"{value} is unknown"
        raise _bad("CHOICE_MISSING" if not value else "UNKNOWN_CHOICE", path, f"{said}; say {names}")


def _check_lane(
    lane: policy_pb2.Lane, path: str, resolve_policy: ResolvePolicy, check_table: CheckTable
) -> None:
    check_vendor(lane.vendor, f"{path}.vendor")
    match lane.WhichOneof("policy"):
        case "policy_name":
            try:
                table = resolve_policy(lane.policy_name, lane.vendor, lane.features)
            except NoSuchVendor as error:
                raise _bad("NO_SUCH_VENDOR", f"{path}.vendor", str(error)) from error
            except UnknownPolicy as error:
                raise _bad("UNKNOWN_POLICY", f"{path}.policy_name", str(error)) from error
            except PolicyError as error:
                raise _bad("BAD_POLICY", f"{path}.policy_name", str(error)) from error
            _check_table(table, f"{path}.policy_name", check_table)
        case "policy_table":
            if lane.policy_table.vendor != lane.vendor:
                message = "the table is for another vendor than the lane"
                raise _bad("VENDOR_MISMATCH", f"{path}.policy_table.vendor", message)
            characters = len(lane.policy_table.name)
            if not 1 <= characters <= MAX_TEXT_CHARACTERS:
                message = f"{characters} characters, expected 1 to {MAX_TEXT_CHARACTERS}"
                raise _bad("BAD_POLICY_NAME", f"{path}.policy_table.name", message)
            _check_table(lane.policy_table, f"{path}.policy_table", check_table)
        case _:
            raise _bad("POLICY_MISSING", path, "a lane has a policy_name or a policy_table")


def _check_table(table: policy_pb2.PolicyTable, path: str, check_table: CheckTable) -> None:
    try:
        check_table(table)
    except ValueError as error:
        raise _bad("BAD_POLICY_TABLE", path, str(error)) from error
