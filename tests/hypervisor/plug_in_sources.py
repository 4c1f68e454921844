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
_COUNTING: Final = "        Mine.n = getattr(Mine, 'n', 0) + 1\n        save = ("
_NO_CLASS: Final = "./mine.py:Mine: there is no such class; "

# What the author wrote in mine.py, and how that begins which he is told.
MISTAKES: Final = {
    "syntax": (changed("(Policy):", "(Policy)"), f"mine.py:{CLASS}: SyntaxError: expected ':'"),
    "import": (
        changed("from enum import IntEnum", "import far"),
        "mine.py:3: ModuleNotFoundError: No ",
    ),
    "of the api": (changed("SVM, VEC", "SVN, VEC"), "mine.py:5: ImportError: cannot import name 'SVN'"),
    "module": (f"{GOOD}\nprint(fan)\n", f"mine.py:{_END + 2}: NameError: name 'fan' is not defined"),
    "leaves": ("raise SystemExit(0)", "mine.py:1: SystemExit: 0"),
    "misspelt class": (changed("class Mine(", "class Mime("), f"{_NO_CLASS}did you mean Mime?"),
    "no class": ("Other = 1", f"{_NO_CLASS}it has no policy"),
    "function": ("def Mine(): ...", "./mine.py:Mine: of type function, but no policy; a policy is a class"),
    "other class": ("class Mine: ...", "./mine.py:Mine: a class, but no policy; a policy is a class derived"),
    "base": ("from hypervisor_svc.api import Policy as Mine", "./mine.py:Mine: a class, but no policy; "),
    "no api version": (
        changed("    api_version = 1\n", ""),
        f"mine.py:{CLASS}: Mine states no api_version; expected 1: write api_version = 1",
    ),
    "other api version": (
        changed("api_version = 1", "api_version = 2"),
        f"mine.py:{CLASS}: Mine has api_version 2; expected 1: write api_version = 1",
    ),
    "cannot be made": (
        with_init("self", "self.x = 1 / 0"),
        f"mine.py:{_FIRST + 1}: Mine cannot be made: ZeroDivisionError: division by zero",
    ),
    "wants an argument": (
        with_init("self, size", "self.x = size"),
        f"mine.py:{CLASS}: Mine cannot be made: TypeError: ",
    ),
    "no name": (changed('    name = "mine"\n', ""), f"mine.py:{CLASS}: Mine is named '', expected 1 to 256"),
    "name is no text": (changed('"mine"', "5"), f"mine.py:{CLASS}: Mine is named 5, expected a text"),
    "two lines": (
        changed('"mine"', '"mi\\nne"'),
        f"mine.py:{CLASS}: Mine is named 'mi\\nne', expected",
    ),
    "name of ours": (
        changed('"mine"', '"kvm-6.14"'),
        f"mine.py:{CLASS}: Mine has the name of a policy that ExitLab comes with; give it another",
    ),
    "name of several": (
        changed('"mine"', '"correct"'),
        f"mine.py:{CLASS}: Mine has a name that stands for several policies; give it another",
    ),
    "vendors": (
        changed("    memories =", "    vendors = [VMX]\n    memories ="),
        f"mine.py:{CLASS}: Mine: vendors are [1], expected (VMX,), (SVM,) or (VMX, SVM)",
    ),
    "another vendor": (
        with_init("self, vendor", "self.vendor = SVM"),
        f"mine.py:{CLASS}: Mine: made for vmx, it is of another vendor",
    ),
    "misspelt moment": (
        changed("def leave_loop", "def leaves_loop"),
        f"mine.py:{_LEAVE}: Mine.leaves_loop is asked at no moment; did you mean leave_loop?",
    ),
    "raises in a state": (
        changed("save = (", "save = 1 // (sees.memory - 1) and ("),
        f"mine.py:{_LEAVE + 3}: mine: at LEAVE_LOOP (memory=OPEN) the policy fails: ZeroDivisionError: ",
    ),
    "leaves in a state": (
        changed("save = (", "raise SystemExit(3)\n        save = ("),
        f"mine.py:{_LEAVE + 3}: mine: at LEAVE_LOOP (memory=OPEN) the policy fails: SystemExit: 3",
    ),
    "no answer": (
        changed("            return None\n        save", "            return 7\n        save"),
        f"mine.py:{_LEAVE}: mine: at LEAVE_LOOP (memory=CLOSED) the policy answers 7, expected do(...)",
    ),
    "not shown there": (
        changed("if sees.memory == Window.CLOSED", "if sees.check"),
        f"mine.py:{_LEAVE + 1}: mine: LEAVE_LOOP does not show check",
    ),
    "memory of another": (
        changed("Action.ARM, memory=Window.CLOSED", "Action.ARM, memory=IntEnum('Far', 'A B C').C"),
        f"mine.py:{_LEAVE}: mine: at LEAVE_LOOP (memory=OPEN) the policy goes on with memory <Far.C: 3>",
    ),
    "no memories": (
        changed("memories = Window", "memories = 5"),
        f"mine.py:{CLASS}: mine: cannot be tabulated: TypeError: ",
    ),
    "unanswered": (
        changed("            return do(Action.INJECT)\n", "            return None\n"),
        f"mine.py:{CLASS}: mine: at DR_TRAPPED (check=UD) the table leaves a trapped MOV DR without an",
    ),
    "still intercepted": (
        changed("Action.DISARM, ", ""),
        f"mine.py:{CLASS}: mine: at DR_TRAPPED (check=NONE) the table re-executes with the intercept still",
    ),
    "counts": (
        changed("save = (", _COUNTING.lstrip()).replace(
            "Action.EFFECTIVE, Action.RECOMPUTE", "Action.RECOMPUTE if Mine.n % 4 < 2 else Action.EFFECTIVE"
        ),
        f"mine.py:{CLASS}: mine: at LEAVE_LOOP asked twice, the policy answers in two ways: ",
    ),
}
