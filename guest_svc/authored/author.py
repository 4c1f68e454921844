"""The author of a plug-in: what goes wrong in his code is told as his, with the file and the line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from exitlab.plugins import Plugin, PluginError, blamed
from guest_svc import api
from guest_svc.errors import WorkloadError
from guest_svc.workloads.base import BadParameter, Value


class AuthorError(WorkloadError):
    """A plug-in's own fault; its cause, where it has one, is what the author's code raised."""


@dataclass(frozen=True, slots=True)
class Author:
    """Whose a workload is, and how its code is called."""

    plugin: Plugin
    name: str  # of the workload

    @property
    def told_as(self) -> str:
        """The workload and where it is from."""
        return f"workload {self.name} ({self.plugin.origin})"

    def error(self, message: str) -> AuthorError:
        """Return an error that names the workload."""
        return AuthorError(f"{self.told_as}: {message}")

    @contextmanager
    def blaming(self, doing: str) -> Iterator[None]:
        """Tell what the author's code raises meanwhile as his: AuthorError, unless it is of that family."""
        try:
            with blamed(self.plugin.home, doing, WorkloadError):
                yield
        except PluginError as error:
            raise self.error(str(error)) from error.__cause__

    def begin(self, values: Mapping[str, Value], seed: int, events: int | None) -> api.Workload:
        """Return a run of the author's own, prepared.

        Raises:
            WorkloadError: His code fails, or refuses the parameters.

        """
        with self.blaming("preparing it"):
            try:
                made: api.Workload = self.plugin.made(values, seed, events)
                if not hasattr(made, "events_asked"):
                    raise self.error("its __init__ does not call that of Workload; write prepare instead")
                made.prepare()
            except BadParameter as refused:
                raise BadParameter(f"{self.name}: {refused}") from refused
        return made
