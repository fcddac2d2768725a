"""Data sets, held in memory as they are stored and drawn by index."""

from core.data.dataset import Batch, ImageData, ImageSource
from core.data.sources import SOURCES, DataConfig, load_data

__all__ = ["SOURCES", "Batch", "DataConfig", "ImageData", "ImageSource", "load_data"]
