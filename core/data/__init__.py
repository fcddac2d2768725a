"""Data sets, held in memory as uint8 and drawn by index."""

from core.data.dataset import Batch, ImageData, draw_batch
from core.data.sources import SOURCES, load_data

__all__ = ["SOURCES", "Batch", "ImageData", "draw_batch", "load_data"]
