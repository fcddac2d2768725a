"""Images as the data set that torch-fidelity reads."""

from __future__ import annotations

from torch.utils.data import Dataset


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]
