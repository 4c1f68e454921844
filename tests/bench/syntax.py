"""What the translation asks of Python's syntax trees."""

import ast
from collections.abc import Iterator

Block = list[ast.stmt]


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
