"""A file of JSON that belongs to a model."""

import json
from pathlib import Path
from typing import Any

from runtime.model.config import ModelError


def read_json(path: Path) -> Any:
    """Raises ModelError for a file that is not JSON, OSError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
