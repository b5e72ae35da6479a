"""The versions of this package."""

__version__ = "0.1.0"

# What compiled and native plugins are built against: the layouts and the PDK of the first, the
# C interface in include/kongps/plugin.h of the second. Raised when plugins must be built again.
PLUGIN_API = 1
