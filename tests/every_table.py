"""Rows in every table of a schema, made from its columns: a table or column that is added later has some too."""

import sqlalchemy as sa

ROWS = 3
"""In each table; one of them has NULL wherever that is allowed."""


def rows_of(table, older=None):
    """The rows of a table, by column. `older` has the names of the columns that an older schema has."""
    columns = [column for column in table.columns if older is None or column.name in older]
    return [{column.name: _value(column, number) for column in columns} for number in range(ROWS)]


def _value(column, number):
    if column.foreign_keys:
        (key,) = column.foreign_keys
        return _value(key.column, number)
    if column.nullable and number == 0:
        return None
    kind = column.type
    if isinstance(kind, sa.JSON):
        return {"prompt": f"„{column.name}“ 🏠 \\u0000", "seed": 2**64 - 1, "strength": 0.1 + number, "loras": [None]}
    if isinstance(kind, sa.String):
        return f"{column.name} {number} ü🏠"[: kind.length]
    if isinstance(kind, sa.LargeBinary):
        return bytes(range(256)) * (1 + number)
    if isinstance(kind, sa.Boolean):
        return number % 2 == 1
    return (2**62 if isinstance(kind, sa.BigInteger) else 2**30) + number
