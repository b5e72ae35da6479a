"""The compiled core: protocols, dispatch and the event loop.

The modules of this package are built from ``src/pyx/kongps/core``; the ``.pyi`` files beside
this one say what Python sees of them.
"""
