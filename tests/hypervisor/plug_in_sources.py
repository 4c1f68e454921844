"""What authors of policies write, right and wrong."""

from typing import Final

GOOD: Final = '''"""A policy of somebody else's."""

from enum import IntEnum

from hypervisor_svc.api import SVM, VECTOR_DB, VMX, Action, Do, Policy, Sees, do


class Window(IntEnum):
    CLOSED = 0
    OPEN = 1


class Mine(Policy):
    api_version = 1
    name = "mine"
    summary = "one of mine"
    memories = Window
    intercepted_exceptions = (VECTOR_DB,)
    refuses_set_debugregs = True

    def dr_trapped(self, sees: Sees) -> Do:
        if sees.check:
            return do(Action.INJECT)
        return do(Action.DISARM, Action.REEXECUTE, memory=Window.OPEN)

    def enter_loop(self, sees: Sees) -> Do | None:
        if sees.memory == Window.OPEN or sees.breakpoints_enabled:
            return do(Action.ZERO_DR7, Action.LOAD_DR0_3, Action.LOAD_DR6)
        return None

    def leave_loop(self, sees: Sees) -> Do | None:
        if sees.memory == Window.CLOSED:
            return None
        save = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)
        return do(save, Action.EFFECTIVE, Action.RECOMPUTE, Action.ARM, memory=Window.CLOSED)

    def db_exit(self, sees: Sees) -> Do:
        return do(Action.MERGE_DB_SHADOW)
'''


def line_of(text: str, source: str) -> int:
    """Return the line of a source that a text stands in."""
    return source[: source.index(text)].count("\n") + 1


def changed(old: str, new: str, source: str = GOOD) -> str:
    """Return a source with a part of it replaced, which must be there."""
    assert old in source
    return source.replace(old, new)


def with_init(arguments: str, body: str) -> str:
    """Return the good source with an ``__init__``."""
    return changed("    def dr_t", f"    def __init__({arguments}):\n        {body}\n\n    def dr_t")


CLASS: Final = line_of("class Mine", GOOD)
_FIRST: Final = line_of("    def dr_trapped", GOOD)
_LEAVE: Final = line_of("def leave_loop", GOOD)
_END: Final = GOOD.count("\n")
_COUNTING: Final = "Mine.n = getattr(Mine, 'n', 0) + 1\n        save = ("
_UNANSWERED: Final = "mine: at DR_TRAPPED (check=UD) the table leaves a trapped MOV DR without an answer"

# What the author wrote in mine.py, how that begins which he is told, and the line that it names.
MISTAKES: Final = {
    "syntax": (changed("(Policy):", "(Policy)"), "importing it: SyntaxError: expected ':'", CLASS),
    "import": (changed("from enum import IntEnum", "import far"), "importing it: ModuleNotFoundError: ", 3),
    "of the api": (changed("SVM, VEC", "SVN, VEC"), "importing it: ImportError: cannot import name 'SVN'", 5),
    "module": (f"{GOOD}\nprint(fan)\n", "importing it: NameError: name 'fan' is not defined", _END + 2),
    "leaves": ("raise SystemExit(0)", "importing it: SystemExit: 0", 1),
    "other class": ("class Mine: ...", "Mine is no policy: derive it from Policy of hypervisor_svc.api", 1),
    "no api version": (
        changed("    api_version = 1\n", ""),
        "Mine states no api_version; expected 1: write api_version = 1",
        CLASS,
    ),
    "other api version": (
        changed("api_version = 1", "api_version = 2"),
        "Mine has api_version 2; expected 1: write api_version = 1",
        CLASS,
    ),
    "cannot be made": (
        with_init("self", "self.x = 1 / 0"),
        "Mine cannot be made: ZeroDivisionError: division by zero",
        _FIRST + 1,
    ),
    "wants an argument": (
        with_init("self, size", "self.x = size"),
        "Mine cannot be made: TypeError: ",
        CLASS,
    ),
    "no name": (changed('    name = "mine"\n', ""), "Mine is named '', expected 1 to 256 printable", CLASS),
    "name is no text": (changed('"mine"', "5"), "Mine is named 5, expected a text", CLASS),
    "two lines": (changed('"mine"', '"mi\\nne"'), "Mine is named 'mi\\nne', expected 1 to 256", CLASS),
    "name of ours": (
        changed('"mine"', '"kvm-6.14"'),
        "Mine has the name of a policy that ExitLab comes with; give it another",
        CLASS,
    ),
    "name of several": (
        changed('"mine"', '"correct"'),
        "Mine has a name that stands for several policies; give it another",
        CLASS,
    ),
    "vendors": (
        changed("    memories =", "    vendors = [VMX]\n    memories ="),
        "Mine: vendors are [1], expected (VMX,), (SVM,) or (VMX, SVM)",
        CLASS,
    ),
    "another vendor": (
        with_init("self, vendor", "self.vendor = SVM"),
        "Mine: made for vmx, it is of another vendor",
        CLASS,
    ),
    "summary of two lines": (
        changed('"one of mine"', '"one\\nof mine"'),
        "mine: its summary is 'one\\nof mine', expected at most 1,000 printable characters",
        CLASS,
    ),
    "misspelt moment": (
        changed("def leave_loop", "def leaves_loop"),
        "Mine.leaves_loop is asked at no moment; did you mean leave_loop?",
        _LEAVE,
    ),
    "raises the end of a generator": (
        changed("save = (", "raise GeneratorExit\n        save = ("),
        "mine: at LEAVE_LOOP (memory=OPEN) the policy fails: GeneratorExit",
        _LEAVE + 3,
    ),
    "raises in a state": (
        changed("save = (", "save = 1 // (sees.memory - 1) and ("),
        "mine: at LEAVE_LOOP (memory=OPEN) the policy fails: ZeroDivisionError: ",
        _LEAVE + 3,
    ),
    "leaves in a state": (
        changed("save = (", "raise SystemExit(3)\n        save = ("),
        "mine: at LEAVE_LOOP (memory=OPEN) the policy fails: SystemExit: 3",
        _LEAVE + 3,
    ),
    "no answer": (
        changed("            return None\n        save", "            return 7\n        save"),
        "mine: at LEAVE_LOOP (memory=CLOSED) the policy answers 7, expected do(...) or None",
        _LEAVE,
    ),
    "not shown there": (
        changed("if sees.memory == Window.CLOSED", "if sees.check"),
        "mine: LEAVE_LOOP does not show check",
        _LEAVE + 1,
    ),
    "memory of another": (
        changed("Action.ARM, memory=Window.CLOSED", "Action.ARM, memory=IntEnum('Far', 'A B C').C"),
        "mine: at LEAVE_LOOP (memory=OPEN) the policy goes on with memory <Far.C: 3>, which is none of",
        _LEAVE,
    ),
    "no memories": (
        changed("memories = Window", "memories = 5"),
        "mine: cannot be tabulated: TypeError: ",
        CLASS,
    ),
    "unanswered": (
        changed("            return do(Action.INJECT)\n", "            return None\n"),
        _UNANSWERED,
        CLASS,
    ),
    "still intercepted": (
        changed("Action.DISARM, ", ""),
        "mine: at DR_TRAPPED (check=NONE) the table re-executes with the intercept still on: the same",
        CLASS,
    ),
    "counts": (
        changed("save = (", _COUNTING).replace(
            "Action.EFFECTIVE, Action.RECOMPUTE", "Action.RECOMPUTE if Mine.n % 4 < 2 else Action.EFFECTIVE"
        ),
        "mine: at LEAVE_LOOP asked twice, the policy answers in two ways: ",
        CLASS,
    ),
}
