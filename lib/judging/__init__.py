"""Stage 08: answers scored and compared by judges, every verdict accounted for."""

from importlib import import_module


def _import_inspect() -> None:
    """Import Inspect and what it runs on before anything else of this package.

    nnsight gives every object a method ``save``, on which parts of anyio cannot be imported; it is taken off meanwhile.
    """
    mounted = hasattr(object, "save")
    if mounted:
        import_module("nnsight._c").unmount("save")
    try:
        for name in ("anyio._backends._asyncio", "inspect_ai"):
            import_module(name)
    finally:
        if mounted:
            import_module("nnsight._c").mount(import_module("nnsight").save, "save")


_import_inspect()
