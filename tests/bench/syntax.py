"""What the translation asks of Python's syntax trees."""

import ast
from collections.abc import Iterator
from typing import Any, cast

Block = list[ast.stmt]


class NotPortable(ValueError):
    """A form that the translation does not know; the message has it."""


def name_of(node: ast.expr) -> str:
    """Return a plain name; nothing for anything else."""
    return node.id if isinstance(node, ast.Name) else ""


def is_truth(node: ast.expr) -> bool:
    """Tell whether an expression is true or false by its form."""
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, bool)
    is_denied = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return is_constant or is_denied or isinstance(node, ast.Compare | ast.BoolOp)


def chained(statement: ast.If) -> ast.If | None:
    """Return the ``if`` of an ``elif``."""
    if len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If):
        inner = statement.orelse[0]
        return inner if inner.col_offset == statement.col_offset else None
    return None


def blocks_of(statement: ast.stmt) -> Iterator[Block]:
    """Yield the blocks inside a statement; those of an ``elif`` are its ``if``'s."""
    if isinstance(statement, ast.For | ast.While):
        yield statement.body
    while isinstance(statement, ast.If):
        yield statement.body
        following = chained(statement)
        if following is None:
            yield statement.orelse
            return
        statement = following


def own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the nodes of a statement that are in none of its blocks."""
    inner = {id(one) for block in blocks_of(statement) for one in block}
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if id(node) not in inner:
            yield node
            waiting += ast.iter_child_nodes(node)


class _OneByOne(ast.NodeTransformer):
    """Makes an assignment of several values one of each."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST | list[ast.stmt]:
        """Return the assignments, if none of them changes what a later one reads."""
        if not (isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)):
            return node
        single: list[ast.stmt] = []
        written: set[str] = set()
        for target, value in zip(node.targets[0].elts, node.value.elts, strict=True):
            if written & {name_of(one) for one in ast.walk(value) if isinstance(one, ast.Name)}:
                raise NotPortable(ast.unparse(node))
            written.add(name_of(target.value if isinstance(target, ast.Subscript) else target))
            single.append(ast.copy_location(ast.Assign([target], value), node))
        return single


def function_tree(text: str) -> ast.FunctionDef:
    """Return the tree of a function's source, with one target to an assignment."""
    tree: Any = ast.parse(text).body[0]
    return cast("ast.FunctionDef", _OneByOne().visit(tree))


Places = dict[str, list[list[tuple[int, int]]]]


def places_of(block: Block) -> Places:
    """Return where each name occurs: the blocks around it with the number of the statement in each."""
    found: Places = {}
    _find_places(block, [], found)
    return found


def _find_places(block: Block, path: list[tuple[int, int]], found: Places) -> None:
    for number, statement in enumerate(block):
        here = [*path, (id(block), number)]
        for inner in blocks_of(statement):
            _find_places(inner, here, found)
        for node in own_nodes(statement):
            if isinstance(node, ast.Name):
                found.setdefault(node.id, []).append(here)


def declarations_of(
    tree: ast.FunctionDef, places: Places, parameters: list[str]
) -> dict[tuple[int, int], list[str]]:
    """Return the variables by where they belong: in the innermost block that has all their places."""
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    counters = {name_of(node.target) for node in ast.walk(tree) if isinstance(node, ast.For)}
    found: dict[tuple[int, int], list[str]] = {}
    for variable in sorted(stored - counters - set(parameters)):
        paths = places[variable]
        depth = 0
        while all(len(path) > depth + 1 for path in paths) and len({path[depth] for path in paths}) == 1:
            depth += 1
        if len({path[depth][0] for path in paths}) > 1:
            depth -= 1
        block = paths[0][depth][0]
        found.setdefault((block, min(path[depth][1] for path in paths)), []).append(variable)
    return found
