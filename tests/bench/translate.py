"""Functions of the engine's plain kind of Python, in C.

The translation knows the few forms that the loops are written in, numbers of 64 bits and arrays, and
refuses any other. Each variable is declared where it is first needed, as by hand.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from tests.bench.syntax import (
    Block,
    NotPortable,
    chained,
    declarations_of,
    function_tree,
    is_truth,
    name_of,
    places_of,
)

WIDTH: Final = 110
_BINARY: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.BitOr: "|",
    ast.BitAnd: "&",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.FloorDiv: "/",
    ast.Mod: "%",
}
_COMPARE: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_UNARY: Final[dict[type[ast.unaryop], str]] = {ast.Not: "!", ast.Invert: "~", ast.USub: "-"}
_WIDENING: Final = (ast.Add, ast.Sub, ast.Mult, ast.LShift)
_COMPOUND: Final = (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp)
_SMALL: Final = re.compile(r"_?(ZERO|ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|SIXTEEN|\d+|F+)")
_TAKEN: Final = frozenset({"register", "true", "false"})  # words of C


def macro(name: str) -> str:
    """Return the name that a constant of the loop has in C; the private ones would be reserved there."""
    return f"K{name}" if name.startswith("_") else name


def source_of(function: Any) -> Callable[..., Any]:
    """Return the Python function, compiled or not."""
    plain: Callable[..., Any] = getattr(function, "py_func", function)
    return plain


class Function:
    """One function in C."""

    def __init__(self, function: Any, module: ModuleType) -> None:
        """Read the function's source."""
        text = inspect.getsource(source_of(function))
        self._module = vars(module)
        self._lines = text.splitlines()
        self.tree = function_tree(text)
        self.parameters = [argument.arg for argument in self.tree.args.args]
        self.constants: dict[str, int] = {}  # the macros that the statements use
        self._places = places_of(self.tree.body)
        self._declared = declarations_of(self.tree, self._places, self.parameters)
        self._out: list[str] = []
        self._told: set[int] = set()  # lines whose comments are written

    def body(self) -> str:
        """Return the statements."""
        self._out, self._told = [], set()
        self._block(self.tree.body, 1)
        return "\n".join(self._out)

    @property
    def sized(self) -> set[str]:
        """The arrays whose length the function asks for."""
        asked = (node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute))
        return {name_of(node.value) for node in asked if node.attr in ("size", "shape")}

    @property
    def called(self) -> list[Any]:
        """The functions of the engine that it calls."""
        nodes = (node for statement in self.tree.body for node in ast.walk(statement))
        names = [name_of(node.func) for node in nodes if isinstance(node, ast.Call)]
        found = (self._module.get(name) for name in dict.fromkeys(names))
        return [one for one in found if callable(one) and not isinstance(one, type)]

    def _type(self, variable: str) -> str:
        values = [
            node.value
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign) and name_of(node.targets[0]) == variable
        ]
        return "bool" if values and all(is_truth(value) for value in values) else "u64"

    # Statements.

    def _block(self, block: Block, depth: int) -> None:
        for number, statement in enumerate(block):
            wanted = self._declared.get((id(block), number), [])
            first = name_of(statement.targets[0]) if isinstance(statement, ast.Assign) else ""
            for kind in ("bool", "u64"):
                names = [_word(name) for name in wanted if name != first and self._type(name) == kind]
                if names:
                    self._line(depth, f"{kind} {', '.join(names)};")
            if statement.lineno not in self._told:
                self._comments_above(statement.lineno, depth)
            self._statement(statement, depth, f"{self._type(first)} " if first in wanted else "")
            self._told.add(statement.lineno)

    def _statement(self, statement: ast.stmt, depth: int, kind: str) -> None:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return
            case ast.Assign(targets=[target], value=value):
                text = f"{kind}{self._expression(target)} = {self._expression(value)};"
            case ast.AugAssign(target=target, op=operator, value=value):
                text = f"{self._expression(target)} {_BINARY[type(operator)]}= {self._expression(value)};"
            case ast.Continue():
                text = "continue;"
            case ast.Break():
                text = "break;"
            case ast.Return(value=None):
                text = "return;"
            case ast.Return(value=value) if value is not None:
                text = f"return {self._expression(value)};"
            case ast.For(target=target, iter=ast.Call(args=[*start, limit])) if len(start) < 2:
                name, first = name_of(target), self._expression(start[0]) if start else "0"
                text = f"for (u64 {name} = {first}; {name} < {self._expression(limit)}; {name}++) {{"
            case ast.While(test=test):
                text = f"while ({self._expression(test)}) {{"
            case ast.If():
                self._if(statement, depth, "if")
                return
            case _:
                raise NotPortable(ast.unparse(statement))
        self._line(depth, text, self._comment_beside(statement.lineno))
        if isinstance(statement, ast.For | ast.While):
            self._block(statement.body, depth + 1)
            self._line(depth, "}")

    def _if(self, statement: ast.If, depth: int, word: str) -> None:
        text = f"{word} ({self._expression(statement.test)}) {{"
        self._line(depth, text, self._comment_beside(statement.lineno))
        self._block(statement.body, depth + 1)
        following = chained(statement)
        if following is not None:
            self._if(following, depth, "} else if")
            return
        if statement.orelse:
            self._line(depth, "} else {")
            self._block(statement.orelse, depth + 1)
        self._line(depth, "}")

    # Lines and comments.

    def _line(self, depth: int, text: str, comment: str = "") -> None:
        indent = "    " * depth
        whole = f"{text} /* {comment} */" if comment else text
        wrapped = textwrap.wrap(
            whole,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=f"{indent}        ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        self._out += wrapped

    def _comments_above(self, line: int, depth: int) -> None:
        above: list[str] = []
        number = line - 2
        while number >= 0 and self._lines[number].lstrip().startswith("# "):
            above.insert(0, self._lines[number].lstrip()[2:])
            number -= 1
        if above:
            self._line(depth, f"/* {' '.join(above)} */")

    def _comment_beside(self, line: int) -> str:
        return "" if line in self._told else self._lines[line - 1].partition("  # ")[2]

    # Expressions.

    def _expression(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Constant(value=bool() as value):
                return str(value).lower()
            case ast.Constant(value=int() as value):
                return str(value) if value < 256 else f"{value:#x}ull"
            case ast.Attribute() | ast.Subscript():
                return self._element(node)
            case ast.Call(func=ast.Name(id="U64"), args=[value]):
                return self._expression(value)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr=kind), args=[value]):
                return f"({kind.replace('uint', 'u')})({self._expression(value)})"
            case ast.Call(func=ast.Name(id=name), args=values):
                return f"{name.lstrip('_')}({', '.join(map(self._expression, values))})"
            case ast.UnaryOp(op=operator, operand=value):
                return _UNARY[type(operator)] + _long(self._operand(value, is_wide=True))
            case ast.BinOp() | ast.BoolOp() | ast.Compare() | ast.IfExp():
                return self._compound(node)
            case _:
                raise NotPortable(ast.unparse(node))

    def _element(self, node: ast.expr) -> str:
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="size"):
                return f"{name}_size"
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name), attr="shape")):
                return f"{name}_size"
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                return self._macro(name, getattr(self._module[module], name))
            case ast.Subscript(value=array, slice=ast.Tuple(elts=indices)):
                return self._expression(array) + "".join(f"[{self._expression(index)}]" for index in indices)
            case ast.Subscript(value=array, slice=index):
                return f"{self._expression(array)}[{self._expression(index)}]"
            case _:
                raise NotPortable(ast.unparse(node))

    def _compound(self, node: ast.expr) -> str:
        match node:
            case ast.BinOp(left=left, op=operator, right=right):
                is_chain = isinstance(left, ast.BinOp) and type(left.op) is type(operator)
                is_wide = isinstance(operator, _WIDENING)
                first = self._expression(left) if is_chain else self._operand(left, is_wide=is_wide)
                first = _long(first) if isinstance(operator, ast.LShift) else first
                return f"{first} {_BINARY[type(operator)]} {self._operand(right)}"
            case ast.BoolOp(op=operator, values=values):
                word = " && " if isinstance(operator, ast.And) else " || "
                compared = (
                    self._expression(one) if isinstance(one, ast.Compare) else self._operand(one)
                    for one in values
                )
                return word.join(compared)
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                return f"{self._operand(left)} {_COMPARE[type(operator)]} {self._operand(right)}"
            case ast.IfExp(test=test, body=yes, orelse=no):
                asked = self._expression(test) if isinstance(test, ast.Compare) else self._operand(test)
                return f"{asked} ? {self._operand(yes)} : {self._operand(no)}"
            case _:
                raise NotPortable(ast.unparse(node))

    def _operand(self, node: ast.expr, *, is_wide: bool = False) -> str:
        """Return an expression as part of another; ``is_wide`` where C would compute with fewer bits."""
        is_cast = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "U64"
        inner = node.args[0] if is_cast and isinstance(node, ast.Call) else node
        text = self._expression(node)
        if is_cast and is_wide and isinstance(inner, ast.Subscript):
            return f"(u64){text}"
        return f"({text})" if isinstance(inner, _COMPOUND) else text

    def _named(self, name: str) -> str:
        if name in self._places and name in self._module and not name.islower():
            number = self._module[name]
            return str(int(number)) if _SMALL.fullmatch(name) else self._macro(name, number)
        return _word(name)

    def _macro(self, name: str, number: Any) -> str:
        """Return a constant's name in C and take note of its number."""
        self.constants[macro(name)] = int(number)
        return macro(name)


def _long(text: str) -> str:
    """Return a number as one of 64 bits; anything else is one already."""
    return f"{text}ull" if text.isdecimal() else text


def _word(name: str) -> str:
    return f"{name}_" if name in _TAKEN else name
