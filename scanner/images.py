"""Image files, opened safely: the method's opener, for the service and for the desk.

The desk imports no module of the method itself.
"""

from finextract.errors import ImageError
from finextract.images import SUFFIXES, is_animated, open_image

__all__ = ["SUFFIXES", "ImageError", "is_animated", "open_image"]
