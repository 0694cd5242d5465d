"""A file of JSON that belongs to a model."""

import json
from pathlib import Path
from typing import Any

from runtime.model.config import ModelError
from runtime.model.foreign import in_place_of


def read_json(path: Path) -> Any:
    """Raises FileNotFoundError where there is none, ModelError where it is no JSON or not read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if link := in_place_of(path):
            raise ModelError(f"{path} is {link}") from None
        raise
    except OSError as error:  # another account's, a folder
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {in_place_of(path) or error}") from None
