"""The deterministic map at work, and samples that are stopped and changed on their way."""

from core.sampling.editing.between import spherical
from core.sampling.editing.encode import check_encodes, decode, encode
from core.sampling.editing.inpaint import inpaint
from core.sampling.editing.partway import switch, vary

__all__ = ["check_encodes", "decode", "encode", "inpaint", "spherical", "switch", "vary"]
