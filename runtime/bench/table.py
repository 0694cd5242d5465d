"""Numbers laid out for a person."""

from collections.abc import Sequence

from runtime.bench.figures import Spread


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns: the names of rows to the left, numbers to the right."""
    table = [list(map(str, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    )


def show(spread: Spread, digits: int) -> str:
    """Median and range; one number where there was one run."""
    median, least, most = spread
    if least == most:
        return f"{median:.{digits}f}"
    return f"{median:.{digits}f} [{least:.{digits}f}-{most:.{digits}f}]"
