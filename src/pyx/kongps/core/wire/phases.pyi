from typing import Final

PHASE_NAMES: Final[tuple[str, ...]]
