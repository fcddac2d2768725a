"""Speed of training, sampling and measuring, against diffusers and against bare loops."""
