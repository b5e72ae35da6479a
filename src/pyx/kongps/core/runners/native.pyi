from collections.abc import Callable

from kongps.core.dispatch.namespace import Namespace

def use_log_arguments(
    convert: Callable[[str, tuple[object, ...]], tuple[object, ...]],
) -> None: ...

class NativeHandler:
    def __init__(self, function: int, instance: int, owner: object) -> None: ...
    def __call__(self, kong: Namespace) -> None: ...
